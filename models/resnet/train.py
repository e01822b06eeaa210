"""Reads digits through noise with a small residual network. `python -m models.resnet.train`

The digits are drawn by `models.digits`, every picture anew: synthetic data.
"""

from __future__ import annotations

import flamert as fr
from models import command
from models.digits import digits
from models.resnet.make import make

NOISE = 0.7


def main() -> None:
    args = command.arguments(__doc__ or "", "resnet", epochs=4)
    batches = fr.Batches(*digits(8192, 16, noise=NOISE, seed=args.seed), 64, seed=args.seed)
    validation = fr.Batches(*digits(2048, 16, noise=NOISE, seed=args.seed + 1), 256, shuffle=False)
    model = fr.load(make("digits", args.seed), device=args.device)
    rate = fr.optim.one_cycle(0.2, args.epochs * len(batches))
    optimizer = fr.optim.SGD(lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    trainer = fr.Trainer(model, "cross_entropy", optimizer, seed=args.seed)
    command.train(trainer, batches, validation, args, title="resnet: digits in noise", metrics=["accuracy"])


if __name__ == "__main__":
    main()
