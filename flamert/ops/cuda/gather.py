"""Reading by index on the GPU: whole rows in wide accesses, and elements one by one.

Elements are moved as bytes. An index out of range reads nothing: it is noted for the host, and floats are NaN there, so that
training takes no step by them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from flamert import dtypes
from flamert.graph import Node
from flamert.ops.cuda.emit import HEADER, STORED, decomposed, merged
from flamert.ops.cuda.launch import compiled
from flamert.ops.index import gather, gather_elements, gather_nd
from flamert.ops.op import Site, kernel

THREADS = 256

INDICES = {np.dtype(np.int32): "int", np.dtype(np.int64): "long long"}
"""Types of indices, in C."""

WORDS = {16: "Pack<u64, 2>", 8: "u64", 4: "u32", 2: "unsigned short", 1: "unsigned char"}
"""What elements are moved in, by bytes."""

WRAPPED = """
// Notes an index out of range: the first place that has one, and the extremes there. Returns -1.
__device__ __noinline__ long long outside(long long index, long long* record, long long place) {
  const u64 first = atomicCAS((u64*)record, (u64)0, (u64)place);
  if (first == 0 || first == (u64)place) { atomicMin(record + 1, index); atomicMax(record + 2, index); }
  *(volatile int*)record[3] = 1;
  return -1;
}
// An index counted from the front.
__device__ __forceinline__ long long wrapped(long long index, long long size, long long* record, long long place) {
  const long long at = index < 0 ? index + size : index;
  return 0 <= at && at < size ? at : outside(index, record, place);
}
"""
"""The other end of `runtime.faults`."""


class Rows(NamedTuple):
    """How rows are read. Row r of the result is row r / per · span + Σ index[r % modulo, j] · steps[j] of x.

    total: rows of the result. inner: elements of one. sizes: of the axes that the indices index.
    """

    total: int
    inner: int
    per: int
    span: int
    modulo: int
    sizes: tuple[int, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """Rows of x from one entry of an indexed axis to the next."""
        return tuple(math.prod(self.sizes[j + 1 :]) for j in range(len(self.sizes)))


def rows_of(node: Node) -> Rows:
    """The rows of gather and gather_nd."""
    x, indices = (v.shape for v in node.inputs if v is not None)
    if node.op is gather:
        axis, n = node.attrs["axis"] % len(x), math.prod(indices)
        return Rows(math.prod(x[:axis]) * n, math.prod(x[axis + 1 :]), max(n, 1), x[axis], max(n, 1), (x[axis],))
    batch, k = node.attrs["batch_dims"], indices[-1]
    total, sizes = math.prod(indices[:-1]), x[batch : batch + k]
    per = max(math.prod(indices[batch:-1]), 1)
    return Rows(total, math.prod(x[batch + k :]), per, math.prod(sizes), max(total, 1), sizes)


def _hole(word: int) -> str:
    return "Pack<u64, 2>{{hole, hole}}" if word == 16 else f"({WORDS[word]})hole"


def rows_source(word: int, index: str, axes: int, wide: bool) -> str:
    """A kernel `gather(x, indices, out, …)` of rows: a thread moves one word. axes: that are indexed. wide: 64-bit numbers."""
    u, c = "u64" if wide else "u32", WORDS[word]
    sizes = "".join(f", long long size{j}, long long step{j}, long long place{j}" for j in range(axes))
    found = [f"const long long j{j} = wrapped(index[{j}], size{j}, record, place{j});" for j in range(axes)]
    steps = "\n  ".join(f"{found[j]}\n  from += j{j} * step{j};" for j in range(axes))
    inside = " && ".join(f"j{j} >= 0" for j in range(axes))
    return f"""{HEADER}{WRAPPED}
extern "C" __global__ void __launch_bounds__({THREADS}) gather(
    const {c}* __restrict__ x, const {index}* __restrict__ indices, {c}* __restrict__ out, {u} n, {u} words, {u} per,
    {u} modulo, u64 span, u64 hole, long long* record{sizes}) {{
  const {u} i = blockIdx.x * ({u}){THREADS} + threadIdx.x;
  if (i >= n) return;
  const {u} row = i / words;
  const {index}* index = indices + (size_t)(row % modulo) * {axes};
  long long from = row / per * span;
  {steps}
  out[i] = {inside} ? x[from * words + (i - row * words)] : {_hole(word)};
}}
"""


def elements_source(word: int, index: str, rank: int, wide: bool) -> str:
    """A kernel `gather(x, indices, out, …)` of elements. rank: merged axes of the indices."""
    u, c = "u64" if wide else "u32", WORDS[word]
    lengths = "".join(f", {u} d{k}" for k in range(1, rank))
    strides = "".join(f", long long s{k}, long long t{k}" for k in range(rank))
    source, at = (" + ".join(f"x{k} * {s}{k}" for k in range(rank)) for s in "st")
    return f"""{HEADER}{WRAPPED}
extern "C" __global__ void __launch_bounds__({THREADS}) gather(
    const {c}* __restrict__ x, const {index}* __restrict__ indices, {c}* __restrict__ out, {u} n, u64 hole, long long size,
    long long step, long long* record, long long place{lengths}{strides}) {{
  const {u} i = blockIdx.x * ({u}){THREADS} + threadIdx.x;
  if (i >= n) return;
  {" ".join(decomposed("i", u, rank))}
  const long long j = wrapped(indices[{at}], size, record, place);
  out[i] = j >= 0 ? x[{source} + j * step] : {_hole(word)};
}}
"""


def hole(dtype: np.dtype) -> np.uint64:
    """Eight bytes of what is read out of range: NaN, or 0 where there is none."""
    value = np.nan if dtype in dtypes.STANDARD_FLOAT else 0
    return np.full(8 // dtype.itemsize, value, dtype).view(np.uint64)[0]


def indexed(node: Node) -> bool:
    """Whether these kernels take a node's elements and indices."""
    indices = node.inputs[1]
    return indices is not None and indices.dtype in INDICES and node.types[0].dtype in STORED


def _suits(node: Node) -> bool:
    return indexed(node) and node.types[0].size > 0


def _read_rows(site: Site, out: Any, x: Any, indices: Any, **_: Any) -> Callable[[], None]:
    rows, faults, itemsize = rows_of(site.node), site.device.faults, out.itemsize
    word = next(w for w in WORDS if rows.inner * itemsize % w == 0 and (x.data.ptr | out.data.ptr) % w == 0)
    words, n = rows.inner * itemsize // word, out.nbytes // word
    wide = n + THREADS >= 1 << 32
    u = np.uint64 if wide else np.uint32
    source = rows_source(word, INDICES[site.node.inputs[1].dtype], len(rows.sizes), wide)  # type: ignore[union-attr]
    arguments = [x, indices, out, *map(u, (n, words, rows.per, rows.modulo)), np.uint64(rows.span)]
    arguments += [hole(site.node.types[0].dtype), faults.record]
    for size, step in zip(rows.sizes, rows.steps, strict=True):
        arguments += map(np.int64, (size, step, faults.place(site.node, size)))
    return _launch(source, n, arguments)


kernel(gather, "cupy", when=_suits, bind=True, contiguous=True)(_read_rows)
kernel(gather_nd, "cupy", when=_suits, bind=True, contiguous=True)(_read_rows)


@kernel(gather_elements, "cupy", when=_suits, bind=True)
def _(site: Site, out: Any, x: Any, indices: Any, *, axis: int) -> Callable[[], None]:
    faults, axis = site.device.faults, axis % x.ndim
    size, step = x.shape[axis], x.strides[axis] // x.itemsize
    loop = merged(out.shape, [elements(x, without=axis), elements(indices), elements(out)])
    wide, rank = out.size + THREADS >= 1 << 32, len(loop.shape)
    u = np.uint64 if wide else np.uint32
    source = elements_source(out.itemsize, INDICES[site.node.inputs[1].dtype], rank, wide)  # type: ignore[union-attr]
    arguments = [x, indices, out, u(out.size), hole(site.node.types[0].dtype), np.int64(size), np.int64(step)]
    arguments += [faults.record, np.int64(faults.place(site.node, size)), *map(u, loop.shape[1:])]
    arguments += [np.int64(s) for pair in zip(*loop.strides[:2], strict=True) for s in pair]
    return _launch(source, out.size, arguments)


def elements(x: Any, without: int | None = None) -> tuple[int, ...]:
    """An array's strides in elements, but 0 along one axis."""
    return tuple(0 if d == without else s // x.itemsize for d, s in enumerate(x.strides))


def _launch(source: str, count: int, arguments: Sequence[Any]) -> Callable[[], None]:
    blocks = -(-count // THREADS)
    return functools.partial(compiled(source, "gather"), (blocks,), (THREADS,), tuple(arguments))
