"""A new last layer: where it goes, and what of the old one goes with it, in what runs and in the file that is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from onnx import NodeProto, helper

from flamert import dtypes
from flamert.errors import InputError, UnsupportedOp
from flamert.importers.edits import add_weight, drop_weight, set_nodes, writing
from flamert.importers.graft import module_of
from flamert.importers.low_rank import DOMAIN
from flamert.importers.onnx import OnnxNode
from flamert.importers.tensors import DTYPES
from flamert.origin import Features

if TYPE_CHECKING:
    from flamert.importers.load import OnnxOrigin

PASSED = frozenset({"Identity", "Softmax", "LogSoftmax", "Sigmoid"})
"""What may follow a last layer, and goes with it; a softmax that an exporter wrote in parts too."""

SPREAD = frozenset({"Expand", "Identity", "Max", "Reshape", "Squeeze", "Unsqueeze"})
"""What may lie between a reduction and the elements that meet its result again; Max with a constant bounds it."""


def features(origin: OnnxOrigin, output: str) -> Features:
    """What the last linear layer in front of an output takes; if there is none, the output itself."""
    makers = {name: node for node in origin.graph.nodes for name in node.outputs if name}
    weights, stored = origin.graph.initializers, origin.stored
    spec = next(s for s in origin.outputs if s.name == output)
    name, node, reshaped = output, makers.get(output), False
    while node is not None and node.domain in ("", DOMAIN):
        operands = list(node.inputs)
        fixed = [n for n in operands if n in weights or n in stored]
        if node.op_type in ("MatMul", "Gemm") and operands[1] in fixed and not node.attributes.get("transA", 0):
            w = weights[operands[1]] if operands[1] in weights else stored[operands[1]]
            width, columns = w.shape[::-1] if node.attributes.get("transB", 0) else (w.shape[0], w.shape[-1])
            if w.ndim == 2 and (not reshaped or (spec.shape and spec.shape[1:] == (columns,))):
                return Features(operands[0], width, module_of(operands[1], node), node.op_type == "Gemm", w.dtype)
            break
        if node.op_type in PASSED or node.domain == DOMAIN:
            name = operands[0]
        elif (logits := _softmax_of(node, makers, weights)) is not None:
            name = logits
        elif node.op_type == "Add" and len(fixed) == 1:
            (name,) = set(operands) - set(fixed)
        elif node.op_type in ("Flatten", "Reshape"):
            name, reshaped = operands[0], True
        else:
            break
        node = makers.get(name)
    if output not in makers or not spec.shape or len(spec.shape) < 2 or spec.dtype not in dtypes.STANDARD_FLOAT:
        raise InputError(f"there is no linear layer in front of {output!r} ({spec}), and it is no row of features itself")
    if not isinstance(spec.shape[-1], int) or spec.dtype is None:
        raise InputError(f"there is no linear layer in front of {output!r}, and how wide it is ({spec}) the file does not say")
    return Features(output, spec.shape[-1], "", False, spec.dtype)


def _softmax_of(node: OnnxNode, makers: Mapping[str, OnnxNode], weights: Mapping[str, np.ndarray]) -> str | None:
    """x, where the node is the division of exp(x − max x) / Σ exp(x − max x), or of the same without the maximum."""

    def made(name: str, op_type: str) -> tuple[str, ...]:
        """What the op of this type takes that a value is the result of, perhaps spread; nothing where it is none's."""
        while (maker := makers.get(name)) is not None and not maker.domain and maker.op_type != op_type:
            data = [n for n in maker.inputs if n and n not in weights] if maker.op_type in SPREAD else []
            name = data[0] if data else ""
        return maker.inputs if maker is not None and not maker.domain else ()

    if node.op_type != "Div" or node.domain:
        return None
    power, total = node.inputs
    exponent = made(power, "Exp")
    if not exponent or made(total, "ReduceSum")[:1] != (power,):
        return None
    shifted = made(exponent[0], "Sub")
    if shifted and made(shifted[1], "ReduceMax")[:1] == (shifted[0],):
        return shifted[0]
    return exponent[0]


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
    set_nodes(origin, [writing(node, output, old) for node in origin.graph.nodes])
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
