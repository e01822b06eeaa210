"""The ONNX file as plain Python records: nodes, attributes, initializers as arrays. Meaning comes later, in the converters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from flamert import dtypes
from flamert.errors import InvalidModel, UnsupportedType

DTYPES: dict[int, np.dtype] = {
    TensorProto.FLOAT: dtypes.float32,
    TensorProto.UINT8: dtypes.uint8,
    TensorProto.INT8: dtypes.int8,
    TensorProto.UINT16: dtypes.uint16,
    TensorProto.INT16: dtypes.int16,
    TensorProto.INT32: dtypes.int32,
    TensorProto.INT64: dtypes.int64,
    TensorProto.STRING: dtypes.string,
    TensorProto.BOOL: dtypes.bool_,
    TensorProto.FLOAT16: dtypes.float16,
    TensorProto.DOUBLE: dtypes.float64,
    TensorProto.UINT32: dtypes.uint32,
    TensorProto.UINT64: dtypes.uint64,
    TensorProto.COMPLEX64: dtypes.complex64,
    TensorProto.COMPLEX128: dtypes.complex128,
    TensorProto.BFLOAT16: dtypes.bfloat16,
    TensorProto.FLOAT8E4M3FN: dtypes.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: dtypes.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: dtypes.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: dtypes.float8_e5m2fnuz,
    TensorProto.FLOAT8E8M0: dtypes.float8_e8m0fnu,
    TensorProto.FLOAT4E2M1: dtypes.float4_e2m1fn,
    TensorProto.FLOAT6E2M3: dtypes.float6_e2m3fn,
    TensorProto.FLOAT6E3M2: dtypes.float6_e3m2fn,
    TensorProto.UINT4: dtypes.uint4,
    TensorProto.INT4: dtypes.int4,
    TensorProto.UINT2: dtypes.uint2,
    TensorProto.INT2: dtypes.int2,
}


def dtype_of(element_type: int) -> np.dtype:
    """The element type of an ONNX TensorProto.DataType number."""
    try:
        return DTYPES[element_type]
    except KeyError:
        raise UnsupportedType(f"unknown ONNX element type {element_type}") from None


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
        inner = {name for a in self.attributes.values() for graph in _graphs(a) for name in graph.free}
        self.reads = frozenset(self.inputs) | inner if inner else self.inputs
        """Every outer name the node needs, those its subgraphs capture among them."""


class OnnxGraph:
    """A GraphProto or a function body: nodes in order, initializers by name, the names it takes and gives."""

    def __init__(
        self,
        nodes: Iterable[OnnxNode],
        inputs: Iterable[str],
        outputs: Iterable[str],
        initializers: dict[str, np.ndarray],
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

    @cached_property
    def free(self) -> frozenset[str]:
        """Names that the graph reads and does not define: captured from around it."""
        defined = set(self.inputs) | set(self.initializers) | {o for n in self.nodes for o in n.outputs}
        used = {name for node in self.nodes for name in node.reads} | set(self.outputs)
        return frozenset(used - defined - {""})


TensorReader = Callable[[TensorProto], np.ndarray]
"""How a TensorProto becomes an array: inline data, or external data where that is allowed."""


def read_graph(proto: GraphProto, tensors: TensorReader) -> OnnxGraph:
    """A GraphProto as records. Raises InvalidModel where names are defined twice or types lie."""
    initializers = {t.name: tensors(t) for t in proto.initializer}
    initializers.update({t.values.name: dense(t, tensors) for t in proto.sparse_initializer})
    return OnnxGraph(
        [OnnxNode(n, tensors) for n in proto.node],
        [i.name for i in proto.input],
        [o.name for o in proto.output],
        initializers,
        proto.name,
    )


def read_function(proto: onnx.FunctionProto, tensors: TensorReader) -> OnnxGraph:
    """A FunctionProto as a graph that sees no outer names."""
    graph = OnnxGraph([OnnxNode(n, tensors) for n in proto.node], proto.input, proto.output, {}, proto.name)
    graph.opsets = opsets(proto.opset_import)
    graph.defaults = {a.name: attribute(a, tensors) for a in proto.attribute_proto}
    return graph


def opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Opset versions by domain; the default domain is ""."""
    return {"" if o.domain == "ai.onnx" else o.domain: o.version for o in imports}


def attribute(proto: AttributeProto, tensors: TensorReader) -> Any:
    """An attribute's value: int, float, str, array, OnnxGraph, TypeProto, or a list of them."""
    kind = proto.type
    if proto.ref_attr_name:
        return Reference(proto.ref_attr_name)
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


class Reference:
    """An attribute inside a function body that takes its value from the call's attribute of this name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def _graphs(value: Any) -> list[OnnxGraph]:
    if isinstance(value, OnnxGraph):
        return [value]
    return [v for v in value if isinstance(v, OnnxGraph)] if isinstance(value, list) else []


def inline_tensor(proto: TensorProto) -> np.ndarray:
    """The array of a TensorProto that holds its own data, checked against its dims. Raw data is not copied."""
    dtype = dtype_of(proto.data_type)
    shape = tuple(proto.dims)
    if any(d < 0 for d in shape):
        raise InvalidModel(f"tensor {proto.name!r} has the negative dimension in {shape}")
    size = 1
    for d in shape:
        size *= d
    raw = proto.raw_data
    if proto.HasField("raw_data") and dtype != dtypes.string:
        want = -(-size * dtypes.bits(dtype) // 8)
        if len(raw) != want:
            raise InvalidModel(
                f"tensor {proto.name!r} of shape {shape} and type {dtype.name} needs {want} bytes, holds {len(raw)}"
            )
        return unpack(np.frombuffer(raw, np.uint8), dtype, size).reshape(shape)
    return _from_fields(proto, dtype, size).reshape(shape)


def unpack(raw: np.ndarray, dtype: np.dtype, size: int) -> np.ndarray:
    """Bytes of an ONNX file as elements: little-endian, types under a byte packed from the low bits up."""
    bits = dtypes.bits(dtype)
    if bits >= 8:
        return raw.view(dtype)
    per_byte = 8 // bits
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    codes = ((raw[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)[:size]
    if dtype in dtypes.NARROW_INTEGER:
        signed = codes.astype(np.int8)
        if dtype in dtypes.SIGNED:
            signed[signed >= 1 << (bits - 1)] -= 1 << bits
        return signed.astype(dtype)
    return codes.view(dtype)


_INT32_FIELD = frozenset({dtypes.int32, dtypes.int16, dtypes.int8, dtypes.uint16, dtypes.uint8, dtypes.bool_})


def _from_fields(proto: TensorProto, dtype: np.dtype, size: int) -> np.ndarray:
    """A tensor stored in the typed repeated fields (float_data, int32_data, …)."""
    bits = dtypes.bits(dtype)
    if dtype == dtypes.string:
        data = np.array([s.decode("utf-8", "surrogateescape") for s in proto.string_data] or [], object)
    elif dtype in (dtypes.float32, dtypes.complex64):
        data = np.array(proto.float_data, np.float32).view(dtype)
    elif dtype in (dtypes.float64, dtypes.complex128):
        data = np.array(proto.double_data, np.float64).view(dtype)
    elif dtype == dtypes.int64:
        data = np.array(proto.int64_data, np.int64)
    elif dtype in (dtypes.uint32, dtypes.uint64):
        data = np.array(proto.uint64_data, np.uint64).astype(dtype)
    elif bits < 8:
        data = unpack(np.array(proto.int32_data, np.int32).astype(np.uint8), dtype, size)
    elif dtype in _INT32_FIELD:
        data = np.array(proto.int32_data, np.int32).astype(dtype)
    else:  # float16, bfloat16, float8: bit patterns
        data = np.array(proto.int32_data, np.int32).astype(f"u{dtype.itemsize}").view(dtype)
    if data.size != size:
        raise InvalidModel(f"tensor {proto.name!r} of shape {tuple(proto.dims)} needs {size} elements, holds {data.size}")
    return data


def dense(proto: onnx.SparseTensorProto, tensors: TensorReader) -> np.ndarray:
    """A SparseTensorProto as an array; indices are linear or one row per element, in any order."""
    values, indices = tensors(proto.values).reshape(-1), tensors(proto.indices)
    shape = tuple(proto.dims)
    result = np.zeros(shape, values.dtype)
    flat = indices.reshape(-1) if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
    if flat.size != values.size or (flat.size and (flat.min() < 0 or flat.max() >= result.size)):
        raise InvalidModel(f"sparse tensor {proto.values.name!r} has indices outside its shape {shape}")
    result.reshape(-1)[flat] = values
    return result
