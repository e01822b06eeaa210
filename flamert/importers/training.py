"""A model's training form: random numbers drawn by a counter, running statistics that move, and which weights those are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flamert import dtypes
from flamert.graph import TensorType, Value
from flamert.importers.onnx import OnnxGraph


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
    """Names that BatchNormalization nodes read running statistics from, seen through Identity, functions and subgraphs."""
    return frozenset(_statistics(graph, functions, {}))


Memo = dict[int, set[str]]


def _statistics(graph: OnnxGraph, functions: Mapping[tuple[str, str, str], OnnxGraph], memo: Memo) -> set[str]:
    """Those of one graph, its own inputs and names from around it among them."""
    if id(graph) in memo:
        return memo[id(graph)]
    found: set[str] = set()
    memo[id(graph)] = found  # a function that calls itself is refused elsewhere; here it must only end
    same = {}
    for node in graph.nodes:
        function = functions.get((node.domain, node.op_type, node.overload))
        if function is not None:
            inner = _statistics(function, functions, memo)
            found.update(outer for outer, name in zip(node.inputs, function.inputs, strict=False) if name in inner)
        elif node.domain == "" and node.op_type == "BatchNormalization":
            found.update(node.inputs[3:5])
        elif node.domain == "" and node.op_type == "Identity":
            same[node.outputs[0]] = node.inputs[0]
        for body in node.subgraphs():
            found |= _statistics(body, functions, memo)
    for name in list(found):
        while name in same:
            name = same[name]
            found.add(name)
    return found
