"""Learns to draw digits: a small U-net takes noise away from pictures, step by step. `python -m models.unet.train`

The digits are drawn by `models.digits`: synthetic data. Source: denoising diffusion, Ho et al. 2020; the schedule is that of
Nichol & Dhariwal 2021.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import flamert as fr
from models import command
from models.digits import digits
from models.unet.make import make

STEPS = 200
"""Steps from a picture to noise."""

KEPT = np.cos((np.arange(STEPS + 1) / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2
KEPT = (KEPT / KEPT[0]).astype(np.float32)
"""The picture's share of the variance after so many steps: from 1 to 0."""


class Noisy:
    """Batches of pictures with noise, how many steps of noise, and the noise; other noise in every epoch."""

    def __init__(self, pictures: np.ndarray, batch_size: int, seed: int) -> None:
        self.pictures, self.batch_size, self.seed, self.epoch = pictures, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.pictures) // self.batch_size

    def __iter__(self) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.pictures))
        for i in range(len(self)):
            pictures = self.pictures[order[i * self.batch_size : (i + 1) * self.batch_size]]
            noise = rng.standard_normal(pictures.shape, np.float32)
            time = rng.integers(1, STEPS + 1, len(pictures))
            kept = KEPT[time].reshape(-1, 1, 1, 1)
            yield {"image": np.sqrt(kept) * pictures + np.sqrt(1 - kept) * noise, "time": time}, noise


def sample(model: fr.Model, count: int, seed: int) -> np.ndarray:
    """Pictures made of nothing but noise: at each step, what is left of the noise is guessed anew."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, *model.inputs[0].shape[1:]), np.float32)
    for t in range(STEPS, 0, -1):
        kept, before = KEPT[t], KEPT[t - 1]
        noise = model(x, np.full(count, t))
        picture = np.clip((x - math.sqrt(1 - kept) * noise) / math.sqrt(max(kept, 1e-4)), -1, 1)
        share = 1 - kept / before
        mean = (math.sqrt(before) * share * picture + math.sqrt(kept / before) * (1 - before) * x) / (1 - kept)
        deviation = math.sqrt(share * (1 - before) / (1 - kept))
        x = (mean + deviation * rng.standard_normal(x.shape)).astype(np.float32)
    return x


def write_png(path: str, pictures: np.ndarray, columns: int, scale: int = 4) -> None:
    """Pictures [count, 1, side, side] from −1 to 1 in rows of `columns`, as one grey PNG."""
    side = pictures.shape[-1]
    sheet = pictures.reshape(-1, columns, side, side).swapaxes(1, 2).reshape(-1, columns * side)
    grey = np.kron(np.clip((sheet + 1) * 127.5, 0, 255).astype(np.uint8), np.ones((scale, scale), np.uint8))
    rows = b"".join(b"\0" + row.tobytes() for row in grey)
    header = struct.pack(">2I5B", *grey.shape[::-1], 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks]
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def main() -> None:
    args = command.arguments(__doc__ or "", "unet", epochs=14)
    batches = Noisy(digits(8192, 12, seed=args.seed)[0], 64, args.seed)
    validation = Noisy(digits(1024, 12, seed=args.seed + 1)[0], 256, args.seed + 1)
    model = fr.load(make("digits", args.seed), device=args.device)
    rate = fr.optim.warmup_cosine(2e-3, 100, args.epochs * len(batches))
    trainer = fr.Trainer(model, "mse", fr.optim.Adam(lr=rate), clip_norm=1.0, ema=0.995, seed=args.seed)
    command.train(trainer, batches, list(validation), args, title="unet: noise in digits")
    picture = str(Path(args.curve).with_suffix(".png"))
    write_png(picture, sample(fr.load(args.output, device=args.device), 40, args.seed), columns=10)
    print(f"wrote {picture}: digits that the network drew")


if __name__ == "__main__":
    main()
