"""LSTMs on the GPU: large products for all steps together, and for each step a product and a kernel, all bound ahead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.graph import Node, TensorType
from flamert.ops.cells import SIGMOID, TANH
from flamert.ops.cuda import emit_lstm, linear
from flamert.ops.cuda.copy import copier
from flamert.ops.cuda.cublaslt import WORKSPACE_BYTES
from flamert.ops.cuda.launch import Launch, compiled, extent
from flamert.ops.cuda.reduce import layout_of, reduction
from flamert.ops.cuda.shape import Call, filler, in_turn
from flamert.ops.lstm import lstm
from flamert.ops.lstm_gradient import lstm_gradient
from flamert.ops.op import Site, kernel

USUAL = (SIGMOID, TANH, TANH)

Multiply = Callable[[Any, Any, Any], Call]


def _plain(node: Node) -> bool:
    """The usual activations, no peepholes, all sequences of full length, float32 or float64."""
    given = (*node.inputs, *[None] * 9)
    lens, peepholes = (given[i] for i in ((5, 8) if node.op is lstm_gradient else (4, 7)))
    attrs, x, state = node.attrs, node.inputs[0], node.types[-2]
    assert x is not None
    usual = tuple(attrs["activations"]) in (USUAL, USUAL * 2) and attrs["clip"] is None and not attrs["input_forget"]
    full = lens is None and peepholes is None and x.type.size > 0 and 0 < 4 * state.size < 1 << 31
    return usual and full and x.dtype in (dtypes.float32, dtypes.float64)


def multiplier(site: Site, a: Any, b: Any, out: Any, tuned: bool) -> Multiply:
    """multiply(a, b, out) → the call of a product of matrices that lie like these. tuned: the fastest of several."""
    product = linear.product_of(a, b, out, 1, site.device)
    work, current = site.work[0].data.ptr, site.xp.cuda.get_current_stream

    def multiply(a: Any, b: Any, out: Any) -> Call:
        return lambda: product(a.data.ptr, b.data.ptr, out.data.ptr, work, current().ptr)

    if tuned and not site.device.deterministic:
        linear.fastest_way([linear.Way(product, (a, b), out, site.work[0], current)], site.xp)
    return multiply


class _States:
    """Launches of kernels with a thread for each element of states [B, H]."""

    def __init__(self, state: Any) -> None:
        self.n, self.h = state.size, state.shape[-1]

    def launch(self, run: Any, arguments: Sequence[Any], written: Sequence[Any], *sizes: Any) -> Launch:
        """sizes: what the kernel takes between its arrays and those that all take."""
        blocks = -(-self.n // emit_lstm.THREADS)
        everything = (*arguments, *sizes, np.uint32(self.n), np.uint32(self.h))
        reads, writes = [extent(x) for x in arguments], [extent(x) for x in written]
        return Launch(run, (blocks,), emit_lstm.THREADS, everything, reads, writes)


def _begun(site: Site, state: Any, given: Any) -> Call:
    """A state's first contents: zeros unless they are given."""
    return filler(state, site.xp.zeros((), state.dtype)) if given is None else copier(state, given)


def _order(direction: str, d: int, steps: int) -> range:
    return range(steps)[:: -1 if direction == "reverse" or d else 1]


def _scratch(node: Node) -> list[TensorType]:
    """Of products: what they need; with the inputs of all steps; with one step's state."""
    (t, b, _), h, dtype = node.inputs[0].shape, node.types[-1].shape[-1], node.types[0].dtype  # type: ignore[union-attr]
    return [TensorType((WORKSPACE_BYTES,), dtypes.uint8), TensorType((t, b, 4 * h), dtype), TensorType((b, 4 * h), dtype)]


def _forward(site: Site, out: Any, x: Any, w: Any, r: Any, b: Any, h: Any, c: Any, direction: str, tuned: bool) -> Call:
    y, y_h, y_c = out
    _, inward, recurrent = site.work
    x, rows = x.reshape(-1, x.shape[-1]), inward.reshape(-1, inward.shape[-1])
    project, recur = multiplier(site, x, w[0].T, rows, tuned), multiplier(site, y_h[0], r[0].T, recurrent, tuned)
    states, run = _States(y_h[0]), compiled(emit_lstm.step(site.node.types[0].dtype, b is not None), "lstm_step")
    calls: list[Call] = []
    for d in range(len(w)):
        calls.append(project(x, w[d].T, rows))
        calls += [_begun(site, state[d], None if given is None else given[d]) for state, given in ((y_h, h), (y_c, c))]
        for t in _order(direction, d, len(y)):
            written = (y_c[d], y_h[d], y[t, d])
            calls.append(recur(y_h[d], r[d].T, recurrent))
            calls.append(states.launch(run, (inward[t], recurrent, recurrent if b is None else b[d], *written), written))
    return in_turn(calls)


def _gradient_scratch(node: Node) -> list[TensorType]:
    """Of products: what they need; with inputs; with states. States before each step, what `walk` keeps, what is sent to the
    gates, what peepholes would be given; sums of what is sent; parts of either sum.
    """
    (t, b, _), h, dtype = node.inputs[0].shape, node.types[-2].shape[-1], node.types[0].dtype  # type: ignore[union-attr]
    wide = node.types[-2].shape[0] * 4 * h
    shapes = [(t, b, 4 * h), (t, b, 4 * h), (t, b, h), (4, t, b, h), (t, b, wide), (3, b, h), (wide,)]
    shapes += [(_parts((1, t * b, wide), dtype),), (_parts((3, b, h), dtype),)]
    return [TensorType((WORKSPACE_BYTES,), dtypes.uint8), *[TensorType(s, dtype) for s in shapes]]


def _parts(shape: tuple[int, int, int], dtype: np.dtype) -> int:
    layout = layout_of(shape, (1,), dtype.itemsize)
    return 1 if layout is None else layout.outer * layout.splits * layout.inner


def _summed(site: Site, x: Any, out: Any, parts: Any) -> Call:
    """x: [n, length, m] → out: [n, m], its sums."""
    dtype = site.node.types[0].dtype
    layout = layout_of(x.shape, (1,), x.itemsize)
    if layout is None:
        return copier(out, x[:, 0])
    return reduction("reduce_sum", layout, (dtype, dtype), site.xp, x, out, None if layout.splits == 1 else parts)


def _before(site: Site, out: Any, y: Any, first: Any, order: range) -> list[Call]:
    """States before each step: y one step on, and the first one."""
    start = order[0]
    into, of = (out[1:], y[:-1]) if order.step > 0 else (out[:-1], y[1:])
    return [copier(into, of), _begun(site, out[start], first)]


def _backward(site: Site, out: Any, operands: Sequence[Any], direction: str, tuned: bool) -> Call:
    x, w, r, y, b, _, first_h, first_c, _, dy, dy_h, dy_c = operands
    dx, dw, dr, db, dh, dc, dp = out
    _, inward, recurrent, before, kept, sent, peep, sums, *parts = site.work
    dtype, (steps, batch, h), sides, g = site.node.types[0].dtype, before.shape, len(w), 4 * before.shape[-1]
    x, flat, rows, again = (a.reshape(steps * batch, a.shape[-1]) for a in (x, before, inward, recurrent))
    sent, all_sent = sent.reshape(steps, batch, sides, g), sent.reshape(steps * batch, sides * g)
    by_side = all_sent.reshape(steps * batch, sides, g)
    project, recur = multiplier(site, x, w[0].T, rows, tuned), multiplier(site, flat, r[0].T, again, tuned)
    back = multiplier(site, sent[0, :, 0], r[0], dh[0], tuned)
    to_w, to_r = (multiplier(site, by_side[:, 0].T, a, o[0], tuned) for a, o in ((x, dw), (flat, dr)))
    states = _States(dh[0])
    walk = compiled(emit_lstm.walk(dtype, b is not None, first_c is not None), "lstm_walk")
    step = compiled(emit_lstm.back(dtype, dy is not None), "lstm_back")
    zero = site.xp.zeros((), dx.dtype)
    calls: list[Call] = []
    for d in range(sides):
        order = _order(direction, d, steps)
        bias, c = recurrent if b is None else b[d], recurrent if first_c is None else first_c[d]
        calls += _before(site, before, y[:, d], None if first_h is None else first_h[d], order)
        calls += [project(x, w[d].T, rows), recur(flat, r[d].T, again)]
        sizes = np.uint32(steps), np.uint32(order.step < 0)
        calls.append(states.launch(walk, (inward, recurrent, bias, c, kept), (inward, kept), *sizes))
        calls += [_begun(site, s[d], None if given is None else given[d]) for s, given in ((dh, dy_h), (dc, dy_c))]
        calls.append(filler(peep, zero))
        strides = np.uint64(steps * batch * h), np.uint64(sides * g)
        for t in order[::-1]:
            arguments = (inward[t], kept[0, t], recurrent if dy is None else dy[t, d], dh[d], dc[d], sent[t, :, d], peep)
            # What is kept lies in four parts, of which the launch is given one place.
            calls.append(states.launch(step, arguments, arguments[-3:], *strides))
            calls.append(back(sent[t, :, d], r[d], dh[d]))
        calls += [to_w(by_side[:, d].T, x, dw[d]), to_r(by_side[:, d].T, flat, dr[d])]
        calls.append(_summed(site, peep, dp[d].reshape(3, h), parts[1]))
    weights = w.reshape(sides * g, w.shape[-1])
    dx = dx.reshape(x.shape)
    calls.append(multiplier(site, all_sent, weights, dx, tuned)(all_sent, weights, dx))
    calls.append(_summed(site, all_sent[None], sums[None], parts[0]))
    halves = db.reshape(sides, 2, g)
    calls += [copier(halves[:, k], sums.reshape(sides, g)) for k in (0, 1)]
    return in_turn(calls)


def _register(hot: bool) -> None:
    traits = {"when": _plain, "bind": True, "contiguous": True, "hot": hot}

    @kernel(lstm, "cupy", workspace=_scratch, **traits)
    def _(site: Site, out: Any, x: Any, w: Any, r: Any, *rest: Any, direction: str, **_: Any) -> Call:
        b, _, h, c = (*rest, *[None] * 4)[:4]
        return _forward(site, out, x, w, r, b, h, c, direction, hot)

    @kernel(lstm_gradient, "cupy", workspace=_gradient_scratch, **traits)
    def _(site: Site, out: Any, *operands: Any, direction: str, **_: Any) -> Call:
        return _backward(site, out, (*operands, *[None] * 12)[:12], direction, hot)


_register(hot=False)
_register(hot=True)
