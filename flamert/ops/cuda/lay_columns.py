"""How the blocks of a kernel for sums over rows go over these, and how much each of their threads takes at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flamert.ops.cuda.emit_reduce import LINE

THREADS = 1024
"""One block of as many for each multiprocessor: the fewer blocks, the less has to be put together in the end."""

MULTIPROCESSORS = 132
"""Of a large GPU. Where columns allow it, blocks are no more, so that all run at once and end together."""

ROUNDS, ROUND = 4, 0.04
"""How often a multiprocessor may get a block, and what each time costs, as a part of all."""

WARP = 32

REGISTERS = 40
"""Of the 64 that a thread of such a block may have: what sums, numbers of columns and rows on their way may take."""

BATCH = 4
"""Rows that a thread has on their way at once at most: each takes an address, too."""

FLIGHT = 64
"""Bytes that a thread should have on their way at once, to fill memory's pipes."""

ACROSS = 64
"""Columns of a block at most: the sums that its warps leave for each other fit in shared memory."""


class Layout(NamedTuple):
    """How blocks go over rows of `inner` columns.

    width: neighbours that a thread takes of each row; across: threads side by side; batch: rows that are on their way at
    once; splits: blocks beneath each other, which take turns.
    """

    length: int
    inner: int
    width: int
    across: int
    batch: int
    splits: int

    @property
    def columns(self) -> int:
        """Columns of a block."""
        return self.across * self.width

    @property
    def down(self) -> int:
        """Rows that a block takes at once."""
        return THREADS // self.across

    @property
    def counter(self) -> str:
        """The type of elements' numbers; a wide one takes more registers."""
        return "u64" if self.length * self.inner >= 1 << 32 else "u32"

    @property
    def blocks(self) -> int:
        """Blocks side by side."""
        return -(-self.inner // self.columns)


def laid(length: int, inner: int, sizes: Sequence[int], numbers: int) -> Layout:
    """The layout for whole operands with elements of so many bytes. numbers: what a thread holds for each of its columns."""
    width = min(8, 16 // max(sizes))
    while inner % width:
        width //= 2
    ways = []
    while width:
        row = sum(max(1, width * size // 4) for size in sizes)
        batch = BATCH
        while batch > 1 and numbers * width + batch * row > REGISTERS:
            batch //= 2
        room = numbers * width + batch * row <= REGISTERS
        ways.append((room, min(FLIGHT, batch * width * sum(sizes)), width, batch))
        width //= 2
    *_, width, batch = max(ways)
    across = 1
    while across < min(WARP, ACROSS // width, max(1, LINE // (width * max(sizes)))) and across * width < inner:
        across *= 2
    whole = Layout(length, inner, width, across, batch, 1)
    return whole._replace(splits=min(_splits(whole.blocks), -(-length // whole.down)))


def _splits(blocks: int) -> int:
    """Blocks beneath each other, of so many side by side, that leave few multiprocessors without any and end soon."""

    def filled(rounds: int) -> float:
        return rounds * MULTIPROCESSORS // blocks * blocks / (rounds * MULTIPROCESSORS) - ROUND * rounds

    return max(1, max(range(1, ROUNDS + 1), key=filled) * MULTIPROCESSORS // blocks)
