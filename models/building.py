"""Networks written in `fr.ops`: places that name parameters, the layers that have some, and the ONNX file that comes of them.

    def digits(at, image):
        x = ops.relu(linear(at / "hidden", image, 64))
        return linear(at / "head", x, 10)

    network = Network(digits, {"image": "float32[batch,784]"}, ["logits"])
    network.save("digits.onnx")

A network is a function of a place and of Values. Below the place `at / "hidden"`, `linear` asks for parameters that are then
called "hidden.weight" and "hidden.bias". What they start from depends on these names and the seed, on nothing else.
Dimensions that an input has names for vary in the file. The function sees them as numbers, and is called for several.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto

from flamert import graph as g
from flamert import ops
from flamert.exporters.graph import export_graph, model_proto
from flamert.graph import Graph, Source, TensorType, Value
from models.weights import Weights, fitted

Shape = tuple[int, ...]
Initial = Callable[[np.random.Generator, Shape], np.ndarray]
"""What a parameter starts from."""

OPSET = 21


def zeros(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Zeros."""
    return np.zeros(shape, np.float32)


def ones(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Ones."""
    return np.ones(shape, np.float32)


def normal(deviation: float) -> Initial:
    """Normally distributed with this standard deviation."""
    return lambda rng, shape: rng.standard_normal(shape, np.float32) * np.float32(deviation)


def uniform(bound: float) -> Initial:
    """Uniformly distributed between −bound and bound."""
    return lambda rng, shape: (rng.random(shape, np.float32) * 2 - 1) * np.float32(bound)


def kaiming(fan: int) -> Initial:
    """Normal with variance 2 / fan, which keeps variances through layers with ReLU. Source: He et al. 2015."""
    return normal(math.sqrt(2 / fan))


def xavier(fan_in: int, fan_out: int) -> Initial:
    """Uniform with variance 2 / (fan_in + fan_out). Source: Glorot & Bengio 2010."""
    return uniform(math.sqrt(6 / (fan_in + fan_out)))


class Parameter(NamedTuple):
    """A parameter before it has contents. trains: no running statistic."""

    value: Value
    initial: Initial
    trains: bool


class Place:
    """Where in a network a layer is: `at / "layer1" / 0` is called "layer1.0"."""

    def __init__(self, path: str, parameters: dict[str, Parameter]) -> None:
        self.path = path
        self._parameters = parameters

    def __truediv__(self, name: str | int) -> Place:
        return Place(f"{self.path}.{name}" if self.path else str(name), self._parameters)

    def parameter(self, name: str, shape: Sequence[int], initial: Initial, trains: bool = True) -> Value:
        """The float32 parameter of this name below the place; the same one whenever it is asked for."""
        full = (self / name).path
        if full not in self._parameters:
            value = g.input(TensorType(tuple(shape), np.dtype(np.float32)), full)
            self._parameters[full] = Parameter(value, initial, trains)
        found = self._parameters[full].value
        if found.shape != tuple(shape):
            raise ValueError(f"parameter {full!r} is {list(found.shape)} in one place and {list(shape)} in another")
        return found


def layer(function: Callable[..., Any]) -> Callable[..., Any]:
    """For functions of a place and of Values: nodes that they make are called like the place."""

    @functools.wraps(function)
    def named(at: Place, *operands: Any, **options: Any) -> Any:
        with g.sourced(Source(function.__name__, at.path) if at.path else None):
            return function(at, *operands, **options)

    return named


@layer
def linear(
    at: Place, x: Value, outputs: int, *, bias: bool = True, initial: Initial | None = None, inputs_first: bool = False
) -> Value:
    """x · weightᵀ + bias on rows [n, inputs]. weight: [outputs, inputs], as PyTorch's Linear has it.

    initial: of the weight, by default uniform within 1/√inputs. inputs_first: let the weight be [inputs, outputs].
    """
    inputs = x.shape[1]
    shape = (inputs, outputs) if inputs_first else (outputs, inputs)
    weight = at.parameter("weight", shape, initial or uniform(inputs**-0.5))
    b = at.parameter("bias", (outputs,), zeros) if bias else None
    return ops.gemm(x, weight, b, trans_b=not inputs_first)


@layer
def conv(
    at: Place,
    x: Value,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    pad: int | None = None,
    bias: bool = True,
    initial: Initial | None = None,
) -> Value:
    """A convolution of images [N, C, H, W]. pad: on all sides, by default what keeps the size of odd kernels.

    initial: of the weight [outputs, C, kernel, kernel], by default Kaiming's for the fan out.
    """
    pad = kernel // 2 if pad is None else pad
    weight = at.parameter("weight", (outputs, x.shape[1], kernel, kernel), initial or kaiming(outputs * kernel**2))
    b = at.parameter("bias", (outputs,), zeros) if bias else None
    return ops.conv(x, weight, b, strides=(stride, stride), pads=(pad,) * 4, dilations=(1, 1))


@layer
def batch_norm(at: Place, x: Value, *, scale: Initial = ones, epsilon: float = 1e-5) -> Value:
    """Batch normalization as inference has it; a Trainer moves the running statistics."""
    channels = x.shape[1:2]
    w, b = at.parameter("weight", channels, scale), at.parameter("bias", channels, zeros)
    mean = at.parameter("running_mean", channels, zeros, trains=False)
    var = at.parameter("running_var", channels, ones, trains=False)
    return ops.batch_norm(x, w, b, mean, var, epsilon=epsilon)


@layer
def layer_norm(at: Place, x: Value, *, epsilon: float = 1e-5) -> Value:
    """Layer normalization over the last axis."""
    w, b = at.parameter("weight", x.shape[-1:], ones), at.parameter("bias", x.shape[-1:], zeros)
    return ops.layer_norm(x, w, b, epsilon=epsilon)


@layer
def rms_norm(at: Place, x: Value, *, epsilon: float = 1e-6) -> Value:
    """RMS normalization over the last axis."""
    return ops.rms_norm(x, at.parameter("weight", x.shape[-1:], ones), epsilon=epsilon)


@layer
def group_norm(at: Place, x: Value, groups: int, *, epsilon: float = 1e-5) -> Value:
    """Group normalization of [N, C, …]."""
    w, b = at.parameter("weight", x.shape[1:2], ones), at.parameter("bias", x.shape[1:2], zeros)
    return ops.group_norm(x, w, b, groups=groups, epsilon=epsilon)


@layer
def embedding(at: Place, ids: Value, count: int, size: int, *, initial: Initial | None = None) -> Value:
    """Rows of a table [count, size] for integers of any shape. initial: of the table, by default normal with 0.02."""
    return ops.gather(at.parameter("weight", (count, size), initial or normal(0.02)), ids, axis=0)


class Network:
    """A function of a place and Values, with its parameters.

    inputs: types by name, as text: "float32[batch,3,224,224]". sizes: for dimensions with names, three numbers to try where
    the usual primes do not do (see `fr.export_graph`).
    """

    def __init__(
        self,
        function: Callable[..., Value | Sequence[Value]],
        inputs: Mapping[str, str],
        outputs: Sequence[str],
        *,
        seed: int = 0,
        sizes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.function, self.outputs, self.seed = function, outputs, seed
        self.inputs = {name: _parsed(text) for name, text in inputs.items()}
        varying = dict.fromkeys(d for _, dims in self.inputs.values() for d in dims if isinstance(d, str))
        self.sizes = {**varying, **(sizes or {})}
        self._parameters: dict[str, Parameter] = {}

    def graph(self, **sizes: int) -> Graph:
        """The network as a graph of inputs and parameters, for these sizes."""
        inputs = [
            g.input(TensorType(tuple(d if isinstance(d, int) else sizes[d] for d in dims), dtype), name)
            for name, (dtype, dims) in self.inputs.items()
        ]
        results = self.function(Place("", self._parameters), *inputs)
        results = [results] if isinstance(results, Value) else results
        return Graph([*inputs, *[p.value for p in self._parameters.values()]], results)

    @property
    def parameters(self) -> dict[str, Parameter]:
        """What the network has to learn, and its running statistics, by name."""
        if not self._parameters:
            self.graph(**{name: (tried or (5,))[0] for name, tried in self.sizes.items()})
        return self._parameters

    @property
    def size(self) -> int:
        """How many numbers there are to learn."""
        return sum(p.value.type.size for p in self.parameters.values() if p.trains)

    def initial(self) -> dict[str, np.ndarray]:
        """Parameters drawn anew, by name."""
        return {
            name: p.initial(np.random.default_rng([self.seed, *name.encode()]), p.value.shape)
            for name, p in self.parameters.items()
        }

    def filled(self, weights: Weights | None) -> dict[str, np.ndarray]:
        """Parameters by name: those of `weights`, or drawn anew where there are none."""
        return self.initial() if weights is None else fitted({n: p.value.shape for n, p in self.parameters.items()}, weights)

    def proto(self, opset: int = OPSET, *, weights: Weights | None = None) -> ModelProto:
        """The network as an ONNX model."""
        return model_proto(self.graph, parameters=self.filled(weights), outputs=self.outputs, sizes=self.sizes, opset=opset)

    def save(
        self,
        path: str | os.PathLike[str],
        opset: int = OPSET,
        *,
        weights: Weights | None = None,
        external_data: str | bool = "auto",
    ) -> None:
        """Write the network as an ONNX file."""
        export_graph(
            self.graph,
            path,
            parameters=self.filled(weights),
            outputs=self.outputs,
            sizes=self.sizes,
            opset=opset,
            external_data=external_data,
        )


def _parsed(text: str) -> tuple[np.dtype, tuple[int | str, ...]]:
    """An input's type from text such as "int64[batch,length]"."""
    match = re.fullmatch(r"(\w+)\[([\w, ]*)\]", text)
    if match is None:
        raise ValueError(f"a type is written like float32[batch,3,224,224], not {text!r}")
    dims = [d.strip() for d in match[2].split(",") if d.strip()]
    return np.dtype(match[1]), tuple(int(d) if d.isdecimal() else d for d in dims)
