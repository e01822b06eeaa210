"""Function bodies of standard ONNX ops, from ONNX's own schemas: what runs an op that has no converter here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import defs, helper

from flamert.errors import UnsupportedOp
from flamert.graph import Value
from flamert.importers.onnx import DTYPES, OnnxGraph, OnnxNode, inline_tensor, read_function

_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


def function_body(node: OnnxNode, opset: int, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> OnnxGraph | None:
    """The schema's function for this node at this opset, or None where the op is a primitive or unknown."""
    try:
        schema = defs.get_schema(node.op_type, opset, node.domain)
    except defs.SchemaError:
        return None
    if schema.has_function:
        proto = schema.function_body
        if not proto.node:
            return None
    elif schema.has_context_dependent_function:
        types = [_type(v).SerializeToString() for v in inputs]
        body = schema.get_context_dependent_function(_proto(node, attributes, len(inputs)).SerializeToString(), types)
        proto = onnx.FunctionProto.FromString(body)
        if not proto.node:
            raise UnsupportedOp(f"ONNX's schema gives no body for {node.op_type} with these inputs and attributes")
    else:
        return None
    graph = read_function(proto, inline_tensor)
    graph.opsets = {"": opset, **(graph.opsets or {})}
    for name, default in schema.attributes.items():
        if default.default_value.name and name not in graph.defaults:
            graph.defaults[name] = helper.get_attribute_value(default.default_value)
    graph.defaults = {k: v.decode() if isinstance(v, bytes) else v for k, v in graph.defaults.items()}
    return graph


def _proto(node: OnnxNode, attributes: Mapping[str, Any], n_inputs: int) -> onnx.NodeProto:
    plain = {k: _plain(v) for k, v in attributes.items()}
    return helper.make_node(node.op_type, node.inputs[:n_inputs] or node.inputs, node.outputs, domain=node.domain, **plain)


def _plain(value: Any) -> Any:
    return onnx.numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value


def _type(entry: Any) -> onnx.TypeProto:
    if isinstance(entry, Value):
        return helper.make_tensor_type_proto(_NUMBERS[entry.dtype], entry.shape)
    if isinstance(entry, list):
        return helper.make_sequence_type_proto(_type(entry[0]) if entry else helper.make_tensor_type_proto(1, None))
    return onnx.TypeProto()
