"""Rows for ops/recurrent.py: the oracles follow one sequence at a time through ONNX's equations, gate by gate."""

import numpy as np

from flamert import dtypes
from flamert.testing import Case
from tests.cases.elementwise import FLOATS

rng = np.random.default_rng(7)
T, B, I, H = 4, 3, 2, 5


def f32(*shape):
    return rng.uniform(-1, 1, shape).astype(np.float32)


FUNCTIONS = {
    "sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "tanh": lambda x, a, b: np.tanh(x),
    "relu": lambda x, a, b: np.maximum(x, 0),
    "affine": lambda x, a, b: a * x + b,
    "leaky_relu": lambda x, a, b: np.where(x < 0, a * x, x),
    "thresholded_relu": lambda x, a, b: np.where(x >= a, x, 0),
    "scaled_tanh": lambda x, a, b: a * np.tanh(b * x),
    "hard_sigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "elu": lambda x, a, b: np.where(x < 0, a * (np.exp(x) - 1), x),
    "softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "softplus": lambda x, a, b: np.log(1 + np.exp(x)),
}
DEFAULTS = {1: ("tanh",), 3: ("sigmoid", "tanh"), 4: ("sigmoid", "tanh", "tanh")}


def walk(n_gates, step, x, w, r, b, lens, states, direction="forward", activations=None, clip=None):
    """Y and final states; step(gate functions, x·Wᵀ+Wb, r, rb, states) → new states, for one sequence and direction."""
    n_sides, h = w.shape[0], r.shape[-1]
    b = np.zeros((n_sides, 2 * n_gates * h)) if b is None else b
    lens = [len(x)] * x.shape[1] if lens is None else lens
    activations = activations or tuple((name, 0, 0) for name in DEFAULTS[n_gates]) * n_sides
    per = len(activations) // n_sides
    y = np.zeros((len(x), n_sides, x.shape[1], h))
    last = [np.zeros((n_sides, x.shape[1], h)) if s is None else s.copy() for s in states]
    for d in range(n_sides):
        own = activations[d * per : (d + 1) * per]

        def gate(i, v, own=own):
            name, alpha, beta = own[i]
            return FUNCTIONS[name](v if clip is None or i == 2 else np.clip(v, -clip, clip), alpha, beta)

        backwards = direction == "reverse" or d == 1
        for n in range(x.shape[1]):
            state = [s[d, n] for s in last]
            for t in range(lens[n])[:: -1 if backwards else 1]:
                wx = np.split(w[d] @ x[t, n] + b[d, : n_gates * h], n_gates)
                state = step(gate, wx, np.split(r[d], n_gates), np.split(b[d, n_gates * h :], n_gates), state, d)
                y[t, d, n] = state[0]
            for s, new in zip(last, state, strict=True):
                s[d, n] = new
    return y, *last


def rnn(x, w, r, b=None, lens=None, h0=None, **attrs):
    def step(gate, wx, r, rb, state, d):
        return [gate(0, wx[0] + r[0] @ state[0] + rb[0])]

    return walk(1, step, x, w, r, b, lens, [h0], **attrs)


def gru(x, w, r, b=None, lens=None, h0=None, linear_before_reset=False, **attrs):
    def step(gate, wx, r, rb, state, d):
        (h,) = state
        z = gate(0, wx[0] + r[0] @ h + rb[0])
        reset = gate(0, wx[1] + r[1] @ h + rb[1])
        inner = reset * (r[2] @ h + rb[2]) if linear_before_reset else r[2] @ (reset * h) + rb[2]
        return [(1 - z) * gate(1, wx[2] + inner) + z * h]

    return walk(3, step, x, w, r, b, lens, [h0], **attrs)


def lstm(x, w, r, b=None, lens=None, h0=None, c0=None, p=None, input_forget=False, **attrs):
    def step(gate, wx, r, rb, state, d):
        h, c = state
        pi, po, pf = np.split(p[d], 3) if p is not None else np.zeros((3, len(h)))
        i, o, f, g = (wx[k] + r[k] @ h + rb[k] for k in range(4))
        i = gate(0, i + pi * c)
        f = 1 - i if input_forget else gate(0, f + pf * c)
        c = f * c + i * gate(1, g)
        return [gate(0, o + po * c) * gate(2, c), c]

    return walk(4, step, x, w, r, b, lens, [h0, c0], **attrs)


def levelled(x):
    low, high = min(x.min(), 0), max(x.max(), 0)
    levels = np.linspace(0, high - low, 256)
    zero = levels[np.abs(levels + low).argmin()]
    return levels[np.abs(x[..., None] + zero - levels).argmin(-1)] - zero


def dynamic_quantize_lstm(x, w, r, b, lens, h0, c0):
    """One sequence; r acts on what is left of h after rounding."""

    def step(gate, wx, r, rb, state, d):
        h, c = state
        i, o, f, g = (wx[k] + r[k] @ levelled(h) + rb[k] for k in range(4))
        c = gate(0, f) * c + gate(0, i) * gate(1, g)
        return [gate(0, o) * gate(2, c), c]

    return walk(4, step, levelled(x), w, r, b, lens, [h0, c0])


def operands(n_gates, sides=1, states=0, peepholes=False, lens=False, bias=True, steps=T, batch=B):
    """x, w, r, b, sequence_lens, the initial states and peepholes."""
    return [
        f32(steps, batch, I),
        f32(sides, n_gates * H, I),
        f32(sides, n_gates * H, H),
        f32(sides, 2 * n_gates * H) if bias else None,
        np.array([2, 4, 1], np.int32)[:batch] if lens else None,
        *[f32(sides, batch, H) for _ in range(states)],
        *([f32(sides, 3 * H)] if peepholes else []),
    ]


def rows(op, oracle, n_gates, states, **extra):
    per = len(DEFAULTS[n_gates])
    yield Case(op, operands(n_gates, states=states), extra, oracle, FLOATS)
    yield Case(op, operands(n_gates, bias=False), extra, oracle, (dtypes.float64,), name="bare")
    yield Case(op, operands(n_gates, 2, states, lens=True), {"direction": "bidirectional", **extra}, oracle, FLOATS)
    yield Case(op, operands(n_gates, 1, lens=True), {"direction": "reverse", **extra}, oracle, name="reverse")
    yield Case(op, operands(n_gates, states=states, lens=True), {"clip": 0.25, **extra}, oracle, name="clip")
    yield Case(op, operands(n_gates, steps=0), extra, oracle, name="no-steps")
    yield Case(op, operands(n_gates, batch=0), extra, oracle, name="no-batch")
    for name in FUNCTIONS:
        mixed = ((name, 0.5, 0.25), ("tanh", 0.0, 0.0), (name, 0.25, 0.5))[:per]
        yield Case(op, operands(n_gates, states=states), {"activations": mixed, **extra}, oracle, (dtypes.float64,), name=name)


CASES = [
    *rows("rnn", rnn, 1, 1),
    *rows("gru", gru, 3, 1),
    *rows("gru", gru, 3, 1, linear_before_reset=True),
    *rows("lstm", lstm, 4, 2),
    *rows("lstm", lstm, 4, 2, input_forget=True),
    Case("lstm", operands(4, 2, 2, peepholes=True, lens=True), {"direction": "bidirectional"}, lstm, FLOATS, name="peepholes"),
    Case("lstm", operands(4, 1, 2, peepholes=True), {"clip": 0.5, "input_forget": True}, lstm, name="peepholes-clip"),
    # Its gradient goes straight through steps, which differences see as such.
    Case("dynamic_quantize_lstm", operands(4, states=2, batch=1), {}, dynamic_quantize_lstm, FLOATS[:2], gradient=False),
    Case("dynamic_quantize_lstm", operands(4, batch=0), {}, lstm, name="no-batch"),
]
