"""What an ONNX file says of itself, for summaries, `flamert info` and `InferenceSession.get_modelmeta`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto

from flamert.errors import UnsupportedType
from flamert.importers.onnx import DTYPES, opsets
from flamert.origin import About


def about(proto: onnx.ModelProto, file: str) -> About:
    """The model's own description, its op counts, and the declared types of its inputs and outputs."""
    ops: Counter[tuple[str, str]] = Counter()
    _count(proto.graph.node, ops)
    for function in proto.functions:
        _count(function.node, ops)
    graph = proto.graph
    return About(
        file=file,
        graph=graph.name,
        doc=proto.doc_string,
        graph_doc=graph.doc_string,
        producer=proto.producer_name,
        producer_version=proto.producer_version,
        domain=proto.domain,
        version=proto.model_version,
        ir_version=proto.ir_version,
        opsets=opsets(proto.opset_import),
        metadata={p.key: p.value for p in proto.metadata_props},
        ops=dict(ops.most_common()),
        functions=tuple([f"{f.domain}::{f.name}" for f in proto.functions]),
        types={v.name: type_string(v.type) for v in (*graph.input, *graph.output)},
    )


def _count(nodes: Iterable[NodeProto], ops: Counter[tuple[str, str]]) -> None:
    for node in nodes:
        ops["" if node.domain == "ai.onnx" else node.domain, node.op_type] += 1
        for a in node.attribute:
            for graph in (a.g, *a.graphs) if a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) else ():
                _count(graph.node, ops)


def type_string(type: onnx.TypeProto) -> str:
    """A type as ONNX writes it: "tensor(float)", "seq(map(int64,tensor(float)))"."""
    which = type.WhichOneof("value")
    if which == "tensor_type":
        return f"tensor({_element(type.tensor_type.elem_type)})"
    if which == "sparse_tensor_type":
        return f"sparse_tensor({_element(type.sparse_tensor_type.elem_type)})"
    if which == "sequence_type":
        return f"seq({type_string(type.sequence_type.elem_type)})"
    if which == "optional_type":
        return f"optional({type_string(type.optional_type.elem_type)})"
    if which == "map_type":
        return f"map({_element(type.map_type.key_type)},{type_string(type.map_type.value_type)})"
    return "undefined"


def element_number(dtype: np.dtype) -> int:
    """ONNX's number for an element type."""
    try:
        return _NUMBERS[dtype]
    except KeyError:
        raise UnsupportedType(f"ONNX has no element type {dtype}") from None


def element_name(dtype: np.dtype) -> str:
    """ONNX's name for an element type: "float", "double", "float8e4m3fn"."""
    return _element(element_number(dtype))


_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


def _element(number: int) -> str:
    return TensorProto.DataType.Name(number).lower() if number in TensorProto.DataType.values() else "undefined"
