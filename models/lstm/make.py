"""A language model of LSTM layers, which passes its state on from call to call.

Parameters are called and stored as in PyTorch; the graph puts them into the order that ONNX wants.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto

from flamert import graph as g
from flamert import ops
from flamert.graph import Value
from flamert.ops.shape import narrow
from models import command
from models.building import Network, Place, embedding, layer, normal, uniform
from models.transformer import dense, dropout
from models.weights import Weights

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "bytes": {"layers": 1, "width": 256},
    "large": {"layers": 3, "width": 1024, "size": 128, "drop": 0.2},
    "tiny": {"layers": 2, "width": 16, "size": 8, "vocabulary": 50},
}

ORDER = g.constant(np.array([0, 3, 1, 2]))
"""Gates as ONNX orders them (input, output, forget, cell) among PyTorch's (input, forget, cell, output)."""


def lstm(layers: int = 1, width: int = 256, size: int = 64, vocabulary: int = 256, drop: float = 0.0, seed: int = 0) -> Network:
    """A language model: tokens and a state → logits of the token after each of them, and the state then."""

    def ordered(parameter: Value) -> Value:
        """A parameter [4 · width, …] as ONNX has it: gates in its order, and an axis for directions in front."""
        gates = ops.reshape(parameter, shape=(4, width, *parameter.shape[1:]))
        return ops.reshape(ops.gather(gates, ORDER, axis=0), shape=(1, *parameter.shape))

    @layer
    def recurrent(at: Place, i: int, x: Value, h: Value, c: Value) -> tuple[Value, Value, Value]:
        """x, h, c: [length, batch, …], [1, batch, width]; returns the layer's output and its last h and c."""
        start = uniform(width**-0.5)
        w = ordered(at.parameter(f"weight_ih_l{i}", (4 * width, x.shape[-1]), start))
        r = ordered(at.parameter(f"weight_hh_l{i}", (4 * width, width), start))
        b = ops.concat(*[ordered(at.parameter(f"bias_{kind}_l{i}", (4 * width,), start)) for kind in ("ih", "hh")], axis=1)
        y, h, c = ops.lstm(x, w, r, b, None, h, c)
        return ops.reshape(y, shape=(*x.shape[:2], width)), h, c

    def network(at: Place, input_ids: Value, h: Value, c: Value) -> tuple[Value, Value, Value]:
        batch, length = input_ids.shape
        x = embedding(at / "embedding", ops.transpose(input_ids, perm=(1, 0)), vocabulary, size, initial=normal(1.0))
        states = []
        for i in range(layers):
            x, *state = recurrent(at / "lstm", i, dropout(x, drop), narrow(h, 0, i, 1), narrow(c, 0, i, 1))
            states.append(state)
        rows = ops.reshape(ops.transpose(x, perm=(1, 0, 2)), shape=(batch * length, width))
        logits = dense(at / "decoder", rows, vocabulary, initial=uniform(width**-0.5))
        last = [ops.concat(*parts, axis=0) for parts in zip(*states, strict=True)]
        return ops.reshape(logits, shape=(batch, length, vocabulary)), *last

    state = f"float32[{layers},batch,{width}]"
    return Network(network, {"input_ids": "int64[batch,sequence]", "h": state, "c": state}, ["logits", "h_n", "c_n"], seed=seed)


def make(size: str = "bytes", seed: int = 0, weights: Weights | None = None) -> ModelProto:
    """One of the configurations as an ONNX model."""
    return lstm(**CONFIGURATIONS[size], seed=seed).proto(weights=weights)


if __name__ == "__main__":
    command.make(lstm, CONFIGURATIONS)
