"""What attention masks say: boolean or added ones, known ones that are nothing but a window, several made one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.graph import Value
from flamert.passes.patterns.index import Index, known, scalar

HIDING = -1e4
"""A score of this or less is meant to hide a key: its weight underflows to 0 beside any other."""


class Window(NamedTuple):
    """Query i sees the keys from i + offset − left (None: from the first) to i + offset + right (None: to the last)."""

    left: int | None = None
    right: int | None = None
    offset: int = 0


def replaced(condition: Value, hidden: bool, number: float, dtype: np.dtype) -> Value | None:
    """The mask that says the same as putting `number` in place of the scores where the condition is `hidden`; None for none.

    A query that sees no key gets equal weights from a finite number, so that it cannot be said with a boolean mask then.
    """
    visible = _inverted(condition) if hidden else condition
    array = known(visible)
    if number == -math.inf or (number <= HIDING and array is not None and array.any(axis=-1).all()):
        return visible
    if number > HIDING or dtype in dtypes.HALF:
        return None
    # Scores vanish beside the least number, so that adding it is as good as putting it there.
    return ops.where(visible, g.constant(0, dtype), g.constant(np.finfo(dtype).min, dtype))


def added(mask: Value) -> Value:
    """A mask that is added, as a boolean one if it is made of 0 and −∞."""
    node = mask.node
    if node.op.name == "where":
        condition, *sides = node.inputs
        numbers = [scalar(v) for v in sides]
        if condition is not None and condition.shape == mask.shape and set(numbers) == {0.0, -math.inf}:
            return condition if numbers[0] == 0 else _inverted(condition)
    return mask


def _inverted(condition: Value) -> Value:
    array = known(condition)
    return ops.logical_not(condition) if array is None else g.constant(~array)


def combined(masks: Sequence[Value], shape: tuple[int, ...], index: Index) -> tuple[Value | None, Window]:
    """The masks as one (None: all is seen) and a window, for scores of this shape."""
    window, rest = Window(), []
    for mask in masks:
        found = window_of(mask, shape, index, alone=len(masks) == 1)
        if found is None or (found != Window() and window != Window()):
            rest.append(mask)
        elif found != Window():
            window = found
    result: Value | None = None
    for mask in rest:
        if result is None:
            result = mask
        elif mask.dtype == result.dtype:
            result = ops.logical_and(result, mask) if mask.dtype == np.bool_ else result + mask
        else:
            seen, number = (mask, result) if mask.dtype == np.bool_ else (result, mask)
            result = ops.where(seen, number, g.constant(-math.inf, number.dtype))
    return result, window


def window_of(mask: Value, shape: tuple[int, ...], index: Index, alone: bool) -> Window | None:
    """The window that a known mask describes, for queries and keys of `shape` [..., L, S]; None where it is anything else.

    alone: no other mask is there; only then is a large negative number as good as −∞.
    """
    key = ("window", mask, shape[-2:], alone)
    if key not in index.memo:
        array = known(mask)
        index.memo[key] = None if array is None else _window(array, shape[-2], shape[-1], alone)
    return index.memo[key]


def _window(mask: np.ndarray, l: int, s: int, alone: bool) -> Window | None:
    seen = mask
    if mask.dtype != np.bool_:
        seen = mask == 0
        if not (seen | (mask <= (HIDING if alone else -math.inf))).all():
            return None
    if seen.all():
        return Window()
    if seen.shape[-2:] != (l, s):
        return None
    seen = seen.reshape(-1, l, s)
    rows = seen[0]
    if not rows.any(axis=1).all() or not (seen == rows).all():
        return None
    i, j = np.arange(l)[:, None], np.arange(s)
    first, last = rows.argmax(axis=1), s - 1 - rows[:, ::-1].argmax(axis=1)
    offset = int(last[0])
    left = int(offset + l - 1 - first[-1]) if first[-1] else None
    expected = j <= i + offset
    if left is not None:
        expected &= j >= i + offset - left
    return Window(left, 0, offset) if (expected == rows).all() else None
