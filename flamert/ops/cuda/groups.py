"""Sums over groups of channels on the GPU: blocks take parts of an image, and the last one to end puts these together.

An image is rows of channels, as it lies with channels last; what lies channels first is seen as an image for each group, or
for each channel, whose rows are pieces of it. The order of summation depends on shapes alone.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from flamert import dtypes
from flamert.graph import Node, TensorType
from flamert.ops.cuda.copy import copier
from flamert.ops.cuda.emit import COMPUTED, HEADER, STORED
from flamert.ops.cuda.emit_reduce import LAST
from flamert.ops.cuda.launch import Launch, compiled, extent
from flamert.ops.cuda.pointwise import VECTOR_BYTES
from flamert.ops.cuda.shape import Call, in_turn
from flamert.ops.groups import group_moments, group_sums
from flamert.ops.op import Site, kernel

THREADS = 256

MOST_THREADS, SHARED_BYTES = 1024, 48 << 10
"""What a block may have."""

BLOCKS = 528
"""Four for each multiprocessor of a large GPU."""

BATCH = 4
"""Rows that a thread reads of a part at least."""

SUMS = """
// Of image i, `rows` rows of ACROSS packs, split in parts of `chunk` rows: two sums for each cell, which is an element of a row
// for PER > 1 and as many packs beside each other otherwise. `several`: images that share a mean.
extern "C" __global__ void __launch_bounds__(THREADS) NAME(
    const T* x, const U* flows, const A* means, A* parts, u32* counters, A* first, A* second, u32 rows, u32 chunk, u32 splits,
    u32 several) {
  constexpr int LANES = THREADS / ACROSS, WIDE = ACROSS * W, CELLS = ACROSS * PER / PACKS;
  __shared__ A held[2][THREADS * PER];
  const u32 image = blockIdx.x / splits, split = blockIdx.x % splits;
  const u32 pack = threadIdx.x % ACROSS, lane = threadIdx.x / ACROSS, group = pack / GROUP;
  const u64 begin = (u64)image * rows * WIDE;
  const A centre = CENTRE;
  A one[PER] = {}, two[PER] = {};
  const u32 end = rows - split * chunk < chunk ? rows : (split + 1) * chunk;
  if (lane < LANES) {
    #pragma unroll 4
    for (u32 r = split * chunk + lane; r < end; r += LANES) {
      const u64 at = begin + (u64)r * WIDE + pack * W;
      const Pack<T, W> p = *(const Pack<T, W>*)(x + at);
      FLOWS
      #pragma unroll
      for (int v = 0; v < W; v++) {
        const A d = load(p.v[v]) - centre;
        one[v % PER] += ONE;
        two[v % PER] += TWO;
      }
    }
  }
  #pragma unroll
  for (int k = 0; k < PER; k++) {
    held[0][threadIdx.x * PER + k] = one[k];
    held[1][threadIdx.x * PER + k] = two[k];
  }
  __syncthreads();
  for (u32 cell = threadIdx.x; cell < CELLS; cell += THREADS) {
    A a = 0, b = 0;
    for (int l = 0; l < LANES; l++) {
      #pragma unroll 8
      for (int q = 0; q < PACKS; q++) {
        const u32 i = (l * ACROSS + cell / PER * PACKS + q) * PER + cell % PER;
        a += held[0][i];
        b += held[1][i];
      }
    }
    A* to = parts + (u64)blockIdx.x * CELLS * 2 + cell;
    to[0] = a;
    to[CELLS] = b;
  }
  if (!last_of(splits, counters + image)) return;
  for (u32 cell = threadIdx.x; cell < CELLS; cell += THREADS) {
    A a = 0, b = 0;
    #pragma unroll 8
    for (u32 s = 0; s < splits; s++) {
      const A* from = parts + ((u64)image * splits + s) * CELLS * 2 + cell;
      a += __ldcg(from);
      b += __ldcg(from + CELLS);
    }
    const u64 to = (u64)image * CELLS + cell;
    RESULTS
  }
}
"""

MOMENTS = {
    # Moments of what lies around zero: the first element of a group is as far from its mean as the others are.
    "CENTRE": "load(x[begin + group * GROUP * W])",
    "FLOWS": "",
    "ONE": "d",
    "TWO": "d * d",
    "RESULTS": """const A count = (A)rows * (PACKS * W), shift = a / count, spread = b / count - shift * shift;
    first[to] = load(x[begin + cell * PACKS * W]) + shift;
    second[to] = spread < 0 ? (A)0 : spread;""",
}

FLOWS = {
    "CENTRE": "means[(u64)image / several * (ACROSS / GROUP) + group]",
    "FLOWS": "const Pack<U, W> q = *(const Pack<U, W>*)(flows + at);",
    "ONE": "load(q.v[v])",
    "TWO": "load(q.v[v]) * d",
    "RESULTS": "first[to] = a;\n    second[to] = b;",
}


class Laid(NamedTuple):
    """Images as a kernel sees them: rows of `across` packs of `width` elements, of which a cell takes `packs` or a part of one.

    group: packs of one group. per: cells in a pack, where there are several. several: images that share a mean.
    """

    images: int
    rows: int
    across: int
    width: int
    group: int
    packs: int
    per: int
    several: int = 1

    @property
    def threads(self) -> int:
        """Threads of a block: a row at least."""
        return max(THREADS, -(-self.across // 32) * 32)

    @property
    def chunk(self) -> int:
        """Rows of one part."""
        lanes = self.threads // self.across
        splits = max(1, min(-(-BLOCKS // self.images), self.rows // (lanes * BATCH)))
        return -(-self.rows // splits)

    @property
    def splits(self) -> int:
        """Parts of an image."""
        return -(-self.rows // self.chunk)

    @property
    def cells(self) -> int:
        """Results of one kind for an image."""
        return self.across * self.per // self.packs


def laid(shape: tuple[int, ...], groups: int, axis: int, size: int, each: bool) -> Laid:
    """Of images of this shape and elements of `size` bytes. each: whether channels, and not groups, have results."""
    axis %= len(shape)
    n, c = shape[0], shape[axis]
    rest, width = math.prod(shape) // (n * c), VECTOR_BYTES // size
    if axis == 1:
        images, length = (n * c, rest) if each else (n * groups, rest * (c // groups))
        while length % width:
            width //= 2
        across = math.gcd(length // width, THREADS)
        return Laid(images, length // (across * width), across, width, across, across, 1, c // groups if each else 1)
    while c // groups % width:
        width //= 2
    group = c // groups // width
    return Laid(n, rest, c // width, width, group, 1 if each else group, width if each else 1)


def source(name: str, types: tuple[np.dtype, np.dtype], of: Laid) -> str:
    """The kernel `group_moments` or `group_sums`. types: of x and of what flows."""
    constants = f"constexpr int THREADS = {of.threads}, ACROSS = {of.across}, W = {of.width}, GROUP = {of.group};\n"
    constants += f"constexpr int PACKS = {of.packs}, PER = {of.per};\n"
    kinds = f"typedef {STORED[types[0]]} T; typedef {STORED[types[1]]} U; typedef {COMPUTED[types[0]]} A;\n"
    text = SUMS.replace("NAME", name)
    for key, value in (MOMENTS if name == "group_moments" else FLOWS).items():
        text = text.replace(f" {key}", f" {value}")
    return f"{HEADER}{LAST}{constants}{kinds}{text}"


def _laid(node: Node) -> Laid:
    images = [v for v in node.inputs[:2] if v is not None]
    size = max(v.dtype.itemsize for v in images)
    return laid(images[-1].shape, node.attrs["groups"], node.attrs["axis"], size, node.op is group_sums)


def _suits(node: Node) -> bool:
    images = [v for v in node.inputs[:2] if v is not None]
    if any(v.dtype not in dtypes.STANDARD_FLOAT or not v.type.size for v in images):
        return False
    of = _laid(node)
    accumulated = {dtypes.accumulator(v.dtype) for v in images} | {t.dtype for t in node.types}
    shared = 2 * of.threads * of.per * node.types[0].dtype.itemsize
    fits = of.threads <= MOST_THREADS and shared < SHARED_BYTES
    return len(accumulated) == 1 and fits and of.rows < 1 << 31 and of.images * of.splits < 1 << 31


def _parts(node: Node) -> list[TensorType]:
    of = _laid(node)
    return [TensorType((of.images * of.splits * of.cells * 2,), node.types[0].dtype)]


def _launch(site: Site, out: tuple[Any, Any], x: Any, flows: Any, means: Any) -> Call:
    node, of = site.node, _laid(site.node)
    of_x, of_flows = (node.inputs[0], node.inputs[0]) if flows is x else (node.inputs[1], node.inputs[0])
    before: list[Call] = []

    def readable(a: Any) -> Any:
        """The array, or a copy if it begins where accesses of so many elements cannot."""
        if a.data.ptr % (of.width * a.itemsize) == 0:
            return a
        copy = site.xp.empty(a.shape, a.dtype)
        before.append(copier(copy, a))
        return copy

    alike, x = flows is x, readable(x)
    flows = x if alike else readable(flows)
    types = of_x.dtype, of_flows.dtype  # type: ignore[union-attr]
    counters = site.xp.zeros(of.images, np.uint32)
    sizes = map(np.uint32, (of.rows, of.chunk, of.splits, of.several))
    run = compiled(source(node.op.name, types, of), node.op.name)
    read, written = (x, flows, means), (*site.work, *out)
    arguments = (x, flows, means, site.work[0], counters, *out, *sizes)
    reads, writes = ([extent(a) for a in arrays] for arrays in (read, written))
    return in_turn([*before, Launch(run, (of.images * of.splits,), of.threads, arguments, reads, writes)])


@kernel(group_moments, "cupy", when=_suits, bind=True, contiguous=True, workspace=_parts)
def _(site: Site, out: Any, x: Any, **_: Any) -> Call:
    return _launch(site, out, x, x, out[0])


@kernel(group_sums, "cupy", when=_suits, bind=True, contiguous=True, workspace=_parts)
def _(site: Site, out: Any, dy: Any, x: Any, mean: Any, **_: Any) -> Call:
    return _launch(site, out, x, dy, mean)
