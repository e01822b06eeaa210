"""LSTMs on the CPU: native steps between large products, for the usual activations and sequences of one length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert.graph import Node, TensorType
from flamert.ops.cells import SIGMOID, TANH
from flamert.ops.cpu.library import library, native
from flamert.ops.cpu.linear import pack, product
from flamert.ops.cpu.shape import copier, sequence
from flamert.ops.lstm import lstm
from flamert.ops.lstm_gradient import lstm_gradient
from flamert.ops.op import Site, kernel

FLOAT = np.dtype(np.float32)
ROWS = 48
"""Rows of a task where all steps are known, as in lstm.h."""


def _plain(node: Node) -> bool:
    """The usual activations, no peepholes, all sequences of full length."""
    extra = 5 if node.op is lstm_gradient else 4
    lens, peepholes = (node.inputs[i] if i < len(node.inputs) else None for i in (extra, extra + 3))
    attrs = node.attrs
    usual = tuple(attrs["activations"]) in ((SIGMOID, TANH, TANH), (SIGMOID, TANH, TANH) * 2)
    x = node.inputs[0]
    assert x is not None
    full = lens is None and x.type.size > 0 and node.types[-2].size > 0
    return usual and full and peepholes is None and attrs["clip"] is None and not attrs["input_forget"]


def _panels(n: int) -> int:
    lib = library()
    assert lib is not None
    return -(-n // lib.panel) * lib.panel


def _scratch(node: Node) -> Sequence[TensorType]:
    """Inward products, a row of R's columns for each gate, a packed weight, and what each worker needs."""
    lib = library()
    assert lib is not None
    (t, b, i), h = node.inputs[0].shape, node.inputs[2].shape[-1]  # type: ignore[union-attr]
    sizes = (t * b * 4 * h, 4 * _panels(h) * h, i * _panels(4 * h), lib.threads * 4 * b * lib.panel)
    return tuple([TensorType((n,), FLOAT) for n in sizes])


@kernel(lstm, "numpy", when=native(_plain), bind=True, contiguous=True, workspace=_scratch)
def _(
    site: Site,
    out: Any,
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    lens: Any = None,
    initial_h: Any = None,
    initial_c: Any = None,
    *,
    direction: str,
    **attrs: Any,
) -> Callable[[], Any]:
    lib = library()
    assert lib is not None
    y, y_h, y_c = out
    (t, batch, i), h = x.shape, r.shape[-1]
    inward, packed_r, packed_w, work = site.work
    calls: list[Callable[[], Any]] = []
    for d in range(len(w)):
        back = int(direction == "reverse" or d == 1)
        calls.append(_inward(site, inward.reshape(t * batch, 4 * h), x.reshape(t * batch, i), w, d, packed_w))
        recurrent = _recurrent(site, calls, r, d, packed_r)
        calls.append(_initial(y_c[d], initial_c, d))
        step = lib.call(
            "lstm",
            [None, y_c[d], inward, recurrent, None if b is None else b[d], None if initial_h is None else initial_h[d], work],
            [t, batch, h, y.strides[0] // 4, back, work.size // (4 * batch * lib.panel)],
        )
        step.arguments[0].p[0] = y[:, d].__array_interface__["data"][0]
        step.kept = (step.kept, y)
        calls += [step, copier(y_h[d], y[0 if back else t - 1, d])]
    return sequence(calls)


def _inward(site: Site, out: Any, x: Any, w: Any, d: int, packed: Any) -> Callable[[], Any]:
    """x · Wᵀ of direction d."""
    lib = library()
    assert lib is not None
    if not site.is_constant(1):
        return product(out, x, w[d].T, packed, packed[:0])
    weights = site.prepacked(f"inward {d}", 1, lambda: pack(w[d].T))
    return lib.call("gemm", [out, x, weights, None, None], [*out.shape, x.shape[1], x.shape[1], 0, 96], [0.0, 0.0])


def _recurrent(site: Site, calls: list[Callable[[], Any]], r: Any, d: int, packed: Any) -> Any:
    """Rᵀ of direction d, packed for each gate: once where it is a constant, else by more `calls`."""
    h = r.shape[-1]
    if site.is_constant(2):
        return site.prepacked(f"recurrent {d}", 2, lambda: np.concatenate([pack(gate.T) for gate in r[d].reshape(4, h, h)]))
    for gate, to in zip(r[d].reshape(4, h, h), packed.reshape(4, -1), strict=True):
        calls.append(_packing(to, gate.T))
    return packed


def _packing(out: Any, w: Any) -> Callable[[], Any]:
    lib = library()
    assert lib is not None
    call = lib.call("pack", [out], [*w.shape, *[s // 4 for s in w.strides]])
    call.arguments[0].p[1] = w.__array_interface__["data"][0]
    call.kept = (call.kept, w)
    return call


def _initial(state: Any, given: Any, d: int) -> Callable[[], Any]:
    """A state's first contents: zeros unless they are given."""
    lib = library()
    assert lib is not None
    return lib.call("fill", [state], [state.size], [0.0]) if given is None else copier(state, given[d])


def _gradient_scratch(node: Node) -> Sequence[TensorType]:
    """What is sent, h before each step, cells; packed: R for each gate, R whole, an operand; one turned; workers' own; dx."""
    lib = library()
    assert lib is not None
    (t, b, i), h, directions = node.inputs[0].shape, node.inputs[2].shape[-1], node.inputs[1].shape[0]  # type: ignore[union-attr]
    packed = max(i * _panels(4 * h), 4 * h * _panels(i), t * b * _panels(max(i, h)))
    workers = lib.threads * 4 * max(b, ROWS) * lib.panel
    more = t * b * i if directions > 1 else 0
    sizes = (t * b * 4 * h, t * b * h, t * b * h, 4 * _panels(h) * h, 4 * h * _panels(h), packed, 4 * h * t * b, workers, more)
    return tuple([TensorType((n,), FLOAT) for n in sizes])


@kernel(lstm_gradient, "numpy", when=native(_plain), bind=True, contiguous=True, workspace=_gradient_scratch)
def _(
    site: Site,
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
    dy: Any = None,
    dy_h: Any = None,
    dy_c: Any = None,
    *,
    direction: str,
    **attrs: Any,
) -> Callable[[], Any]:
    lib = library()
    assert lib is not None
    dx, dw, dr, db, dh, dc, dp = out
    (t, batch, i), h = x.shape, r.shape[-1]
    sent, before, cells, gates_r, whole_r, packed, turned, work, more = site.work
    rows, flat = sent.reshape(t * batch, 4 * h), x.reshape(t * batch, i)
    before = before.reshape(t, batch, h)
    calls: list[Callable[[], Any]] = []
    for d in range(len(w)):
        back = direction == "reverse" or d == 1
        calls += _earlier(before, y[:, d], None if initial_h is None else initial_h[d], back)
        calls.append(product(rows, flat, w[d].T, packed, turned))
        recurrent = _recurrent(site, calls, r, d, gates_r)
        calls += [_packing(whole_r, r[d]), _initial(dc[d], dy_c, d)]
        states = [None if s is None else s[d] for s in (b, initial_c)]
        call = lib.call(
            "lstm_gradient",
            [sent, before, cells, recurrent, whole_r, *states, None, None if dy_h is None else dy_h[d], dc[d], dh[d], work],
            [t, batch, h, 0 if dy is None else dy.strides[0] // 4, back, work.size // (4 * max(batch, ROWS) * lib.panel)],
        )
        if dy is not None:
            call.arguments[0].p[7] = dy[:, d].__array_interface__["data"][0]
            call.kept = (call.kept, dy)
        calls += [call, lib.call("lstm_peepholes", [dp[d], sent, cells, states[1]], [t, batch, h, back])]
        calls.append(product(more.reshape(-1, i) if d else dx.reshape(-1, i), rows, w[d], packed, turned))
        if d:
            calls.append(lambda: np.add(dx, more.reshape(dx.shape), out=dx))
        calls.append(product(dw[d], rows.T, flat, packed, turned))
        calls.append(product(dr[d], rows.T, before.reshape(-1, h), packed, turned))
        calls += [lib.call("reduce", [half, sent], [1, t * batch, 4 * h, 0]) for half in (db[d, : 4 * h], db[d, 4 * h :])]
    return sequence(calls)


def _earlier(before: Any, y: Any, initial: Any, back: bool) -> list[Callable[[], Any]]:
    """Calls that put the hidden state in front of each step into `before`."""
    lib = library()
    assert lib is not None
    first = before[-1 if back else 0]
    calls = [lib.call("fill", [first], [first.size], [0.0]) if initial is None else copier(first, initial)]
    if len(y) > 1:
        calls.append(copier(before[:-1], y[1:]) if back else copier(before[1:], y[:-1]))
    return calls
