"""Weights that a file stores as small integers: the nodes that make them floating, and the way back from floating to stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from flamert import dtypes
from flamert import graph as g
from flamert.errors import FlamertError, InputError
from flamert.graph import TensorType, Value
from flamert.importers.codes import Step, moved, rounded, undone
from flamert.importers.onnx import OnnxGraph, OnnxNode
from flamert.importers.weights import Weights, free_name
from flamert.ops.evaluate import value_of

if TYPE_CHECKING:
    from flamert.importers.load import OnnxOrigin

CODES = frozenset(t for t in (*dtypes.INTEGER, *dtypes.NARROW_FLOAT) if t.itemsize <= 2)
"""Element types that stand for weights. int32 does so in front of a DequantizeLinear, as biases are stored."""

SCALING = frozenset({"DequantizeLinear", "Mul", "Div"})
SHIFTING = frozenset({"Add", "Sub"})
LAYOUT = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
FOLLOWED = SCALING | SHIFTING | LAYOUT | {"Cast", "CastLike", "Identity"}


class Chain:
    """The nodes between an initializer of codes and the floating weight that the model computes with.

    codes, end: names among all weights of the model; first, last: what the graph itself calls them.
    """

    def __init__(self, place: Place, codes: str, first: str, steps: Iterable[Step]) -> None:
        self.place, self.codes, self.first, self.steps = place, codes, first, list(steps)
        self.end = ""
        self.within: frozenset[str] = frozenset()
        """Weights that take part: scales, zero points."""

    @property
    def last(self) -> str:
        return self.steps[-1].node.outputs[0]

    def names(self, codes: np.ndarray, known: bool = True) -> dict[str, Any]:
        """What the names on the way stand for; with known=False only the types of what depends on the codes are."""
        walk, weights = self.place.importer(), self.place.graph.initializers
        others = [n for step in self.steps for n in step.others]
        read = self.place.reaching(others)
        bindings: dict[str, Any] = {n: g.constant(weights[n]) for n in read if n in weights}
        type = TensorType(codes.shape, codes.dtype)
        bindings[self.first] = g.constant(codes) if known else walk.receive_type(type, self.first)
        makers = [self.place.makers[n] for n in read if n in self.place.makers]
        nodes = sorted({*makers, *[step.node for step in self.steps]}, key=self.place.order.__getitem__)
        walk.start(OnnxGraph(nodes, (), (self.last, *others), {}), self.place.opsets, bindings)
        return walk.frames[0].scope.names

    def forwards(self, codes: np.ndarray) -> np.ndarray:
        """The floating weight that codes stand for, exactly as the model computes it."""
        return np.array(value_of(self.names(codes)[self.last]))

    def backwards(self, weight: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """The codes that come nearest to a floating weight; halves go to the even one. codes: those so far.

        Codes whose weight has not changed stay, whatever rounding would make of them.
        Raises InputError for a weight that is not finite.
        """
        if not np.isfinite(weight.astype(np.float64)).all():
            raise InputError(f"parameter {self.end!r} is not finite, and cannot be stored as {codes.dtype.name}")
        names = self.names(codes)
        before = value_of(names[self.last])
        y, same = weight.astype(np.float64), np.equal(weight, before)
        with np.errstate(divide="ignore", invalid="ignore"):
            for step in reversed(self.steps):
                source = names[step.node.inputs[step.at]]
                y = undone(step, y, source.shape, [value_of(names[n]) for n in step.others])
                same = moved(step, same, source.shape)
        return np.where(same | ~np.isfinite(y), codes, rounded(y, codes.dtype)).astype(codes.dtype)


class Place:
    """A graph of the file, as it was loaded: its nodes and opsets. importer: makes fresh Importers for it."""

    def __init__(self, graph: OnnxGraph, opsets: Mapping[str, int], importer: Callable[[], Any]) -> None:
        self.graph, self.nodes, self.opsets, self.importer = graph, graph.nodes, opsets, importer

    @cached_property
    def order(self) -> dict[OnnxNode, int]:
        """The nodes' places in the graph."""
        return {node: i for i, node in enumerate(self.nodes)}

    @cached_property
    def makers(self) -> dict[str, OnnxNode]:
        """The node that each name is a result of."""
        return {out: node for node in self.nodes for out in node.outputs if out}

    @cached_property
    def readers(self) -> dict[str, list[OnnxNode]]:
        """The nodes that read each name, or hold graphs that do."""
        found: dict[str, list[OnnxNode]] = {}
        for node in self.nodes:
            for name in set(node.reads):
                found.setdefault(name, []).append(node)
        return found

    def reaching(self, names: Iterable[str]) -> dict[str, None]:
        """The names, and all that they are made of."""
        seen: dict[str, None] = {}
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name and name not in seen:
                seen[name] = None
                waiting += self.makers[name].inputs if name in self.makers else ()
        return seen


class Stored(Mapping[str, np.ndarray]):
    """A model's weights that its file stores as codes: name of the floating value → its array, computed when it is asked for.

    A weight is *thawed* when it is to change: it becomes an initializer of its graph, and the chain that made it is cut.
    """

    def __init__(self, origin: OnnxOrigin, places: Iterable[Place]) -> None:
        self.origin = origin
        self.chains: dict[str, Chain] = {}
        self.thawed: set[str] = set()
        taken: set[str] = set()
        for place in places:
            for chain in _chains(place):
                taken = taken or {*origin.weights, *origin.values}
                where = place.graph.initializers.where  # type: ignore[attr-defined]
                chain.end = free_name(chain.last, where, taken) if where else chain.last
                taken.add(chain.end)
                self.chains[chain.end] = chain

    def __getitem__(self, name: str) -> np.ndarray:
        chain = self.chains[name]
        return self.origin.weights[name] if name in self.thawed else chain.forwards(self.origin.weights[chain.codes])

    def __iter__(self) -> Iterator[str]:
        return iter([n for n, chain in self.chains.items() if chain.codes in self.origin.weights])

    def __len__(self) -> int:
        return len(list(iter(self)))

    @property
    def within(self) -> frozenset[str]:
        """Weights that only serve to make others of codes."""
        return frozenset(n for chain in self.chains.values() for n in chain.within)

    def thaw(self, names: Iterable[str]) -> None:
        """From now on these weights are the model's own, to be changed; others are passed over."""
        for name in names:
            if name not in self.thawed and name in self.chains and self.chains[name].codes in self.origin.weights:
                self._cut(self.chains[name])
                self.thawed.add(name)

    @contextmanager
    def thawing(self, names: Iterable[str]) -> Iterator[None]:
        """These weights are thawed for as long as the block takes."""
        before, origin = set(self.thawed), self.origin
        nodes = {chain.end: chain.place.graph.nodes for chain in self.chains.values()}
        ungrafted = origin.ungrafted
        self.thaw(names)
        try:
            yield
        finally:
            for name in self.thawed - before:
                chain = self.chains[name]
                del origin.weights[name]
                _names(chain.place).pop(chain.last)
                chain.place.graph.nodes = nodes[name]
                origin.ungrafted = ungrafted
            self.thawed = before

    def _cut(self, chain: Chain) -> None:
        origin, graph = self.origin, chain.place.graph
        origin.take_in(chain.end, chain.forwards(origin.weights[chain.codes]))
        _names(chain.place)[chain.last] = chain.end
        if graph is origin.graph:
            origin.ungrafted = tuple([node for node in origin.ungrafted if chain.last not in node.outputs])
        graph.nodes = tuple([node for node in graph.nodes if chain.last not in node.outputs])
        graph.__dict__.pop("free", None)

    def follow(self, codes: str) -> None:
        """Let a thawed weight be what its codes, which were replaced, stand for."""
        for name in self.thawed:
            if self.chains[name].codes == codes:
                self.origin.take_in(name, self.chains[name].forwards(self.origin.weights[codes]))

    def codes(self) -> dict[str, np.ndarray]:
        """The codes of all weights that have changed, by the names of the initializers that hold them."""
        weights = self.origin.weights
        changed = [self.chains[n] for n in self.thawed if n in weights and self.origin.changed(n)]
        return {c.codes: c.backwards(weights[c.end], weights[c.codes]) for c in changed if c.codes in weights}


def _names(place: Place) -> dict[str, str]:
    weights = place.graph.initializers
    assert isinstance(weights, Weights)
    return weights.names


def _chains(place: Place) -> Iterator[Chain]:
    """The chains of a graph. A chain that only makes the scales of another is none of its own."""
    weights = place.graph.initializers
    if not isinstance(weights, Weights) or not any(a.dtype in CODES or a.dtype == dtypes.int32 for a in weights.values()):
        return
    fixed = _fixed(place)
    found: dict[str, Chain] = {}
    for first, array in weights.items():
        if first in fixed and array.size > 1 and (array.dtype in CODES or array.dtype == dtypes.int32):
            chain = Chain(place, weights.names[first], first, _path(place, first, fixed))
            if _trimmed(chain, array):
                found.setdefault(chain.last, chain)
    others = {n for chain in found.values() for step in chain.steps for n in step.others}
    members = {step.node for chain in found.values() for step in chain.steps}
    for last, chain in found.items():
        if last not in others:
            inside = place.reaching([n for step in chain.steps for n in step.others]).keys() & weights.keys()
            chain.within = frozenset([weights.names[n] for n in inside if _only_for(place, n, members)])
            yield chain


def _fixed(place: Place) -> set[str]:
    """Names whose contents the file alone decides. From IR version 4 on, inputs may stand in for initializers."""
    fixed = set(place.graph.initializers) - set(place.graph.inputs)
    for node in place.nodes:
        if not node.subgraphs() and node.op_type in FOLLOWED | {"Constant"} and all(n in fixed for n in node.inputs if n):
            fixed.update(node.outputs)
    return fixed


def _path(place: Place, name: str, fixed: set[str]) -> Iterator[Step]:
    """From codes on, as long as each result has one reader, which makes nothing else of it than another weight."""
    while len(place.readers.get(name, ())) == 1 and name not in place.graph.outputs:
        (node,) = place.readers[name]
        if node.op_type not in FOLLOWED or node.domain not in ("", "com.microsoft") or len(node.outputs) != 1:
            return
        if node.inputs.count(name) != 1 or any(n and n not in fixed for n in node.inputs):
            return
        at = node.inputs.index(name)
        if at and (node.op_type not in ("Mul", "Add", "Sub")):
            return
        yield Step(node, at)
        name = node.outputs[0]


def _trimmed(chain: Chain, codes: np.ndarray) -> bool:
    """Shorten a chain to where it ends in a floating weight of as many elements; whether there is such a chain."""
    if not any(step.node.op_type in SCALING for step in chain.steps):
        return False
    try:
        names = chain.names(codes, known=False)
    except FlamertError:
        return False
    length = 0
    for i, step in enumerate(chain.steps):
        result = names[step.node.outputs[0]]
        if not isinstance(result, Value) or result.type.size != codes.size:
            break
        kind, others = step.node.op_type, [names[n] for n in step.others]
        offset = kind in SHIFTING and length > 0 and all(v.type.size < codes.size for v in others)
        if (kind in SCALING or offset) and result.dtype in dtypes.STANDARD_FLOAT:
            length = i + 1
    del chain.steps[length:]
    if codes.dtype == dtypes.int32:
        return any(step.node.op_type == "DequantizeLinear" for step in chain.steps)
    return length > 0


def _only_for(place: Place, name: str, members: set[OnnxNode]) -> bool:
    """Whether all that reads a name, however far down, leads into these nodes."""
    waiting = [name]
    while waiting:
        for node in place.readers.get(waiting.pop(), ()):
            if node not in members:
                if node.op_type not in FOLLOWED or not any(place.readers.get(out) for out in node.outputs):
                    return False
                waiting += node.outputs
    return True
