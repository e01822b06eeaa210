"""The immutable, statically typed graph of ops: TensorType, Value, Node, Graph. It knows no op and no device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import numpy as np


class TensorType(NamedTuple):
    """Shape (all dimensions known) and element type of a tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.name}[{','.join(map(str, self.shape))}]"


class Source(NamedTuple):
    """Where in the ONNX file a node came from; errors and profiles print it."""

    op_type: str
    name: str
    file: str = ""

    def __str__(self) -> str:
        place = f"{self.op_type} node {self.name!r}" if self.name else f"a {self.op_type} node"
        return f"{place} of {self.file}" if self.file else place


_source: ContextVar[Source | None] = ContextVar("source", default=None)


class sourced:
    """`with sourced(source):` nodes made inside the block carry `source`."""

    __slots__ = ("source", "token")

    def __init__(self, source: Source | None) -> None:
        self.source = source

    def __enter__(self) -> Callable[[Source | None], object]:
        """What changes the source for the rest of the block."""
        self.token = _source.set(self.source)
        return _source.set

    def __exit__(self, *raised: object) -> None:
        _source.reset(self.token)


class Operation(Protocol):
    """What a Node needs to know of its op; `ops.op.Op` is the real one."""

    name: str
    random: bool


class Leaf:
    """The two ops without operands: a graph's input and a constant."""

    random = False

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


INPUT = Leaf("input")
CONSTANT = Leaf("constant")


class Node:
    """One application of an op. Immutable; equal only to itself.

    `known` holds when the results depend on constants alone, so that they can be computed before any data is there.
    """

    __slots__ = ("__weakref__", "attrs", "inputs", "known", "op", "outputs", "source", "types")

    def __init__(
        self,
        op: Any,
        inputs: tuple[Value | None, ...],
        attrs: Mapping[str, Any],
        types: tuple[TensorType, ...],
        source: Source | None = None,
    ) -> None:
        self.op = op
        self.inputs = inputs
        self.attrs = attrs
        self.types = types
        self.source = source or _source.get()
        self.outputs = (Value(self, 0),) if len(types) == 1 else tuple([Value(self, i) for i in range(len(types))])
        self.known = op is not INPUT and not op.random
        for v in inputs:
            if v is not None and not v.node.known:
                self.known = False
                break

    def __repr__(self) -> str:
        return f"<{self.op.name} → {', '.join(map(str, self.types))}>"


class Value:
    """One result of a Node. Python's operators build graph: `x * (erf(x) + 1)` is three nodes."""

    __slots__ = ("__weakref__", "index", "node")

    def __init__(self, node: Node, index: int) -> None:
        self.node = node
        self.index = index

    @property
    def type(self) -> TensorType:
        return self.node.types[self.index]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.node.types[self.index].shape

    @property
    def dtype(self) -> np.dtype:
        return self.node.types[self.index].dtype

    @property
    def rank(self) -> int:
        return len(self.node.types[self.index].shape)

    @property
    def constant(self) -> np.ndarray | None:
        """The array, where this Value is a constant node."""
        return self.node.attrs["value"] if self.node.op is CONSTANT else None

    def __repr__(self) -> str:
        return f"<Value {self.type} of {self.node.op.name}>"

    def __add__(self, other: Any) -> Value:
        return OPERATORS["add"](self, other)

    def __radd__(self, other: Any) -> Value:
        return OPERATORS["add"](other, self)

    def __sub__(self, other: Any) -> Value:
        return OPERATORS["sub"](self, other)

    def __rsub__(self, other: Any) -> Value:
        return OPERATORS["sub"](other, self)

    def __mul__(self, other: Any) -> Value:
        return OPERATORS["mul"](self, other)

    def __rmul__(self, other: Any) -> Value:
        return OPERATORS["mul"](other, self)

    def __truediv__(self, other: Any) -> Value:
        return OPERATORS["div"](self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return OPERATORS["div"](other, self)

    def __pow__(self, other: Any) -> Value:
        return OPERATORS["pow"](self, other)

    def __matmul__(self, other: Any) -> Value:
        return OPERATORS["matmul"](self, other)

    def __neg__(self) -> Value:
        return OPERATORS["neg"](self)

    def __abs__(self) -> Value:
        return OPERATORS["abs"](self)

    def __lt__(self, other: Any) -> Value:
        return OPERATORS["less"](self, other)

    def __le__(self, other: Any) -> Value:
        return OPERATORS["less_equal"](self, other)

    def __gt__(self, other: Any) -> Value:
        return OPERATORS["greater"](self, other)

    def __ge__(self, other: Any) -> Value:
        return OPERATORS["greater_equal"](self, other)

    def __and__(self, other: Any) -> Value:
        return OPERATORS["logical_and"](self, other)

    def __or__(self, other: Any) -> Value:
        return OPERATORS["logical_or"](self, other)

    def __invert__(self) -> Value:
        return OPERATORS["logical_not"](self)


OPERATORS: dict[str, Callable[..., Value]] = {}
"""What Python's operators on Values build; `ops.op` enters every op here under its name."""


def input(type: TensorType, name: str = "") -> Value:
    """A new graph input of this type."""
    return Node(INPUT, (), {"name": name}, (type,)).outputs[0]


def constant(array: Any, dtype: Any = None) -> Value:
    """A constant Value. The array is kept, not copied: do not write to it afterwards."""
    array = np.asarray(array, dtype)
    return Node(CONSTANT, (), {"value": array}, (TensorType(array.shape, array.dtype),)).outputs[0]


class Graph:
    """A function from inputs to outputs. What the outputs need *is* the graph, so dead code cannot exist.

    inputs: Values of input nodes, in call order (some may be unused). outputs: any Values.
    Raises ValueError if an output depends on an input that is not listed.
    """

    __slots__ = ("inputs", "nodes", "outputs")

    def __init__(self, inputs: Iterable[Value], outputs: Iterable[Value]) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.nodes = topological(self.outputs)
        listed = {v.node for v in self.inputs}
        for node in self.nodes:
            if node.op is INPUT and node not in listed:
                raise ValueError(f"input {node.attrs['name']!r} is used but not listed among the graph's inputs")

    @classmethod
    def ordered(cls, inputs: Iterable[Value], outputs: Iterable[Value], nodes: Iterable[Node]) -> Graph:
        """The graph with its nodes in an order of the caller's, in which they then run: all that it needs, operands first."""
        graph = cls(inputs, outputs)
        needed = set(graph.nodes)
        graph.nodes = tuple([node for node in nodes if node in needed])
        assert len(graph.nodes) == len(needed), "an order of all nodes"
        return graph

    def __str__(self) -> str:
        return show(self)


def topological(outputs: Sequence[Value]) -> tuple[Node, ...]:
    """Every node the outputs need, operands first; iterative, so depth does not matter."""
    done: dict[Node, None] = {}
    for root in outputs:
        stack = [root.node]
        while stack:
            node = stack[-1]
            if node in done:
                stack.pop()
                continue
            pending = [v.node for v in node.inputs if v is not None and v.node not in done] if node.inputs else None
            if pending:
                pending.reverse()
                stack += pending
            else:
                done[node] = None
                stack.pop()
    return tuple(done)


def uses(graph: Graph) -> dict[Value, int]:
    """How many times each Value is read, by nodes and as an output of the graph."""
    count: dict[Value, int] = {}
    for node in graph.nodes:
        for v in node.inputs:
            if v is not None:
                count[v] = count.get(v, 0) + 1
    for v in graph.outputs:
        count[v] = count.get(v, 0) + 1
    return count


def show(graph: Graph) -> str:
    """The graph as text, one line a node: `%3 float32[2,8] = softmax(%2, axis=-1)`."""
    names: dict[Value, str] = {}
    lines: list[str] = []
    for i, v in enumerate(graph.inputs):
        names[v] = f"%{v.node.attrs['name'] or f'in{i}'}"
    for node in graph.nodes:
        for v in node.outputs:
            names.setdefault(v, f"%{len(names)}")
        if node.op is INPUT:
            continue
        operands = [names[v] if v is not None else "_" for v in node.inputs]
        operands += [f"{k}={_brief(a)}" for k, a in node.attrs.items()]
        results = ", ".join(f"{names[v]} {v.type}" for v in node.outputs)
        lines.append(f"{results} = {node.op.name}({', '.join(operands)})")
    lines.append(f"return {', '.join(names[v] for v in graph.outputs)}")
    return "\n".join(lines)


def _brief(attr: Any) -> str:
    if isinstance(attr, np.ndarray):
        return repr(attr.item()) if attr.size == 1 and attr.dtype != object else f"<{attr.size} elements>"
    return repr(attr)
