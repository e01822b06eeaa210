"""Gradients of Fourier transforms: transforms the other way."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.grad.registry import gradient
from flamert.graph import Value
from flamert.ops.shape import narrow


@gradient(ops.dft)
def _(dy: Any, y: Any, x: Any, *, axis: int, length: int, inverse: bool, onesided: bool) -> Any:
    """dx[n] = Re Σₖ dy[k]·exp(±2πi·kn/N), the conjugate transform, cut or padded to x's length as x was to N.

    One-sided transforms see half of the spectrum once, their inverses twice but for the bins that are their own conjugates.
    """
    axis %= x.rank
    if onesided and not inverse:
        dy = dy * _per_bin(dy, axis, length, 0.5)
    dx = ops.dft(dy, axis=axis, length=length, inverse=not inverse, onesided=onesided)
    dx = dx * (1 / length if inverse else float(length))
    if onesided and inverse:
        dx = dx * _per_bin(dx, axis, length, 2.0)
    shared = min(x.shape[axis], dx.shape[axis])
    dx = narrow(narrow(dx, -1, 0, x.shape[-1]), axis, 0, shared)
    return ops.pad(dx, pads=[0] * x.rank + [x.shape[i] - shared if i == axis else 0 for i in range(x.rank)])


def _per_bin(like: Value, axis: int, length: int, paired: float) -> Value:
    """`paired` for the bins of a one-sided transform whose conjugate is another bin, 1 for the others."""
    k = np.arange(length // 2 + 1)
    weight = np.where(2 * k % length == 0, 1.0, paired)
    return g.constant(weight.reshape([-1 if i == axis else 1 for i in range(like.rank)]).astype(like.dtype))
