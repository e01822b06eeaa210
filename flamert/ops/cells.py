"""What the kernels of recurrent layers share: gate activations in place, and the walk over directions and time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from flamert import dtypes
from flamert.graph import Node, TensorType

Activation = tuple[str, float, float]
"""The name of a function in `ACTIVATIONS`, its alpha and its beta (0 where it has none)."""

SIGMOID: Activation = ("sigmoid", 0.0, 0.0)
TANH: Activation = ("tanh", 0.0, 0.0)
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def _sigmoid(xp: Any, x: Any, a: float, b: float) -> None:
    xp.negative(x, out=x)
    xp.exp(x, out=x)
    xp.add(x, 1, out=x)
    xp.reciprocal(x, out=x)


def _tanh(xp: Any, x: Any, a: float, b: float) -> None:
    xp.tanh(x, out=x)


def _relu(xp: Any, x: Any, a: float, b: float) -> None:
    xp.maximum(x, 0, out=x)


def _affine(xp: Any, x: Any, a: float, b: float) -> None:
    x *= a
    x += b


def _leaky_relu(xp: Any, x: Any, a: float, b: float) -> None:
    x[...] = xp.where(x < 0, a * x, x)


def _thresholded_relu(xp: Any, x: Any, a: float, b: float) -> None:
    x[...] = xp.where(x < a, 0, x)


def _scaled_tanh(xp: Any, x: Any, a: float, b: float) -> None:
    x *= b
    xp.tanh(x, out=x)
    x *= a


def _hard_sigmoid(xp: Any, x: Any, a: float, b: float) -> None:
    _affine(xp, x, a, b)
    xp.clip(x, 0, 1, out=x)


def _elu(xp: Any, x: Any, a: float, b: float) -> None:
    x[...] = xp.where(x < 0, a * xp.expm1(x), x)


def _softsign(xp: Any, x: Any, a: float, b: float) -> None:
    x /= 1 + abs(x)


def _softplus(xp: Any, x: Any, a: float, b: float) -> None:
    xp.logaddexp(x, xp.zeros_like(x), out=x)


ACTIVATIONS: dict[str, Callable[[Any, Any, float, float], None]] = {
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "relu": _relu,
    "affine": _affine,
    "leaky_relu": _leaky_relu,
    "thresholded_relu": _thresholded_relu,
    "scaled_tanh": _scaled_tanh,
    "hard_sigmoid": _hard_sigmoid,
    "elu": _elu,
    "softsign": _softsign,
    "softplus": _softplus,
}
"""What a gate may apply, in place: (array module, x, alpha, beta)."""


SLOPES: dict[str, Callable[[Any, Any, Any, float, float], Any]] = {
    "sigmoid": lambda xp, x, y, a, b: y * (1 - y),
    "tanh": lambda xp, x, y, a, b: 1 - y * y,
    "relu": lambda xp, x, y, a, b: x > 0,
    "affine": lambda xp, x, y, a, b: xp.full_like(x, a),
    "leaky_relu": lambda xp, x, y, a, b: xp.where(x < 0, a, 1),
    "thresholded_relu": lambda xp, x, y, a, b: x > a,
    "scaled_tanh": lambda xp, x, y, a, b: b * (a - y * y / a) if a else xp.zeros_like(x),
    "hard_sigmoid": lambda xp, x, y, a, b: xp.where((y > 0) & (y < 1), a, 0),
    "elu": lambda xp, x, y, a, b: xp.where(x < 0, y + a, 1),
    "softsign": lambda xp, x, y, a, b: xp.square(1 - abs(y)),
    "softplus": lambda xp, x, y, a, b: -xp.expm1(-y),
}
"""The derivative of each of them at x, where it is y: (array module, x, y, alpha, beta)."""


class Gate:
    """One activation, with the clipping of its input: `gate(x)` works in place."""

    __slots__ = ("alpha", "beta", "clip", "name", "run", "xp")

    def __init__(self, xp: Any, activation: Activation, clip: float | None) -> None:
        self.name, self.alpha, self.beta = activation
        self.xp, self.run, self.clip = xp, ACTIVATIONS[self.name], clip

    def __call__(self, x: Any) -> None:
        if self.clip is not None:
            self.xp.clip(x, -self.clip, self.clip, out=x)
        self.run(self.xp, x, self.alpha, self.beta)

    def slope(self, x: Any, y: Any) -> Any:
        """The derivative at x, where the gate gives y; 0 where x is clipped."""
        slope = SLOPES[self.name](self.xp, x, y, self.alpha, self.beta)
        return (slope if self.clip is None else self.xp.where(abs(x) <= self.clip, slope, 0)).astype(x.dtype, copy=False)


class Side(NamedTuple):
    """One direction of a layer: its number, its steps in the order they are taken, its activations."""

    number: int
    times: range
    gates: tuple[Gate, ...]


def sides(
    xp: Any, direction: str, steps: int, activations: Sequence[Activation], per: int, clip: float | None
) -> Iterator[Side]:
    """The directions a layer runs in, with `per` activations each; `activations` has them once, or for every direction."""
    orders = {"forward": (1,), "reverse": (-1,), "bidirectional": (1, -1)}[direction]
    for d, order in enumerate(orders):
        own = activations[-per:] if d else activations[:per]
        # The third, an LSTM's activation of the cell's state, is no gate and takes its input as it is.
        gates = [Gate(xp, a, clip if i < 2 else None) for i, a in enumerate(own)]
        yield Side(d, range(steps)[::order], tuple(gates))


def project(xp: Any, out: Any, x: Any, w: Any, *biases: Any) -> None:
    """out[t, b] = x[t, b] · wᵀ + the biases, for all time steps at once."""
    rows = x.reshape(-1, x.shape[-1]).astype(out.dtype, copy=False)
    xp.matmul(rows, w.astype(out.dtype, copy=False).T, out=out.reshape(-1, out.shape[-1]))
    for bias in biases:
        out += bias


def running(xp: Any, lens: Any, steps: int) -> Any:
    """[T, B, 1] booleans: whether a sequence is still on at a step; None where all of them last to the end.

    Walked backwards, the same mask makes a reverse direction start at each sequence's own last element.
    """
    return None if lens is None else xp.arange(steps)[:, None, None] < lens[:, None]


def start(state: Any, initial: Any, side: int) -> None:
    """Fill a state with its initial value: zero unless one is given."""
    state[...] = 0 if initial is None else initial[side]


def advance(xp: Any, state: Any, new: Any, on: Any) -> None:
    """Move a state on, where its sequence is still running."""
    if on is None:
        xp.copyto(state, new)
    else:
        xp.copyto(state, new, where=on)


def emit(xp: Any, y: Any, h: Any, on: Any) -> None:
    """Write a step's result: zero where the sequence is over."""
    y[...] = h
    if on is not None:
        xp.copyto(y, 0, where=~on)


def scratch(gates: int, states: int) -> Callable[[Node], list[TensorType]]:
    """Workspace of a layer: the projected inputs, a row of gates, then `states` arrays [B, H], in the accumulator's type."""

    def types(node: Node) -> list[TensorType]:
        steps, batch, _ = node.inputs[0].shape  # type: ignore[union-attr]
        hidden = node.types[1].shape[-1]
        dtype = dtypes.accumulator(node.types[0].dtype)
        shapes = [(steps, batch, gates * hidden), (batch, gates * hidden), *[(batch, hidden)] * states]
        return [TensorType(s, dtype) for s in shapes]

    return types
