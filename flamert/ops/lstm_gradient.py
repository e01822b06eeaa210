"""The adjoint of an LSTM: from the gradients of its results back through time to those of its operands."""

from __future__ import annotations

from typing import Any

from flamert import dtypes
from flamert.graph import TensorType
from flamert.ops.cells import SIGMOID, TANH
from flamert.ops.lstm import lstm
from flamert.ops.op import kernel, op
from flamert.ops.recurrent import Activations
from flamert.ops.recurrent_gradient import Flow, Past, activated, back, gradient_types, padded, projected, recurring


@op
def lstm_gradient(
    x: TensorType,
    w: TensorType,
    r: TensorType,
    y: TensorType,
    b: TensorType | None = None,
    sequence_lens: TensorType | None = None,
    initial_h: TensorType | None = None,
    initial_c: TensorType | None = None,
    p: TensorType | None = None,
    dy: TensorType | None = None,
    dy_h: TensorType | None = None,
    dy_c: TensorType | None = None,
    *,
    direction: str = "forward",
    activations: Activations = (SIGMOID, TANH, TANH),
    clip: float | None = None,
    input_forget: bool = False,
) -> tuple[TensorType, ...]:
    """The adjoint of `lstm`: gradients of x, w, r, b, initial_h, initial_c and p. All else as for `rnn_gradient` and `lstm`."""
    attrs = {"direction": direction, "activations": activations, "clip": clip, "input_forget": input_forget}
    results = lstm.infer(x, w, r, b, sequence_lens, initial_h, initial_c, p, **attrs)
    state = results[1]
    peepholes = TensorType((state.shape[0], 3 * state.shape[-1]), x.dtype)
    return (*gradient_types(x, w, r, results, y, (dy, dy_h, dy_c)), state, peepholes)


@kernel(lstm_gradient)
def _(
    xp: Any,
    out: Any,
    x: Any,
    w: Any,
    r: Any,
    y: Any,
    b: Any = None,
    lens: Any = None,
    initial_h: Any = None,
    initial_c: Any = None,
    p: Any = None,
    *flows: Any,
    input_forget: bool,
    **attrs: Any,
) -> None:
    dy, dy_h, dy_c = padded(flows, 3)
    dtype = dtypes.accumulator(x.dtype)

    def cell(d: int, past: Past) -> Flow:
        c, dc, peepholes = (None if s is None else s[d].astype(dtype) for s in (initial_c, dy_c, p))
        empty = xp.zeros(past.before.shape[1:], dtype)
        return _memory(xp, past, empty if c is None else c, empty if dc is None else dc, peepholes, input_forget)

    back(xp, out, (x, w, r, y, b, lens, initial_h, dy, dy_h), 3, cell, **attrs)


def _memory(xp: Any, past: Past, c: Any, dc: Any, p: Any, input_forget: bool) -> Flow:
    """An LSTM's cell. c: its initial state; dc: the gradient of the last one."""
    n = past.before.shape[-1]
    f_gate, f_cell, f_out = past.gates
    raw = projected(xp, past) + recurring(past)
    act, before, after = raw.copy(), xp.empty_like(past.before), xp.empty_like(past.before)
    i, o, f, cell = (act[..., k * n : (k + 1) * n] for k in range(4))
    f_cell(cell)
    if p is None:
        f_gate(act[..., : 3 * n])
    for t in past.times:
        before[t] = c
        if p is not None:
            for k, gate in ((0, i), (2, f)):
                raw[t, :, k * n : (k + 1) * n] += p[k * n : (k + 1) * n] * c
                gate[t] = raw[t, :, k * n : (k + 1) * n]
                f_gate(gate[t])
        if input_forget:
            xp.subtract(1, i[t], out=f[t])
        xp.multiply(f[t], c, out=after[t])
        after[t] += i[t] * cell[t]
        c = past.carried(xp, t, after[t], c)
    if p is not None:
        raw[..., n : 2 * n] += p[n : 2 * n] * after
        o[...] = raw[..., n : 2 * n]
        f_gate(o)
    shown, bend = activated(f_out, after)
    bend *= o
    factors = xp.concatenate(
        [f_gate.slope(raw[..., : 3 * n], act[..., : 3 * n]), f_cell.slope(raw[..., 3 * n :], cell)], axis=-1
    )
    factors[..., :n] *= cell - before if input_forget else cell
    factors[..., n : 2 * n] *= shown
    factors[..., 2 * n : 3 * n] *= 0 if input_forget else before
    factors[..., 3 * n :] *= i
    if past.on is not None:
        factors *= past.on
    sent, dh, dc = _back_through_cells(xp, past, factors, bend, f, p, dc)
    dp = [(sent[..., k * n : (k + 1) * n] * state).sum(axis=(0, 1)) for k, state in enumerate((before, after, before))]
    return Flow(sent, sent, None, (dh, dc, xp.concatenate(dp)))


def _back_through_cells(
    xp: Any, past: Past, factors: Any, bend: Any, forget: Any, p: Any, carry_c: Any
) -> tuple[Any, Any, Any]:
    """The gradients of what goes into the gates, and of the initial states.

    factors: of ∂hₜ for the output gate, of ∂cₜ for the others. bend: ∂hₜ/∂cₜ.
    """
    n = past.before.shape[-1]
    sent, carry_h = xp.empty_like(factors), past.dy_h
    for t in past.times[::-1]:
        dh, row = past.arriving(t, carry_h), sent[t]
        dc = dh * bend[t]
        dc += carry_c
        xp.multiply(dh, factors[t, :, n : 2 * n], out=row[:, n : 2 * n])
        if p is not None:
            dc += row[:, n : 2 * n] * p[n : 2 * n]
        for k in (0, 2, 3):
            xp.multiply(dc, factors[t, :, k * n : (k + 1) * n], out=row[:, k * n : (k + 1) * n])
        new = dc * forget[t]
        if p is not None:
            new += row[:, :n] * p[:n] + row[:, 2 * n : 3 * n] * p[2 * n :]
        carry_c = past.carried(xp, t, new, carry_c)
        carry_h = past.carried(xp, t, row @ past.r, carry_h)
    return sent, carry_h, carry_c
