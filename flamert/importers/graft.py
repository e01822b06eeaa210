"""Changes to the graph of a loaded model: low-rank terms beside weights, which its file never sees, and a new last layer."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import NodeProto, helper

from flamert import dtypes
from flamert.errors import InputError, UnsupportedOp
from flamert.importers.low_rank import DOMAIN
from flamert.importers.onnx import OnnxNode
from flamert.importers.tensors import DTYPES
from flamert.origin import Features, LowRank, Projection

if TYPE_CHECKING:
    from flamert.importers.load import OnnxOrigin

PASSED = frozenset({"Identity", "Softmax", "LogSoftmax", "Sigmoid"})
"""What may follow a last layer, and goes with it."""


def merged(origin: OnnxOrigin) -> dict[str, np.ndarray]:
    """Weights with their terms added, computed in float32 at least."""
    found = {}
    for graft in origin.grafts.values():
        w, a, b = (origin.weights[n] for n in (graft.at.weight, graft.a, graft.b))
        wide = dtypes.accumulator(w.dtype)
        low = b.reshape(b.shape[:2]).astype(wide) @ a.reshape(len(a), -1).astype(wide)
        low = low.T if graft.at.inputs_first else low
        found[graft.at.weight] = (w.astype(wide) + low.reshape(w.shape) * wide.type(graft.scale)).astype(w.dtype)
    return found


def projections(origin: OnnxOrigin) -> list[Projection]:
    """Weights of the main graph that MatMul, Gemm, Conv or Attention multiply data with, each once."""
    readers: dict[str, list[OnnxNode]] = {}
    for node in origin.graph.nodes:
        for name in node.reads:
            readers.setdefault(name, []).append(node)
    found: dict[str, Projection] = {}
    for node in origin.graph.nodes:
        weight = node.inputs[1] if len(node.inputs) > 1 else ""
        if weight in origin.graph.initializers and weight not in found:
            projection = _projection(node, weight, origin.weights[weight], len(readers[weight]) == 1)
            if projection is not None:
                taken = {p.name for p in found.values()}
                name = projection.name
                names = (f"{name}.{i}" if i else name for i in range(len(taken) + 1))
                found[weight] = projection._replace(name=next(n for n in names if n not in taken))
    return list(found.values())


def _projection(node: OnnxNode, weight: str, array: np.ndarray, alone: bool) -> Projection | None:
    if array.dtype not in dtypes.STANDARD_FLOAT or array.ndim < 2:
        return None
    kind = (node.domain, node.op_type)
    name = module_of(weight, node)
    if kind == ("", "Conv"):
        return Projection(name, weight, array.shape[0], array.shape[1:], False, alone and node.attributes.get("group", 1) == 1)
    if array.ndim != 2:
        return None
    rows, columns = array.shape
    if kind == ("", "Gemm") and node.attributes.get("transB", 0):
        return Projection(name, weight, rows, (columns,), False, alone and not node.attributes.get("transA", 0))
    if kind in (("", "Gemm"), ("", "MatMul"), ("com.microsoft", "Attention")):
        beside = alone and kind[0] == "" and not node.attributes.get("transA", 0)
        return Projection(name, weight, columns, (rows,), True, beside)
    return None


def module_of(weight: str, node: OnnxNode) -> str:
    """What PyTorch would call the layer: its weight's name, or, of a weight without one, the path of its node."""
    if weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    if "::" in weight and node.name:
        path = node.name.strip("/").split("/")
        return ".".join(path[:-1] if len(path) > 1 and path[-1].split("_")[0] == node.op_type else path)
    return weight


def attach(origin: OnnxOrigin, graft: LowRank, a: np.ndarray, b: np.ndarray) -> None:
    """Add a term. Its factors join the model's weights."""
    if graft.at.name in origin.grafts:
        raise InputError(f"{graft.at.name!r} has a low-rank term already; merge it first")
    for name, array in ((graft.a, a), (graft.b, b)):
        add_weight(origin, name, array)
    if not origin.grafts:
        origin.ungrafted = origin.graph.nodes
    origin.grafts[graft.at.name] = graft
    origin.opsets[DOMAIN] = 1
    weight = graft.at.weight
    nodes = list(origin.graph.nodes)
    at = next(i for i, node in enumerate(nodes) if weight in node.reads)
    nodes[at : at + 1] = _beside(origin, nodes[at], graft) if graft.at.beside else [_weight(origin, graft), nodes[at]]
    if not graft.at.beside:
        nodes = [_reading(node, weight, _adapted(weight)) if node.domain != DOMAIN else node for node in nodes]
    set_nodes(origin, nodes)


def _beside(origin: OnnxOrigin, node: OnnxNode, graft: LowRank) -> Iterator[OnnxNode]:
    """The node, and behind it the term, under the name that the node's result had."""
    base = _writing(node, node.outputs[0], f"{node.outputs[0]}.base")
    yield base
    kept = ("auto_pad", "dilations", "pads", "strides") if node.op_type == "Conv" else ()
    attributes = {k: v for k, v in node.attributes.items() if k in kept}
    scale = graft.scale * node.attributes.get("alpha", 1.0)
    yield _made(
        origin,
        "LowRankConv" if node.op_type == "Conv" else "LowRank",
        [base.outputs[0], node.inputs[0], graft.a, graft.b],
        node.outputs[0],
        scale=float(scale),
        dropout=float(graft.dropout),
        **attributes,
    )


def _weight(origin: OnnxOrigin, graft: LowRank) -> OnnxNode:
    operands, result = [graft.at.weight, graft.a, graft.b], _adapted(graft.at.weight)
    first = int(graft.at.inputs_first)
    return _made(origin, "LowRankWeight", operands, result, scale=float(graft.scale), inputs_first=first)


def _adapted(weight: str) -> str:
    return f"{weight}.adapted"


def _made(origin: OnnxOrigin, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> OnnxNode:
    proto = helper.make_node(op_type, inputs, [output], name=f"{output}.{op_type}", domain=DOMAIN, **attributes)
    return OnnxNode(proto, origin.tensors)


def _reading(node: OnnxNode, old: str, new: str) -> OnnxNode:
    """The node with another operand."""
    if old not in node.inputs:
        return node
    changed = copy.copy(node)
    changed.inputs = tuple([new if n == old else n for n in node.inputs])
    changed.reads = frozenset([new if n == old else n for n in node.reads])
    return changed


def _writing(node: OnnxNode, old: str, new: str) -> OnnxNode:
    """The node with a result of another name."""
    if old not in node.outputs:
        return node
    changed = copy.copy(node)
    changed.outputs = tuple([new if n == old else n for n in node.outputs])
    return changed


def detach(origin: OnnxOrigin) -> None:
    """Take all terms away, and their factors out of the weights."""
    for graft in origin.grafts.values():
        for name in (graft.a, graft.b):
            drop_weight(origin, name)
    if origin.grafts:
        set_nodes(origin, origin.ungrafted)
    origin.grafts.clear()


def set_nodes(origin: OnnxOrigin, nodes: Iterable[OnnxNode]) -> None:
    origin.graph.nodes = tuple(nodes)
    for stale in ("values", "statistics"):
        origin.__dict__.pop(stale, None)
    origin.graph.__dict__.pop("free", None)


def add_weight(origin: OnnxOrigin, name: str, array: np.ndarray) -> None:
    """Let the main graph have an initializer more. Raises InputError where the name is taken."""
    if name in origin.weights or name in origin.values:
        raise InputError(f"the model has a value {name!r} already; choose another name")
    origin.weights[name] = array
    origin.names[0][name] = name
    origin.__dict__.pop("values", None)


def drop_weight(origin: OnnxOrigin, name: str) -> None:
    del origin.weights[name]
    del origin.names[0][name]
    origin.__dict__.pop("values", None)


def features(origin: OnnxOrigin, output: str) -> Features:
    """What the last linear layer in front of an output takes; if there is none, the output itself."""
    makers = {name: node for node in origin.graph.nodes for name in node.outputs if name}
    weights = origin.graph.initializers
    name, node = output, makers.get(output)
    while node is not None and node.domain in ("", DOMAIN):
        operands = list(node.inputs)
        if node.op_type in ("MatMul", "Gemm") and operands[1] in weights and not node.attributes.get("transA", 0):
            w = weights[operands[1]]
            width = w.shape[1 if node.attributes.get("transB", 0) else 0]
            return Features(operands[0], width, module_of(operands[1], node), node.op_type == "Gemm", w.dtype)
        if node.op_type in PASSED or node.domain == DOMAIN:
            name = operands[0]
        elif node.op_type == "Add" and len(set(operands) & set(weights)) == 1:
            (name,) = set(operands) - set(weights)
        else:
            break
        node = makers.get(name)
    spec = next(s for s in origin.outputs if s.name == output)
    if output not in makers or not spec.shape or len(spec.shape) < 2 or spec.dtype not in dtypes.STANDARD_FLOAT:
        raise InputError(f"there is no linear layer in front of {output!r} ({spec}), and it is no row of features itself")
    if not isinstance(spec.shape[-1], int) or spec.dtype is None:
        raise InputError(f"there is no linear layer in front of {output!r}, and how wide it is ({spec}) the file does not say")
    return Features(output, spec.shape[-1], "", False, spec.dtype)


def replace_head(origin: OnnxOrigin, output: str, taken: Features, name: str, w: np.ndarray, b: np.ndarray) -> None:
    """Let `output` be a new layer of `taken`: in what runs, and in the file that is saved. What nothing needs any more goes.

    w: [out, in] for Features of a matrix, else [in, out].
    """
    if origin.opsets.get("", 0) < 7:
        raise UnsupportedOp(f"a new head needs opset 7 or later, the model has {origin.opsets.get('', 0)}; convert it first")
    if origin.grafts:
        raise InputError("replace the head before low-rank terms are added, or merge them first")
    graph, dead = origin.template.graph, _dead(origin)
    behind = taken.name == output
    old = f"{output}.features" if behind else f"{output}.before"
    source = old if behind else taken.name
    set_nodes(origin, [_writing(node, output, old) for node in origin.graph.nodes])
    for proto in graph.node:
        proto.output[:] = [old if n == output else n for n in proto.output]
    _drop(origin, _dead(origin, source) - dead)
    made = _layer(source, output, name, taken.matrix)
    records = list(origin.graph.nodes)
    at = next((i + 1 for i, node in enumerate(records) if source in node.outputs), 0)
    set_nodes(origin, [*records[:at], *[OnnxNode(proto, origin.tensors) for proto in made], *records[at:]])
    at = next((i + 1 for i, proto in enumerate(graph.node) if source in proto.output), 0)
    for i, proto in enumerate(made):
        graph.node.insert(at + i, proto)
    for key, array in ((f"{name}.weight", w), (f"{name}.bias", b)):
        add_weight(origin, key, array)
        kind = next(number for number, dtype in DTYPES.items() if dtype == array.dtype)
        graph.initializer.add(name=key, dims=array.shape, data_type=kind)
        if origin.template.ir_version < 4:  # where every initializer is an input
            graph.input.append(helper.make_tensor_value_info(key, kind, array.shape))
    _declare(origin, output, len(b))


def _layer(source: str, output: str, name: str, matrix: bool) -> list[NodeProto]:
    weight, bias = f"{name}.weight", f"{name}.bias"
    if matrix:
        return [helper.make_node("Gemm", [source, weight, bias], [output], name=f"{name}.Gemm", transB=1)]
    product = helper.make_node("MatMul", [source, weight], [f"{name}.product"], name=f"{name}.MatMul")
    return [product, helper.make_node("Add", [f"{name}.product", bias], [output], name=f"{name}.Add")]


def _live(origin: OnnxOrigin, needed: Sequence[str]) -> set[str]:
    """Names that the model's outputs, and `needed`, depend on."""
    makers = {name: node for node in origin.graph.nodes for name in node.outputs if name}
    live: set[str] = set()
    waiting = [*origin.graph.outputs, *needed]
    while waiting:
        name = waiting.pop()
        if name not in live:
            live.add(name)
            waiting.extend(makers[name].reads if name in makers else ())
    return live


def _dead(origin: OnnxOrigin, *needed: str) -> set[str]:
    """Results and weights that neither outputs nor `needed` depend on."""
    made = {name for node in origin.graph.nodes for name in node.outputs if name}
    return (made | origin.names[0].keys()) - _live(origin, needed)


def _drop(origin: OnnxOrigin, gone: set[str]) -> None:
    """Take results and weights away, from what runs and from the file."""
    graph = origin.template.graph
    set_nodes(origin, [node for node in origin.graph.nodes if not gone.issuperset(filter(None, node.outputs))])
    left = {name for node in origin.graph.nodes for name in node.outputs}
    gone = gone - left
    for i in reversed(range(len(graph.node))):
        if gone.issuperset(filter(None, graph.node[i].output)):
            del graph.node[i]
    for field in (graph.initializer, graph.value_info, graph.input):
        for i in reversed(range(len(field))):
            if field[i].name in gone:
                del field[i]
    origin.inputs = tuple([spec for spec in origin.inputs if spec.name not in gone])
    origin.optional -= gone
    for name in gone & origin.names[0].keys():
        drop_weight(origin, name)


def _declare(origin: OnnxOrigin, output: str, width: int) -> None:
    """Let the output's declaration say how wide it is now."""
    for info in origin.template.graph.output:
        if info.name == output and info.type.tensor_type.shape.dim:
            info.type.tensor_type.shape.dim[-1].Clear()
            info.type.tensor_type.shape.dim[-1].dim_value = width
    specs = [s._replace(shape=(*s.shape[:-1], width)) if s.name == output and s.shape else s for s in origin.outputs]
    origin.outputs = tuple(specs)
    origin.graph.declared.pop(output, None)
