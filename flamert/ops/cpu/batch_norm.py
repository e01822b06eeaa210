"""Batch statistics and the gradient of batch normalization on the CPU, with channels first or last."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert.graph import Node, TensorType
from flamert.ops.batch_norm import batch_norm_gradient
from flamert.ops.cpu.library import library, native
from flamert.ops.op import Site, kernel
from flamert.ops.reduce import moments

CHUNK, FEWEST, MOST = 16384, 8, 512
"""Floats of a chunk of rows, and bounds for how many these are, as in batch_norm.h."""


def _around(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """Elements before, along and behind an axis."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _kept(node: Node) -> int | None:
    """The one axis that statistics are not over, if there is just one that has more than an element."""
    x = node.inputs[0]
    assert x is not None
    rest = [a for a in range(x.rank) if a not in {i % x.rank for i in node.attrs["axes"]} and x.shape[a] != 1]
    return rest[0] if len(rest) == 1 else None


def _chunks(outer: int, channels: int, inner: int) -> int:
    return -(-outer // min(max(CHUNK // channels, FEWEST), MOST)) if inner == 1 else 0


@kernel(
    moments,
    "numpy",
    when=native(lambda node: node.inputs[0].type.size > 0 and _kept(node) is not None),
    bind=True,
    contiguous=True,
    workspace=lambda node: (_partial(node.inputs[0].shape, _kept(node), 0),),
)
def _(site: Site, out: Any, x: Any, *, axes: tuple[int, ...]) -> Callable[[], None]:
    lib, axis = library(), _kept(site.node)
    assert lib is not None and axis is not None
    return lib.call("moments", [*out, x, *site.work], _around(x.shape, axis))


def _partial(shape: Sequence[int], axis: int | None, more: int) -> TensorType:
    """Two sums for each channel of each chunk, and `more` numbers for each channel."""
    assert axis is not None
    around = _around(shape, axis)
    return TensorType((around[1] * (2 * _chunks(*around) + more),), np.dtype(np.float32))


@kernel(
    batch_norm_gradient,
    "numpy",
    when=native(lambda node: node.inputs[0].type.size > 0),
    bind=True,
    contiguous=True,
    workspace=lambda node: (_partial(node.inputs[0].shape, node.attrs["axis"], 3),),
)
def _(
    site: Site, out: Any, dy: Any, x: Any, scale: Any, mean: Any, var: Any, *, axis: int, epsilon: float
) -> Callable[[], None]:
    lib = library()
    assert lib is not None
    return lib.call("batch_norm_gradient", [*out, dy, x, scale, mean, var, *site.work], _around(x.shape, axis), [epsilon])
