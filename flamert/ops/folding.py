"""Arrays of Values that depend on constants alone, each computed once for every way of deriving it from a model's weights."""

from __future__ import annotations

import os
import weakref
from collections.abc import Container, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from flamert.graph import CONSTANT, Node, Value, topological
from flamert.ops.evaluate import evaluate

SMALL = 1024
"""Bytes up to which constants are told apart by content, above by identity."""

LARGE, AT_ONCE = 1 << 20, 16
"""Bytes from which on arrays are worth a thread each, and threads."""


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
        key = _key_of(value, keys, seen)
        found = self._arrays.get(key)
        if found is None:
            found = _view(value) if seen else None
            found = self._arrays[key] = np.ascontiguousarray(evaluate([value])[0]) if found is None else found
            # Keys tell large constants apart by identity, so these must live as long as the array does.
            weakref.finalize(found, _release, value).atexit = False
        return found

    def arrays(self, values: Sequence[Value], keys: dict[Node, Hashable], seen: Container[Value]) -> list[Any]:
        """The contents of several, as of `array`; different large ones are computed at once. NumPy lets go of Python's lock."""
        large = {_key_of(v, keys, v in seen): v for v in values if v.type.nbytes >= LARGE and not v.dtype.hasobject}
        with ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1)) as pool:
            made = list(pool.map(lambda v: self.array(v, keys, seen=v in seen), large.values() if len(large) > 1 else ()))
        found = [self.array(v, keys, seen=v in seen) for v in values]
        del made  # what is not held on to would have been computed again
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


def _key_of(value: Value, keys: dict[Node, Hashable], seen: bool) -> Hashable:
    for node in topological([value]):
        if node not in keys:
            keys[node] = _key(node, keys)
    return keys[value.node], value.index, seen


def _key(node: Node, keys: dict[Node, Hashable]) -> Hashable:
    if node.op is CONSTANT:
        array = node.attrs["value"]
        small = array.nbytes <= SMALL and not array.dtype.hasobject
        return (array.shape, array.dtype, array.tobytes()) if small else id(array)
    operands = tuple([None if v is None else (keys[v.node], v.index) for v in node.inputs])
    return (node.op.name, tuple(node.attrs.items()), operands)
