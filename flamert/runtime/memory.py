"""Where buffers lie: offsets in one arena, from lifetimes. Knows sizes and times only, no arrays."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from typing import NamedTuple


class Lifetime(NamedTuple):
    """A buffer of `nbytes`, written first at step `start` and read last at step `end` (both inclusive)."""

    nbytes: int
    start: int
    end: int


def place(buffers: Sequence[Lifetime], alignment: int) -> tuple[list[int], int]:
    """Offsets for all buffers, and the arena's size; buffers alive at the same time do not overlap.

    Largest first, each into the lowest gap between those already placed that live at the same time
    (Pisarchyk & Lee 2020, "Efficient memory management for deep neural net inference": greedy by size).
    """
    offsets = [0] * len(buffers)
    placed: list[tuple[int, int, int, int]] = []  # offset, end of memory, start, end in time; sorted by offset
    total = 0
    for i in sorted(range(len(buffers)), key=lambda i: -buffers[i].nbytes):
        need = -(-max(buffers[i].nbytes, 1) // alignment) * alignment
        start, end = buffers[i].start, buffers[i].end
        at = 0
        for offset, stop, first, last in placed:
            if first <= end and start <= last:
                if offset - at >= need:
                    break
                at = max(at, stop)
        offsets[i] = at
        insort(placed, (at, at + need, start, end))
        total = max(total, at + need)
    return offsets, total
