"""Adjoints of RNN and GRU, and what every adjoint of a recurrent layer shares: from results back through time to operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flamert import dtypes
from flamert.graph import TensorType
from flamert.ops.cells import SIGMOID, TANH, Gate, project, running, sides
from flamert.ops.op import kernel, op
from flamert.ops.recurrent import Activations, gru, rnn, shaped


@op
def rnn_gradient(
    x: TensorType,
    w: TensorType,
    r: TensorType,
    y: TensorType,
    b: TensorType | None = None,
    sequence_lens: TensorType | None = None,
    initial_h: TensorType | None = None,
    dy: TensorType | None = None,
    dy_h: TensorType | None = None,
    *,
    direction: str = "forward",
    activations: Activations = (TANH,),
    clip: float | None = None,
) -> tuple[TensorType, ...]:
    """The adjoint of `rnn`: gradients of x, w, r, b and initial_h.

    y: what the layer gave for these operands, so that it need not run again. dy, dy_h: gradients of its results, zero when
    left out. All else as for `rnn`; operands left out count as zero, and their gradients are returned like the others.
    Raises ShapeError for operands that do not fit. Source: Werbos 1990.
    """
    results = rnn.infer(x, w, r, b, sequence_lens, initial_h, direction=direction, activations=activations, clip=clip)
    return gradient_types(x, w, r, results, y, (dy, dy_h))


@op
def gru_gradient(
    x: TensorType,
    w: TensorType,
    r: TensorType,
    y: TensorType,
    b: TensorType | None = None,
    sequence_lens: TensorType | None = None,
    initial_h: TensorType | None = None,
    dy: TensorType | None = None,
    dy_h: TensorType | None = None,
    *,
    direction: str = "forward",
    activations: Activations = (SIGMOID, TANH),
    clip: float | None = None,
    linear_before_reset: bool = False,
) -> tuple[TensorType, ...]:
    """The adjoint of `gru`: gradients of x, w, r, b and initial_h. All else as for `rnn_gradient` and `gru`."""
    attrs = {"direction": direction, "activations": activations, "clip": clip, "linear_before_reset": linear_before_reset}
    results = gru.infer(x, w, r, b, sequence_lens, initial_h, **attrs)
    return gradient_types(x, w, r, results, y, (dy, dy_h))


def gradient_types(
    x: TensorType,
    w: TensorType,
    r: TensorType,
    results: Sequence[TensorType],
    y: TensorType,
    given: Sequence[TensorType | None],
) -> tuple[TensorType, ...]:
    """Types of the gradients of x, w, r, b and initial_h, after checking y and the gradients of the layer's results."""
    shaped("y", y, results[0].shape)
    for operand, result in zip(given, results, strict=True):
        shaped("a result's gradient", operand, result.shape)
    return x, w, r, TensorType((w.shape[0], 2 * w.shape[1]), w.dtype), results[1]


class Past(NamedTuple):
    """One direction of a layer, as it ran, in the accumulator's type.

    times: the steps in the order they were taken. before: [T, B, H], hₜ₋₁ for each step. on: [T, B, 1], whether a sequence
    was still running, or None. wb, rb: the two biases, 0 where left out. dy: [T, B, H] or None. dy_h: [B, H].
    """

    times: range
    gates: tuple[Gate, ...]
    x: Any
    w: Any
    r: Any
    wb: Any
    rb: Any
    before: Any
    on: Any
    dy: Any
    dy_h: Any

    def carried(self, xp: Any, t: int, new: Any, old: Any) -> Any:
        """What goes on to the step before: a sequence that was over let its state's gradient pass."""
        return new if self.on is None else xp.where(self.on[t], new, old)

    def arriving(self, t: int, carry: Any) -> Any:
        """The gradient of hₜ: what later steps sent, and the output's own."""
        return carry if self.dy is None else carry + self.dy[t]


class Flow(NamedTuple):
    """What one direction sends back: gradients of what x·Wᵀ + Wb and h·Rᵀ + Rb gave ([T, B, gates·H]), of R where it is not
    just the latter's product with h, and of the initial states and whatever else the layer has."""

    inward: Any
    recurrent: Any
    r: Any
    rest: tuple[Any, ...]


def back(
    xp: Any,
    out: Any,
    operands: Sequence[Any],
    per: int,
    cell: Callable[[int, Past], Flow],
    *,
    direction: str,
    activations: Activations,
    clip: float | None,
) -> None:
    """Walk every direction back with `cell`, and turn what it sends into gradients. operands: from x to dy_h."""
    x, w, r, y, b, lens, initial_h, dy, dy_h = operands
    dtype = dtypes.accumulator(x.dtype)
    x, y = x.astype(dtype, copy=False), y.astype(dtype, copy=False)
    on = running(xp, lens, len(x))
    g = w.shape[1]
    dx = xp.zeros(x.shape, dtype)
    for d, times, gates in sides(xp, direction, len(x), activations, per, clip):
        W, R = w[d].astype(dtype, copy=False), r[d].astype(dtype, copy=False)
        before = _before(xp, y[:, d], None if initial_h is None else initial_h[d], times.step, on)
        wb, rb = (0, 0) if b is None else (b[d, :g].astype(dtype), b[d, g:].astype(dtype))
        last = xp.zeros(before.shape[1:], dtype) if dy_h is None else dy_h[d].astype(dtype)
        flow = cell(d, Past(times, gates, x, W, R, wb, rb, before, on, None if dy is None else dy[:, d], last))
        rows = flow.inward.reshape(-1, g)
        dx += (rows @ W).reshape(x.shape)
        out[1][d] = rows.T @ x.reshape(-1, x.shape[-1])
        out[2][d] = flow.recurrent.reshape(-1, g).T @ before.reshape(-1, before.shape[-1]) if flow.r is None else flow.r
        out[3][d, :g] = rows.sum(axis=0)
        out[3][d, g:] = flow.recurrent.reshape(-1, g).sum(axis=0)
        for result, gradient in zip(out[4:], flow.rest, strict=True):
            result[d] = gradient
    out[0][...] = dx


def _before(xp: Any, y: Any, initial: Any, order: int, on: Any) -> Any:
    """hₜ₋₁ for every step: the layer's results one step on, and the initial state where a sequence begins."""
    h = xp.empty_like(y)
    first = 0 if initial is None else initial
    if order > 0:
        h[1:] = y[:-1]
        h[:1] = first
    else:
        h[:-1] = y[1:] if on is None else xp.where(on[1:], y[1:], first)
        h[-1:] = first
    return h


def recurring(past: Past, rows: slice = slice(None)) -> Any:
    """hₜ₋₁·Rᵀ + Rb for all time steps at once, or some rows of it."""
    return past.before @ past.r[rows].T + (past.rb if isinstance(past.rb, int) else past.rb[rows])


def projected(xp: Any, past: Past) -> Any:
    out = xp.empty((*past.x.shape[:2], len(past.w)), past.x.dtype)
    project(xp, out, past.x, past.w, past.wb)
    return out


def activated(gate: Gate, x: Any) -> tuple[Any, Any]:
    """The gate at x, and its slope."""
    y = x.copy()
    gate(y)
    return y, gate.slope(x, y)


@kernel(rnn_gradient)
def _(
    xp: Any, out: Any, x: Any, w: Any, r: Any, y: Any, b: Any = None, lens: Any = None, h: Any = None, *flows: Any, **attrs: Any
) -> None:
    def cell(d: int, past: Past) -> Flow:
        sent, slope = activated(past.gates[0], projected(xp, past) + recurring(past))
        if past.on is not None:
            slope *= past.on
        carry = past.dy_h
        for t in past.times[::-1]:
            xp.multiply(past.arriving(t, carry), slope[t], out=sent[t])
            carry = past.carried(xp, t, sent[t] @ past.r, carry)
        return Flow(sent, sent, None, (carry,))

    back(xp, out, (x, w, r, y, b, lens, h, *padded(flows, 2)), 1, cell, **attrs)


@kernel(gru_gradient)
def _(
    xp: Any,
    out: Any,
    x: Any,
    w: Any,
    r: Any,
    y: Any,
    b: Any = None,
    lens: Any = None,
    h: Any = None,
    *flows: Any,
    linear_before_reset: bool,
    **attrs: Any,
) -> None:
    cell = _reset_after if linear_before_reset else _reset_before
    operands = (x, w, r, y, b, lens, h, *padded(flows, 2))
    back(xp, out, operands, 2, lambda d, past: cell(xp, past), **attrs)


def _update_gate(past: Past, z: Any, slope: Any, candidate: Any, steep: Any) -> None:
    """Turn the slopes of the update gate and the candidate into factors of ∂hₜ; none where the sequence is over."""
    slope *= past.before - candidate
    steep *= 1 - z
    if past.on is not None:
        slope *= past.on
        steep *= past.on


def _reset_after(xp: Any, past: Past) -> Flow:
    """h̃ = g(… + r⊙(h·Rhᵀ + Rbh)): the recurrent products are those of one matrix."""
    n = past.before.shape[-1]
    inward, recurrent = projected(xp, past), recurring(past)
    zr, slopes = activated(past.gates[0], inward[..., : 2 * n] + recurrent[..., : 2 * n])
    z, reset = zr[..., :n], zr[..., n:]
    inner = recurrent[..., 2 * n :]
    candidate, steep = activated(past.gates[1], inward[..., 2 * n :] + reset * inner)
    _update_gate(past, z, slopes[..., :n], candidate, steep)
    slopes[..., n:] *= inner
    carry = past.dy_h
    for t in past.times[::-1]:
        dh, sent = past.arriving(t, carry), inward[t]
        xp.multiply(dh, steep[t], out=sent[:, 2 * n :])
        xp.multiply(dh, slopes[t, :, :n], out=sent[:, :n])
        xp.multiply(sent[:, 2 * n :], slopes[t, :, n:], out=sent[:, n : 2 * n])
        recurrent[t, :, : 2 * n] = sent[:, : 2 * n]
        xp.multiply(sent[:, 2 * n :], reset[t], out=recurrent[t, :, 2 * n :])
        carry = past.carried(xp, t, dh * z[t] + recurrent[t] @ past.r, carry)
    return Flow(inward, recurrent, None, (carry,))


def _reset_before(xp: Any, past: Past) -> Flow:
    """h̃ = g(… + (r⊙h)·Rhᵀ + Rbh): the candidate's rows of R act on r⊙h."""
    n = past.before.shape[-1]
    sent = projected(xp, past)
    zr, slopes = activated(past.gates[0], sent[..., : 2 * n] + recurring(past, slice(2 * n)))
    z, reset = zr[..., :n], zr[..., n:]
    kept = reset * past.before
    R_zr, R_h = past.r[: 2 * n], past.r[2 * n :]
    bias = past.rb if isinstance(past.rb, int) else past.rb[2 * n :]
    candidate, steep = activated(past.gates[1], sent[..., 2 * n :] + kept @ R_h.T + bias)
    _update_gate(past, z, slopes[..., :n], candidate, steep)
    slopes[..., n:] *= past.before
    carry = past.dy_h
    for t in past.times[::-1]:
        dh = past.arriving(t, carry)
        xp.multiply(dh, steep[t], out=sent[t, :, 2 * n :])
        xp.multiply(dh, slopes[t, :, :n], out=sent[t, :, :n])
        through_reset = sent[t, :, 2 * n :] @ R_h
        xp.multiply(through_reset, slopes[t, :, n:], out=sent[t, :, n : 2 * n])
        new = dh * z[t] + through_reset * reset[t] + sent[t, :, : 2 * n] @ R_zr
        carry = past.carried(xp, t, new, carry)
    rows = sent.reshape(-1, 3 * n)
    r = xp.concatenate([rows[:, : 2 * n].T @ past.before.reshape(-1, n), rows[:, 2 * n :].T @ kept.reshape(-1, n)])
    return Flow(sent, sent, r, (carry,))


def padded(operands: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    return (*operands, *(None,) * (count - len(operands)))
