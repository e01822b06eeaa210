"""Moving whole blocks on the GPU: parts copied to where they belong, and what lies around them filled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert.ops.cuda.copy import AT_ONCE, copier
from flamert.ops.cuda.emit import HEADER, decomposed
from flamert.ops.cuda.emit_copy import THREADS, UNITS, steps_of
from flamert.ops.cuda.launch import Launch, compiled, extent
from flamert.ops.op import Site, kernel
from flamert.ops.shape import concat, pad, unslice, window

Call = Callable[[], Any]

LAUNCH_BYTES = 1 << 22
"""What a GPU writes in the time that one more launch takes."""


def fill_source(element: int, size: int, rank: int, turns: int, wide: bool) -> str:
    """A kernel `fill_…(value, out, n, lengths…, strides…)`: n units of `size` bytes, each of copies of one element.

    lengths of all axes but the outermost, and strides in units. turns: units that a thread writes. wide: 64-bit numbers.
    """
    index = "u64" if wide else "u32"
    count = size // element
    parameters = [f"const {UNITS[element]}* value", "Unit* out", f"{index} n"]
    parameters += [f"{index} d{k}" for k in range(1, rank)] + [f"long long y{k}" for k in range(rank)]
    return f"""{HEADER}
typedef Pack<{UNITS[element]}, {count}> Unit;
extern "C" __global__ void __launch_bounds__({THREADS}) fill_{size}({", ".join(parameters)}) {{
  Unit held;
  #pragma unroll
  for (int v = 0; v < {count}; v++) held.v[v] = *value;
  #pragma unroll
  for (int turn = 0; turn < {turns}; turn++) {{
    const {index} i = (blockIdx.x * ({index}){turns} + turn) * {THREADS} + threadIdx.x;
    if (i >= n) return;
    {" ".join(decomposed("i", index, rank))}
    out[{" + ".join(f"x{k} * y{k}" for k in range(rank))}] = held;
  }}
}}
"""


def filler(out: Any, value: Any) -> Call:
    """A call that makes every element of `out`, of any strides, the only one of `value`."""
    if not out.size:
        return lambda: None
    element = out.itemsize
    steps = steps_of(element, out.shape, out.strides, out.strides, (out.data.ptr, out.data.ptr))
    n, rank = math.prod(steps.shape), len(steps.shape)
    turns, wide = 1 if n <= AT_ONCE else 4, n >= 1 << 31
    index = np.uint64 if wide else np.uint32
    run = compiled(fill_source(element, steps.size, rank, turns, wide), f"fill_{steps.size}")
    arguments = (value, out, index(n), *map(index, steps.shape[1:]), *map(np.int64, steps.out))
    return Launch(run, (-(-n // (turns * THREADS)),), THREADS, arguments, [extent(value)], [extent(out)])


def in_turn(calls: Sequence[Call]) -> Call:
    """These calls as one."""
    if len(calls) == 1:
        return calls[0]

    def run() -> None:
        for call in calls:
            call()

    return run


def slabs(shape: Sequence[int], starts: Sequence[int], sizes: Sequence[int]) -> list[tuple[slice, ...]]:
    """What lies around a box: parts that do not overlap, at most two for each axis."""
    found, inner = [], [slice(None)] * len(shape)
    for axis, (d, start, size) in enumerate(zip(shape, starts, sizes, strict=True)):
        for first, last in ((0, start), (start + size, d)):
            if first < last:
                inner[axis] = slice(first, last)
                found.append(tuple(inner))
        inner[axis] = slice(start, start + size)
    return found


def placed(out: Any, x: Any, value: Any, starts: Sequence[int], steps: Sequence[int]) -> Call:
    """x from `starts` on in `steps`, and `value` everywhere else."""
    copy = copier(out[window(tuple(starts), x.shape, tuple(steps))], x)
    around = slabs(out.shape, starts, x.shape) if x.size and all(step == 1 for step in steps) else []
    if x.size == out.size:
        return copy
    if not around or out.nbytes < (len(around) - 1) * LAUNCH_BYTES:
        return in_turn([filler(out, value), copy])
    return in_turn([*[filler(out[slab], value) for slab in around], copy])


@kernel(concat, "cupy", bind=True)
def _(site: Site, out: Any, *xs: Any, axis: int) -> Call:
    calls, at, where = [], 0, [slice(None)] * out.ndim
    for x in xs:
        where[axis] = slice(at, at + x.shape[axis])
        at += x.shape[axis]
        calls.append(copier(out[tuple(where)], x))
    return in_turn(calls)


@kernel(unslice, "cupy", bind=True)
def _(site: Site, out: Any, x: Any, *, shape: Any, starts: Any, steps: Any) -> Call:
    return placed(out, x, site.xp.zeros((), out.dtype), starts, steps)


@kernel(pad, "cupy", bind=True)
def _(site: Site, out: Any, x: Any, value: Any = None, *, pads: Any) -> Call:
    return placed(out, x, site.xp.zeros((), out.dtype) if value is None else value, pads[: x.ndim], (1,) * x.ndim)
