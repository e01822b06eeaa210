"""Exporters of ops that read or write elements by index."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import UnsupportedOp
from flamert.exporters.registry import exporter, plain, spelled
from flamert.exporters.writer import Writer
from flamert.graph import Value
from flamert.ops.op import Op

WIDE = (dtypes.int32, dtypes.int64)


def _by_index(op: Op, op_type: str) -> None:
    """An op whose second operand holds indices; those of types that ONNX does not take are cast."""
    plain(op, op_type)

    @spelled(op)
    def _(x: Value, indices: Value, *rest: Value, **attrs: Any) -> Value:
        if indices.dtype == dtypes.int64:
            raise UnsupportedOp(f"{op_type} does not take {x.dtype.name} in this opset")
        return op(x, ops.cast(indices, to=dtypes.int64), *rest, **attrs)


_by_index(ops.gather, "Gather")
_by_index(ops.gather_elements, "GatherElements")
_by_index(ops.gather_nd, "GatherND")
_by_index(ops.scatter_elements, "ScatterElements")
_by_index(ops.scatter_nd, "ScatterND")


@exporter(ops.one_hot)
def _(to: Writer, indices: Value, values: Value, *, depth: int, axis: int) -> Any:
    if not indices.rank:
        return None  # ONNX asks for an axis at least
    return to("OneHot", indices, np.array(depth, np.int64), values, axis=axis)


@exporter(ops.trilu)
def _(to: Writer, x: Value, *, k: int, upper: bool) -> Any:
    return to("Trilu", x, np.array(k, np.int64), upper=upper)


@spelled(ops.reverse_sequence)
def _(x: Value, lengths: Value, *, time_axis: int, batch_axis: int) -> Value:
    """Each place looks up where its element comes from; ONNX's op wants its axes first."""
    steps, axes = x.shape[time_axis], {time_axis, batch_axis}
    shape = tuple(d if i in axes else 1 for i, d in enumerate(x.shape))
    t = np.arange(steps).reshape([-1 if i == time_axis else 1 for i in range(x.rank)])
    count = ops.reshape(
        ops.cast(lengths, to=dtypes.int64), shape=tuple(d if i == batch_axis else 1 for i, d in enumerate(shape))
    )
    place = g.constant(t.astype(np.int64))
    at = ops.where(place < count, count - 1 - place, place)
    return ops.gather_elements(x, ops.expand(at, shape=x.shape), axis=time_axis)


@spelled(ops.tensor_scatter)
def _(cache: Value, update: Value, write_indices: Value | None = None, *, axis: int, circular: bool) -> Value:
    """The places that are written to, as indices along the axis."""
    axis %= cache.rank
    steps = np.arange(update.shape[axis]).reshape([-1 if i == axis else 1 for i in range(cache.rank)]).astype(np.int64)
    at = g.constant(steps)
    if write_indices is not None:
        starts = ops.cast(write_indices, to=dtypes.int64)
        at = at + ops.reshape(starts, shape=(cache.shape[0], *[1] * (cache.rank - 1)))
    if circular:
        at = ops.mod(at, cache.shape[axis])
    return ops.scatter_elements(cache, ops.expand(at, shape=update.shape), update, axis=axis)
