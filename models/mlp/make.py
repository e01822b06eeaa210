"""A multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto

from flamert import ops
from flamert.graph import Value
from models import command
from models.building import Network, Place, kaiming, linear
from models.weights import Weights

CONFIGURATIONS = {
    "files": {"inputs": 256, "hidden": (256, 128), "classes": 6},
    "tiny": {"inputs": 6, "hidden": (8,), "classes": 3},
}


def mlp(inputs: int, hidden: Sequence[int], classes: int, seed: int = 0) -> Network:
    """Linear layers with ReLU between them: rows of numbers → logits of classes."""

    def network(at: Place, x: Value) -> Value:
        for i, size in enumerate(hidden):
            x = ops.relu(linear(at / f"layer{i}", x, size, initial=kaiming(x.shape[1])))
        return linear(at / "head", x, classes)

    return Network(network, {"x": f"float32[batch,{inputs}]"}, ["logits"], seed=seed)


def make(size: str = "files", seed: int = 0, weights: Weights | None = None) -> ModelProto:
    """One of the configurations as an ONNX model."""
    return mlp(**CONFIGURATIONS[size], seed=seed).proto(weights=weights)


if __name__ == "__main__":
    command.make(mlp, CONFIGURATIONS)
