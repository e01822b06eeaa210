"""Bodies of loops as callables on run-time objects: each is a Program of its own for every signature it is called with."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flamert import graph as g
from flamert.errors import FlamertError
from flamert.graph import TensorType, Value
from flamert.importers.registry import Entry, Opaque, concrete, is_known
from flamert.runtime.device import device
from flamert.runtime.program import Program, Return, Slot, flatten

if TYPE_CHECKING:
    from flamert.importers.importer import Importer
    from flamert.importers.onnx import OnnxGraph

MAX_PROGRAMS = 64
"""Signatures that one body keeps programs for; the oldest go first."""


class Made(NamedTuple):
    """A body's program for one signature, and its results' types as far as they are known before it runs."""

    program: Program
    types: list[TensorType | None]


class Body:
    """A subgraph that host steps call. `body(program, outer, arguments)` → its outputs as NumPy arrays, lists and objects.

    outer: entries that the graph captures and only data can tell; the host step passes on what they have become. Known
    ones are constants of its programs. program: the one that runs the host step, which lends device, passes and cache.
    """

    def __init__(
        self,
        graph: OnnxGraph,
        opsets: Mapping[str, int],
        attributes: Mapping[str, Any] | None,
        captured: Mapping[str, Entry],
        importer: Callable[[], Importer],
    ) -> None:
        self.graph, self.opsets, self.attributes, self.importer = graph, opsets, attributes, importer
        self._known = {name: entry for name, entry in captured.items() if is_known(entry)}
        self.outer = [entry for entry in captured.values() if not is_known(entry)]
        self._names = [*(name for name in captured if name not in self._known), *graph.inputs]
        self._made: OrderedDict[Hashable, Made] = OrderedDict()
        self._building = threading.Lock()

    def __call__(self, program: Program | None, outer: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        leaves: list[Any] = []
        made = self._find(program, [*outer, *arguments], leaves)
        upload = made.program.device.upload
        feeds = [upload(x) if isinstance(x, np.ndarray) and not x.dtype.hasobject else x for x in leaves]
        return made.program(feeds, host=True)

    def types(self, program: Program | None, outer: Sequence[Any], arguments: Sequence[Any]) -> list[TensorType | None]:
        """Types of the outputs for such arguments, None where only running tells. Arrays may be stand-ins without contents."""
        try:
            return self._find(program, [*outer, *arguments], []).types
        except FlamertError:
            return [None] * len(self.graph.outputs)

    def _find(self, program: Program | None, objects: Sequence[Any], leaves: list[Any]) -> Made:
        signature = tuple([flatten(x, leaves) for x in objects])
        made = self._made.get(signature)
        if made is None:
            with self._building:
                made = self._made[signature] = self._make(program, objects)
                if len(self._made) > MAX_PROGRAMS:
                    self._made.popitem(last=False)
        return made

    def _make(self, program: Program | None, objects: Sequence[Any]) -> Made:
        importer = self.importer()
        bindings: dict[str, Entry] = {name: g.constant(a) for name, a in self.graph.initializers.items()}
        bindings.update(self._known)
        for name, x in zip(self._names, objects, strict=True):
            bindings[name] = importer.receive(x, name)
        types = {importer.slots[v].index: v.type for v in importer.slots if isinstance(v, Value)}
        slots = list(importer.received)
        first = importer.start(self.graph, self.opsets, bindings, attributes=self.attributes)
        known: list[TensorType | None] = [None] * len(self.graph.outputs)
        if isinstance(first.step, Return):
            if first.graph is not None:
                types.update(zip(first.outputs, [v.type for v in first.graph.outputs], strict=True))
            known = [_type(tree, types) for tree in first.step.results]
        if program is None:
            made = Program(first, slots, device("cpu"), lambda graph, hot: graph, {})
        else:
            made = Program(first, slots, program.device, program.prepare, program.cache)
        return Made(made, known)


def _type(tree: Any, types: Mapping[int, TensorType]) -> TensorType | None:
    if isinstance(tree, Slot):
        return types.get(tree.index)
    return TensorType(tree.shape, tree.dtype) if isinstance(tree, np.ndarray) else None


def stand_in(entry: Entry) -> Any:
    """An object of the same structure and types as an Entry that is not known yet, with no memory behind it."""
    if isinstance(entry, list):
        return [stand_in(e) for e in entry]
    if isinstance(entry, Value):
        return concrete(entry) if entry.node.known else np.broadcast_to(np.zeros((), entry.dtype), entry.shape)
    return None if isinstance(entry, Opaque) else entry
