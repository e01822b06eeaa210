"""Gradient of linear attention: an adjoint op; of that in turn, the recurrence written out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.dtypes import accumulator
from flamert.grad.registry import gradient
from flamert.grad.transform import grad, through
from flamert.graph import Value
from flamert.ops.cast import cast
from flamert.ops.shape import narrow


@gradient(ops.linear_attention)
def _(dy: Any, y: Any, q: Any, k: Any, v: Any, state: Any = None, decay: Any = None, beta: Any = None, *, scale: float) -> Any:
    """Back through the states; see `ops.linear_attention_gradient`."""
    dq, dk, dv, dstate, *gates = ops.linear_attention_gradient(q, k, v, state, decay, beta, *dy, scale=scale)
    given = iter(gates)
    return dq, dk, dv, dstate, *[None if gate is None else next(given) for gate in (decay, beta)]


@gradient(ops.linear_attention_gradient)
def _(received: Any, results: Any, *operands: Any, scale: float) -> Any:
    """Through the gradient of the recurrence in basic ops."""
    return through(partial(_gradient, received, scale), operands, received)


def _gradient(
    received: Sequence[Value | None], scale: float, q: Value, k: Value, v: Value, *operands: Any
) -> list[Value | None]:
    """What `ops.linear_attention_gradient` gives, in basic ops; None where it `received` nothing."""
    padded: tuple[Any, ...] = (*operands, *(None,) * (5 - len(operands)))
    state, decay, beta, dy, dlast = padded
    if state is None:
        state = g.constant(np.zeros((*k.shape[:2], k.shape[3], v.shape[3]), q.dtype))
    wide = accumulator(max((q.dtype, state.dtype), key=lambda d: d.itemsize))
    keys = k.shape[:3]
    q_, k_, v_, state_ = (cast(t, to=wide) for t in (q, k, v, state))
    decay_, beta_ = (_full(gate, wide, (*keys, n)) for gate, n in ((decay, k.shape[3]), (beta, 1)))
    y, last = _recurrence(q_, k_, v_, state_, decay_, beta_, scale)
    pairs = [(o, cast(s, to=wide)) for o, s in ((y, dy), (last, dlast)) if s is not None]
    wanted = [t for t in (q_, k_, v_, state_, decay_, beta_) if t is not None]
    flows = grad([o for o, _ in pairs], wanted, [s for _, s in pairs])
    given = [t for t in (q, k, v, state, decay, beta) if t is not None]
    return [
        None if s is None else g.constant(np.zeros(s.shape, s.dtype)) if f is None else cast(f, to=t.dtype)
        for f, t, s in zip(flows, given, received, strict=True)
    ]


def _full(gate: Value | None, dtype: np.dtype, shape: tuple[int, ...]) -> Value | None:
    return None if gate is None else ops.expand(cast(gate, to=dtype), shape=shape)


def _recurrence(
    q: Value, k: Value, v: Value, state: Value, decay: Value | None, beta: Value | None, scale: float
) -> tuple[Value, Value]:
    """`ops.linear_attention` step by step."""
    (b, hq, steps, d), (_, hkv, _, dv) = q.shape, v.shape
    rows = ops.reshape(q * scale, shape=(b, hkv, hq // max(hkv, 1), steps, d))
    outputs = []
    for t in range(steps):
        kt, u = narrow(k, 2, t, 1), narrow(v, 2, t, 1)
        column = ops.transpose(kt, perm=(0, 1, 3, 2))
        if decay is not None:
            state = state * ops.transpose(ops.exp(narrow(decay, 2, t, 1)), perm=(0, 1, 3, 2))
        if beta is not None:
            u = narrow(beta, 2, t, 1) * (u - kt @ state)
        state = state + column * u
        qt = ops.reshape(narrow(rows, 3, t, 1), shape=(b, hkv, hq // max(hkv, 1), d))
        outputs.append(ops.reshape(qt @ state, shape=(b, hq, 1, dv)))
    if not outputs:
        return g.constant(np.zeros((b, hq, 0, dv), q.dtype)), state
    return ops.concat(*outputs, axis=2), state
