"""A model's training form: random numbers drawn by a counter, running statistics that move, and which weights those are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flamert import dtypes
from flamert.graph import TensorType, Value
from flamert.importers.onnx import OnnxGraph, OnnxNode
from flamert.importers.weights import Weights

COUNTER = TensorType((), dtypes.uint64)


class Training:
    """Shared by the converters of one walk.

    counter: the graph input that random numbers are a function of, along with `seed`. moved: running statistics by what they
    were before.
    """

    def __init__(self, seed: int, counter: Value) -> None:
        self.seed, self.counter = seed, counter
        self.moved: dict[Value, Value] = {}
        self._draws = 0

    def current(self, statistic: Value) -> Value:
        """A running statistic after all nodes so far; two nodes that share one move it one after the other."""
        return self.moved.get(statistic, statistic)

    def draw(self) -> tuple[Value, int]:
        """The counter, and a seed that no other node of the walk has."""
        self._draws += 1
        return self.counter, int(np.random.SeedSequence((self.seed, self._draws)).generate_state(1, np.uint64)[0])


def statistics(graph: OnnxGraph, functions: Mapping[tuple[str, str, str], OnnxGraph]) -> frozenset[str]:
    """Weights that BatchNormalization nodes read running statistics from, through Identity, functions and subgraphs too."""
    found = _Statistics(functions)
    found.of(graph)
    return frozenset(found.weights)


class _Statistics:
    """A walk over graphs: `weights` collects what they hold themselves, by the names that the whole model has for it."""

    def __init__(self, functions: Mapping[tuple[str, str, str], OnnxGraph]) -> None:
        self.functions = functions
        self.weights: set[str] = set()
        self._seen: dict[int, set[str]] = {}

    def of(self, graph: OnnxGraph) -> set[str]:
        """The names from outside, its inputs among them, that a graph reads statistics from."""
        if id(graph) in self._seen:
            return self._seen[id(graph)]
        self._seen[id(graph)] = set()  # a function that calls itself is refused elsewhere; here it must only end
        found: set[str] = set()
        made: set[str] = set()
        same: dict[str, str] = {}
        for node in graph.nodes:
            found |= self._read(node)
            made.update(node.outputs)
            if node.domain == "" and node.op_type == "Identity":
                same[node.outputs[0]] = node.inputs[0]
        for name in list(found):
            while name in same:
                name = same[name]
                found.add(name)
        own = graph.initializers.names if isinstance(graph.initializers, Weights) else {n: n for n in graph.initializers}
        self.weights.update([own[n] for n in found if n in own])
        self._seen[id(graph)] = found - made - own.keys()
        return self._seen[id(graph)]

    def _read(self, node: OnnxNode) -> set[str]:
        found = {name for body in node.subgraphs() for name in self.of(body)}
        function = self.functions.get((node.domain, node.op_type, node.overload))
        if function is not None:
            inner = self.of(function)
            found.update(outer for outer, name in zip(node.inputs, function.inputs, strict=False) if name in inner)
        elif node.domain == "" and node.op_type == "BatchNormalization":
            found.update(node.inputs[3:5])
        return found
