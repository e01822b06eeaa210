"""Gradient of rotary position embeddings."""

from __future__ import annotations

from typing import Any

from flamert import ops
from flamert.grad.registry import gradient
from flamert.ops.reduce import accumulating
from flamert.ops.shape import narrow


@gradient(ops.rotary_embedding)
def _(dy: Any, y: Any, x: Any, cos: Any, sin: Any, *, interleaved: bool) -> Any:
    """With x's pairs (a, b) and dy's (da, db):  dx = dy turned back;  dcos = da·a + db·b;  dsin = db·a − da·b."""
    half, axis = cos.shape[-1], x.rank - 1
    places = ((0, 2), (1, 2)) if interleaved else ((0, 1), (half, 1))
    a, b = (accumulating(narrow(x, axis, start if half else 0, half, step)) for start, step in places)
    da, db = (accumulating(narrow(dy, axis, start if half else 0, half, step)) for start, step in places)
    return ops.rotary_embedding(dy, cos, -sin, interleaved=interleaved), da * a + db * b, db * a - da * b
