"""Recurrent layers written out step by step in basic ops: what gradients of their gradients are taken through.

A graph this long pays only there; first gradients are ops of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.dtypes import accumulator
from flamert.grad.transform import grad
from flamert.graph import Value
from flamert.ops import activation
from flamert.ops.cast import cast
from flamert.ops.cells import Activation
from flamert.ops.functions import tanh
from flamert.ops.shape import narrow

FUNCTIONS: dict[str, Callable[[Value, float, float], Value]] = {
    "sigmoid": lambda x, a, b: activation.sigmoid(x),
    "tanh": lambda x, a, b: tanh(x),
    "relu": lambda x, a, b: activation.relu(x),
    "affine": lambda x, a, b: x * a + b,
    "leaky_relu": lambda x, a, b: activation.leaky_relu(x, alpha=a),
    "thresholded_relu": lambda x, a, b: activation.thresholded_relu(x, alpha=a),
    "scaled_tanh": lambda x, a, b: tanh(x * b) * a,
    "hard_sigmoid": lambda x, a, b: activation.hard_sigmoid(x, alpha=a, beta=b),
    "elu": lambda x, a, b: activation.elu(x, alpha=a),
    "softsign": lambda x, a, b: activation.softsign(x),
    "softplus": lambda x, a, b: activation.softplus(x),
}
"""`ops.cells.ACTIVATIONS` in graph: (x, alpha, beta) → y."""

Layer = Callable[..., tuple[Value, ...]]
Step = Callable[[Callable[[int, Value], Value], Value, tuple[Value, ...]], tuple[Value, ...]]
"""(gates by number, xₜ·Wᵀ + Wb, states) → new states."""


def gradient_of(
    layer: Layer,
    received: Sequence[Value | None],
    count: int,
    x: Value,
    w: Value,
    r: Value,
    y: Value,
    *operands: Value | None,
    **attrs: Any,
) -> list[Value | None]:
    """What the gradient op of a layer with `count` results gives, in basic ops; None where it `received` nothing.

    operands: what follows y in that op, down to the gradients of the layer's results; those left out count as zero.
    """
    states = 2 * count - 3
    padded = (*operands, *(None,) * (2 + states + count - len(operands)))
    b, lens, *rest = padded[: 2 + states]
    (d, _, h), batch = r.shape, x.shape[1]
    peepholes = [(d, 3 * h)] if count == 3 else []
    shapes = [(d, 2 * w.shape[1]), *[(d, batch, h)] * (count - 1), *peepholes]
    full = [v or g.constant(np.zeros(s, x.dtype)) for v, s in zip((b, *rest), shapes, strict=True)]
    wide = [cast(v, to=accumulator(v.dtype)) for v in (x, w, r, *full)]
    results = layer(*wide, lens=lens, **attrs)
    seeds = padded[2 + states :]
    given = [(o, cast(s, to=o.dtype)) for o, s in zip(results, seeds, strict=True) if s is not None]
    flows = grad([o for o, _ in given], wide, [s for _, s in given])
    like = [x, w, r, *full]
    wanted = zip(flows, like, received, strict=True)
    return [None if s is None else _zeros(v) if f is None else cast(f, to=v.dtype) for f, v, s in wanted]


def _zeros(like: Value) -> Value:
    return g.constant(np.zeros(like.shape, like.dtype))


def walk(
    x: Value,
    w: Value,
    b: Value,
    lens: Value | None,
    states: Sequence[Value],
    step: Callable[[int], Step],
    per: int,
    *,
    direction: str,
    activations: Sequence[Activation],
    clip: float | None,
) -> tuple[Value, ...]:
    """Y and the last states. step(d): the cell of direction d. states: initial ones, [D, B, H]."""
    steps, batch, features = x.shape
    outputs, last = [], []
    for d, order in enumerate({"forward": (1,), "reverse": (-1,), "bidirectional": (1, -1)}[direction]):
        own = activations[-per:] if d else activations[:per]
        rows = ops.matmul(ops.reshape(x, shape=(steps * batch, features)), _turned(side(w, d)))
        projected = ops.reshape(rows + narrow(side(b, d), 0, 0, w.shape[1]), shape=(steps, batch, w.shape[1]))
        now = tuple([side(s, d) for s in states])
        ys: list[Value] = [_zeros(now[0])] * steps
        cell = step(d)
        for t in range(steps)[::order]:
            new = cell(_gates(own, clip), side(projected, t), now)
            if lens is None:
                now, ys[t] = new, new[0]
            else:
                on = ops.reshape(ops.greater(lens, g.constant(t, lens.dtype)), shape=(batch, 1))
                now = tuple([ops.where(on, n, old) for n, old in zip(new, now, strict=True)])
                ys[t] = ops.where(on, new[0], _zeros(new[0]))
        outputs.append(_stack(ys, now[0]))
        last.append(now)
    y = ops.concat(*[ops.reshape(o, shape=(steps, 1, *o.shape[1:])) for o in outputs], axis=1)
    return y, *[_stack(list(of_side), of_side[0]) for of_side in zip(*last, strict=True)]


def _gates(own: Sequence[Activation], clip: float | None) -> Callable[[int, Value], Value]:
    def gate(i: int, x: Value) -> Value:
        name, alpha, beta = own[i]
        return FUNCTIONS[name](x if clip is None or i == 2 else ops.clip(x, -clip, clip), alpha, beta)

    return gate


def side(x: Value, i: int) -> Value:
    """x[i]."""
    return ops.reshape(narrow(x, 0, i, 1), shape=x.shape[1:])


def part(x: Value, i: int, n: int) -> Value:
    """The i-th n elements along the last axis."""
    return narrow(x, x.rank - 1, i * n, n)


def _turned(x: Value) -> Value:
    return ops.transpose(x, perm=(1, 0))


def _stack(xs: list[Value], like: Value) -> Value:
    if not xs:
        return g.constant(np.zeros((0, *like.shape), like.dtype))
    return ops.concat(*[ops.reshape(x, shape=(1, *x.shape)) for x in xs], axis=0)


def rnn(x: Value, w: Value, r: Value, b: Value, h: Value, *, lens: Value | None, **attrs: Any) -> tuple[Value, ...]:
    """ops.rnn."""
    n = r.shape[-1]

    def step(d: int) -> Step:
        R_T, rb = _turned(side(r, d)), part(side(b, d), 1, n)
        return lambda gate, wx, state: (gate(0, wx + state[0] @ R_T + rb),)

    return walk(x, w, b, lens, (h,), step, 1, **attrs)


def gru(
    x: Value, w: Value, r: Value, b: Value, h: Value, *, lens: Value | None, linear_before_reset: bool, **attrs: Any
) -> tuple[Value, ...]:
    """ops.gru."""
    n = r.shape[-1]

    def step(d: int) -> Step:
        R_T, rb = _turned(side(r, d)), narrow(side(b, d), 0, 3 * n, 3 * n)
        R_zr, R_h = narrow(R_T, 1, 0, 2 * n), part(R_T, 2, n)

        def cell(gate: Callable[[int, Value], Value], wx: Value, state: tuple[Value, ...]) -> tuple[Value, ...]:
            (h,) = state
            zr = gate(0, narrow(wx, 1, 0, 2 * n) + h @ R_zr + narrow(rb, 0, 0, 2 * n))
            z, reset = part(zr, 0, n), part(zr, 1, n)
            rb_h = part(rb, 2, n)
            inner = reset * (h @ R_h + rb_h) if linear_before_reset else (reset * h) @ R_h + rb_h
            candidate = gate(1, part(wx, 2, n) + inner)
            return (candidate + z * (h - candidate),)

        return cell

    return walk(x, w, b, lens, (h,), step, 2, **attrs)


def lstm(
    x: Value,
    w: Value,
    r: Value,
    b: Value,
    h: Value,
    c: Value,
    p: Value,
    *,
    lens: Value | None,
    input_forget: bool,
    seen: Callable[[Value], Value] = lambda h: h,
    **attrs: Any,
) -> tuple[Value, ...]:
    """ops.lstm. seen: what the products make of h before they take it."""
    n = r.shape[-1]

    def step(d: int) -> Step:
        R_T, rb, own = _turned(side(r, d)), narrow(side(b, d), 0, 4 * n, 4 * n), side(p, d)

        def cell(gate: Callable[[int, Value], Value], wx: Value, state: tuple[Value, ...]) -> tuple[Value, ...]:
            h, c = state
            rows = wx + seen(h) @ R_T + rb
            i, o, f, candidate = (part(rows, k, n) for k in range(4))
            i = gate(0, i + part(own, 0, n) * c)
            f = 1 - i if input_forget else gate(0, f + part(own, 2, n) * c)
            c = f * c + i * gate(1, candidate)
            return gate(0, o + part(own, 1, n) * c) * gate(2, c), c

        return cell

    return walk(x, w, b, lens, (h, c), step, 3, **attrs)
