"""Exporters of views and of ops that move whole blocks: shapes become constant inputs."""

from __future__ import annotations

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.exporters.registry import exporter, plain, spelled
from flamert.exporters.writer import Writer
from flamert.graph import Value

Dims = tuple[int, ...]


def dims(numbers: Dims | list[int]) -> np.ndarray:
    """Numbers as the integer input that ONNX takes them by."""
    return np.array(numbers, np.int64)


plain(ops.transpose, "Transpose")
plain(ops.concat, "Concat")


@exporter(ops.reshape)
def _(to: Writer, x: Value, *, shape: Dims) -> str:
    if shape == x.shape:
        return to.name_of(x)
    return to("Reshape", x, dims(shape), allowzero=1 if 0 in shape else None)


@exporter(ops.expand)
def _(to: Writer, x: Value, *, shape: Dims) -> str:
    return to.name_of(x) if shape == x.shape else to("Expand", x, dims(shape))


@exporter(ops.OPS["slice"])
def _(to: Writer, x: Value, *, starts: Dims, sizes: Dims, steps: Dims) -> str:
    axes = [i for i, d in enumerate(x.shape) if (starts[i], sizes[i], steps[i]) != (0, d, 1)]
    if not axes:
        return to.name_of(x)
    # An end before the first element is one that is still negative once the dimension has been added to it.
    ends = [e if (e := starts[i] + sizes[i] * steps[i]) >= 0 else e - x.shape[i] - 1 for i in axes]
    ends = [end if sizes[i] else starts[i] for i, end in zip(axes, ends, strict=True)]
    return to("Slice", x, dims([starts[i] for i in axes]), dims(ends), dims(axes), dims([steps[i] for i in axes]))


@spelled(ops.unslice)
def _(x: Value, *, shape: Dims, starts: Dims, steps: Dims) -> Value:
    """Steps backwards are undone, gaps filled with zeros, and zeros put around."""
    size, rank = x.shape, x.rank
    if 0 in size:
        return ops.expand(g.constant(np.zeros((), x.dtype)), shape=shape)
    firsts = tuple(a if s > 0 else a + (n - 1) * s for a, n, s in zip(starts, size, steps, strict=True))
    if any(s < 0 for s in steps):
        backwards = tuple(n - 1 if s < 0 else 0 for n, s in zip(size, steps, strict=True))
        x = ops.slice(x, starts=backwards, sizes=size, steps=tuple(-1 if s < 0 else 1 for s in steps))
    gaps = tuple(abs(s) if n > 1 else 1 for n, s in zip(size, steps, strict=True))
    spread = tuple((n - 1) * gap + 1 for n, gap in zip(size, gaps, strict=True))
    if any(gap > 1 for gap in gaps):
        x = ops.reshape(x, shape=tuple(k for n in size for k in (n, 1)))
        x = ops.pad(x, pads=(0,) * (2 * rank) + tuple(k for gap in gaps for k in (0, gap - 1)))
        x = ops.reshape(x, shape=tuple(n * gap for n, gap in zip(size, gaps, strict=True)))
        x = ops.slice(x, starts=(0,) * rank, sizes=spread, steps=(1,) * rank)
    behind = tuple(d - first - n for d, first, n in zip(shape, firsts, spread, strict=True))
    return ops.pad(x, pads=firsts + behind)


@exporter(ops.tile)
def _(to: Writer, x: Value, *, repeats: Dims) -> str:
    return to("Tile", x, dims(repeats))


@exporter(ops.pad)
def _(to: Writer, x: Value, value: Value | None = None, *, pads: Dims) -> str:
    if not any(pads):
        return to.name_of(x)
    if value is None:
        return to("Pad", x, dims(pads))
    return to("Pad", x, dims(pads), to("Reshape", value, dims([])) if value.rank else value)
