"""Arrays of Values that depend on constants alone, each computed once for every way of deriving it from a model's weights."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

import numpy as np

from flamert.graph import CONSTANT, Node, Value, topological
from flamert.ops.evaluate import evaluate

SMALL = 1024
"""Bytes up to which constants are told apart by content, above by identity."""


class Folding:
    """Shared by what is made of one model. Keeps an array for as long as somebody else does: a graph, a plan."""

    def __init__(self) -> None:
        self._arrays: weakref.WeakValueDictionary[Hashable, np.ndarray] = weakref.WeakValueDictionary()

    def array(self, value: Value, keys: dict[Node, Hashable], seen: bool = False) -> Any:
        """The contents of a known Value. `keys`: what this method notes of nodes; for the caller to keep while they live.

        seen: a large one may be a constant seen another way, of any strides, which takes no memory.
        """
        if value.type.nbytes <= SMALL or value.dtype.hasobject:
            return evaluate([value])[0]
        for node in topological([value]):
            if node not in keys:
                keys[node] = _key(node, keys)
        key = (keys[value.node], value.index, seen)
        found = self._arrays.get(key)
        if found is None:
            found = _view(value) if seen else None
            found = self._arrays[key] = np.ascontiguousarray(evaluate([value])[0]) if found is None else found
            # Keys tell large constants apart by identity, so these must live as long as the array does.
            weakref.finalize(found, _release, value).atexit = False
        return found


def _view(value: Value) -> np.ndarray | None:
    """A constant's array as views of it show it; None where more than views lies between, or they need a copy."""
    chain: list[Node] = []
    node = value.node
    while node.op is not CONSTANT:
        if node.op.view is None:
            return None
        chain.append(node)
        node = node.inputs[0].node  # type: ignore[union-attr]
    array = node.attrs["value"]
    try:
        for step in reversed(chain):
            array = step.op.view(array, **step.attrs)
    except ValueError:
        return None
    return array  # type: ignore[no-any-return]


def _release(operands: Value) -> None:
    """What a finalizer holds on to until the array goes."""


def _key(node: Node, keys: dict[Node, Hashable]) -> Hashable:
    if node.op is CONSTANT:
        array = node.attrs["value"]
        small = array.nbytes <= SMALL and not array.dtype.hasobject
        return (array.shape, array.dtype, array.tobytes()) if small else id(array)
    operands = tuple([None if v is None else (keys[v.node], v.index) for v in node.inputs])
    return (node.op.name, tuple(node.attrs.items()), operands)
