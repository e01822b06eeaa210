"""Structural checks of a model, before anything is run: versions, names, order, calls among functions. No shapes, no types."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping

import onnx

from flamert.errors import InvalidModel, UnsafeModel, UnsupportedOp
from flamert.importers.onnx import OnnxGraph, OnnxNode
from flamert.limits import MAX_NESTING, MAX_NODES

NEWEST_IR = 14

NEWEST_OPSET = {"": 28, "ai.onnx.ml": 5, "ai.onnx.training": 1, "ai.onnx.preview.training": 1, "ai.onnx.preview": 1}
"""By domain; those not listed have no version that is too new."""

Function = tuple[str, str, str]
"""Domain, name, overload."""


def versions(proto: onnx.ModelProto) -> None:
    """Raise InvalidModel for a file without graph or versions, UnsupportedOp for versions newer than this library knows."""
    if not proto.HasField("graph"):
        raise InvalidModel("there is no graph in the model; is this an ONNX file, and is it whole?")
    if proto.ir_version < 1:
        raise InvalidModel(f"the IR version is {proto.ir_version or 'missing'}")
    if proto.ir_version > NEWEST_IR:
        raise UnsupportedOp(f"the model has IR version {proto.ir_version}; the newest one supported is {NEWEST_IR}")
    if not proto.opset_import and proto.ir_version >= 3:
        raise InvalidModel("the model imports no opset")
    _imports(proto.opset_import, "the model")
    for function in proto.functions:
        _imports(function.opset_import, f"function {function.name!r}")


def _imports(imports: object, who: str) -> None:
    seen: dict[str, int] = {}
    for entry in imports:  # type: ignore[attr-defined]
        domain, version = "" if entry.domain == "ai.onnx" else entry.domain, entry.version
        if version < 1:
            raise InvalidModel(f"{who} imports the opset {version} of {domain or 'ai.onnx'!r}")
        if version > NEWEST_OPSET.get(domain, version):
            newest = NEWEST_OPSET[domain]
            raise UnsupportedOp(
                f"{who} imports opset {version} of {domain or 'ai.onnx'!r}; the newest one supported is {newest}. "
                "Convert it with onnx.version_converter, or export it at an older opset"
            )
        if seen.setdefault(domain, version) != version:
            raise InvalidModel(f"{who} imports two opsets of {domain or 'ai.onnx'!r}: {seen[domain]} and {version}")


def structure(graph: OnnxGraph, captures: bool = False) -> None:
    """Check that every name is written once and every name read is written, and sort nodes that are out of order.

    captures: whether names from around the graph may be read. Raises InvalidModel, cycles included.
    """
    names = Counter(graph.inputs)
    names.update(name for node in graph.nodes for name in node.outputs if name)
    names.update(graph.initializers.keys() - set(graph.inputs))
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise InvalidModel(f"the name {twice[0]!r} is defined twice in graph {graph.name!r}")
    if not captures and (missing := graph.free):
        name = min(missing)
        reader = next((str(node) for node in graph.nodes if name in node.reads), "the graph's outputs")
        raise InvalidModel(f"{name!r} is read by {reader}, and nothing defines it")
    graph.nodes = ordered(graph)
    for node in graph.nodes:
        for inner in node.subgraphs():
            structure(inner, captures=True)


def ordered(graph: OnnxGraph) -> tuple[OnnxNode, ...]:
    """The nodes, each after those whose results it reads; as near to the given order as that allows."""
    writer = {name: i for i, node in enumerate(graph.nodes) for name in node.outputs if name}
    needs = [{writer[name] for name in node.reads if name in writer} for node in graph.nodes]
    if all(not need or max(need) < i for i, need in enumerate(needs)):
        return graph.nodes
    readers: dict[int, list[int]] = {}
    for i, need in enumerate(needs):
        for j in need:
            readers.setdefault(j, []).append(i)
    waiting = [len(need) for need in needs]
    ready = [i for i, count in enumerate(waiting) if count == 0]
    order: list[OnnxNode] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(graph.nodes[i])
        for j in readers.get(i, ()):
            waiting[j] -= 1
            if waiting[j] == 0:
                heapq.heappush(ready, j)
    if len(order) < len(graph.nodes):
        stuck = next(str(node) for node, count in zip(graph.nodes, waiting, strict=True) if count)
        raise InvalidModel(f"the graph has a cycle, through {stuck}")
    return tuple(order)


def expansion(graph: OnnxGraph, functions: Mapping[Function, OnnxGraph]) -> int:
    """How many nodes the graph has once every call of a function is written out; computed without writing any out.

    Raises InvalidModel for functions that call themselves, UnsafeModel for more nodes or a deeper nesting than the budget.
    """
    calls = {key: _calls(function, functions) for key, function in functions.items()}
    own = {key: sum(1 for _ in _nodes(function)) for key, function in functions.items()}
    sizes: dict[Function, int] = {}
    depths: dict[Function, int] = {}
    callers: dict[Function, list[Function]] = {}
    for key, called in calls.items():
        for other in called:
            callers.setdefault(other, []).append(key)
    waiting = {key: len(called) for key, called in calls.items()}
    ready = [key for key, count in waiting.items() if count == 0]
    while ready:
        key = ready.pop()
        sizes[key] = own[key] + sum(count * sizes[other] for other, count in calls[key].items())
        depths[key] = 1 + max([depths[other] for other in calls[key]], default=0)
        for other in callers.get(key, ()):
            waiting[other] -= 1
            if waiting[other] == 0:
                ready.append(other)
    if recursive := sorted(functions.keys() - sizes.keys()):
        raise InvalidModel(f"function {recursive[0][1]!r} calls itself, directly or through others")
    used = _calls(graph, functions)
    total = sum(1 for _ in _nodes(graph)) + sum(count * sizes[key] for key, count in used.items())
    if total > MAX_NODES:
        raise UnsafeModel(f"the model's functions expand to {total} nodes; the budget is {MAX_NODES}")
    if max([depths[key] for key in used], default=0) > MAX_NESTING:
        raise UnsafeModel(f"the model's functions are nested more than {MAX_NESTING} deep")
    return total


def _calls(graph: OnnxGraph, functions: Mapping[Function, OnnxGraph]) -> Counter[Function]:
    named = Counter((node.domain, node.op_type, node.overload) for node in _nodes(graph))
    return Counter({key: count for key, count in named.items() if key in functions})


def _nodes(graph: OnnxGraph) -> Iterator[OnnxNode]:
    """The graph's nodes and those of its subgraphs."""
    for node in graph.nodes:
        yield node
        for inner in node.subgraphs():
            yield from _nodes(inner)
