"""`load`: an ONNX file, bytes or a proto → Model. What the file says about itself is checked here, before anything runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from flamert import graph as g
from flamert.errors import InputError, InvalidModel
from flamert.importers.importer import Importer
from flamert.importers.onnx import OnnxGraph, dtype_of, inline_tensor, opsets, read_function, read_graph
from flamert.importers.registry import Entry
from flamert.model import Model, TensorSpec
from flamert.passes.pipeline import prepare
from flamert.runtime.device import device as device_named
from flamert.runtime.program import Slot, Stage


def load(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto | Any,
    *,
    device: str | None = None,
    precision: str | None = None,
    allow_tf32: bool | None = None,
    deterministic: bool = False,
) -> Model:
    """Load an ONNX model.

    source: path, bytes, `onnx.ModelProto` or `onnx_ir.Model`. device: None (GPU if there is one), "cpu", "cuda", "cuda:1".
    Raises InvalidModel, UnsafeModel or UnsupportedOp for files that are broken, hostile or beyond this library.
    """
    proto, file = _proto(source)
    return Model(OnnxOrigin(proto, file), device_named(device), prepare)


def _proto(source: Any) -> tuple[onnx.ModelProto, str]:
    if isinstance(source, onnx.ModelProto):
        return source, ""
    if isinstance(source, bytes | bytearray | memoryview):
        return _parse(bytes(source), "")
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        try:
            with open(path, "rb") as file:
                return _parse(file.read(), path)
        except OSError as error:
            raise InputError(f"cannot read {path!r}: {error.strerror}") from error
    if type(source).__module__.startswith("onnx_ir"):
        import onnx_ir

        return onnx_ir.to_proto(source), ""
    raise InputError(f"cannot load a model from {type(source).__name__}: give a path, bytes, onnx.ModelProto or onnx_ir.Model")


def _parse(data: bytes, file: str) -> tuple[onnx.ModelProto, str]:
    try:
        return onnx.ModelProto.FromString(data), file
    except Exception as error:
        raise InvalidModel(f"not an ONNX protobuf: {error}").at(file or None) from error


class OnnxOrigin:
    """A parsed model: its records, weights and declared inputs and outputs; makes specialisations for `Model`."""

    def __init__(self, proto: onnx.ModelProto, file: str) -> None:
        self.template = proto
        self.file = file
        self.opsets = opsets(proto.opset_import)
        self.graph: OnnxGraph = read_graph(proto.graph, inline_tensor)
        self.functions = {(f.domain, f.name, f.overload): read_function(f, inline_tensor) for f in proto.functions}
        self.weights: dict[str, np.ndarray] = self.graph.initializers
        self.inputs = tuple([_spec(i) for i in proto.graph.input if i.name not in self.weights])
        overridable = [_spec(i) for i in proto.graph.input if i.name in self.weights]
        self.inputs += tuple(overridable)
        self.optional = frozenset(s.name for s in overridable)
        self.outputs = tuple([_spec(o) for o in proto.graph.output])

    def specialise(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> tuple[Stage, list[Slot], list[str]]:
        """See `flamert.model.Origin`."""
        importer = Importer(self.functions, self.file)
        bindings: dict[str, Entry] = {name: g.constant(a) for name, a in self.weights.items()}
        for spec in self.inputs:
            if spec.name in feeds:
                bindings[spec.name] = importer.receive(feeds[spec.name], spec.name)
            elif spec.name not in bindings:
                bindings[spec.name] = None
        order = [spec.name for spec in self.inputs if spec.name in feeds]
        slots = list(importer.received)
        return importer.start(self.graph, self.opsets, bindings, outputs), slots, order


def _spec(info: onnx.ValueInfoProto) -> TensorSpec:
    return _spec_of(info.name, info.type, "tensor")


def _spec_of(name: str, type: onnx.TypeProto, kind: str) -> TensorSpec:
    which = type.WhichOneof("value")
    if which == "sequence_type":
        return _spec_of(name, type.sequence_type.elem_type, "sequence")._replace(kind="sequence")
    if which == "optional_type":
        return _spec_of(name, type.optional_type.elem_type, "optional")._replace(kind="optional")
    if which == "map_type":
        return TensorSpec(name, None, None, "map")
    if which is None:
        return TensorSpec(name, None, None, kind)
    tensor = type.sparse_tensor_type if which == "sparse_tensor_type" else type.tensor_type
    dtype = dtype_of(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return TensorSpec(name, dtype, None, kind)
    dims: list[int | str | None] = []
    for d in tensor.shape.dim:
        dims.append(d.dim_value if d.HasField("dim_value") else (d.dim_param or None))
    return TensorSpec(name, dtype, tuple(dims), kind)
