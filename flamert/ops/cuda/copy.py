"""Copies between arrays in GPU memory, of any strides, as near to the memory's speed as these allow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flamert.ops.cuda.emit_copy import THREADS, UNITS, Steps, across, edge, over_rows, plain, short, steps_of, strips, tiled
from flamert.ops.cuda.launch import Launch, compiled, extent

AT_ONCE = 132 * 2048
"""Threads that a large GPU runs at a time."""


def copier(out: Any, x: Any) -> Callable[[], Any]:
    """A call that copies x into `out`, of the same shape and element type, wherever and however the two lie."""
    size = x.itemsize
    if out.shape != x.shape or out.dtype != x.dtype:
        raise ValueError(f"cannot copy {x.dtype}{list(x.shape)} into {out.dtype}{list(out.shape)}")
    if size not in UNITS or any(s % size for a in (out, x) for s in a.strides):
        return lambda: out.__setitem__(..., x)  # parts of records
    if not x.size:
        return lambda: None
    steps = steps_of(size, x.shape, out.strides, x.strides, (out.data.ptr, x.data.ptr))
    return _through_tiles(steps, out, x) or _over_rows(steps, out, x) or _in_strips(steps, out, x) or _in_order(steps, out, x)


def _over_rows(steps: Steps, out: Any, x: Any) -> Launch | None:
    """Rows of odd length that lie apart and come to lie one behind the other; None for all others."""
    width = 16 // steps.size
    if len(steps.shape) != 2 or width == 1 or width > steps.shape[1] or out.data.ptr % 16:
        return None
    if steps.out != (steps.shape[1], 1) or steps.of[1] != 1:
        return None
    n = math.prod(steps.shape)
    wide = n >= 1 << 31
    index = np.uint64 if wide else np.uint32
    kernel = compiled(over_rows(steps.size, wide), f"rows_copy_{steps.size}")
    sizes = (index(n), index(steps.shape[1]), np.int64(steps.of[0]))
    return Launch(kernel, (-(-n // (width * THREADS)),), THREADS, (x, out, *sizes), [extent(x)], [extent(out)])


def _in_order(steps: Steps, out: Any, x: Any) -> Launch:
    n, rank = math.prod(steps.shape), len(steps.shape)
    turns = next((t for t in (1, 2) if n <= t * AT_ONCE), 4)
    wide = n >= 1 << 31
    index = np.uint64 if wide else np.uint32
    sizes = [index(n), *map(index, steps.shape[1:]), *map(np.int64, (*steps.of, *steps.out))]
    kernel = compiled(plain(steps.size, rank, turns, wide), f"copy_{steps.size}")
    return Launch(kernel, (-(-n // (turns * THREADS)),), THREADS, (x, out, *sizes), [extent(x)], [extent(out)])


def _in_strips(steps: Steps, out: Any, x: Any) -> Launch | None:
    """None where there is no short axis that is dense on one side."""
    of_each = short(steps)
    if of_each is None:
        return None
    order = [k for k in range(len(steps.shape)) if k != of_each] + [of_each]
    shape, of, to = ([group[k] for k in order] for group in (steps.shape, steps.of, steps.out))
    n, each = math.prod(shape[:-1]), shape[-1]
    wide = n * each >= 1 << 31
    index = np.uint64 if wide else np.uint32
    sizes = [index(n), *map(index, shape[1:-1]), *map(np.int64, (*of, *to))]
    kernel = compiled(strips(steps.size, len(shape), each, wide), f"strips_{steps.size}")
    return Launch(kernel, (-(-n // THREADS),), THREADS, (x, out, *sizes), [extent(x)], [extent(out)])


def _through_tiles(steps: Steps, out: Any, x: Any) -> Launch | None:
    """None where the two do not run across each other, or are too large for this kernel's indices."""
    dense, last, side = across(steps), len(steps.shape) - 1, edge(steps.size)
    if dense is None:
        return None
    order = [k for k in range(last) if k != dense] + [dense, last]
    shape, of, to = ([group[k] for k in order] for group in (steps.shape, steps.of, steps.out))
    blocks = math.prod([*shape[:-2], -(-shape[-2] // side), -(-shape[-1] // side)])
    if blocks >= 1 << 31 or max(shape) >= 1 << 31:
        return None
    kernel = compiled(tiled(steps.size, len(shape)), f"transpose_{steps.size}")
    sizes = [*map(np.uint32, shape), *map(np.int64, (*of, *to))]
    return Launch(kernel, (blocks,), THREADS, (x, out, *sizes), [extent(x)], [extent(out)])
