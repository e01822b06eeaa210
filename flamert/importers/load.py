"""`load`: an ONNX file, bytes or a proto → Model. What the file says about itself is checked here, before anything runs."""

from __future__ import annotations

import copy
import functools
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from flamert import graph as g
from flamert.errors import FlamertError, InputError, InvalidModel, UnsupportedOp, translated
from flamert.importers import check, graft, head
from flamert.importers.about import about
from flamert.importers.batch import free
from flamert.importers.importer import Importer
from flamert.importers.onnx import OnnxGraph, dtype_of, opsets, read_function, read_graph
from flamert.importers.registry import Entry
from flamert.importers.source import Opened, open_model
from flamert.importers.stored import Place, Stored
from flamert.importers.trace import trace
from flamert.importers.training import statistics
from flamert.importers.training_info import read_algorithms
from flamert.importers.weights import collect, records_of
from flamert.model import Model, TensorSpec
from flamert.ops.folding import Folding
from flamert.origin import About, Features, LowRank, Projection, Traced
from flamert.passes.pipeline import PRECISIONS, prepare
from flamert.runtime.device import device as device_named
from flamert.runtime.program import Slot, Stage


def load(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto | Any,
    *,
    device: str | None = None,
    precision: str | None = None,
    allow_tf32: bool | None = None,
    deterministic: bool = False,
    free_batch: bool | Mapping[str, int] = False,
) -> Model:
    """Load an ONNX model.

    source: path, bytes, `onnx.ModelProto` or `onnx_ir.Model`. device: None (GPU if there is one), "cpu", "cuda", "cuda:1".
    precision: what `run` computes float32 in, "fp16" or "bf16", while inputs and outputs keep their types; "fp32" computes a
    file's half types in float32, None everything in its own type. allow_tf32 (None: convolutions only): whether products of
    float32 may keep ten bits behind the point of their operands, as TF32, or as halves where these are known to have the range.
    It and deterministic concern GPU kernels; on the CPU there is no TF32 and every run gives the same bits.
    free_batch: whether to make a batch dimension free that the exporter froze to 1: inputs then take any number of examples,
    each of which is computed as if it were alone, and `save` writes the changed file. True takes the batch to be axis 0 of
    each input, or axis 1 where axis 0 is none (recurrent states); a mapping says which axis it is, by input. Constants inside
    that say 1 for the batch are rewritten where the meaning of every node on the way proves it right; otherwise
    UnsupportedOp names the node that is in the way.
    Raises InvalidModel, UnsafeModel or UnsupportedOp for files that are broken, hostile or beyond this library.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision={precision!r}: one of {', '.join(map(repr, PRECISIONS))}")
    where = device_named(device, allow_tf32, deterministic)
    origin = _origin(open_model(source))
    if free_batch:
        opened = open_model(source)
        if free(origin, opened.proto, free_batch):
            origin = _origin(opened)
    return Model(origin, where, prepare, precision=precision, allow_tf32=allow_tf32, deterministic=deterministic)


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
        self.inputs = tuple([_spec(i) for i in proto.graph.input if i.name not in self.weights])
        overridable = [_spec(i) for i in proto.graph.input if i.name in self.weights]
        self.inputs += tuple(overridable)
        self.optional = frozenset(s.name for s in overridable)
        self.outputs = tuple([_spec(o) for o in proto.graph.output])
        for spec in self.inputs:
            if spec.kind == "tensor" and spec.dtype is None:
                raise InvalidModel(f"input {spec.name!r} has no type")
        self.algorithms = read_algorithms(self, proto.training_info, tensors)
        tensors.release(proto.graph.initializer)
        self.first_state = [dict(a.state) for a in self.algorithms]
        """What the algorithms' own variables were in the file."""
        self._stored = {name: weakref.ref(array) for name, array in self.weights.items()}
        self.grafts: dict[str, LowRank] = {}
        """Low-rank terms beside weights, by where they are."""
        self.ungrafted = self.graph.nodes
        """The nodes without them."""
        self.stored = Stored(self, self._places(functions))
        """See `flamert.origin.Origin`."""

    def changed(self, name: str) -> bool:
        """Whether a weight was replaced since it came from the file, or did not come from there."""
        return name not in self._stored or self._stored[name]() is not self.weights[name]

    def take_in(self, name: str, array: np.ndarray) -> None:
        """Let this array be a weight that counts as unchanged."""
        self.weights[name] = array
        self._stored[name] = weakref.ref(array)
        for stale in ("values", "statistics"):
            self.__dict__.pop(stale, None)

    def _places(self, functions: Sequence[OnnxGraph]) -> Iterator[Place]:
        """The graphs of the file that weights can lie in."""
        importer = functools.partial(Importer, self.functions, self.file, folding=self.folding)
        for top in (self.graph, *functions):
            for record in records_of(top):
                yield Place(record, top.opsets or self.opsets, importer)

    def sibling(self, graph: OnnxGraph, inputs: Iterable[onnx.ValueInfoProto], variables: Iterable[str]) -> OnnxOrigin:
        """A graph that shares this one's functions and weights, taking its inputs, others, and variables as inputs too."""
        twin = copy.copy(self)
        twin.graph, twin.weights = graph, graph.initializers  # type: ignore[assignment]  # a view
        own = [s for s in self.inputs if s.name in graph.inputs and s.name not in variables]
        held = [TensorSpec(n, graph.initializers[n].dtype, graph.initializers[n].shape) for n in variables]
        twin.inputs = (*own, *[_spec(i) for i in inputs], *held)
        twin.outputs = tuple([TensorSpec(n, None, None) for n in graph.outputs])
        twin.grafts, twin.algorithms = {}, ()
        twin.stored = Stored(twin, ())
        return twin

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

        plain = dict(self.weights)
        try:
            self.weights.update(self.merged())
            self.weights.update(self.stored.codes())
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
        return head.features(self, output)

    def replace_head(self, output: str, taken: Features, name: str, w: np.ndarray, b: np.ndarray) -> None:
        """See `flamert.origin.Origin`."""
        if self.algorithms:
            raise UnsupportedOp("the file's training_info may refer to the head that is to go; delete it from the file first")
        head.replace_head(self, output, taken, name, w, b)

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
        importer = functools.partial(Importer, self.functions, self.file, declared, self.folding)
        if lasting:
            self.stored.thaw(variable)
        with self.stored.thawing(variable):
            weights = {n: a for n, a in self.weights.items() if n not in feeds}
            absent = {spec.name: None for spec in self.inputs if spec.name not in feeds and spec.name not in weights}
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
