"""`load`: an ONNX file, bytes or a proto → Model. What the file says about itself is checked here, before anything runs."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from flamert import graph as g
from flamert.errors import FlamertError, InvalidModel, UnsupportedOp, translated
from flamert.importers import check, graft
from flamert.importers.about import about
from flamert.importers.importer import Importer
from flamert.importers.onnx import OnnxGraph, dtype_of, opsets, read_function, read_graph
from flamert.importers.registry import Entry
from flamert.importers.source import Opened, open_model
from flamert.importers.trace import trace
from flamert.importers.training import statistics
from flamert.importers.weights import collect
from flamert.model import Model, TensorSpec
from flamert.ops.folding import Folding
from flamert.origin import About, Features, LowRank, Projection, Traced
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
    precision: None computes in the file's own types; nothing else is implemented yet. allow_tf32 (None: convolutions only)
    and deterministic concern GPU kernels; on the CPU there is no TF32 and every run gives the same bits.
    Raises InvalidModel, UnsafeModel or UnsupportedOp for files that are broken, hostile or beyond this library.
    """
    if precision is not None:
        raise UnsupportedOp(f"precision={precision!r} is not implemented; leave it out to compute in the file's own types")
    where = device_named(device)
    return Model(_origin(open_model(source)), where, prepare, allow_tf32=allow_tf32, deterministic=deterministic)


def _origin(opened: Opened) -> OnnxOrigin:
    """The model's records, checked. Whatever a broken file trips over, its owner gets an InvalidModel that names the file."""
    try:
        return OnnxOrigin(opened)
    except FlamertError as error:
        error.at(opened.file or None)
        raise
    except Exception as error:
        raise translated(error, opened.file or None, InvalidModel) from error


class OnnxOrigin:
    """A parsed model: its records, weights and declared inputs and outputs; makes specialisations for `Model`.

    template: the ModelProto as it came, with tickets for its large tensors (see wire.py); `save` fills them in.
    """

    def __init__(self, opened: Opened) -> None:
        proto, tensors, self.file = opened
        self.folding = Folding()
        check.versions(proto)
        self.template = proto
        self.tensors = tensors
        self.opsets = opsets(proto.opset_import) or {"": 1}
        self.graph: OnnxGraph = read_graph(proto.graph, tensors)
        functions = [read_function(f, tensors) for f in proto.functions]
        keys = [("" if f.domain == "ai.onnx" else f.domain, f.name, f.overload) for f in proto.functions]
        self.functions = dict(zip(keys, functions, strict=True))
        if len(self.functions) != len(functions):
            raise InvalidModel("a function is defined twice")
        self.weights, self.names = collect(proto, self.graph, functions)
        """Arrays by name; for each graph in the file, its own names for some of them."""
        for graph in (self.graph, *functions):
            check.structure(graph)
        check.expansion(self.graph, self.functions)
        tensors.release(proto.graph.initializer)
        self.inputs = tuple([_spec(i) for i in proto.graph.input if i.name not in self.weights])
        overridable = [_spec(i) for i in proto.graph.input if i.name in self.weights]
        self.inputs += tuple(overridable)
        self.optional = frozenset(s.name for s in overridable)
        self.outputs = tuple([_spec(o) for o in proto.graph.output])
        for spec in self.inputs:
            if spec.kind == "tensor" and spec.dtype is None:
                raise InvalidModel(f"input {spec.name!r} has no type")
        self._stored = {name: weakref.ref(array) for name, array in self.weights.items()}
        self.grafts: dict[str, LowRank] = {}
        """Low-rank terms beside weights, by where they are."""
        self.ungrafted = self.graph.nodes
        """The nodes without them."""

    def changed(self, name: str) -> bool:
        """Whether a weight was replaced since it came from the file, or did not come from there."""
        return name not in self._stored or self._stored[name]() is not self.weights[name]

    @functools.cached_property
    def values(self) -> frozenset[str]:
        """See `flamert.origin.Origin`."""
        made = [name for node in self.graph.nodes for name in node.outputs if name]
        return frozenset([*made, *self.graph.initializers, *[spec.name for spec in self.inputs]])

    def about(self) -> About:
        """See `flamert.origin.Origin`."""
        return about(self.template, self.file)

    def save(self, path: str | os.PathLike[str], external_data: str | bool = "auto") -> None:
        """See `flamert.exporters.onnx.save`."""
        from flamert.exporters.onnx import save

        terms = self.merged()
        plain = {name: self.weights[name] for name in terms}
        self.weights.update(terms)
        try:
            save(self, path, external_data)
        finally:
            self.weights.update(plain)

    def projections(self) -> list[Projection]:
        """See `flamert.origin.Origin`."""
        return graft.projections(self)

    def attach(self, at: Projection, a: np.ndarray, b: np.ndarray, scale: float, dropout: float) -> None:
        """See `flamert.origin.Origin`."""
        graft.attach(self, LowRank(at, f"{at.name}.lora_A.weight", f"{at.name}.lora_B.weight", scale, dropout), a, b)

    def detach(self) -> None:
        """See `flamert.origin.Origin`."""
        graft.detach(self)

    def merged(self) -> dict[str, np.ndarray]:
        """See `flamert.origin.Origin`."""
        return graft.merged(self)

    def features(self, output: str) -> Features:
        """See `flamert.origin.Origin`."""
        return graft.features(self, output)

    def replace_head(self, output: str, taken: Features, name: str, w: np.ndarray, b: np.ndarray) -> None:
        """See `flamert.origin.Origin`."""
        graft.replace_head(self, output, taken, name, w, b)

    def specialise(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> tuple[Stage, list[Slot], list[str]]:
        """See `flamert.origin.Origin`."""
        declared = {spec.name: spec.dtype for spec in self.outputs if spec.kind == "tensor"}
        importer = Importer(self.functions, self.file, declared, self.folding)
        bindings: dict[str, Entry] = {name: g.constant(a) for name, a in self.graph.initializers.items()}
        for spec in self.inputs:
            if spec.name in feeds:
                bindings[spec.name] = importer.receive(feeds[spec.name], spec.name)
            elif spec.name not in bindings:
                bindings[spec.name] = None
        order = [spec.name for spec in self.inputs if spec.name in feeds]
        slots = list(importer.received)
        try:
            return importer.start(self.graph, self.opsets, bindings, outputs), slots, order
        except FlamertError:
            raise
        except Exception as error:
            raise translated(error, self.file or None, InvalidModel) from error

    @functools.cached_property
    def statistics(self) -> frozenset[str]:
        """See `flamert.origin.Origin`."""
        return statistics(self.graph, self.functions) & self.weights.keys()

    def trace(
        self,
        feeds: Mapping[str, Any],
        outputs: Sequence[str],
        variable: frozenset[str],
        lasting: bool = False,
        seed: int | None = None,
    ) -> Traced:
        """See `flamert.origin.Origin`."""
        declared = {spec.name: spec.dtype for spec in self.outputs if spec.kind == "tensor"}
        weights = {n: a for n, a in self.weights.items() if n not in feeds}
        absent = {spec.name: None for spec in self.inputs if spec.name not in feeds and spec.name not in weights}
        importer = functools.partial(Importer, self.functions, self.file, declared, self.folding)
        return trace(self.graph, self.opsets, importer, weights, {**absent, **feeds}, outputs, variable, lasting, seed)


def _spec(info: onnx.ValueInfoProto) -> TensorSpec:
    return _spec_of(info.name, info.type, "tensor")


def _spec_of(name: str, type: onnx.TypeProto, kind: str) -> TensorSpec:
    which = type.WhichOneof("value")
    if which == "sequence_type":
        return _spec_of(name, type.sequence_type.elem_type, "sequence")._replace(kind="sequence")
    if which == "optional_type":
        return _spec_of(name, type.optional_type.elem_type, "optional")._replace(kind="optional")
    if which == "map_type":
        return _spec_of(name, type.map_type.value_type, "map")._replace(shape=None, kind="map")
    if which is None:
        return TensorSpec(name, None, None, kind)
    tensor = type.sparse_tensor_type if which == "sparse_tensor_type" else type.tensor_type
    dtype = dtype_of(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return TensorSpec(name, dtype, None, kind)
    return TensorSpec(name, dtype, tuple([_dimension(d) for d in tensor.shape.dim]), kind)


def _dimension(d: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """A declared dimension; some exporters write -1 for one that varies."""
    if d.HasField("dim_value"):
        return d.dim_value if d.dim_value >= 0 else None
    return d.dim_param or None
