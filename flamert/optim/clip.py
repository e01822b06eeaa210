"""Gradient clipping by the norm of all gradients together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.graph import Value


def global_norm(grads: Sequence[Value]) -> Value:
    """√ Σ g² over all elements of all gradients, a float32 scalar."""
    total = g.constant(np.float32(0))
    for grad in grads:
        wide = ops.cast(grad, to=np.dtype(np.float32))
        total = total + ops.reduce_sum(wide * wide, axes=tuple(range(grad.rank)))
    return ops.sqrt(total)


def clip_by_global_norm(grads: Sequence[Value], max_norm: float) -> list[Value]:
    """Gradients scaled by min(1, max_norm / (norm + 1e-6)). Source: torch.nn.utils.clip_grad_norm_."""
    scale = ops.minimum(max_norm / (global_norm(grads) + 1e-6), 1.0)
    return [grad * ops.cast(scale, to=grad.dtype) for grad in grads]
