"""Batch dimensions that an exporter froze to 1, made free again: what each value of a model becomes when examples are many.

A model f that was exported for one example is *lifted* to N of them: in every value that depends on the batched inputs one
axis holds the examples one after the other, each as f of that example alone has it. Node by node this is shown from what the
op means (`rules`); constants that say 1 for the batch are rewritten on the way. Where an op would mix examples, or
nothing is known of it, the model is refused, and the node named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from flamert.errors import FlamertError, InputError, UnsupportedOp
from flamert.graph import Value
from flamert.importers.onnx import attribute
from flamert.ops.evaluate import value_of

if TYPE_CHECKING:
    from flamert.importers.load import OnnxOrigin

SIZES = ((8, 12, 40), (16, 24, 80), (32, 48, 160), (64, 96, 320), (128, 160, 480), (224, 320, 640), (512, 640, 1600))
"""Sizes tried for dimensions that vary: several of them tell what varies with them from what is a constant."""

Sizes = tuple[int, ...]
"""A number for each of the sizes tried."""


class Batch(NamedTuple):
    """A value that holds an example after the other. axis: where. inner: how much of that axis belongs to each.

    extra: the axis is one that the value of a single example does not have.
    """

    axis: int
    inner: Sizes
    extra: bool = False


class Dims(NamedTuple):
    """A vector (or scalar) of integers, some of which are sizes that grow with the batch: N times these; None: they stay."""

    factors: tuple[Sizes | None, ...]

    @property
    def grow(self) -> bool:
        return any(f is not None for f in self.factors)


State = Batch | Dims | None
"""What becomes of a value: None if it stays as it is, whatever the batch."""

Rule = Callable[["Lifting", NodeProto], Sequence[State]]
"""What becomes of a node's outputs. May change the node, and put others in front of it. Raises UnsupportedOp."""


def free(origin: OnnxOrigin, proto: onnx.ModelProto, given: bool | Mapping[str, int]) -> bool:
    """Change a file so that its batch is free; whether there was a frozen one.

    origin: of the same file. given: True, or the axis of the batch by input.
    Raises UnsupportedOp, naming the node in the way; InputError for axes that the inputs do not have.
    """
    axes = _axes(origin, given)
    frozen = [s for s in origin.inputs if s.name in axes and s.shape and s.shape[axes[s.name]] == 1]
    if frozen:
        Lifting(origin, proto, axes).run()
    return bool(frozen)


def _axes(origin: OnnxOrigin, given: bool | Mapping[str, int]) -> dict[str, int]:
    """Where each input has its examples: at axis 0, or, as recurrent states and sequences do, at axis 1."""
    specs = {s.name: s for s in origin.inputs if s.kind == "tensor" and s.shape and s.name not in origin.optional}
    if not isinstance(given, bool):
        for name, axis in given.items():
            if name not in specs or not -len(specs[name].shape or ()) <= axis < len(specs[name].shape or ()):
                raise InputError(f"free_batch: the model has no input {name!r} with an axis {axis}")
        return {name: axis % len(specs[name].shape or ()) for name, axis in given.items()}
    symbols = {s.shape[0] for s in specs.values() if s.shape and isinstance(s.shape[0], str)}
    found = {}
    for name, spec in specs.items():
        first, *rest = spec.shape or ()
        if first == 1:
            found[name] = 0
        elif rest and (rest[0] == 1 or (rest[0] in symbols and rest[0] != first)):
            found[name] = 1
        elif not isinstance(first, int):
            found[name] = 0
    return found


class Lifting:
    """A walk over the nodes of a file that is being changed.

    states: what becomes of the values so far. nodes: those written so far. replaced: operands that nodes have no longer.
    """

    def __init__(self, origin: OnnxOrigin, proto: onnx.ModelProto, axes: Mapping[str, int]) -> None:
        self.origin, self.proto, self.axes = origin, proto, axes
        self.samples = _samples(origin, axes)
        self.states: dict[str, State] = {n: Batch(axis, (1,) * len(self.samples)) for n, axis in axes.items()}
        self.nodes: list[NodeProto] = []
        self.replaced: set[str] = set()
        self.taken = {*self.samples[0], *origin.values}
        self._count = ""

    def run(self) -> None:
        """All nodes, then what the file declares of inputs, outputs and values."""
        from flamert.importers.batch.rules import rule_of

        for node in self.proto.graph.node:
            reads = [n for n in node.input if self.states.get(n) is not None]
            inner = [n for a in node.attribute for n in _read_in(a)]
            captured = next((n for n in inner if self.states.get(n) is not None), None)
            if captured is not None:
                raise self.refusal(node, f"a graph inside it reads {captured!r}, which depends on the batch")
            if reads and any(n in self.samples[0] for n in node.output if n):
                before = list(node.input)
                for name, state in zip(node.output, rule_of(self, node)(self, node), strict=False):
                    self.states[name] = None if isinstance(state, Dims) and not state.grow else state
                self.replaced.update(set(before) - set(node.input))
            self.nodes.append(node)
        self.states.pop("", None)
        self._declare()
        self._write()

    # -- what rules ask ---------------------------------------------------------------------------------------------------

    def opset(self, node: NodeProto) -> int:
        """The version of the node's domain."""
        return self.origin.opsets.get("" if node.domain == "ai.onnx" else node.domain, 0)

    def attribute(self, node: NodeProto, name: str, default: Any = None) -> Any:
        """An attribute's value."""
        return next((attribute(a, self.origin.tensors) for a in node.attribute if a.name == name), default)

    def state(self, node: NodeProto, i: int) -> State:
        """What becomes of an input; None too where there is none."""
        return self.states.get(node.input[i]) if i < len(node.input) else None

    def shapes(self, node: NodeProto, name: str) -> list[tuple[int, ...]]:
        """A value's shape with one example, for each of the sizes tried."""
        found = [sample.get(name) for sample in self.samples]
        if not all(isinstance(v, Value) for v in found):
            raise self.refusal(node, f"{name!r} is no tensor")
        return [v.shape for v in found]  # type: ignore[union-attr]

    def rank(self, node: NodeProto, name: str) -> int:
        """A value's rank with one example."""
        return len(self.shapes(node, name)[0])

    def contents(self, node: NodeProto, i: int) -> list[np.ndarray] | None:
        """What a small input holds with one example, for each of the sizes tried; None for an absent one."""
        if i >= len(node.input) or not node.input[i]:
            return None
        found = [sample.get(node.input[i]) for sample in self.samples]
        if not all(isinstance(v, Value) and v.node.known for v in found):
            raise self.refusal(node, f"only data can tell what {node.input[i]!r} holds")
        return [value_of(v) for v in found]  # type: ignore[arg-type]

    def constant(self, node: NodeProto, i: int) -> list[int] | None:
        """The same for integers that do not depend on any size."""
        found = self.contents(node, i)
        if found is None:
            return None
        if any(a.tolist() != found[0].tolist() for a in found):
            raise self.refusal(node, f"{node.input[i]!r} varies with the size of the inputs")
        return [int(n) for n in found[0].reshape(-1)]

    def refusal(self, node: NodeProto, why: str) -> FlamertError:
        """The error for a node that is in the way."""
        name = node.name or next(iter(node.output), "")
        return UnsupportedOp(f"free_batch: {node.op_type} node {name!r} is in the way: {why}").at(self.origin.file or None)

    # -- what rules write -------------------------------------------------------------------------------------------------

    def name(self, stem: str) -> str:
        """A name that nobody has yet."""
        name, i = stem, 1
        while name in self.taken:
            name, i = f"{stem}.{i}", i + 1
        self.taken.add(name)
        return name

    def add(self, op_type: str, inputs: Iterable[str], stem: str, **attributes: Any) -> str:
        """Put a node in front of the one at hand; the name of its result."""
        name = self.name(stem)
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def integers(self, numbers: Sequence[int], stem: str) -> str:
        """A constant vector."""
        return self.add("Constant", (), stem, value=numpy_helper.from_array(np.array(numbers, np.int64)))

    def count(self) -> str:
        """The vector [N], read off an input where it is first needed."""
        if not self._count:
            name, axis = next(iter(self.axes.items()))
            shape = self.add("Shape", [name], f"{name}.shape")
            self._count = self.add("Gather", [shape, self.integers([axis], f"{name}.axis")], "batch.size", axis=0)
        return self._count

    def counts(self, length: int, at: int, stem: str) -> str:
        """A vector of ones, but for N at one place."""
        parts = [self.integers([1] * at, f"{stem}.before")] if at else []
        parts.append(self.count())
        parts += [self.integers([1] * (length - at - 1), f"{stem}.behind")] if at + 1 < length else []
        return parts[0] if len(parts) == 1 else self.add("Concat", parts, f"{stem}.batch", axis=0)

    def times(self, vector: str, length: int, at: int) -> str:
        """A vector of sizes, N times as large at one place."""
        return self.add("Mul", [vector, self.counts(length, at, vector)], f"{vector}.free")

    def repeated(self, node: NodeProto, name: str, axis: int) -> str:
        """A value that is the same for all examples, once for each of them along an axis where it has size 1."""
        if self.opset(NodeProto()) < 8:
            raise self.refusal(node, f"{name!r} would have to be repeated, and there is no Expand before opset 8")
        rank = self.rank(node, name)
        return self.add("Expand", [name, self.counts(rank, axis, name)], f"{name}.repeated")

    # -- declarations -----------------------------------------------------------------------------------------------------

    def _declare(self) -> None:
        graph = self.proto.graph
        symbol = self._symbol()
        for info in graph.input:
            if info.name in self.axes:
                dim = info.type.tensor_type.shape.dim[self.axes[info.name]]
                if dim.HasField("dim_value"):
                    dim.dim_param = symbol
        for info in graph.output:
            state = self.states.get(info.name)
            if isinstance(state, Dims) and state.grow:
                raise UnsupportedOp(f"free_batch: output {info.name!r} holds sizes that depend on the batch")
            if isinstance(state, Batch):
                self._declare_value(info, state, symbol)
        for i in reversed(range(len(graph.value_info))):
            state = self.states.get(graph.value_info[i].name)
            if isinstance(state, Batch):
                self._declare_value(graph.value_info[i], state, symbol)
            elif state is not None:
                del graph.value_info[i]

    def _declare_value(self, info: onnx.ValueInfoProto, state: Batch, symbol: str) -> None:
        tensor = info.type.tensor_type
        sizes = self.samples[0][info.name].shape
        if not tensor.HasField("shape") or len(tensor.shape.dim) != len(sizes):
            tensor.ClearField("shape")
        elif state.extra:
            for dim, size in zip(tensor.shape.dim, sizes, strict=True):
                if dim.dim_param == symbol:  # the exporter took another axis for the batch's
                    dim.dim_value = size
            tensor.shape.dim.insert(state.axis, onnx.TensorShapeProto.Dimension(dim_param=symbol))
        else:
            dim = tensor.shape.dim[state.axis]
            rest = dim.dim_param or str(dim.dim_value)
            dim.dim_param = symbol if set(state.inner) == {1} else f"{symbol}*{rest}"

    def _write(self) -> None:
        """The nodes, less the constants that nobody reads any more."""
        graph = self.proto.graph
        read = {n for node in self.nodes for n in (*node.input, *[m for a in node.attribute for m in _read_in(a)])}
        idle = self.replaced - read - {o.name for o in graph.output} - {i.name for i in graph.input}
        kept = [n for n in self.nodes if not (n.op_type == "Constant" and idle.issuperset(n.output))]
        nodes = [NodeProto.FromString(n.SerializeToString()) for n in kept]
        del graph.node[:]
        graph.node.extend(nodes)
        for field in (graph.initializer, graph.value_info):
            for i in reversed(range(len(field))):
                if field[i].name in idle:
                    del field[i]

    def _symbol(self) -> str:
        """What the file calls the batch already, or a name that it has for nothing else."""
        infos = (*self.proto.graph.input, *self.proto.graph.output, *self.proto.graph.value_info)
        used = {d.dim_param for info in infos for d in info.type.tensor_type.shape.dim}
        for info in self.proto.graph.input:
            if info.name in self.axes and (name := info.type.tensor_type.shape.dim[self.axes[info.name]].dim_param):
                return name
        return next(n for n in ("N", "batch", "batch_size", *[f"N{i}" for i in range(len(used) + 1)]) if n not in used)


def _read_in(held: onnx.AttributeProto) -> Iterator[str]:
    """The names that graphs inside an attribute read."""
    for graph in (held.g, *held.graphs):
        for node in graph.node:
            yield from node.input
            for inner in node.attribute:
                yield from _read_in(inner)
        yield from [o.name for o in graph.output]


def _samples(origin: OnnxOrigin, axes: Mapping[str, int]) -> list[Mapping[str, Any]]:
    """The model imported for one example, at several sizes of what varies: its values by name. Raises UnsupportedOp."""
    symbols: dict[Any, int] = {}
    for spec in origin.inputs:
        for axis, d in enumerate(spec.shape or ()):
            if not isinstance(d, int) and axes.get(spec.name) != axis:
                symbols.setdefault(d if d is not None else (spec.name, axis), len(symbols))
    names = [o.name for o in origin.outputs]
    problem: FlamertError | None = None
    for sizes in SIZES:
        try:
            return [_traced(origin, axes, symbols, size, names) for size in (sizes if symbols else sizes[:1])]
        except FlamertError as error:
            problem = error
    raise UnsupportedOp(f"free_batch: the model cannot be followed as one graph: {problem}") from problem


def _traced(
    origin: OnnxOrigin, axes: Mapping[str, int], symbols: Mapping[Any, int], size: int, names: Sequence[str]
) -> Mapping[str, Any]:
    feeds = {}
    for spec in origin.inputs:
        if spec.name in origin.optional:
            continue
        if spec.kind != "tensor" or spec.shape is None or spec.dtype is None or spec.dtype.hasobject:
            raise UnsupportedOp(f"free_batch: input {spec.name!r} ({spec}) is no array of a known rank")
        shape = []
        for axis, d in enumerate(spec.shape):
            if axes.get(spec.name) == axis:
                shape.append(1)
            else:
                shape.append(d if isinstance(d, int) else size + 4 * symbols[d if d is not None else (spec.name, axis)])
        feeds[spec.name] = np.zeros(shape, spec.dtype)
    traced = origin.trace(feeds, names, frozenset(), lasting=True)
    if traced.static:
        raise UnsupportedOp(f"free_batch: what the model computes depends on what input {min(traced.static)!r} holds")
    return traced.values
