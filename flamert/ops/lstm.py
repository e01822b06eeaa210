"""LSTM: in floating point, and with products of 8-bit integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flamert.graph import TensorType
from flamert.ops.cells import SIGMOID, TANH, advance, emit, project, running, scratch, sides, start
from flamert.ops.op import kernel, op
from flamert.ops.recurrent import Activations, check_activations, check_states, layer, shaped


@op
def lstm(
    x: TensorType,
    w: TensorType,
    r: TensorType,
    b: TensorType | None = None,
    sequence_lens: TensorType | None = None,
    initial_h: TensorType | None = None,
    initial_c: TensorType | None = None,
    p: TensorType | None = None,
    *,
    direction: str = "forward",
    activations: Activations = (SIGMOID, TANH, TANH),
    clip: float | None = None,
    input_forget: bool = False,
) -> tuple[TensorType, TensorType, TensorType]:
    """cₜ = fₜ⊙cₜ₋₁ + iₜ⊙c̃ₜ;  hₜ = oₜ⊙h(cₜ);  iₜ, oₜ, fₜ = f(xₜ·Wᵀ + hₜ₋₁·Rᵀ + Wb + Rb), c̃ₜ likewise with g.

    Peepholes p: [D, 3H] add Pi⊙cₜ₋₁, Po⊙cₜ and Pf⊙cₜ₋₁ (in this order i, o, f) to what goes into the gates. input_forget:
    fₜ = 1 − iₜ. f = sigmoid, g = h = tanh; activations: f, g, h, once or for each direction. clip bounds what f and g get.
    w: [D, 4H, I], r: [D, 4H, H], b: [D, 8H], gates in the order i, o, f, c. Returns Y, Y_h and Y_c; all else as for `rnn`.
    Source: ONNX LSTM-22, Hochreiter & Schmidhuber 1997, Gers & Schmidhuber 2000.
    """
    y, state = layer(x, w, r, b, sequence_lens, 4, direction)
    check_states(state, initial_h=initial_h, initial_c=initial_c)
    shaped("p", p, (state.shape[0], 3 * state.shape[-1]))
    check_activations(activations, 3, y.shape[1])
    return y, state, state


@kernel(lstm, workspace=scratch(4, 3))
def _(xp: Any, out: Any, x: Any, w: Any, r: Any, b: Any = None, *state: Any, work: Any, **attrs: Any) -> None:
    projected, gates, h, *_ = work
    n = h.shape[-1]

    def products(d: int) -> Callable[[], Any]:
        project(xp, projected, x, w[d], *(() if b is None else (b[d, : 4 * n], b[d, 4 * n :])))
        R_T = r[d].astype(h.dtype, copy=False).T
        return lambda: xp.matmul(h, R_T, out=gates)

    run_lstm(xp, out, products, *state, work=work, **attrs)


def run_lstm(
    xp: Any,
    out: Any,
    products: Callable[[int], Callable[[], Any]],
    sequence_lens: Any = None,
    initial_h: Any = None,
    initial_c: Any = None,
    p: Any = None,
    *,
    direction: str,
    activations: Activations,
    clip: float | None,
    input_forget: bool,
    work: Any,
) -> None:
    """The loop of an LSTM whose matrix products are made by `products(d)`: that projects the inputs of direction d, and
    returns what puts h·Rᵀ into the row of gates."""
    y, y_h, y_c = out
    projected, gates, h, c, new = work
    n = h.shape[-1]
    i, o, f, cell = (gates[:, k * n : (k + 1) * n] for k in range(4))
    mask = running(xp, sequence_lens, len(y))
    for d, times, (f_gate, f_cell, f_out) in sides(xp, direction, len(y), activations, 3, clip):
        recur = products(d)
        start(h, initial_h, d)
        start(c, initial_c, d)
        for t in times:
            on = None if mask is None else mask[t]
            recur()
            gates += projected[t]
            if p is None:
                f_gate(gates[:, : 3 * n])
            else:
                i += p[d, :n] * c
                f += p[d, 2 * n :] * c
                f_gate(i)
                f_gate(f)
            f_cell(cell)
            if input_forget:
                xp.subtract(1, i, out=f)
            cell *= i
            f *= c
            cell += f
            advance(xp, c, cell, on)
            if p is not None:
                o += p[d, n : 2 * n] * c
                f_gate(o)
            f_out(cell)
            if on is None:
                xp.multiply(o, cell, out=h)
            else:
                xp.multiply(o, cell, out=new)
                advance(xp, h, new, on)
            emit(xp, y[t, d], h, on)
        y_h[d] = h
        y_c[d] = c


@op
def dynamic_quantize_lstm(
    x: TensorType,
    w: TensorType,
    r: TensorType,
    b: TensorType | None = None,
    sequence_lens: TensorType | None = None,
    initial_h: TensorType | None = None,
    initial_c: TensorType | None = None,
    p: TensorType | None = None,
    *,
    direction: str = "forward",
    activations: Activations = (SIGMOID, TANH, TANH),
    clip: float | None = None,
    input_forget: bool = False,
) -> tuple[TensorType, TensorType, TensorType]:
    """`lstm`, with x as a whole and hₜ₋₁ at each step rounded to 256 levels that span their range and 0.

    With weights that were 8-bit integers once, these are the sums that integer products give. All floating, of one type.
    Source: com.microsoft DynamicQuantizeLSTM-1.
    """
    attrs = {"direction": direction, "activations": activations, "clip": clip, "input_forget": input_forget}
    result: tuple[TensorType, TensorType, TensorType] = lstm.infer(x, w, r, b, sequence_lens, initial_h, initial_c, p, **attrs)
    return result


def levelled(xp: Any, x: Any) -> Any:
    """x rounded to 256 evenly spaced levels from min(x, 0) to max(x, 0), with 0 among them."""
    if not x.size:
        return x
    low, high = xp.minimum(x.min(), 0), xp.maximum(x.max(), 0)
    step = (high - low) / 255
    step = xp.where(step == 0, 1, step).astype(x.dtype)
    zero = xp.clip(xp.rint(-low / step), 0, 255)
    return (xp.clip(xp.rint(x / step) + zero, 0, 255) - zero) * step


@kernel(dynamic_quantize_lstm, workspace=scratch(4, 3))
def _(xp: Any, out: Any, x: Any, w: Any, r: Any, b: Any = None, *state: Any, work: Any, **attrs: Any) -> None:
    projected, gates, h, *_ = work
    n = h.shape[-1]
    x = levelled(xp, x.astype(h.dtype, copy=False))

    def products(d: int) -> Callable[[], Any]:
        project(xp, projected, x, w[d], *(() if b is None else (b[d, : 4 * n], b[d, 4 * n :])))
        R_T = r[d].astype(h.dtype, copy=False).T
        return lambda: xp.matmul(levelled(xp, h), R_T, out=gates)

    run_lstm(xp, out, products, *state, work=work, **attrs)
