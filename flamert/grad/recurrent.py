"""Gradients of recurrent layers: adjoint ops that walk back through time; of those in turn, the cells written out."""

from __future__ import annotations

from functools import partial
from typing import Any

from flamert import ops
from flamert.grad import unrolled
from flamert.grad.registry import gradient
from flamert.grad.transform import through


@gradient(ops.rnn)
def _(dy: Any, y: Any, x: Any, w: Any, r: Any, b: Any = None, lens: Any = None, h: Any = None, **attrs: Any) -> Any:
    """dpₜ = f′(pₜ)⊙dhₜ;  dhₜ₋₁ = dpₜ·R + dyₜ₋₁; the rest are products over all steps."""
    dx, dw, dr, db, dh = ops.rnn_gradient(x, w, r, y[0], b, lens, h, *dy, **attrs)
    return dx, dw, dr, db, None, dh


@gradient(ops.gru)
def _(dy: Any, y: Any, x: Any, w: Any, r: Any, b: Any = None, lens: Any = None, h: Any = None, **attrs: Any) -> Any:
    """As for rnn, through three gates."""
    dx, dw, dr, db, dh = ops.gru_gradient(x, w, r, y[0], b, lens, h, *dy, **attrs)
    return dx, dw, dr, db, None, dh


@gradient(ops.lstm)
def _(
    dy: Any,
    y: Any,
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    lens: Any = None,
    h: Any = None,
    c: Any = None,
    p: Any = None,
    **attrs: Any,
) -> Any:
    """As for rnn, through four gates and the cell's state."""
    dx, dw, dr, db, dh, dc, dp = ops.lstm_gradient(x, w, r, y[0], b, lens, h, c, p, *dy, **attrs)
    return dx, dw, dr, db, None, dh, dc, dp


@gradient(ops.dynamic_quantize_lstm)
def _(dy: Any, y: Any, *operands: Any, **attrs: Any) -> Any:
    """That of lstm: straight through the rounding."""
    x, w, r, *rest = operands
    rest += [None] * (5 - len(rest))
    dx, dw, dr, db, *states = ops.lstm_gradient(x, w, r, y[0], *rest, *dy, **attrs)
    return dx, dw, dr, db, None, *states


@gradient(ops.rnn_gradient)
def _(received: Any, results: Any, *operands: Any, **attrs: Any) -> Any:
    """Through the unrolled layer's gradient; y, a function of the others, gets nothing of its own."""
    return through(partial(unrolled.gradient_of, unrolled.rnn, received, 2, **attrs), operands, received)


@gradient(ops.gru_gradient)
def _(received: Any, results: Any, *operands: Any, **attrs: Any) -> Any:
    """As for rnn_gradient."""
    return through(partial(unrolled.gradient_of, unrolled.gru, received, 2, **attrs), operands, received)


@gradient(ops.lstm_gradient)
def _(received: Any, results: Any, *operands: Any, **attrs: Any) -> Any:
    """As for rnn_gradient."""
    return through(partial(unrolled.gradient_of, unrolled.lstm, received, 3, **attrs), operands, received)
