"""What type rules of several families say: broadcasting, one element type for all, axes within rank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flamert.errors import ShapeError, UnsupportedType
from flamert.graph import TensorType


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that these shapes broadcast to, by NumPy's rule. Raises ShapeError where they do not."""
    first = shapes[0]
    if all(s == first for s in shapes):
        return first
    rank = max(map(len, shapes))
    result = [1] * rank
    for shape in shapes:
        for i, d in enumerate(shape, rank - len(shape)):
            if d != 1:
                if result[i] not in (1, d):
                    raise ShapeError(f"shapes {' and '.join(str(list(s)) for s in shapes)} do not broadcast")
                result[i] = d
    return tuple(result)


def same_dtype(*types: TensorType) -> np.dtype:
    """The element type that all operands share. Raises UnsupportedType where they do not."""
    first = types[0].dtype
    for t in types[1:]:
        if t.dtype != first:
            raise UnsupportedType(f"element types differ: {', '.join(t.dtype.name for t in types)}")
    return first


def require(type: TensorType, allowed: Iterable[np.dtype], what: str) -> None:
    """Raise UnsupportedType unless the operand's element type is among `allowed`."""
    if type.dtype not in allowed:
        raise UnsupportedType(f"{type.dtype.name} is no {what} type")


def axis_in(axis: int, rank: int) -> int:
    """`axis` counted from the front. Raises ShapeError outside [-rank, rank)."""
    if not -rank <= axis < rank:
        raise ShapeError(f"axis {axis} is outside rank {rank}")
    return axis % rank


def axes_in(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """All axes counted from the front, in the order given. Raises ShapeError for one outside the rank or given twice."""
    result = tuple([axis_in(int(a), rank) for a in axes])
    if len(set(result)) != len(result):
        raise ShapeError(f"axes {list(axes)} name one axis twice")
    return result


def dims_of(shape: Any) -> tuple[int, ...]:
    """A shape attribute as Python ints. Raises ShapeError for a negative or absurd dimension."""
    dims = tuple(int(d) for d in shape)
    size = 1
    for d in dims:
        if d < 0:
            raise ShapeError(f"negative dimension in {list(dims)}")
        size *= max(d, 1)
    if size >= 1 << 62:
        raise ShapeError(f"{list(dims)} has more elements than any machine can address")
    return dims
