"""Gradient of attention, by an adjoint op that makes the probabilities anew."""

from __future__ import annotations

from typing import Any

from flamert import ops
from flamert.grad.registry import gradient
from flamert.ops.attention import score_gradient


@gradient(ops.attention)
def _(dy: Any, y: Any, q: Any, k: Any, v: Any, mask: Any = None, lengths: Any = None, **attrs: Any) -> Any:
    """See `ops.attention_gradient`; dmask is the gradient of what the probabilities are the softmax of."""
    dq, dk, dv = ops.attention_gradient(dy, y, q, k, v, mask, lengths, **attrs)
    if mask is None or mask.dtype.kind == "b":
        return dq, dk, dv, None
    return dq, dk, dv, score_gradient(dy, y, q, k, v, mask, lengths, **attrs)[1]
