"""Command lines that all families share: `make.py` writes a network's file, `train.py` trains one and keeps it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flamert as fr
from models.building import OPSET, Network


def make(build: Callable[..., Network], configurations: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the network that `build` makes of one of these configurations to a file."""
    parser = argparse.ArgumentParser(description=(build.__doc__ or "").strip().splitlines()[0])
    parser.add_argument("path", help="the file to write")
    parser.add_argument("--size", choices=list(configurations), default=next(iter(configurations)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--opset", type=int, default=OPSET)
    parser.add_argument("--weights", help="a safetensors file with parameters of these names to start from")
    parser.add_argument("--external-data", action="store_true", help="put parameters into a file of their own")
    args = parser.parse_args()
    network = build(**configurations[args.size], seed=args.seed)
    network.save(args.path, args.opset, weights=args.weights, external_data=args.external_data or "auto")
    print(f"{args.path}: {network.size:,} parameters")


def arguments(about: str, name: str, epochs: int) -> argparse.Namespace:
    """What a `train.py` is told: epochs, seed, device, and the files to write."""
    parser = argparse.ArgumentParser(description=about.strip().splitlines()[0])
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda or cuda:N")
    parser.add_argument("-o", "--output", default=f"{name}.onnx", help="the trained model (default %(default)s)")
    parser.add_argument("--curve", default=f"{name}.svg", help="a picture of the losses (default %(default)s)")
    return parser.parse_args()


def train(
    trainer: fr.Trainer,
    batches: Iterable[Any],
    validation: Iterable[Any],
    args: argparse.Namespace,
    *,
    title: str,
    metrics: Iterable[Any] = (),
) -> fr.History:
    """Fit, say how good the model has become, and write model and curve."""
    print("before:", _shown(trainer.evaluate(validation, list(metrics))), flush=True)
    history = trainer.fit(batches, epochs=args.epochs, validation=validation, metrics=list(metrics), callbacks=[Said()])
    trainer.export(args.output)
    history.plot(args.curve, title)
    print(f"wrote {args.output} and {args.curve}")
    return history


class Said(fr.Callback):
    """A line for each epoch."""

    def on_epoch(self, trainer: fr.Trainer, row: dict[str, float]) -> None:
        print(
            f"epoch {row['epoch']:g}:",
            _shown({k: v for k, v in row.items() if "loss" in k or k.startswith("val_")}),
            flush=True,
        )


def _shown(means: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in means.items())
