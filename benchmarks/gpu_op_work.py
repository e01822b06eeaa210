"""What `gpu_ops` measures is made of: a graph, the least work that it can be, and numbers to run it on."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flamert import dtypes
from flamert import graph as g
from flamert.grad import grad
from flamert.graph import Graph, TensorType, Value

DTYPES = {"bf16": dtypes.bfloat16, "fp16": dtypes.float16, "fp32": dtypes.float32}
"""Element types by name; products of fp32 are TF32."""


class Work(NamedTuple):
    """A graph, and what it cannot do without.

    flops: of its products. nbytes: memory traffic; None: every input and constant once, every output once. given: contents of
    inputs that normal numbers will not do for. updates: output number → the input that it replaces.
    """

    inputs: Sequence[Value]
    outputs: Sequence[Value]
    flops: float = 0.0
    nbytes: int | None = None
    given: Mapping[Value, np.ndarray] = {}
    updates: Mapping[int, Value] = {}

    @property
    def graph(self) -> Graph:
        return Graph(self.inputs, self.outputs)

    @property
    def traffic(self) -> int:
        """Bytes that must be moved."""
        if self.nbytes is not None:
            return self.nbytes
        constants = [node.types[0].nbytes for node in self.graph.nodes if node.op is g.CONSTANT]
        return sum(constants) + sum(v.type.nbytes for v in (*self.inputs, *self.outputs))


class Case(NamedTuple):
    """A row of the table: what it is called, and how its work is made."""

    op: str
    shapes: str
    dtype: str
    make: Callable[[np.dtype], Work]


@functools.cache
def _noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(1 << 22, np.float32)


def normal(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Normal numbers of any type; a long stretch of them, again and again."""
    count = math.prod(shape)
    return np.resize(_noise()[:count].astype(dtype), count).reshape(shape)


def operand(shape: Sequence[int], dtype: np.dtype) -> Value:
    """A new input."""
    return g.input(TensorType(tuple(shape), dtype))


def numbers(count: int, below: int) -> np.ndarray:
    """So many whole numbers, from 0 on."""
    return np.random.default_rng(1).integers(0, below, count)


Maker = Callable[[np.dtype], Work]


def differentiated(y: Value, wrt: Sequence[Value]) -> tuple[Value, list[Value]]:
    """What reaches y, a new input, and what therefore reaches each of `wrt`."""
    dy = g.input(y.type)
    return dy, [d for d in grad(y, wrt, [dy]) if d is not None]


def way(backward: bool) -> str:
    """As rows are called."""
    return "bwd" if backward else "fwd"
