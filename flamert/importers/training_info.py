"""ModelProto.training_info: each algorithm combined with the model's graph, as ONNX says it is run, and checked."""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import onnx

from flamert.errors import InvalidModel, UnsupportedOp
from flamert.importers import check
from flamert.importers.onnx import OnnxGraph, TensorReader, read_graph
from flamert.origin import Algorithm

if TYPE_CHECKING:
    from flamert.importers.load import OnnxOrigin


def read_algorithms(
    origin: OnnxOrigin, protos: Iterable[onnx.TrainingInfoProto], tensors: TensorReader
) -> tuple[Algorithm, ...]:
    """The algorithms of a file. To be called when the model's own graph has been checked.

    Raises InvalidModel where bindings name what is not there, or a variable twice, and where the combined graph is none.
    """
    found = tuple([_algorithm(origin, proto, tensors) for proto in protos])
    twice = [n for n, count in Counter(n for a in found for n in a.updated).items() if count > 1]
    if twice:
        raise InvalidModel(f"training_info updates {twice[0]!r} in two places")
    return found


def _algorithm(origin: OnnxOrigin, proto: onnx.TrainingInfoProto, tensors: TensorReader) -> Algorithm:
    first, own = read_graph(proto.initialization, tensors), read_graph(proto.algorithm, tensors)
    if first.inputs:
        raise InvalidModel(f"the initialization graph of training_info has an input, {first.inputs[0]!r}, and can have none")
    state: dict[str, np.ndarray] = dict(own.initializers)
    variables = state.keys() | origin.names[0].keys()
    initial = _bindings(proto.initialization_binding, "initialization_binding", variables, set(first.outputs))
    updated = _bindings(proto.update_binding, "update_binding", variables, {*own.outputs, *origin.graph.outputs})
    sparse = {t.values.name for t in proto.algorithm.sparse_initializer} & (initial.keys() | updated.keys())
    if sparse:
        raise UnsupportedOp(f"training_info changes {min(sparse)!r}, which is a sparse initializer; store it as a dense one")
    check.structure(first)
    check.expansion(first, origin.functions)
    given = [i for i in proto.algorithm.input if i.name not in state]
    combined = _combined(origin, own, state)
    return Algorithm(
        origin.sibling(first, [], ()),
        origin.sibling(combined, given, updated),
        initial,
        updated,
        state,
        own.outputs,
    )


def _combined(origin: OnnxOrigin, own: OnnxGraph, state: dict[str, np.ndarray]) -> OnnxGraph:
    """The model's graph, followed by the algorithm's, whose nodes may read the model's values and not the other way round."""
    model = origin.graph
    if clash := state.keys() & (model.initializers.keys() | set(model.inputs)):
        raise InvalidModel(f"the name {min(clash)!r} is defined by the model and by its training_info")
    initializers = ChainMap(state, model.initializers)  # type: ignore[arg-type]  # nobody writes through it
    outputs = tuple(dict.fromkeys((*model.outputs, *own.outputs)))
    graph = OnnxGraph((*model.nodes, *own.nodes), (*model.inputs, *own.inputs), outputs, initializers, own.name or model.name)
    check.structure(graph)
    check.expansion(graph, origin.functions)
    return graph


def _bindings(
    entries: Iterable[onnx.StringStringEntryProto], what: str, variables: Iterable[str], outputs: set[str]
) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in entries:
        if entry.key in found:
            raise InvalidModel(f"{what} of training_info has {entry.key!r} twice")
        if entry.key not in variables:
            raise InvalidModel(f"{what} of training_info assigns to {entry.key!r}, which is no initializer")
        if entry.value not in outputs:
            raise InvalidModel(f"{what} of training_info takes {entry.value!r}, which is no output")
        found[entry.key] = entry.value
    return found
