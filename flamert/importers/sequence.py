"""Converters of sequences and optionals. A sequence is a list of Entries while importing; an empty optional is None."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.errors import InvalidModel, ShapeError
from flamert.graph import Value
from flamert.importers.blocks import pieces
from flamert.importers.registry import Context, Entry, Opaque, converter
from flamert.ops.rules import axis_in


class Items:
    """A run-time sequence whose length is no part of any signature: one that grows from turn to turn of a loop."""

    __slots__ = ("elements",)

    def __init__(self, elements: list[Any]) -> None:
        self.elements = elements


def elements(xs: list[Any] | Items) -> list[Any]:
    """The elements of a run-time sequence of either kind."""
    return xs.elements if isinstance(xs, Items) else xs


def grown(xs: list[Any] | Items, new: list[Any]) -> list[Any] | Items:
    """`new`, as a sequence of the same kind as xs."""
    return Items(new) if isinstance(xs, Items) else new


def of_unknown_length(entry: Entry) -> bool:
    """Whether an Entry is a sequence that only host steps can look into."""
    return isinstance(entry, Opaque) and entry.kind == Items.__name__


def sequence(ctx: Context, entry: Entry) -> list[Entry]:
    """The elements of a sequence of known length. Raises InvalidModel for anything else."""
    if not isinstance(entry, list):
        raise InvalidModel(f"{ctx.node.op_type} takes a sequence, got {'nothing' if entry is None else entry}")
    return entry


def _index(position: Any, length: int) -> int:
    """A position counted from the front. Raises ShapeError outside [-length, length)."""
    at = int(np.asarray(position).item())
    if not -length <= at < length:
        raise ShapeError(f"position {at} is outside a sequence of {length}")
    return at % length


@converter("SequenceConstruct", 11, strings=True)
def _(ctx: Context, *xs: Entry) -> Any:
    return [list(xs)]


@converter("SequenceEmpty", 11, strings=True)
def _(ctx: Context, *, dtype: int = 1) -> Any:
    return [[]]


@converter("SequenceLength", 11, strings=True)
def _(ctx: Context, items: Entry) -> Value:
    if of_unknown_length(items):
        return ctx.host(lambda xs: [np.array(len(elements(xs)), np.int64)], items)
    return g.constant(np.array(len(sequence(ctx, items)), np.int64))


@converter("SequenceAt", 11, strings=True)
def _(ctx: Context, items: Entry, position: Value) -> Any:
    def picked(xs: Any, at: np.ndarray) -> list[Any]:
        return [elements(xs)[_index(at, len(elements(xs)))]]

    at = ctx.known(position)
    if at is None or of_unknown_length(items):
        return ctx.host(picked, items, position)
    return picked(sequence(ctx, items), at)


@converter("SequenceErase", 11, strings=True)
def _(ctx: Context, items: Entry, position: Value | None = None) -> Any:
    def erased(xs: Any, at: Any) -> list[Any]:
        old = elements(xs)
        i = _index(-1 if at is None else at, len(old))
        return [grown(xs, [*old[:i], *old[i + 1 :]])]

    at = ctx.known(position)
    if of_unknown_length(items) or (position is not None and at is None):
        return ctx.host(erased, items, position)
    return erased(sequence(ctx, items), at)


@converter("SequenceInsert", 11, strings=True)
def _(ctx: Context, items: Entry, x: Entry, position: Value | None = None) -> Any:
    def inserted(xs: Any, x: Any, at: Any) -> list[Any]:
        old = elements(xs)
        i = len(old) if at is None else int(at.item())
        if not -len(old) <= i <= len(old):
            raise ShapeError(f"position {i} is outside a sequence of {len(old)}")
        i = i if i >= 0 else i + len(old)
        return [grown(xs, [*old[:i], x, *old[i:]])]

    at = ctx.known(position)
    if of_unknown_length(items) or (position is not None and at is None):
        return ctx.host(inserted, items, x, position)
    return inserted(sequence(ctx, items), x, at)


@converter("SplitToSequence", 11, strings=True)
def _(ctx: Context, x: Value, split: Value | None = None, *, axis: int = 0, keepdims: int = 1) -> Any:
    axis = axis_in(axis, x.rank)
    whole = x.shape[axis]
    if split is None:
        sizes: Sequence[int] = [1] * whole
    elif split.rank == 0:
        (size,) = ctx.ints(split) or (0,)
        if size <= 0:
            raise ShapeError(f"parts of {size} elements")
        sizes = [min(size, whole - start) for start in range(0, whole, size)]
    else:
        sizes = ctx.ints(split) or ()
    if sum(sizes) != whole or min(sizes, default=0) < 0:
        raise ShapeError(f"parts of {list(sizes)} do not make up a dimension of {whole}")
    drop = split is None and not keepdims
    if x.dtype.hasobject:
        ends = np.cumsum(sizes)[:-1].tolist()
        return ctx.host(lambda a: [[p.squeeze(axis) if drop else p for p in np.split(a, ends, axis) if sizes]], x)
    parts = pieces(x, axis, sizes)
    return [[ops.reshape(p, shape=p.shape[:axis] + p.shape[axis + 1 :]) for p in parts] if drop else parts]


@converter("ConcatFromSequence", 11, strings=True)
def _(ctx: Context, items: Entry, *, axis: int, new_axis: int = 0) -> Any:
    if of_unknown_length(items):
        join = np.stack if new_axis else np.concatenate
        return ctx.host(lambda xs: [join(elements(xs), axis)], items)
    xs = sequence(ctx, items)
    if not xs:
        raise ShapeError("ConcatFromSequence of an empty sequence")
    at = axis_in(axis, xs[0].rank + bool(new_axis))
    if xs[0].dtype.hasobject:
        return ctx.host(lambda arrays: [(np.stack if new_axis else np.concatenate)(arrays, at)], xs)
    if new_axis:
        xs = [ops.reshape(x, shape=(*x.shape[:at], 1, *x.shape[at:])) for x in xs]
    return xs[0] if len(xs) == 1 else ops.concat(*xs, axis=at)


@converter("Optional", 15, strings=True)
def _(ctx: Context, x: Entry = None, *, type: Any = None) -> Any:
    return [x]


@converter("OptionalHasElement", 15, strings=True)
def _(ctx: Context, x: Entry = None) -> Value:
    return g.constant(np.array(x is not None))


@converter("OptionalGetElement", 15, strings=True)
def _(ctx: Context, x: Entry = None) -> Any:
    if x is None:
        raise InvalidModel("OptionalGetElement of an empty optional")
    return [x]
