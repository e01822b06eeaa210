"""What happened in training: losses step by step, summaries of epochs, and a picture of both."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flamert.errors import InputError
from flamert.files import write_files
from flamert.training.scalar import Scalar

Row = dict[str, float]
"""A summary of an epoch: epoch, step, loss, lr, examples_per_s; with validation val_loss and val_<metric>."""


class History:
    """losses: one for each batch. epochs: a Row for each epoch that was finished."""

    def __init__(self, losses: Sequence[float] = (), epochs: Sequence[Row] = ()) -> None:
        self._losses = list(losses)
        self._unread: list[Scalar] = []
        self.epochs = list(epochs)

    @property
    def losses(self) -> list[float]:
        """The losses of all batches so far, read from the device if need be."""
        self.flush()
        return self._losses

    def add(self, loss: Scalar) -> None:
        """One more batch's loss, which stays where it is for now."""
        self._unread.append(loss)

    def __len__(self) -> int:
        return len(self._losses) + len(self._unread)

    def flush(self) -> list[float]:
        """Read what has not been read, all at once; returns it."""
        unread, self._unread = self._unread, []
        fresh = Scalar.read_all(unread)
        self._losses += fresh
        return fresh

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """(batches seen, values) of a column of `epochs`."""
        rows = [row for row in self.epochs if name in row]
        return [row["step"] for row in rows], [row[name] for row in rows]

    def plot(self, path: str | os.PathLike[str], title: str = "") -> None:
        """Write a picture of loss and validation loss over batches. A path in .svg needs nothing, others matplotlib."""
        losses = self.losses
        every = max(1, len(losses) // 200)
        means = [float(np.mean(losses[i : i + every])) for i in range(0, len(losses), every)]
        at = [float(min(i + every, len(losses))) for i in range(0, len(losses), every)]
        curves = {"loss": (at, means), "validation loss": self.series("val_loss")}
        curves = {name: curve for name, curve in curves.items() if curve[0]}
        if os.fspath(path).lower().endswith(".svg"):
            from flamert.training.plot import picture

            folder, name = os.path.split(os.path.abspath(os.fspath(path)))
            write_files(folder, {name: [picture(curves, "batches", title).encode()]})
        else:
            _with_matplotlib(curves, path, title)

    def __repr__(self) -> str:
        last = f", last {self.epochs[-1]}" if self.epochs else ""
        return f"<History of {len(self)} batches, {len(self.epochs)} epochs{last}>"


def _with_matplotlib(curves: Mapping[str, Any], path: str | os.PathLike[str], title: str) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(
            f"{os.fspath(path)!r}: without matplotlib only .svg can be drawn; install flamert[plot], or name it .svg"
        ) from None
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, (x, y) in curves.items():
        axes.plot(x, y, label=name)
    axes.set(xlabel="batches", title=title)
    axes.legend()
    figure.savefig(path)
