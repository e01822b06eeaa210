"""Reads digits through noise with a small vision transformer. `python -m models.vit.train`

The digits are drawn by `models.digits`, every picture anew: synthetic data.
"""

from __future__ import annotations

import flamert as fr
from models import command
from models.digits import digits
from models.vit.make import make

NOISE = 0.7


def main() -> None:
    args = command.arguments(__doc__ or "", "vit", epochs=8)
    batches = fr.Batches(*digits(16384, 16, noise=NOISE, seed=args.seed), 64, seed=args.seed)
    validation = fr.Batches(*digits(2048, 16, noise=NOISE, seed=args.seed + 1), 256, shuffle=False)
    model = fr.load(make("digits", args.seed), device=args.device)
    steps = args.epochs * len(batches)
    optimizer = fr.optim.AdamW(lr=fr.optim.warmup_cosine(2e-3, steps // 10, steps), weight_decay=0.05)
    trainer = fr.Trainer(model, "cross_entropy", optimizer, clip_norm=1.0, seed=args.seed)
    command.train(trainer, batches, validation, args, title="vit: digits in noise", metrics=["accuracy"])


if __name__ == "__main__":
    main()
