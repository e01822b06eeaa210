"""Tells kinds of files apart by how often each byte occurs in 512 of them: real files of this Python installation.

`python -m models.mlp.train`. Files are split by the package they belong to: no package is both learnt from and judged by.
"""

from __future__ import annotations

import os
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import flamert as fr
from models import command
from models.mlp.make import make

KINDS = {
    "Python": (".py",),
    "stubs": (".pyi",),
    "bytecode": (".pyc",),
    "machine code": (".so", ".pyd", ".dll", ".dylib"),
    "C": (".c", ".h", ".cc", ".cpp", ".hpp"),
    "prose": (".txt", ".rst", ".md", "LICENSE", "METADATA"),
}
BLOCK = 512
ROWS = 4000
"""Blocks of each kind to learn from; a quarter as many to be judged by."""


def files() -> Iterator[tuple[str, int, Path]]:
    """(package, kind, path) of files of the standard library, of packages installed, and of C headers that come with Python."""
    kind_of = {ending: i for i, endings in enumerate(KINDS.values()) for ending in endings}
    places = sysconfig.get_paths()
    for root in sorted({Path(places[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib", "include")}):
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(f for f in folders if f not in ("site-packages", "dist-packages"))
            inner = Path(folder).relative_to(root).parts
            for name in sorted(names):
                kind = kind_of.get(os.path.splitext(name)[1].lower(), kind_of.get(name))
                if kind is not None:
                    yield (inner[0] if inner else name).split("-")[0].lower(), kind, Path(folder, name)


def blocks(packages: list[list[Path]], count: int, rng: np.random.Generator) -> np.ndarray:
    """Square roots of the counts of all bytes in `count` blocks, as many of each package: float32 [count, 256]."""
    rows = []
    for i in range(count if packages else 0):
        paths = packages[i % len(packages)]
        with open(paths[rng.integers(len(paths))], "rb") as file:
            file.seek(int(rng.integers(file.seek(0, 2) - BLOCK + 1)))
            rows.append(np.sqrt(np.bincount(np.frombuffer(file.read(BLOCK), np.uint8), minlength=256)))
    return np.array(rows, np.float32).reshape(-1, 256)


def data(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows, kinds) to learn from, and to be judged by: those of every fourth package or so."""
    found: dict[tuple[bool, int], dict[str, list[Path]]] = {}
    for package, kind, path in files():
        if os.access(path, os.R_OK) and path.stat().st_size >= BLOCK:
            held = zlib.crc32(package.encode()) % 4 == 0
            found.setdefault((held, kind), {}).setdefault(package, []).append(path)
    parts = []
    for held, count in ((False, ROWS), (True, ROWS // 4)):
        rng = np.random.default_rng((seed, held))
        rows = [blocks(list(found.get((held, kind), {}).values()), count, rng) for kind in range(len(KINDS))]
        parts.append((np.concatenate(rows), np.repeat(np.arange(len(KINDS)), [len(r) for r in rows])))
    return parts


def main() -> None:
    args = command.arguments(__doc__ or "", "mlp", epochs=8)
    learnt, held = data(args.seed)
    batches, validation = fr.Batches(*learnt, 128, seed=args.seed), fr.Batches(*held, 512, shuffle=False)
    print(f"{len(learnt[0]):,} blocks to learn from, {len(held[0]):,} of other packages to be judged by")
    model = fr.load(make("files", args.seed), device=args.device)
    rate = fr.optim.cosine(1e-3, args.epochs * len(batches))
    trainer = fr.Trainer(model, "cross_entropy", fr.optim.AdamW(lr=rate, weight_decay=0.05), seed=args.seed)
    command.train(trainer, batches, validation, args, title="mlp: kinds of files", metrics=["accuracy"])
    rows, kinds = held
    right = model(rows).argmax(1) == kinds
    for i, name in enumerate(KINDS):
        print(
            f"{name:>12}: {right[kinds == i].mean():.1%} of {np.sum(kinds == i)} blocks" if i in kinds else f"{name}: none here"
        )


if __name__ == "__main__":
    main()
