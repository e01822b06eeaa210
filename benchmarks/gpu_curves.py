"""Training curves in bfloat16 on an NVIDIA GPU: here and under PyTorch's autocast, from the same weights, on the same batches.

    python -m benchmarks.gpu_curves [--only bert|resnet50] [--steps 200] [--json FILE] [--png FILE]

The data is made up, and can be learnt: token sequences in which one of two sets of words is the more frequent, and images of
fixed patterns under noise. One label in ten is drawn at random, so that no loss goes to zero and relative differences mean
something. PyTorch in float32 (TF32) takes part as a yardstick: how far bfloat16 alone carries a curve away.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu_networks import NETWORKS, Network, exported, our_loss, torch_loss

WINDOW = 10
"""Steps that are averaged before curves are compared, and between two lines of the table."""

WARMUP = 40
"""Steps in which the learning rate rises from nothing: without, curves of one network leave each other by rounding alone."""

WRONG = 0.1
"""How many labels say nothing."""

Batch = tuple[np.ndarray, np.ndarray]


class Course(NamedTuple):
    """A network and what it is taught: batch number → inputs and labels. lr: the learning rate behind the warm-up."""

    network: Network
    batch: Callable[[int], Batch]
    lr: float


def words(step: int, batch: int = 32, length: int = 128, each: int = 1000) -> Batch:
    """Sequences of words of two sets; the label says which set two of three words are from."""
    rng = np.random.default_rng((1, step))
    labels = rng.integers(0, 2, batch)
    usual = rng.random((batch, length)) < 2 / 3
    ids = rng.integers(0, each, (batch, length)) + each * np.where(usual, labels[:, None], 1 - labels[:, None])
    return ids, _partly_wrong(rng, labels, 2)


def patterns(step: int, batch: int = 64, classes: int = 20, side: int = 224) -> Batch:
    """Images that are noise over one of a few coarse patterns each."""
    coarse = np.random.default_rng(2).standard_normal((classes, 3, 7, 7)).astype(np.float32)
    rng = np.random.default_rng((3, step))
    labels = rng.integers(0, classes, batch)
    images = coarse[labels].repeat(side // 7, 2).repeat(side // 7, 3)
    images += rng.standard_normal(images.shape, np.float32)
    return images, _partly_wrong(rng, labels, classes)


def _partly_wrong(rng: np.random.Generator, labels: np.ndarray, classes: int) -> np.ndarray:
    return np.where(rng.random(len(labels)) < WRONG, rng.integers(0, classes, len(labels)), labels)


COURSES = {
    "bert": Course(NETWORKS["bert-base s128"], words, 5e-5),
    "resnet50": Course(NETWORKS["resnet50"], patterns, 0.02),
}


def main() -> None:
    options = _arguments().parse_args()
    warnings.filterwarnings("ignore")
    found = []
    for name in options.only or COURSES:
        course = COURSES[name] if options.lr is None else COURSES[name]._replace(lr=options.lr)
        curves = trained(course, options.steps)
        found.append({"network": name, "curves": curves, "apart": differences(curves)})
        show(found[-1])
        if options.json:
            Path(options.json).write_text(json.dumps(found, indent=1))
    if options.png:
        draw(found, options.png)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(COURSES), help="repeatable; default all")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, help="learning rate, of all; default each network's own")
    parser.add_argument("--json", help="file for all losses")
    parser.add_argument("--png", help="file for a picture, if matplotlib is there")
    return parser


def trained(course: Course, steps: int) -> dict[str, list[float]]:
    """The losses of every runtime, which take turns step by step."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    first = torch.from_numpy(course.batch(0)[0])
    learners = {
        "flamert bf16": _ours(course, first),
        "torch bf16": _torchs(course, torch.bfloat16),
        "torch fp32": _torchs(course, None),
    }
    curves: dict[str, list[float]] = {name: [] for name in learners}
    for i in range(steps):
        batch = course.batch(i)
        for name, learn in learners.items():
            curves[name].append(learn(*batch))
    return curves


def _module(course: Course) -> Any:
    import torch

    torch.manual_seed(0)
    module = course.network.make().train()
    for name, weight in module.named_parameters():
        if name.endswith("bn3.weight"):  # residual blocks start as nothing, as Goyal et al. 2017 have it
            torch.nn.init.zeros_(weight)
    return module


def _ours(course: Course, first: Any) -> Callable[..., float]:
    import flamert as fr

    model = fr.load(exported(_module(course), (first,), True), device="cuda", allow_tf32=True)
    rate = fr.optim.linear(0.0, WARMUP, course.lr)
    optimizer = fr.optim.AdamW(rate) if course.network.adaptive else fr.optim.SGD(rate, momentum=0.9)
    trainer = fr.Trainer(model, our_loss(course.network), optimizer, precision="bf16")
    return lambda x, labels: float(trainer.step(x, labels))


def _torchs(course: Course, half: Any) -> Callable[..., float]:
    import torch

    module = _module(course).cuda()
    if course.network.adaptive:
        optimizer: Any = torch.optim.AdamW(module.parameters(), course.lr, fused=True)
    else:
        optimizer = torch.optim.SGD(module.parameters(), course.lr, momentum=0.9, fused=True)

    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / WARMUP, 1.0))

    def learn(x: np.ndarray, labels: np.ndarray) -> float:
        with torch.autocast("cuda", half or torch.bfloat16, enabled=half is not None):
            y = module(torch.from_numpy(x).cuda())
            loss = torch_loss(course.network, y, torch.from_numpy(labels).cuda())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        rate.step()
        return float(loss)

    return learn


def means(curve: list[float]) -> np.ndarray:
    """Moving means."""
    return np.convolve(curve, np.full(min(WINDOW, len(curve)), 1 / min(WINDOW, len(curve))), "valid")


def differences(curves: dict[str, list[float]]) -> dict[str, float]:
    """The largest relative difference of moving means, to PyTorch's autocast."""
    wanted = means(curves["torch bf16"])
    others = {name: means(curve) for name, curve in curves.items() if name != "torch bf16"}
    return {name: float(np.max(np.abs(found - wanted) / wanted)) for name, found in others.items()}


def show(row: dict[str, Any]) -> None:
    """Both curves, and how far they come apart."""
    curves = row["curves"]
    print(f"{row['network']}: means of {WINDOW} steps")
    print("  ".join(["step", *[f"{name:>12}" for name in curves]]))
    for i in range(0, len(curves["torch bf16"]), WINDOW):
        print(
            "  ".join([f"{i:4d}", *[f"{math.fsum(c[i : i + WINDOW]) / len(c[i : i + WINDOW]):12.5f}" for c in curves.values()]])
        )
    for name, apart in row["apart"].items():
        print(f"largest relative difference of the moving means of {name} and torch bf16: {apart:.2%}")


def draw(found: list[dict[str, Any]], path: str) -> None:
    """The moving means as a picture."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not there: no picture", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(6 * len(found), 4), squeeze=False)
    for ax, row in zip(axes[0], found, strict=True):
        for name, curve in row["curves"].items():
            ax.plot(means(curve), label=name, linewidth=1)
        ax.set(title=row["network"], xlabel="step", ylabel=f"loss, mean of {WINDOW} steps")
        ax.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
