"""Which tensors of a file are weights, and under which names: those of its graph, of graphs inside it and of its functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import count
from typing import NamedTuple

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, TensorProto

from flamert.importers.onnx import OnnxGraph, kind_of


class Weights(Mapping[str, np.ndarray]):
    """One graph's initializers by their own names, looked up among all weights of the model, where they may be replaced.

    where: the place of the graph in the file, as `Part` has it.
    """

    __slots__ = ("_all", "names", "where")

    def __init__(self, everywhere: dict[str, np.ndarray], names: dict[str, str], where: str) -> None:
        self._all, self.names, self.where = everywhere, names, where

    def __getitem__(self, name: str) -> np.ndarray:
        return self._all[self.names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Part(NamedTuple):
    """A graph or function of the file, and where it lies: "" for the main graph, "choose.then_branch", a function's name."""

    where: str
    proto: GraphProto | FunctionProto


def parts(model: ModelProto) -> Iterator[Part]:
    """The main graph, then the functions, each followed by the graphs inside it."""
    yield from _nested(Part("", model.graph))
    for function in model.functions:
        yield from _nested(Part(function.name, function))


def _nested(part: Part) -> Iterator[Part]:
    yield part
    for node in part.proto.node:
        for a in node.attribute:
            kind = kind_of(a)
            for graph in [a.g] if kind == AttributeProto.GRAPH else a.graphs if kind == AttributeProto.GRAPHS else []:
                yield from _nested(Part(f"{node.name or ''.join(node.output[:1])}.{a.name}", graph))


def collect(
    model: ModelProto, graph: OnnxGraph, functions: Iterable[OnnxGraph]
) -> tuple[dict[str, np.ndarray], list[dict[str, str]]]:
    """All weights by name, and for each of the model's `parts` its own names for some of them → these names.

    The graphs' `initializers` become views of the result. Names are the file's; where a part inside the main graph uses a
    name that is taken already, the place goes in front: "choose.then_branch.weight". To be called while the records are in
    the file's order.
    """
    found: dict[str, np.ndarray] = dict(graph.initializers)
    taken = {*found, *graph.inputs, *[o for node in graph.nodes for o in node.outputs]}
    records = [r for top in (graph, *functions) for r in records_of(top)]
    everywhere = []
    for part, record in zip(parts(model), records, strict=True):
        names = {own: own if record is graph else free_name(own, part.where, taken) for own in record.initializers}
        found.update({name: record.initializers[own] for own, name in names.items()})
        taken.update(names.values())
        record.initializers = Weights(found, names, part.where)
        everywhere.append(names)
    return found, everywhere


def records_of(graph: OnnxGraph) -> Iterator[OnnxGraph]:
    """A graph, and those inside it."""
    yield graph
    for node in graph.nodes:
        for inner in node.subgraphs():
            yield from records_of(inner)


def free_name(name: str, where: str, taken: Collection[str]) -> str:
    """A name of a part that nobody has yet: its own, or with the place in front, and a number behind if need be."""
    longer = (f"{where}.{name}" if i == 1 else f"{where}.{name}.{i}" for i in count(1))
    return name if name not in taken else next(n for n in longer if n not in taken)


def constants(part: GraphProto | FunctionProto) -> Iterator[tuple[str, TensorProto]]:
    """Output names and tensors of the Constant nodes that may hold weights."""
    for node in part.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and len(node.output) == 1:
            for a in node.attribute:
                if a.name == "value" and kind_of(a) == AttributeProto.TENSOR:
                    yield node.output[0], a.t
