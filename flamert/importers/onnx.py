"""The ONNX file as plain Python records: nodes, attributes, initializers as arrays. Meaning comes later, in the converters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto

from flamert import dtypes
from flamert.errors import InvalidModel
from flamert.importers.tensors import DTYPES, TensorReader, dense, dtype_of, inline_tensor

__all__ = [
    "DTYPES",
    "OnnxGraph",
    "OnnxNode",
    "Reference",
    "TensorReader",
    "attribute",
    "dtype_of",
    "inline_tensor",
    "opsets",
    "read_function",
    "read_graph",
    "resolved",
]


WEIGHTS = dtypes.STANDARD_FLOAT | {t for t in dtypes.INTEGER | dtypes.NARROW_FLOAT if t.itemsize <= 2}
"""Element types that weights have in Constant nodes; other integers there are shapes and indices."""


class OnnxNode:
    """A NodeProto: what it does, the names it reads and writes, its attributes as Python objects."""

    __slots__ = ("attributes", "domain", "inputs", "name", "op_type", "outputs", "overload", "reads")

    def __init__(self, proto: NodeProto, tensors: TensorReader) -> None:
        self.op_type = proto.op_type
        self.domain = "" if proto.domain == "ai.onnx" else proto.domain
        self.name = proto.name
        self.overload = proto.overload
        self.inputs = tuple(proto.input)
        self.outputs = tuple(proto.output)
        self.attributes = {a.name: attribute(a, tensors) for a in proto.attribute}
        if len(self.attributes) != len(proto.attribute):
            raise InvalidModel(f"{self.op_type} node {self.name!r} has an attribute twice")
        inner = {name for graph in self.subgraphs() for name in graph.free}
        if self.op_type == "Gradient" and isinstance(y := self.attributes.get("y"), str):
            inner.add(y)
        self.reads = frozenset(self.inputs) | inner if inner else self.inputs
        """Every outer name the node needs, those its subgraphs capture and its attributes mention among them."""

    def subgraphs(self) -> list[OnnxGraph]:
        """The graphs among the attributes: branches, loop bodies."""
        values = self.attributes.values()
        return [g for a in values for g in (a if isinstance(a, list) else (a,)) if isinstance(g, OnnxGraph)]

    def __str__(self) -> str:
        return f"{self.op_type} node {self.name or (self.outputs or ('',))[0]!r}"


class OnnxGraph:
    """A GraphProto or a function body: nodes in order, initializers by name, the names it takes and gives."""

    def __init__(
        self,
        nodes: Iterable[OnnxNode],
        inputs: Iterable[str],
        outputs: Iterable[str],
        initializers: Mapping[str, np.ndarray],
        name: str = "",
    ) -> None:
        self.name = name
        self.nodes = tuple(nodes)
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.initializers = initializers
        self.opsets: dict[str, int] | None = None
        """Opset versions by domain, for a function, which has its own."""
        self.defaults: dict[str, Any] = {}
        """Attribute values of a function where a call gives none."""
        self.declared: dict[str, tuple[np.dtype, tuple[int | None, ...] | None]] = {}
        """Element types and shapes that the file gives for tensors among a graph's inputs and outputs."""

    @cached_property
    def free(self) -> frozenset[str]:
        """Names that the graph reads and does not define: captured from around it."""
        defined = set(self.inputs) | set(self.initializers) | {o for n in self.nodes for o in n.outputs}
        used = {name for node in self.nodes for name in node.reads} | set(self.outputs)
        return frozenset(used - defined - {""})

    def pruned(self, outputs: Sequence[str]) -> OnnxGraph:
        """The part of the graph that these names need."""
        needed = set(outputs)
        kept: list[OnnxNode] = []
        for node in reversed(self.nodes):
            if not needed.isdisjoint(node.outputs):
                kept.append(node)
                needed.update(node.reads)
        pruned = OnnxGraph(reversed(kept), self.inputs, outputs, self.initializers, self.name)
        pruned.opsets = self.opsets
        return pruned


def read_graph(proto: GraphProto, tensors: TensorReader) -> OnnxGraph:
    """A GraphProto as records. Raises InvalidModel for tensors and attributes that contradict themselves."""
    initializers = {t.name: tensors(t) for t in proto.initializer}
    initializers.update({t.values.name: dense(t, tensors) for t in proto.sparse_initializer})
    if len(initializers) != len(proto.initializer) + len(proto.sparse_initializer):
        names = Counter([t.name for t in proto.initializer] + [t.values.name for t in proto.sparse_initializer])
        raise InvalidModel(f"the initializer {names.most_common(1)[0][0]!r} is there twice")
    inputs = [i.name for i in proto.input]
    nodes = _without_weights([OnnxNode(n, tensors) for n in proto.node], inputs, initializers)
    graph = OnnxGraph(nodes, inputs, [o.name for o in proto.output], initializers, proto.name)
    for info in (*proto.input, *proto.output):
        tensor = info.type.tensor_type
        if tensor.elem_type in DTYPES:
            dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
            graph.declared[info.name] = DTYPES[tensor.elem_type], dims if tensor.HasField("shape") else None
    return graph


def read_function(proto: onnx.FunctionProto, tensors: TensorReader) -> OnnxGraph:
    """A FunctionProto as a graph that sees no outer names."""
    initializers: dict[str, np.ndarray] = {}
    nodes = _without_weights([OnnxNode(n, tensors) for n in proto.node], proto.input, initializers)
    graph = OnnxGraph(nodes, proto.input, proto.output, initializers, proto.name)
    graph.opsets = opsets(proto.opset_import)
    graph.defaults = {a.name: attribute(a, tensors) for a in proto.attribute_proto}
    return graph


def _without_weights(
    nodes: Iterable[OnnxNode], inputs: Collection[str], initializers: dict[str, np.ndarray]
) -> Iterator[OnnxNode]:
    """The nodes, less those that hold a weight, which joins the initializers: a Constant of several floating elements, or of
    small integers that may stand for them."""
    for node in nodes:
        value = node.attributes.get("value") if node.op_type == "Constant" and not node.domain else None
        if isinstance(value, np.ndarray) and value.size > 1 and value.dtype in WEIGHTS and len(node.outputs) == 1:
            (name,) = node.outputs
            if name and name not in initializers and name not in inputs:
                initializers[name] = value
                continue
        yield node


def opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Opset versions by domain; the default domain is ""."""
    return {"" if o.domain == "ai.onnx" else o.domain: o.version for o in imports}


def attribute(proto: AttributeProto, tensors: TensorReader) -> Any:
    """An attribute's value: int, float, str, array, OnnxGraph, TypeProto, or a list of them."""
    if proto.ref_attr_name:
        return Reference(proto.ref_attr_name)
    kind = kind_of(proto)
    if kind == AttributeProto.INT:
        return proto.i
    if kind == AttributeProto.FLOAT:
        return proto.f
    if kind == AttributeProto.STRING:
        return proto.s.decode("utf-8", "surrogateescape")
    if kind == AttributeProto.INTS:
        return list(proto.ints)
    if kind == AttributeProto.FLOATS:
        return list(proto.floats)
    if kind == AttributeProto.STRINGS:
        return [s.decode("utf-8", "surrogateescape") for s in proto.strings]
    if kind == AttributeProto.TENSOR:
        return tensors(proto.t)
    if kind == AttributeProto.TENSORS:
        return [tensors(t) for t in proto.tensors]
    if kind == AttributeProto.GRAPH:
        return read_graph(proto.g, tensors)
    if kind == AttributeProto.GRAPHS:
        return [read_graph(x, tensors) for x in proto.graphs]
    if kind == AttributeProto.SPARSE_TENSOR:
        return dense(proto.sparse_tensor, tensors)
    if kind == AttributeProto.TYPE_PROTO:
        return proto.tp
    raise InvalidModel(f"attribute {proto.name!r} has the unknown type {kind}")


_FIELDS = {
    "f": AttributeProto.FLOAT,
    "i": AttributeProto.INT,
    "s": AttributeProto.STRING,
    "t": AttributeProto.TENSOR,
    "g": AttributeProto.GRAPH,
    "floats": AttributeProto.FLOATS,
    "ints": AttributeProto.INTS,
    "strings": AttributeProto.STRINGS,
}


def kind_of(proto: AttributeProto) -> int:
    """The type of an attribute; of one that does not say it (IR versions 1 and 2), that of the field which is filled."""
    if proto.type or proto.ref_attr_name:
        return AttributeProto.UNDEFINED if proto.ref_attr_name else proto.type
    filled = [field.name for field, _ in proto.ListFields()]
    return next((kind for name, kind in _FIELDS.items() if name in filled), AttributeProto.UNDEFINED)


class Reference:
    """An attribute inside a function body that takes its value from the call's attribute of this name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def resolved(attributes: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Attributes with references to the enclosing function's attributes filled in; those not given are left out."""
    return {
        k: given[v.name] if isinstance(v, Reference) else v
        for k, v in attributes.items()
        if not isinstance(v, Reference) or v.name in given
    }
