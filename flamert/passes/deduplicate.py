"""Common subexpressions: equal applications of an op to the same operands become one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from flamert.graph import CONSTANT, Graph, Node, Value
from flamert.rewrite import rebuild, with_inputs

SMALL = 1024
"""Bytes up to which constants are compared by content; larger ones only by identity."""


def deduplicate(graph: Graph) -> Graph:
    """Random ops stay apart: each draws its own numbers."""
    seen: dict[Hashable, tuple[Value, ...]] = {}

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if node.op.random:
            return None
        key = _constant_key(node.attrs["value"]) if node.op is CONSTANT else (node.op.name, inputs, _hashable(node.attrs))
        first = seen.get(key)
        if first is None:
            first = seen[key] = node.outputs if inputs == node.inputs else with_inputs(node, inputs).outputs
        return first

    return rebuild(graph, rule)


def _constant_key(array: np.ndarray) -> Hashable:
    if array.nbytes > SMALL or array.dtype.hasobject:
        return id(array)
    return (array.shape, array.dtype, array.tobytes())


def _hashable(attrs: Any) -> Hashable:
    return tuple(attrs.items())
