"""Writing by index on the GPU, in a fixed order: every run gives the same bits, and no float is added atomically.

The destination is seen as rows, each update is one row's. Where few updates can meet, each asks the others whether they write
where it does: the first does it for all. Else they are sorted by row, and what is next to each other is reduced, in parts of
fixed length, so that an index which repeats thousands of times keeps more than one thread busy. Halves are reduced in float32
and rounded once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from flamert import dtypes
from flamert.graph import CONSTANT, INPUT, Node, TensorType, Value
from flamert.ops.cuda.emit import decomposed, merged
from flamert.ops.cuda.emit_scatter import Key, few_source, last_source, reduce_source
from flamert.ops.cuda.gather import INDICES, THREADS, WRAPPED, indexed
from flamert.ops.cuda.launch import compiled
from flamert.ops.cuda.order import Sorting, count_source, place_source
from flamert.ops.cuda.pointwise import VECTOR_BYTES
from flamert.ops.op import Site, kernel
from flamert.ops.scatter import scatter_elements, scatter_nd

FEW = 32
"""Updates that may meet, up to which each looks at all of them."""


class Updates(NamedTuple):
    """Updates as rows for rows. Updates u, u ± step, …, `line` of them, may have the same destination; no others may.

    total: of updates. rows: of the destination. columns: elements of a row.
    """

    total: int
    rows: int
    columns: int
    line: int
    step: int

    @property
    def sorting(self) -> Sorting:
        """By destination; `rows` stands for those that have none."""
        return Sorting(self.total, self.rows.bit_length())

    @property
    def chunk(self) -> int:
        """Neighbours that one thread reduces: as many as there are chunks to join at worst, about."""
        return min(max(1 << (math.isqrt(self.total).bit_length() - 1) >> 1, 16), 1024)

    @property
    def chunks(self) -> int:
        """Chunks of sorted updates."""
        return -(-self.total // self.chunk)


def updates_of(node: Node) -> Updates:
    """What a node writes."""
    x, indices = (v.shape for v in node.inputs[:2] if v is not None)
    if node.op is scatter_elements:
        axis = node.attrs["axis"] % len(x)
        return Updates(math.prod(indices), math.prod(x), 1, indices[axis], math.prod(indices[axis + 1 :]))
    k, total = indices[-1], math.prod(indices[:-1])
    return Updates(total, math.prod(x[:k]), math.prod(x[k:]), total, 1)


def key_of(node: Node, indices: Any, faults: Any) -> Key:
    """The destination of update u, by the indices, which are contiguous."""
    x, c = node.types[0].shape, INDICES[node.inputs[1].dtype]  # type: ignore[union-attr]
    names, values, lines = [f"const {c}* indices", "long long* record"], [indices, faults.record], []
    if node.op is scatter_elements:
        axis = node.attrs["axis"] % len(x)
        steps = contiguous(x)
        loop = merged(indices.shape, [[0 if d == axis else s for d, s in enumerate(steps)], contiguous(indices.shape)])
        rank = len(loop.shape)
        names += [f"u32 d{k}" for k in range(1, rank)] + [f"u32 s{k}" for k in range(rank)]
        values += map(np.uint32, (*loop.shape[1:], *loop.strides[0]))
        lines += [*decomposed("u", "u32", rank), f"long long to = {' + '.join(f'x{k} * s{k}' for k in range(rank))};"]
        sizes, steps, at = [x[axis]], [steps[axis]], "u"
    else:
        sizes = list(x[: indices.shape[-1]])
        steps, at = contiguous(sizes), f"(size_t)u * {len(sizes)}"
        lines.append("long long to = 0;")
    for j, (size, step) in enumerate(zip(sizes, steps, strict=True)):
        names += [f"long long size{j}", f"long long step{j}", f"long long place{j}"]
        values += map(np.int64, (size, step, faults.place(node, size)))
        lines.append(f"const long long j{j} = wrapped(indices[{at} + {j}], size{j}, record, place{j});")
        lines += [f"if (j{j} < 0) return -1;", f"to += j{j} * step{j};"]
    text = "\n  ".join([*lines, "return to;"])
    parameters = ", ".join(names)
    function = f"{WRAPPED}__device__ __forceinline__ long long destination(u32 u, {parameters}) {{\n  {text}\n}}\n"
    passed = ", ".join(name.rpartition(" ")[2] for name in names)
    return Key(parameters, passed, function, tuple(values))


def contiguous(shape: Sequence[int]) -> list[int]:
    """Elements from one entry to the next along each axis, in C order."""
    return [math.prod(shape[d + 1 :]) for d in range(len(shape))]


def _suits(node: Node) -> bool:
    updates = node.inputs[2]
    if not indexed(node) or not node.types[0].size or updates is None or not updates.type.size:
        return False
    seen = updates_of(node)
    return seen.rows < 1 << 31 and updates.type.size < 1 << 31


def _work(node: Node) -> list[TensorType]:
    """Scratch for sorting, and for the heads and tails of chunks."""
    seen, dtype = updates_of(node), node.types[0].dtype
    if seen.line <= FEW:
        return []
    work = [TensorType((seen.sorting.words,), np.dtype(np.uint32))]
    if node.attrs["reduction"] != "none":
        work.append(TensorType((2, seen.chunks, seen.columns), dtypes.accumulator(dtype)))
    return work


def _scatter(site: Site, out: Any, x: Any, indices: Any, updates: Any, *, reduction: str, **_: Any) -> Callable[[], None]:
    seen, dtype = updates_of(site.node), site.node.types[0].dtype
    start = _start(site, out, x)
    key = key_of(site.node, indices, site.device.faults)
    width = _width(seen.columns, out, updates)
    columns = seen.columns // width
    if seen.line <= FEW:
        n = seen.total * columns
        arguments = (updates, out, *map(np.uint32, (n, columns, seen.line, seen.step)), *key.arguments)
        calls = [start, _launch(few_source(dtype, width, reduction, key), "few", n, arguments)]
    else:
        keys, order, sort = _sorted(seen.sorting, key, site.work[0])
        sizes = [*map(np.uint32, (seen.total, seen.rows, columns))]
        if reduction == "none":
            write = [_launch(last_source(dtype, width), "last", seen.total * columns, (keys, order, updates, out, *sizes))]
        else:
            heads, tails = site.work[1]
            source, n = reduce_source(dtype, width, reduction), seen.chunks * columns
            sizes += map(np.uint32, (seen.chunk, seen.chunks))
            arguments = (keys, order, updates, out, heads, tails, *sizes)
            write = [_launch(source, name, n, arguments) for name in ("reduce", "join")[: seen.chunks]]
        calls = [start, *sort, *write]

    def run() -> None:
        for call in calls:
            call()

    return run


kernel(scatter_elements, "cupy", when=_suits, bind=True, contiguous=(1, 2), workspace=_work)(_scatter)
kernel(scatter_nd, "cupy", when=_suits, bind=True, contiguous=(1, 2), workspace=_work)(_scatter)


def _sorted(sorting: Sorting, key: Key, words: Any) -> tuple[Any, Any, list[Callable[[], None]]]:
    """Destinations in order, the update that each belongs to, and the launches that find both."""
    keys, positions, counts = sorting.scratch(words)
    calls: list[Callable[[], None]] = []
    for turn in range(sorting.passes):
        now, then, numbers = turn % 2, 1 - turn % 2, sorting.numbers(turn)
        source, arguments = count_source(), (keys[now], counts, *numbers)
        if turn == 0:
            # What has no destination is -1: with all bits set it comes last.
            source = count_source(f"(u32)destination(u, {key.passed})", f", {key.parameters}", key.text)
            arguments += key.arguments
        calls.append(functools.partial(compiled(source, "count"), (sorting.blocks,), (THREADS,), arguments))
        arguments = (keys[now], positions[now], counts, keys[then], positions[then], *numbers)
        calls.append(functools.partial(compiled(place_source(turn > 0), "place"), (sorting.blocks,), (THREADS,), arguments))
    last = sorting.passes % 2
    return keys[last], positions[last], calls


def _start(site: Site, out: Any, x: Any) -> Callable[[], Any]:
    """Fill `out` with x, which may be `out` itself."""
    if site.xp.may_share_memory(out, x):
        return lambda: None
    if _zero(site.node.inputs[0]):
        return functools.partial(out.data.memset_async, 0, out.nbytes)
    return functools.partial(site.xp.copyto, out, x)


def _zero(value: Value | None) -> bool:
    """Whether all elements are known to be one zero."""
    while value is not None and value.node.op not in (INPUT, CONSTANT) and value.node.op.view is not None:
        value = value.node.inputs[0]
    constant = None if value is None else value.constant
    return constant is not None and constant.size == 1 and not any(constant.tobytes())


def _width(columns: int, *arrays: Any) -> int:
    """Elements that a thread takes of a row."""
    width = VECTOR_BYTES // arrays[0].itemsize
    while columns % width or any(x.data.ptr % (width * x.itemsize) for x in arrays):
        width //= 2
    return width


def _launch(source: str, name: str, count: int, arguments: Sequence[Any]) -> Callable[[], None]:
    return functools.partial(compiled(source, name), (-(-count // THREADS),), (THREADS,), tuple(arguments))
