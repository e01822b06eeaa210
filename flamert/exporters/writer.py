"""The writer of one ONNX graph: names, initializers, and nodes, made by the exporters of ops and checked by ONNX's schemas."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto, defs, helper

from flamert import graph as g
from flamert.errors import UnsupportedOp
from flamert.exporters.registry import EXPORTERS, SPELLINGS, Unfit
from flamert.graph import CONSTANT, INPUT, Graph, Node, Value
from flamert.importers.tensors import DTYPES

NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
"""ONNX's TensorProto.DataType by element type."""

SMALL = 1 << 16
"""Bytes; constants up to this size are written once however many of them are equal, larger ones once for each array."""

Term = Value | str | np.ndarray | None
"""An operand of an ONNX node: a Value of the graph, the name of another node's result, an array, or nothing."""


def onnx_type(dtype: np.dtype) -> str:
    """An element type as ONNX's schemas write it: "tensor(float)"."""
    return _TYPES[NUMBERS[dtype]]


_TYPES = {number: f"tensor({name.lower()})" for name, number in TensorProto.DataType.items()}


class Writer:
    """Collects the nodes of one ONNX graph. Called with an op type, operands and attributes, it adds a node.

    opset: the version of ONNX's own operators. wanted: names that Values must have in the result. reserved: names that no
    other Value may have. parameters: arrays by the names of the inputs that become initializers.
    """

    def __init__(
        self,
        opset: int,
        wanted: Mapping[Value, str],
        reserved: Sequence[str],
        parameters: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.arrays: dict[str, np.ndarray] = {}
        """Initializers by name."""
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shapes of the Values that have been written, by name."""
        self.stem = ""
        """What the names of the next nodes begin with; by default their op type."""
        self._names: dict[Value, str] = {}
        self._wanted = dict(wanted)
        self._taken: set[str] = set(reserved)
        self._numbers: dict[str, itertools.count[int]] = {}
        self._constants: dict[Any, str] = {}
        self._constant = "constant"
        self.draws = not parameters
        """Whether Dropout drops; a model with parameters is for inference, and drops where a runtime trains it."""
        if parameters:
            # A Trainer takes floating initializers for weights, unless they are called like PyTorch's constants.
            self._constant = "/Constant_output"
            self.arrays.update(parameters)
        self._dtypes: dict[str, np.dtype] = {}

    def write(self, graph: Graph) -> None:
        """Add nodes for everything that the graph's outputs need. Inputs must have wanted names."""
        for value in graph.inputs:
            self._bind(value, self._wanted[value])
        for node in graph.nodes:
            if node.op not in (INPUT, CONSTANT):
                self._write(node)

    def drop_unread(self) -> None:
        """Forget initializers that only attempts at nodes have made."""
        read = {name for node in self.nodes for name in node.input}
        self.arrays = {name: array for name, array in self.arrays.items() if name in read}

    def name_of(self, value: Value) -> str:
        """The name of a Value that has been written."""
        if value.constant is not None:
            return self.constant(value.constant)
        return self._names[value]

    def constant(self, array: np.ndarray) -> str:
        """The name of an initializer with these contents."""
        small = array.nbytes <= SMALL and array.dtype != np.dtype(object)
        key = (array.dtype, array.shape, array.tobytes()) if small else id(array)
        if key not in self._constants:
            name = self._constants[key] = self._fresh(self._constant)
            self.arrays[name] = array
            self._dtypes[name] = array.dtype
        return self._constants[key]

    def __call__(self, op_type: str, *operands: Term, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node. Returns the name of its result, or a list of names if there are several `outputs`.

        Attributes that are None are left out; element types stand for their ONNX numbers. Raises Unfit for what the op's
        schema does not allow.
        """
        given = {k: v for k, v in attributes.items() if v is not None}
        inputs = [self._term(t) for t in operands]
        while inputs and not inputs[-1]:
            inputs.pop()
        schema = self._schema(op_type)
        bound = self._checked(schema, inputs, given)
        stem = self.stem or op_type.lower()
        results = [self._fresh(stem) for _ in range(outputs)]
        for name, formal in zip(results, schema.outputs, strict=False):
            if formal.type_str in bound:
                self._dtypes[name] = bound[formal.type_str]
        node = NodeProto(op_type=op_type, input=inputs, output=results, name=results[0])
        for key, value in given.items():
            node.attribute.append(_attribute(key, value, schema.attributes[key].type.value))
        self.nodes.append(node)
        return results[0] if outputs == 1 else results

    def _write(self, node: Node) -> None:
        """Add nodes for one op: by its first exporter that fits, else by what it is in other ops."""
        self.stem = _stem(node)
        why = ""
        for found in EXPORTERS.get(node.op.name, ()):
            if found.since > self.opset:
                why = why or f"it needs opset {found.since}"
                continue
            mark = len(self.nodes)
            try:
                results = found.run(self, *node.inputs, **node.attrs)
            except Unfit as unfit:
                why, results = str(unfit), None
            if results is not None:
                self._settle(node.outputs, [results] if isinstance(results, str) else list(results), mark)
                return
            del self.nodes[mark:]
        self._spell(node, why)

    def _spell(self, node: Node, why: str) -> None:
        """Write what the op is in other ops. Constants among the operands stay visible to it."""
        spelling = SPELLINGS.get(node.op.name) or node.op.body
        if spelling is None:
            operands = ", ".join("_" if v is None else str(v.type) for v in node.inputs)
            message = f"{node.op.name}({operands}) cannot be written in ONNX's opset {self.opset}{why and ': '}{why}"
            raise UnsupportedOp(message).at(str(node.source) if node.source else None)
        stand_ins = [v if v is None or v.constant is not None else g.input(v.type) for v in node.inputs]
        with g.sourced(node.source):
            results = spelling(*stand_ins, **node.attrs)
        results = (results,) if isinstance(results, Value) else tuple(results)
        for stand_in, value in zip(stand_ins, node.inputs, strict=True):
            if stand_in is not None and value is not None and stand_in is not value:
                self._names[stand_in] = self._names[value]
        read = [v for v, r in zip(node.outputs, results, strict=True) if r is not None]
        needed = g.topological([r for r in results if r is not None])
        mark = len(self.nodes)
        for inner in needed:
            if inner.op not in (INPUT, CONSTANT):
                self._write(inner)
        self._settle(read, [self.name_of(r) for r in results if r is not None], mark)

    def _settle(self, values: Sequence[Value], names: Sequence[str], mark: int) -> None:
        """Let results go by these names, or by those that are wanted of them. mark: where the nodes that made them begin."""
        names = list(names)
        for i, value in enumerate(values):
            wanted = self._wanted.pop(value, None)
            if wanted is not None:
                new = self._renamed(names[i], wanted, mark)
                names = [new if name == names[i] else name for name in names]
            self._bind(value, names[i])

    def _bind(self, value: Value, name: str) -> None:
        self._names[value] = name
        self._dtypes[name] = value.dtype
        self.shapes[name] = value.shape
        self._taken.add(name)

    def _renamed(self, old: str, new: str, mark: int) -> str:
        """Give a result of the last nodes another name; a copy of it, if it is older than they are."""
        if not any(old in node.output for node in self.nodes[mark:]):
            return self.copied(old, new)
        for node in self.nodes[mark:]:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new
        return new

    def copied(self, name: str, new: str) -> str:
        """A copy under another name."""
        self.nodes.append(NodeProto(op_type="Identity", input=[name], output=[new], name=new))
        return new

    def _term(self, term: Term) -> str:
        if term is None:
            return ""
        if isinstance(term, str):
            return term
        return self.constant(term) if isinstance(term, np.ndarray) else self.name_of(term)

    def _schema(self, op_type: str) -> Any:
        try:
            schema = defs.get_schema(op_type, self.opset, "")
        except defs.SchemaError:
            raise Unfit(f"it has no {op_type}") from None
        if schema.deprecated:
            raise Unfit(f"{op_type} is deprecated")
        return schema

    def _checked(self, schema: Any, inputs: Sequence[str], attributes: Mapping[str, Any]) -> dict[str, np.dtype]:
        """Element types that the schema's type variables stand for here. Raises Unfit where the schema forbids the node."""
        label = f"{schema.name}-{schema.since_version}"
        if unknown := attributes.keys() - schema.attributes.keys():
            raise Unfit(f"{label} has no attribute {min(unknown)!r}")
        if not schema.min_input <= len(inputs) <= schema.max_input:
            raise Unfit(f"{label} does not take {len(inputs)} inputs")
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        bound: dict[str, np.dtype] = {}
        for i, name in enumerate(inputs):
            formal = schema.inputs[min(i, len(schema.inputs) - 1)]
            dtype = self._dtypes.get(name)
            if dtype is None:
                continue
            if onnx_type(dtype) not in allowed.get(formal.type_str, [formal.type_str]):
                raise Unfit(f"{label} does not take {dtype.name} as {formal.name}")
            if formal.is_homogeneous and bound.setdefault(formal.type_str, dtype) != dtype:
                raise Unfit(f"{label} wants one type for its operands, not {bound[formal.type_str].name} and {dtype.name}")
        dtype = attributes.get("to", attributes.get("dtype"))
        if isinstance(dtype, np.dtype) and onnx_type(dtype) not in allowed.get(schema.outputs[0].type_str, ()):
            raise Unfit(f"{label} does not make {dtype.name}")
        return bound

    def _fresh(self, stem: str) -> str:
        """A name that nothing has."""
        numbers = self._numbers.setdefault(stem, itertools.count())
        while True:
            n = next(numbers)
            name = f"{stem}_{n}" if n else stem
            if name not in self._taken:
                self._taken.add(name)
                return name


def _stem(node: Node) -> str:
    """What the names of a node's results begin with: the ONNX node it came from, if known."""
    return (node.source.name if node.source else "") or node.op.name


def _attribute(key: str, value: Any, kind: int) -> AttributeProto:
    """An attribute of the type that the schema says."""
    if isinstance(value, np.dtype):
        value = NUMBERS[value]
    elif kind == AttributeProto.FLOAT:
        value = float(value)
    elif kind == AttributeProto.INT:
        value = int(value)
    return helper.make_attribute(key, value, attr_type=kind)


def identifier(name: str) -> str:
    """A name with nothing in it but letters, digits and _ (ONNX asks that of graphs)."""
    return re.sub(r"\W", "_", name) or "graph"
