"""CUDA C for copies between strided arrays: in the order of the result, or by tiles where the two run crosswise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flamert.ops.cuda.emit import HEADER, decomposed

THREADS = 256

UNITS = {1: "unsigned char", 2: "unsigned short", 4: "unsigned int", 8: "unsigned long long", 16: "uint4"}
"""What carries elements of so many bytes, or several narrower ones at once."""

TILED = 16
"""Elements along both of two axes from which on a tile is worth it."""


class Steps(NamedTuple):
    """A copy of units of `size` bytes over axes of these lengths, and how many units each steps by, in result and operand."""

    size: int
    shape: tuple[int, ...]
    out: tuple[int, ...]
    of: tuple[int, ...]


def steps_of(
    size: int, shape: Sequence[int], out: Sequence[int], of: Sequence[int], addresses: Sequence[int] = (0, 0)
) -> Steps:
    """A copy in as few axes and as wide units as can be. size, strides and addresses are in bytes.

    Axes are ordered as they lie in the result, outermost first. Where both sides' innermost axis is dense, the widest unit is
    taken that divides all there is.
    """
    order = sorted((i for i, d in enumerate(shape) if d != 1), key=lambda i: -abs(out[i]))
    axes = _merged([(shape[i], out[i], of[i]) for i in order])
    if axes and axes[-1][1] == axes[-1][2] == size:
        run = axes[-1][0] * size
        spans = [run, *addresses, *[s for _, *steps in axes[:-1] for s in steps]]
        size = next(unit for unit in (16, 8, 4, 2, 1) if unit == size or not any(s % unit for s in spans))
        axes[-1] = run // size, size, size
        if run == size:
            axes = _merged(axes[:-1])
    axes = axes or [(1, size, size)]
    return Steps(
        size, tuple(d for d, _, _ in axes), tuple(to // size for _, to, _ in axes), tuple(of // size for _, _, of in axes)
    )


def _merged(axes: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Axes that continue each other on both sides as one."""
    kept: list[tuple[int, int, int]] = []
    for length, to, of in axes:
        if kept and kept[-1][1] == to * length and kept[-1][2] == of * length:
            kept[-1] = kept[-1][0] * length, to, of
        else:
            kept.append((length, to, of))
    return kept


def across(steps: Steps) -> int | None:
    """The axis that is dense in the operand, where the result's dense one is another and both are long; else None."""
    last = len(steps.shape) - 1
    if steps.out[last] != 1 or steps.of[last] == 1 or steps.shape[last] < TILED:
        return None
    return next((k for k in range(last) if steps.of[k] == 1 and steps.shape[k] >= TILED), None)


def short(steps: Steps) -> int | None:
    """An axis of few units that is dense on one side, the last other axis being long and dense on the other side; else None.

    A thread that copies all of these leaves its neighbours dense accesses on the one side, and caches with lines that are
    wanted again at once on the other: what weights of convolutions come to.
    """
    last = len(steps.shape) - 1
    for k in (last, *range(last - 1, -1, -1)):
        rest = last - 1 if k == last else last
        if rest < 0 or not 1 < steps.shape[k] < TILED or steps.shape[rest] < TILED:
            continue
        if (k == last and steps.out[k] == steps.of[rest] == 1) or (k < last and abs(steps.of[k]) == steps.out[rest] == 1):
            return k
    return None


def edge(size: int) -> int:
    """Units along both sides of a tile: wider where they are small, so that enough of them are on their way at once."""
    return 64 if size <= 2 else 32


def _index(wide: bool) -> str:
    return "u64" if wide else "u32"


def plain(size: int, rank: int, turns: int, wide: bool) -> str:
    """The source of a kernel `copy_…(x, out, n, lengths…, strides…)`. turns: units that a thread copies, far apart.

    lengths of all axes but the outermost, then the operand's strides and the result's, in units. wide: 64-bit indices.
    """
    c, index = UNITS[size], _index(wide)
    parameters = [f"const {c}* x", f"{c}* out", f"{index} n", *[f"{index} d{k}" for k in range(1, rank)]]
    parameters += [f"long long {name}{k}" for name in ("s", "y") for k in range(rank)]
    place, at = (" + ".join(f"x{k} * {name}{k}" for k in range(rank)) for name in ("s", "y"))
    found = " ".join(decomposed("i", index, rank))
    return f"""{HEADER}
extern "C" __global__ void __launch_bounds__({THREADS}) copy_{size}({", ".join(parameters)}) {{
  const {index} first = blockIdx.x * ({index}){THREADS * turns} + threadIdx.x;
  {c} held[{turns}];
  long long where[{turns}];
  #pragma unroll
  for (int turn = 0; turn < {turns}; turn++) {{
    const {index} i = first + turn * {THREADS};
    if (i < n) {{
      {found}
      held[turn] = x[{place}];
      where[turn] = {at};
    }}
  }}
  #pragma unroll
  for (int turn = 0; turn < {turns}; turn++)
    if (first + turn * {THREADS} < n) out[where[turn]] = held[turn];
}}
"""


def over_rows(size: int, wide: bool) -> str:
    """The source of a kernel `rows_copy_…(x, out, n, length, stride)`: rows that lie apart, one behind the other in the result.

    A thread writes 16 bytes at once, which may go on in the next row.
    """
    c, index, width = UNITS[size], _index(wide), 16 // size
    return f"""{HEADER}
extern "C" __global__ void __launch_bounds__({THREADS}) rows_copy_{size}(
    const {c}* x, {c}* out, {index} n, {index} length, long long stride) {{
  const {index} i = (blockIdx.x * ({index}){THREADS} + threadIdx.x) * {width};
  if (i >= n) return;
  const {index} row = i / length, column = i % length, left = n - i;
  const {c}* from = x + row * stride + column;
  const long long gap = stride - (long long)length;
  Pack<{c}, {width}> held;
  #pragma unroll
  for (int v = 0; v < {width}; v++) if (v < left) held.v[v] = from[column + v < length ? v : v + gap];
  if (left >= {width}) {{
    *(Pack<{c}, {width}>*)(out + i) = held;
  }} else {{
    for (int v = 0; v < left; v++) out[i + v] = held.v[v];
  }}
}}
"""


def strips(size: int, rank: int, each: int, wide: bool) -> str:
    """The source of a kernel `strips_…(x, out, n, lengths…, strides…)`: n threads, each for all units along the last axis.

    That is the short one here, put behind the others. lengths of all but it and the outermost, and strides as in `plain`.
    """
    c, index = UNITS[size], _index(wide)
    parameters = [f"const {c}* x", f"{c}* out", f"{index} n", *[f"{index} d{k}" for k in range(1, rank - 1)]]
    parameters += [f"long long {name}{k}" for name in ("s", "y") for k in range(rank)]
    place, at = (" + ".join(f"x{k} * {name}{k}" for k in range(rank - 1)) for name in ("s", "y"))
    return f"""{HEADER}
extern "C" __global__ void __launch_bounds__({THREADS}) strips_{size}({", ".join(parameters)}) {{
  const {index} i = blockIdx.x * ({index}){THREADS} + threadIdx.x;
  if (i >= n) return;
  {" ".join(decomposed("i", index, rank - 1))}
  x += {place};
  out += {at};
  {c} held[{each}];
  #pragma unroll
  for (int k = 0; k < {each}; k++) held[k] = x[k * s{rank - 1}];
  #pragma unroll
  for (int k = 0; k < {each}; k++) out[k * y{rank - 1}] = held[k];
}}
"""


def tiled(size: int, rank: int) -> str:
    """The source of a kernel `transpose_…(x, out, lengths…, strides…)`: a block each for tiles of the last two axes.

    The last axis is dense in the result and the one before it in the operand; the others come first. lengths of all axes, and
    strides as in `plain`.
    """
    c, side = UNITS[size], edge(size)
    outer = rank - 2
    lines = THREADS // side
    # Rows one bank apart, so that a column lies in as many banks as it has elements.
    width = side + max(1, 4 // size)
    parameters = [f"const {c}* x", f"{c}* out", *[f"u32 d{k}" for k in range(rank)]]
    parameters += [f"long long {name}{k}" for name in ("s", "y") for k in range(rank)]
    found = "\n  ".join(decomposed("group", "u32", outer)) if outer else ""
    place, at = (" + ".join([*[f"x{k} * {name}{k}" for k in range(outer)], "0"]) for name in ("s", "y"))
    return f"""{HEADER}
extern "C" __global__ void __launch_bounds__({THREADS}) transpose_{size}({", ".join(parameters)}) {{
  __shared__ {c} tile[{side}][{width}];
  const u32 columns = (d{rank - 1} + {side - 1}) / {side}, rows = (d{outer} + {side - 1}) / {side};
  const u32 right = blockIdx.x % columns * {side}, down = blockIdx.x / columns % rows * {side};
  const u32 group = blockIdx.x / columns / rows;
  {found}
  x += {place};
  out += {at};
  const u32 lane = threadIdx.x % {side}, line = threadIdx.x / {side};
  {c} held[{side // lines}];
  #pragma unroll
  for (u32 k = 0; k < {side // lines}; k++) {{
    const u32 across = right + k * {lines} + line;
    if (down + lane < d{outer} && across < d{rank - 1}) held[k] = x[down + lane + across * s{rank - 1}];
  }}
  #pragma unroll
  for (u32 k = 0; k < {side // lines}; k++) tile[k * {lines} + line][lane] = held[k];
  __syncthreads();
  #pragma unroll
  for (u32 k = line; k < {side}; k += {lines})
    if (down + k < d{outer} && right + lane < d{rank - 1}) out[(down + k) * y{outer} + right + lane] = tile[lane][k];
}}
"""
