"""Gradient clipping by the norm of all gradients together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.graph import Value


def global_norm(grads: Sequence[Value]) -> Value:
    """√ Σ g² over all elements of all gradients, a float32 scalar."""
    if not grads:
        return g.constant(np.float32(0))
    norm = ops.sqrt(ops.sum_of_squares(*grads))
    return norm if norm.dtype == np.float32 else ops.cast(norm, to=np.dtype(np.float32))


def clip_by_global_norm(grads: Sequence[Value], max_norm: float) -> list[Value]:
    """Gradients scaled by min(1, max_norm / (norm + 1e-6)). Source: torch.nn.utils.clip_grad_norm_."""
    scale = ops.minimum(max_norm / (global_norm(grads) + 1e-6), 1.0)
    return [grad * ops.cast(scale, to=grad.dtype) for grad in grads]
