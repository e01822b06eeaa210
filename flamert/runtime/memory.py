"""Where buffers lie: offsets in one arena, from lifetimes. Knows sizes and times only, no arrays."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MANY = 1000
"""Buffers from which searching in arrays beats searching in a list: a long backward pass has tens of thousands."""


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
    placed = InArrays(len(buffers)) if len(buffers) > MANY else InList()
    total = 0
    for i in sorted(range(len(buffers)), key=lambda i: -buffers[i].nbytes):
        need = -(-max(buffers[i].nbytes, 1) // alignment) * alignment
        offsets[i] = at = placed.put(need, buffers[i].start, buffers[i].end)
        total = max(total, at + need)
    return offsets, total


class InList:
    """Buffers that have their place, as (offset, end of memory, start, end in time), sorted."""

    def __init__(self) -> None:
        self.placed: list[tuple[int, int, int, int]] = []

    def put(self, need: int, start: int, end: int) -> int:
        """Find the lowest gap of `need` bytes for this time, and take it."""
        at = 0
        for offset, stop, first, last in self.placed:
            if first <= end and start <= last:
                if offset - at >= need:
                    break
                at = max(at, stop)
        insort(self.placed, (at, at + need, start, end))
        return at


class InArrays:
    """The same with a column for each buffer."""

    def __init__(self, size: int) -> None:
        self.placed = np.empty((4, size), np.int64)
        self.count = 0

    def put(self, need: int, start: int, end: int) -> int:
        offset, stop, first, last = self.placed[:, : self.count]
        alive = np.flatnonzero((first <= end) & (start <= last))
        at = 0
        if alive.size:
            begins, tops = offset.take(alive), np.maximum.accumulate(stop.take(alive))
            gaps = begins.copy()
            gaps[1:] -= tops[:-1]
            k = int((gaps >= need).argmax())
            at = int(begins[k] - gaps[k] if gaps[k] >= need else tops[-1])
        k = int(np.searchsorted(offset, at))
        self.placed[:, k + 1 : self.count + 1] = self.placed[:, k : self.count]
        self.placed[:, k] = at, at + need, start, end
        self.count += 1
        return at
