"""Gradients of random ops: through the numbers drawn, as if they were constants."""

from __future__ import annotations

from typing import Any

from flamert import ops
from flamert.grad.elementwise import widened
from flamert.grad.registry import flat, gradient

flat(ops.random_uniform, ops.random_normal, ops.bernoulli, ops.multinomial)


@gradient(ops.dropout)
def _(dy: Any, y: Any, x: Any, ratio: Any, counter: Any = None, *, seed: int | None) -> Any:
    """dx = dy · mask / (1 − ratio), dratio = dy · y / (1 − ratio); 0 where the ratio is 1"""
    return None if dy[0] is None else _dropped(dy[0], *y, ratio)


@widened
def _dropped(dy: Any, y: Any, mask: Any, ratio: Any) -> Any:
    ratio = ops.cast(ratio, to=y.dtype)
    kept = 1 - ratio
    scale = ops.where(kept > 0, 1 / ops.where(kept > 0, kept, 1), 0)
    return ops.where(mask, dy * scale, 0), dy * y * scale
