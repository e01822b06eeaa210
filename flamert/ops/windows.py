"""Sliding windows: how many fit, where they lie, and arrays seen through them. What convolutions, pooling and col2im share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from flamert.errors import ShapeError


def extent(kernel: Sequence[int], dilations: Sequence[int]) -> tuple[int, ...]:
    """Elements that a dilated window spans along each axis."""
    return tuple([(k - 1) * d + 1 if k else 0 for k, d in zip(kernel, dilations, strict=True)])


def check_windows(n: int, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]) -> None:
    """Raise ShapeError unless these attributes describe windows over `n` spatial axes."""
    if n < 1:
        raise ShapeError("windows slide over spatial axes: the operand needs rank 3 or more")
    if not len(kernel) == len(strides) == len(dilations) == n or len(pads) != 2 * n:
        raise ShapeError(
            f"kernel {list(kernel)}, strides {list(strides)}, pads {list(pads)}, dilations {list(dilations)} "
            f"do not describe {n} spatial axes"
        )
    if min(strides) < 1 or min(dilations) < 1 or min(kernel) < 1:
        raise ShapeError(f"kernel {list(kernel)}, strides {list(strides)} and dilations {list(dilations)} must be positive")


def window_counts(
    spatial: Sequence[int], kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int]
) -> tuple[int, ...]:
    """Windows along each spatial axis; none along an empty one. Raises ShapeError where a window is larger than its axis."""
    n = len(spatial)
    check_windows(n, kernel, strides, pads, dilations)
    counts = []
    for i, (d, e) in enumerate(zip(spatial, extent(kernel, dilations), strict=True)):
        room = d + pads[i] + pads[n + i] - e
        if room < 0 and d > 0:
            raise ShapeError(f"a window of {e} elements does not fit into {d} + {pads[i]} + {pads[n + i]} (padding)")
        counts.append(max(room // strides[i] + 1, 0))
    return tuple(counts)


def padded(xp: Any, x: Any, pads: Sequence[int], fill: Any = 0, dtype: Any = None) -> Any:
    """x with its last axes padded by `pads` (begins, then ends; negative ones crop); x itself if there is nothing to do."""
    dtype = x.dtype if dtype is None else dtype
    if not any(pads):
        return x if x.dtype == dtype else x.astype(dtype)
    n, lead = len(pads) // 2, x.ndim - len(pads) // 2
    spatial = x.shape[lead:]
    shape = x.shape[:lead] + tuple(d + pads[i] + pads[n + i] for i, d in enumerate(spatial))
    result = xp.full(shape, fill, dtype)
    source, target = [slice(None)] * lead, [slice(None)] * lead
    for i, d in enumerate(spatial):
        begin, end = pads[i], pads[n + i]
        source.append(slice(max(-begin, 0), d + min(end, 0)))
        target.append(slice(max(begin, 0), shape[lead + i] - max(end, 0)))
    result[tuple(target)] = x[tuple(source)]
    return result


def windows(
    xp: Any, x: Any, kernel: Sequence[int], counts: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Any:
    """A view [..., *kernel, *counts] of an already padded x [..., *spatial]: element [k, o] is x[o·stride + k·dilation]."""
    lead = x.ndim - len(kernel)
    steps = x.strides[lead:]
    taps = tuple([s * d for s, d in zip(steps, dilations, strict=True)])
    moves = tuple([s * t for s, t in zip(steps, strides, strict=True)])
    return xp.lib.stride_tricks.as_strided(x, (*x.shape[:lead], *kernel, *counts), x.strides[:lead] + taps + moves)


def taps(
    kernel: Sequence[int], counts: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
    """(tap, index) for each tap of the window: `padded_x[index]` holds, over all windows, the element under that tap."""
    for tap in itertools.product(*map(range, kernel)):
        where: list[Any] = [...]
        for t, d, s, c in zip(tap, dilations, strides, counts, strict=True):
            where.append(slice(t * d, t * d + (c - 1) * s + 1 if c else t * d, s))
        yield tap, tuple(where)


def fold(
    xp: Any,
    out: Any,
    columns: Any,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> None:
    """The adjoint of taking windows: add `columns` [..., *kernel, *counts] into `out` [..., *spatial] where they were taken.

    What falls into the padding is dropped. Sums are kept in the columns' element type.
    """
    n = len(kernel)
    lead, spatial, counts = out.shape[: out.ndim - n], out.shape[out.ndim - n :], columns.shape[columns.ndim - n :]
    room = [
        max(d + pads[i] + pads[n + i], (c - 1) * s + e)
        for i, (d, c, s, e) in enumerate(zip(spatial, counts, strides, extent(kernel, dilations), strict=True))
    ]
    sums = xp.zeros(lead + tuple(room), columns.dtype)
    for tap, where in taps(kernel, counts, strides, dilations):
        sums[where] += columns[(..., *tap, *[slice(None)] * n)]
    out[...] = padded(
        xp, sums, [-p for p in pads[:n]] + [d + pads[i] - r for i, (d, r) in enumerate(zip(spatial, room, strict=True))]
    )
