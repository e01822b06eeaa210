"""Function bodies of standard ONNX ops, from ONNX's own schemas: what runs an op that has no converter here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import defs, helper

from flamert.errors import UnsupportedOp
from flamert.graph import Value
from flamert.importers.onnx import DTYPES, OnnxGraph, OnnxNode, Reference, attribute, inline_tensor, read_function

_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


def function_body(
    node: OnnxNode, opsets: Mapping[str, int], inputs: Sequence[Any], attributes: Mapping[str, Any]
) -> OnnxGraph | None:
    """The schema's function for this node, or None where the op is a primitive or unknown.

    opsets: the versions in force around the node; a body that names none of its own is read under them.
    """
    try:
        schema: Any = defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    except defs.SchemaError:
        return None
    if schema.has_function:
        proto = schema.function_body
    elif schema.has_context_dependent_function:
        proto = _built(schema, node, inputs, attributes)
    else:
        return None
    graph = read_function(proto, inline_tensor)
    graph.opsets = {**opsets, **(graph.opsets or {})}
    written = {name for n in graph.nodes for name in n.outputs}.union(graph.inputs)
    # A body leaves out what computes an output that the node does not list.
    graph.outputs = tuple([name if name in written else "" for name in graph.outputs])
    for name, default in schema.attributes.items():
        if default.default_value.name and name not in graph.defaults:
            graph.defaults[name] = attribute(default.default_value, inline_tensor)
    return graph


def _built(schema: Any, node: OnnxNode, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> onnx.FunctionProto:
    """The body that the schema builds for these operands and attributes."""
    types = [_type(v).SerializeToString() for v in inputs]
    names = ["" if entry is None else name for name, entry in zip(node.inputs, inputs, strict=True)]
    call = helper.make_node(node.op_type, names, node.outputs, domain=node.domain)
    for name, value in attributes.items():
        kind = int(schema.attributes[name].type) if name in schema.attributes else None
        call.attribute.append(helper.make_attribute(name, _plain(value), attr_type=kind))
    proto = onnx.FunctionProto.FromString(schema.get_context_dependent_function(call.SerializeToString(), types))
    if not proto.node:
        raise UnsupportedOp(f"ONNX's schema gives no body for {node.op_type} with these inputs and attributes")
    return proto


def _plain(value: Any) -> Any:
    """An attribute as ONNX's helper takes it."""
    if isinstance(value, np.ndarray):
        return onnx.numpy_helper.from_array(value)
    if isinstance(value, OnnxGraph):
        return _written(value)
    if isinstance(value, Reference):
        raise UnsupportedOp(f"a subgraph that refers to the attribute {value.name!r} of a function around it")
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _written(graph: OnnxGraph) -> onnx.GraphProto:
    """A subgraph as the proto it was read from."""
    nodes = [
        helper.make_node(
            n.op_type,
            n.inputs,
            n.outputs,
            name=n.name,
            domain=n.domain,
            overload=n.overload,
            **{k: _plain(v) for k, v in n.attributes.items()},
        )
        for n in graph.nodes
    ]
    inputs, outputs = ([onnx.ValueInfoProto(name=name) for name in names] for names in (graph.inputs, graph.outputs))
    initializers = [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in graph.initializers.items()]
    return helper.make_graph(nodes, graph.name or "body", inputs, outputs, initializers)


def _type(entry: Any) -> onnx.TypeProto:
    if isinstance(entry, Value):
        return helper.make_tensor_type_proto(_NUMBERS[entry.dtype], entry.shape)
    if isinstance(entry, list):
        return helper.make_sequence_type_proto(_type(entry[0]) if entry else helper.make_tensor_type_proto(1, None))
    return onnx.TypeProto()
