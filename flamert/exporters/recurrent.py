"""Exporters of recurrent layers; their gradients are written out step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.exporters.registry import exporter, spelled
from flamert.exporters.writer import Writer
from flamert.grad import unrolled
from flamert.graph import Value
from flamert.importers.recurrent import ACTIVATIONS
from flamert.ops.cells import DIRECTIONS, Activation
from flamert.ops.op import Op

NAMES = {
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "relu": "Relu",
    "affine": "Affine",
    "leaky_relu": "LeakyRelu",
    "thresholded_relu": "ThresholdedRelu",
    "scaled_tanh": "ScaledTanh",
    "hard_sigmoid": "HardSigmoid",
    "elu": "Elu",
    "softsign": "Softsign",
    "softplus": "Softplus",
}
"""ONNX's names of activations."""


def _activations(given: Sequence[Activation], per: int, direction: str) -> dict[str, Any]:
    """Activations as ONNX's attributes: one set for each direction, numbers only for the functions that take some."""
    full = list(given) * (per * DIRECTIONS[direction] // len(given))
    takes = {own: (a is not None, b is not None) for own, a, b in ACTIVATIONS.values()}
    alphas = [alpha for name, alpha, _ in full if takes[name][0]]
    betas = [beta for name, _, beta in full if takes[name][1]]
    names = [NAMES[name] for name, _, _ in full]
    return {"activations": names, "activation_alpha": alphas or None, "activation_beta": betas or None}


def _layer(op: Op, op_type: str, per: int) -> None:
    @exporter(op)
    def _(
        to: Writer,
        x: Value,
        w: Value,
        r: Value,
        b: Value | None = None,
        lens: Value | None = None,
        *rest: Value | None,
        direction: str,
        activations: Sequence[Activation],
        **attributes: Any,
    ) -> Any:
        if 0 in x.shape:
            return None
        count: Any = lens if lens is None or lens.dtype == dtypes.int32 else to("Cast", lens, to=dtypes.int32)
        options = {**attributes, **_activations(activations, per, direction)}
        # A plain False is ONNX's default, which not every version of an op names.
        options = {k: v for k, v in options.items() if v is not False}
        outputs = 3 if op_type == "LSTM" else 2
        return to(op_type, x, w, r, b, count, *rest, direction=direction, hidden_size=r.shape[2], outputs=outputs, **options)


_layer(ops.rnn, "RNN", 1)
_layer(ops.gru, "GRU", 2)
_layer(ops.lstm, "LSTM", 3)


def _steps(op: Op, layer: Any, states: int) -> None:
    """The layer step by step, where ONNX's does not fit."""

    @spelled(op)
    def _(x: Value, w: Value, r: Value, *rest: Value | None, **attributes: Any) -> list[Value]:
        padded: list[Value | None] = [*rest, *[None] * (2 + states - len(rest))]
        b, lens, *given = padded
        (d, _, h), batch = r.shape, x.shape[1]
        shapes = [(d, 2 * w.shape[1]), *[(d, batch, h)] * min(states, 2), (d, 3 * h)]
        full = [v or g.constant(np.zeros(s, x.dtype)) for v, s in zip((b, *given), shapes, strict=False)]
        wide = [ops.cast(v, to=dtypes.accumulator(v.dtype)) for v in (x, w, r, *full)]
        return [ops.cast(y, to=x.dtype) for y in layer(*wide, lens=lens, **attributes)]


_steps(ops.rnn, unrolled.rnn, 1)
_steps(ops.gru, unrolled.gru, 1)
_steps(ops.lstm, unrolled.lstm, 3)


def _levelled(x: Value) -> Value:
    """`ops.lstm.levelled` in graph."""
    axes = tuple(range(x.rank))
    low, high = ops.minimum(ops.reduce_min(x, axes=axes), 0), ops.maximum(ops.reduce_max(x, axes=axes), 0)
    step = (high - low) / 255
    step = ops.where(ops.equal(step, 0), 1, step)
    zero = ops.minimum(ops.maximum(ops.round(-low / step), 0), 255)
    return (ops.minimum(ops.maximum(ops.round(x / step) + zero, 0), 255) - zero) * step


def _quantized(x: Value, *operands: Value, **attributes: Any) -> tuple[Value, ...]:
    return unrolled.lstm(_levelled(x), *operands, seen=_levelled, **attributes)


_steps(ops.dynamic_quantize_lstm, _quantized, 3)


def _adjoint(op: Op, layer: Any, count: int, gradients: int) -> None:
    @spelled(op)
    def _(x: Value, *operands: Value | None, **attributes: Any) -> list[Value | None]:
        return unrolled.gradient_of(layer, [x] * gradients, count, x, *operands, **attributes)  # type: ignore[arg-type]


_adjoint(ops.rnn_gradient, unrolled.rnn, 2, 5)
_adjoint(ops.gru_gradient, unrolled.gru, 2, 5)
_adjoint(ops.lstm_gradient, unrolled.lstm, 3, 7)
