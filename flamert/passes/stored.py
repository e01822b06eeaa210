"""Graphs that passes have made, kept for the next process: to read one takes less than a tenth of making it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import os
import pickle
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from flamert import dtypes
from flamert.about import VERSION
from flamert.errors import FlamertError
from flamert.graph import CONSTANT, INPUT, Graph, Node, Source, TensorType, Value
from flamert.kept import Kept
from flamert.ops import OPS
from flamert.ops.pointwise import Instruction

log = logging.getLogger("flamert")

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
        except Exception as error:  # of whatever kind: it is made anew, and written over
            log.warning("a graph that was kept cannot be read, and is made anew: %r", error)
    made = make()
    with contextlib.suppress(Unkept):
        kept.add(key, _written(made, graph.inputs))
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


class _Sheet(NamedTuple):
    """A graph by numbers: a row is the number of an input, or (op, operands, attributes, types, source)."""

    types: list[tuple[tuple[int, ...], np.dtype]]
    sources: list[tuple[str, ...] | None]
    rows: list[Any]
    outputs: list[int]

    @classmethod
    def of(cls, graph: Graph, inputs: Sequence[Value]) -> _Sheet:
        """That of a graph over these inputs. Raises Unkept for large constants."""
        arrays = [node.attrs["value"] for node in graph.nodes if node.op is CONSTANT]
        if sum([x.nbytes for x in arrays]) > MOST_BYTES or any([x.dtype.hasobject for x in arrays]):
            raise Unkept("its constants are large, or strings")
        number = {v: i for i, v in enumerate(inputs)}
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
            kinds = tuple([types.setdefault(t, len(types)) for t in node.types])
            rows.append((node.op.name, operands, node.attrs, kinds, sources.setdefault(node.source, len(sources))))
        names = [None if s is None else tuple(s) for s in sources]
        return cls([(t.shape, t.dtype) for t in types], names, rows, [number[v] for v in graph.outputs])


def _described(graph: Graph) -> Any:
    """All of a graph, but for which Values its inputs are: its text says it. Raises Unkept where that cannot be."""
    sheet = _Sheet.of(graph, graph.inputs)
    for node in graph.nodes:
        if node.op in (INPUT, CONSTANT):
            continue
        if node.op.infer.__module__.partition(".")[0] != "flamert":
            raise Unkept(f"{node.op.name} is not flamert's own op")
        if not all(map(_plain, node.attrs.values())):
            raise Unkept(f"attributes of {node.op.name} are more than numbers and names")
    rows = [_hashed(row) if type(row) is tuple and row[0] == CONSTANT.name else row for row in sheet.rows]
    return [(name, len(op.kernels)) for name, op in OPS.items()], [v.type for v in graph.inputs], sheet._replace(rows=rows)


def _hashed(constant: tuple[Any, ...]) -> tuple[Any, ...]:
    """A constant's row, with a digest of its contents in their place."""
    name, operands, attrs, *more = constant
    return name, operands, hashlib.sha256(attrs["value"].tobytes()).hexdigest(), *more


def _plain(attribute: Any) -> bool:
    if isinstance(attribute, tuple):
        return all(map(_plain, attribute))
    return type(attribute) in PLAIN or isinstance(attribute, np.dtype | np.generic)


def _written(graph: Graph, inputs: Sequence[Value]) -> bytes:
    """A graph over these inputs, as bytes."""
    file = io.BytesIO()
    try:
        _Writer(file, protocol=5).dump(tuple(_Sheet.of(graph, inputs)))
    except pickle.PicklingError as error:
        raise Unkept(str(error)) from error
    return file.getvalue()


def _read(contents: bytes, like: Graph) -> Graph:
    """The graph, over the inputs of the one that it was made of. Raises anything for contents that are none."""
    sheet = _Sheet(*_Reader(io.BytesIO(contents)).load())
    types = [TensorType(*type) for type in sheet.types]
    sources = [None if source is None else Source(*source) for source in sheet.sources]
    values = list(like.inputs)
    nodes = []
    for row in sheet.rows:
        if isinstance(row, int):
            nodes.append(like.inputs[row].node)
            continue
        name, operands, attrs, kinds, source = row
        inputs = tuple([None if i is None else values[i] for i in operands])
        op = CONSTANT if name == CONSTANT.name else OPS[name]
        node = Node(op, inputs, attrs, tuple([types[i] for i in kinds]), sources[source])
        nodes.append(node)
        values += node.outputs
    found = [values[i] for i in sheet.outputs]
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
