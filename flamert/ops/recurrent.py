"""RNN and GRU, and what every recurrent layer checks. All run over [time, batch, input]; LSTM has a file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flamert import dtypes
from flamert.errors import ShapeError, UnsupportedOp
from flamert.graph import TensorType
from flamert.ops.cells import (
    ACTIVATIONS,
    DIRECTIONS,
    SIGMOID,
    TANH,
    Activation,
    advance,
    emit,
    project,
    running,
    scratch,
    sides,
    start,
)
from flamert.ops.op import kernel, op
from flamert.ops.rules import require, same_dtype

Activations = tuple[Activation, ...]


def shaped(name: str, operand: TensorType | None, shape: tuple[int, ...]) -> None:
    """Raise ShapeError unless an operand that is given has this shape."""
    if operand is not None and operand.shape != shape:
        raise ShapeError(f"{name} must be {list(shape)}, not {list(operand.shape)}")


def layer(
    x: TensorType, w: TensorType, r: TensorType, b: TensorType | None, lens: TensorType | None, gates: int, direction: str
) -> tuple[TensorType, TensorType]:
    """The types of Y and of a final state, after the checks that all recurrent layers share."""
    require(x, dtypes.STANDARD_FLOAT, "floating")
    if direction not in DIRECTIONS:
        raise UnsupportedOp(f"direction {direction!r} is none of {', '.join(DIRECTIONS)}")
    if x.rank != 3 or r.rank != 3:
        raise ShapeError(f"x must be [time, batch, input] and r [direction, gates·hidden, hidden], not {x} and {r}")
    (steps, batch, features), d, h = x.shape, DIRECTIONS[direction], r.shape[-1]
    shaped("w", w, (d, gates * h, features))
    shaped("r", r, (d, gates * h, h))
    shaped("b", b, (d, 2 * gates * h))
    shaped("sequence_lens", lens, (batch,))
    if lens is not None:
        require(lens, dtypes.INTEGER, "integer")
    dtype = same_dtype(x, w, r, *[t for t in (b,) if t is not None])
    return TensorType((steps, d, batch, h), dtype), TensorType((d, batch, h), dtype)


def check_states(state: TensorType, **given: TensorType | None) -> None:
    """Raise unless the initial states given are like the final one."""
    for name, initial in given.items():
        shaped(name, initial, state.shape)
        if initial is not None:
            same_dtype(state, initial)


def check_activations(activations: Sequence[Activation], per: int, directions: int) -> None:
    """Raise unless there are `per` known activations, or as many for each direction."""
    if len(activations) not in (per, per * directions):
        raise ShapeError(f"{len(activations)} activations given, {per} needed for each of {directions} directions")
    for name, _, _ in activations:
        if name not in ACTIVATIONS:
            raise UnsupportedOp(f"activation {name!r} is none of {', '.join(ACTIVATIONS)}")


@op
def rnn(
    x: TensorType,
    w: TensorType,
    r: TensorType,
    b: TensorType | None = None,
    sequence_lens: TensorType | None = None,
    initial_h: TensorType | None = None,
    *,
    direction: str = "forward",
    activations: Activations = (TANH,),
    clip: float | None = None,
) -> tuple[TensorType, TensorType]:
    """hₜ = f(xₜ·Wᵀ + hₜ₋₁·Rᵀ + Wb + Rb); f = tanh.

    x: [T, B, I]; w: [D, H, I]; r: [D, H, H]; b: [D, 2H] (Wb, then Rb); sequence_lens: integer [B]; initial_h: [D, B, H],
    zero when left out. D = 2 for direction "bidirectional", else 1. All floating and of one type; half types compute in
    float32. activations: f, once or for each direction. clip: bound on the absolute value of what goes into f.
    Returns Y [T, D, B, H] (zero past the end of a sequence) and Y_h [D, B, H], the last state. Raises ShapeError for
    operands that do not fit. Source: ONNX RNN-22.
    """
    y, y_h = layer(x, w, r, b, sequence_lens, 1, direction)
    check_states(y_h, initial_h=initial_h)
    check_activations(activations, 1, y.shape[1])
    return y, y_h


@kernel(rnn, workspace=scratch(1, 1))
def _(
    xp: Any,
    out: Any,
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    sequence_lens: Any = None,
    initial_h: Any = None,
    *,
    direction: str,
    activations: Activations,
    clip: float | None,
    work: Any,
) -> None:
    y, y_h = out
    projected, new, h = work
    n = h.shape[-1]
    mask = running(xp, sequence_lens, len(x))
    for d, times, (f,) in sides(xp, direction, len(x), activations, 1, clip):
        project(xp, projected, x, w[d], *(() if b is None else (b[d, :n], b[d, n:])))
        start(h, initial_h, d)
        R_T = r[d].astype(h.dtype, copy=False).T
        for t in times:
            on = None if mask is None else mask[t]
            xp.matmul(h, R_T, out=new)
            new += projected[t]
            f(new)
            advance(xp, h, new, on)
            emit(xp, y[t, d], h, on)
        y_h[d] = h


@op
def gru(
    x: TensorType,
    w: TensorType,
    r: TensorType,
    b: TensorType | None = None,
    sequence_lens: TensorType | None = None,
    initial_h: TensorType | None = None,
    *,
    direction: str = "forward",
    activations: Activations = (SIGMOID, TANH),
    clip: float | None = None,
    linear_before_reset: bool = False,
) -> tuple[TensorType, TensorType]:
    """zₜ, rₜ = f(xₜ·Wᵀ + hₜ₋₁·Rᵀ + Wb + Rb);  h̃ₜ = g(xₜ·Whᵀ + (rₜ⊙hₜ₋₁)·Rhᵀ + Wbh + Rbh);  hₜ = (1−zₜ)⊙h̃ₜ + zₜ⊙hₜ₋₁.

    With linear_before_reset, h̃ₜ = g(xₜ·Whᵀ + rₜ⊙(hₜ₋₁·Rhᵀ + Rbh) + Wbh). f = sigmoid, g = tanh; activations: f, g, once or
    for each direction. w: [D, 3H, I], r: [D, 3H, H], b: [D, 6H], gates in the order z, r, h. All else as for `rnn`.
    Source: ONNX GRU-22, Cho et al. 2014.
    """
    y, y_h = layer(x, w, r, b, sequence_lens, 3, direction)
    check_states(y_h, initial_h=initial_h)
    check_activations(activations, 2, y.shape[1])
    return y, y_h


@kernel(gru, workspace=scratch(3, 2))
def _(
    xp: Any,
    out: Any,
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    sequence_lens: Any = None,
    initial_h: Any = None,
    *,
    direction: str,
    activations: Activations,
    clip: float | None,
    linear_before_reset: bool,
    work: Any,
) -> None:
    y, y_h = out
    projected, gates, h, new = work
    n = h.shape[-1]
    zr, z, reset, candidate = gates[:, : 2 * n], gates[:, :n], gates[:, n : 2 * n], gates[:, 2 * n :]
    mask = running(xp, sequence_lens, len(x))
    for d, times, (f, g) in sides(xp, direction, len(x), activations, 2, clip):
        project(xp, projected, x, w[d], *(() if b is None else (b[d, : 3 * n],)))
        if b is not None:
            projected[..., : 2 * n] += b[d, 3 * n : 5 * n]
            if not linear_before_reset:
                projected[..., 2 * n :] += b[d, 5 * n :]
        start(h, initial_h, d)
        R_T = r[d].astype(h.dtype, copy=False).T
        R_zr_T, R_h_T = R_T[:, : 2 * n], R_T[:, 2 * n :]
        for t in times:
            on = None if mask is None else mask[t]
            if linear_before_reset:
                xp.matmul(h, R_T, out=gates)
                if b is not None:
                    candidate += b[d, 5 * n :]
                zr += projected[t, :, : 2 * n]
                f(zr)
                candidate *= reset
            else:
                xp.matmul(h, R_zr_T, out=zr)
                zr += projected[t, :, : 2 * n]
                f(zr)
                xp.multiply(reset, h, out=new)
                xp.matmul(new, R_h_T, out=candidate)
            candidate += projected[t, :, 2 * n :]
            g(candidate)
            xp.subtract(h, candidate, out=new)
            new *= z
            new += candidate
            advance(xp, h, new, on)
            emit(xp, y[t, d], h, on)
        y_h[d] = h
