"""What a walk knows: names by scope, and the graphs it is inside of, each with how far it has come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flamert.errors import InvalidModel
from flamert.graph import Value
from flamert.importers.onnx import OnnxGraph, OnnxNode
from flamert.importers.registry import Entry, Opaque


class Scope:
    """Names of one graph, with the names around it."""

    __slots__ = ("names", "opsets", "parent")

    def __init__(self, opsets: Mapping[str, int], parent: Scope | None = None) -> None:
        self.names: dict[str, Entry] = {}
        self.opsets = opsets
        self.parent = parent

    def find(self, name: str) -> Entry:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        raise InvalidModel(f"{name!r} is read but never written")


class Frame:
    """A graph being imported: how far, and what to do with its outputs at the end."""

    __slots__ = ("again", "at", "attributes", "graph", "leave", "node", "scope", "state")

    def __init__(
        self,
        graph: OnnxGraph,
        scope: Scope,
        node: OnnxNode | None = None,
        leave: Any = None,
        state: Sequence[Entry] = (),
    ) -> None:
        self.graph, self.scope, self.node, self.leave, self.state = graph, scope, node, leave, list(state)
        self.at = 0
        self.again = False
        self.attributes: Mapping[str, Any] | None = None

    def needed(self) -> Iterator[str]:
        """Names that are still to be read, here or by what leaving leads to."""
        for node in self.graph.nodes[self.at :]:
            yield from node.reads
        yield from self.graph.outputs
        if self.again:
            yield from self.graph.free


def copied(frames: Sequence[Frame], needed: set[str] | None = None) -> list[Frame]:
    """The same state, independent of this one; with `needed`, other names are forgotten."""
    scopes: dict[Scope, Scope] = {}

    def twin(scope: Scope | None) -> Scope | None:
        if scope is None:
            return None
        if scope not in scopes:
            new = scopes[scope] = Scope(scope.opsets, twin(scope.parent))
            new.names = {n: e for n, e in scope.names.items() if needed is None or n in needed}
        return scopes[scope]

    found = []
    for frame in frames:
        new = Frame(frame.graph, twin(frame.scope), frame.node, frame.leave, frame.state)  # type: ignore[arg-type]
        new.at, new.attributes, new.again = frame.at, frame.attributes, frame.again
        found.append(new)
    return found


def unknown(frames: Sequence[Frame]) -> Iterator[Value]:
    """The Values that depend on data, among all that names and frames hold."""
    for frame in frames:
        yield from _unknown(frame.state)
    for scope in _scopes(frames):
        yield from _unknown(scope.names.values())


def _unknown(entries: Any) -> Iterator[Value]:
    for entry in entries:
        if isinstance(entry, list):
            yield from _unknown(entry)
        elif isinstance(entry, Value) and not entry.node.known:
            yield entry


def replace(frames: Sequence[Frame], new: Mapping[Any, Entry]) -> None:
    """Bind every name that stands for an old Value to a new Entry."""

    def renewed(entry: Entry) -> Entry:
        if isinstance(entry, list):
            return [renewed(e) for e in entry]
        return new.get(entry, entry) if isinstance(entry, Value | Opaque) else entry

    for frame in frames:
        frame.state = [renewed(e) for e in frame.state]
    for scope in _scopes(frames):
        scope.names = {n: renewed(e) for n, e in scope.names.items()}


def _scopes(frames: Sequence[Frame]) -> Iterator[Scope]:
    """Every scope once, with those around it."""
    seen: set[Scope] = set()
    for frame in frames:
        scope: Scope | None = frame.scope
        while scope is not None and scope not in seen:
            seen.add(scope)
            yield scope
            scope = scope.parent
