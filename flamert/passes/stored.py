"""Graphs that passes have made, kept for the next process: reading one takes a tenth of the time that making it does."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pickle
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.about import VERSION
from flamert.errors import FlamertError
from flamert.graph import CONSTANT, INPUT, Graph, Node, Source, TensorType, Value
from flamert.kept import Kept
from flamert.ops import OPS
from flamert.ops.pointwise import Instruction

KEEPS = True
"""Whether graphs are kept at all."""

MOST_BYTES = 16 << 20
"""Constants of a graph that is kept. They are compared by content, which passes look at: weights would take too long."""

UNIFORM = 1 << 16
"""Bytes of a constant from which on it is worth to look whether it is one number everywhere: what gradients are added to is."""

PLAIN = frozenset({bool, int, float, str, type(None)})
"""Builtin types of which an attribute's text says all."""


class Unkept(FlamertError):
    """Why a graph is not kept."""


def stored(graph: Graph, make: Callable[[], Graph], *about: Hashable) -> Graph:
    """What `make()` makes of a graph, or what it has made of an equal one before: over this one's inputs.

    about: all else that the result depends on. Not kept, made each time: graphs with large constants, with graphs inside, or
    with ops that are not flamert's own.
    """
    if not KEEPS:
        return make()
    try:
        key = repr((VERSION, _code(), about, _described(graph)))
    except Unkept:
        return make()
    kept = Kept("graphs")
    contents = kept.find(key)
    if contents is not None:
        try:
            return _read(contents, graph)
        except Exception:  # of whatever kind: it is made anew, and written over
            contents = None
    made = make()
    try:
        kept.add(key, _written(made, graph.inputs))
    except Unkept:
        return made
    return made


@functools.cache
def _code() -> str:
    """What tells this state of flamert's code from others: which files there are, how long, and from when."""

    def files(folder: str) -> Iterator[tuple[str, int, int]]:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.is_dir():
                    yield from files(entry.path)
                elif entry.name.endswith(".py"):
                    about = entry.stat()
                    yield os.path.relpath(entry.path, root), about.st_size, about.st_mtime_ns

    root = os.path.dirname(os.path.dirname(__file__))
    return hashlib.sha256(repr(sorted(files(root))).encode()).hexdigest()


def _described(graph: Graph) -> Any:
    """All of a graph, but for which Values its inputs are: its text says it. Raises Unkept where that cannot be."""
    _require_small(graph)
    number = _numbers(graph.inputs)
    types: dict[TensorType, int] = {}
    rows = []
    for node in graph.nodes:
        if node.op is INPUT:
            continue
        attrs: Any = node.attrs
        if node.op is CONSTANT:
            attrs = hashlib.sha256(node.attrs["value"].tobytes()).hexdigest()
        elif node.op.infer.__module__.partition(".")[0] != "flamert":
            raise Unkept(f"{node.op.name} is not flamert's own op")
        elif not all(map(_plain, attrs.values())):
            raise Unkept(f"attributes of {node.op.name} are more than numbers and names")
        inputs = [None if v is None else number[v] for v in node.inputs]
        for v in node.outputs:
            number[v] = len(number)
        rows.append((node.op.name, inputs, attrs, [types.setdefault(t, len(types)) for t in node.types], node.source))
    kernels = [(name, len(op.kernels)) for name, op in OPS.items()]
    inputs_ = [types.setdefault(v.type, len(types)) for v in graph.inputs]
    return kernels, rows, inputs_, [number[v] for v in graph.outputs], [(t.shape, t.dtype.name) for t in types]


def _plain(attribute: Any) -> bool:
    if isinstance(attribute, tuple):
        return all(map(_plain, attribute))
    return type(attribute) in PLAIN or isinstance(attribute, np.dtype | np.generic)


def _require_small(graph: Graph) -> None:
    arrays = [node.attrs["value"] for node in graph.nodes if node.op is CONSTANT]
    if sum([x.nbytes for x in arrays]) > MOST_BYTES or any([x.dtype.hasobject for x in arrays]):
        raise Unkept("its constants are large, or strings")


def _numbers(inputs: Sequence[Value]) -> dict[Value, int]:
    return {v: i for i, v in enumerate(inputs)}


def _written(graph: Graph, inputs: Sequence[Value]) -> bytes:
    """A graph over these inputs, as bytes."""
    _require_small(graph)
    number = _numbers(inputs)
    types: dict[TensorType, int] = {}
    sources: dict[Source | None, int] = {}
    rows: list[Any] = []
    for node in graph.nodes:
        if node.op is INPUT:
            rows.append(number[node.outputs[0]])
            continue
        operands = tuple([None if v is None else number[v] for v in node.inputs])
        for v in node.outputs:
            number[v] = len(number)
        numbers = tuple([types.setdefault(t, len(types)) for t in node.types])
        rows.append((node.op.name, operands, node.attrs, numbers, sources.setdefault(node.source, len(sources))))
    file = io.BytesIO()
    tables = [(t.shape, t.dtype) for t in types], [None if s is None else tuple(s) for s in sources]
    try:
        _Writer(file, protocol=5).dump((*tables, rows, [number[v] for v in graph.outputs]))
    except pickle.PicklingError as error:
        raise Unkept(str(error)) from error
    return file.getvalue()


def _read(contents: bytes, like: Graph) -> Graph:
    """The graph, over the inputs of the one that it was made of. Raises anything for contents that are none."""
    shapes, names, rows, outputs = _Reader(io.BytesIO(contents)).load()
    types = [TensorType(shape, dtype) for shape, dtype in shapes]
    sources = [None if name is None else Source(*name) for name in names]
    values = list(like.inputs)
    nodes = []
    for row in rows:
        if isinstance(row, int):
            nodes.append(like.inputs[row].node)
            continue
        name, operands, attrs, numbers, source = row
        inputs = tuple([None if i is None else values[i] for i in operands])
        op = CONSTANT if name == CONSTANT.name else OPS[name]
        node = Node(op, inputs, attrs, tuple([types[i] for i in numbers]), sources[source])
        nodes.append(node)
        values += node.outputs
    found = [values[i] for i in outputs]
    if [v.type for v in found] != [v.type for v in like.outputs]:
        raise Unkept("it has other outputs")
    return Graph.ordered(like.inputs, found, nodes)


def _array(dtype: np.dtype, shape: tuple[int, ...], contents: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(contents), dtype).reshape(shape)


def _filled(dtype: np.dtype, shape: tuple[int, ...], contents: bytes) -> np.ndarray:
    return np.full(shape, np.frombuffer(contents, dtype)[0], dtype)


def _number(dtype: np.dtype, contents: bytes) -> Any:
    return np.frombuffer(contents, dtype)[0]


def _dtype(name: str) -> np.dtype:
    found: np.dtype = getattr(dtypes, name)
    return found


MADE_BY = (_array, _filled, _number, _dtype, Instruction)
"""What makes the parts of a graph that are not of builtin types."""


class _Writer(pickle.Pickler):
    """Of builtin types, element types, arrays, and instructions of chains."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.dtype):
            return _dtype, (_name(obj),)
        if isinstance(obj, np.ndarray) and _uniform(obj):
            return _filled, (obj.dtype, obj.shape, obj[(slice(1),) * obj.ndim].tobytes())
        if isinstance(obj, np.ndarray):
            return _array, (obj.dtype, obj.shape, obj.tobytes())
        if isinstance(obj, np.generic):
            return _number, (obj.dtype, obj.tobytes())
        if isinstance(obj, Instruction):
            return Instruction, tuple(obj)
        if obj in MADE_BY:
            return NotImplemented
        raise pickle.PicklingError(f"{type(obj).__name__} has no form on disk")


def _uniform(array: np.ndarray) -> bool:
    """Whether all elements are the same bits."""
    if array.nbytes < UNIFORM or array.dtype.itemsize not in (1, 2, 4, 8):
        return False
    bits = array.view(f"u{array.dtype.itemsize}")
    return bool((bits == bits[(0,) * array.ndim]).all())


def _name(dtype: np.dtype) -> str:
    """The name under which `flamert.dtypes` has it."""
    name = "bool_" if dtype == np.bool_ else dtype.name
    if getattr(dtypes, name, None) != dtype:
        raise pickle.PicklingError(f"{dtype} has no form on disk")
    return name


class _Reader(pickle.Unpickler):
    """Of what `_Writer` writes, and nothing else: no other name is looked up, whatever the file says."""

    def find_class(self, module: str, name: str) -> Any:
        found = {(f.__module__, f.__qualname__): f for f in MADE_BY}.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of a graph")
        return found
