"""How groups of rows are computed: in which pass over its row each value is made, and which threads have which part of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flamert.ops.pointwise import Instruction
from flamert.ops.rows import REDUCTIONS

WARP = 32
REGISTERS = 96
"""Numbers that a thread may hold from one pass over its row to the next."""

FEW = 48
"""Numbers that a thread of a warp that has a row to itself may hold: with those of other warps they keep memory busy."""

MULTIPROCESSORS = 132
"""Of a large GPU: what kernels that add up rows are cut into, whatever they run on, so that sums are the same everywhere."""

SUMMING = ((48, 768), (80, 512), (128, 384))
"""Numbers that a thread may hold, its sums among them, where so many that add up rows share a multiprocessor's registers."""

MOST = SUMMING[-1][0]

ROWS = 12
"""Rows that a block which adds them up has at once, if each is a warp's."""

SHARED = 40 << 10
"""Bytes in which the threads of a block put their sums together."""


class Schedule(NamedTuple):
    """When values of a program are computed: in which pass over the row.

    stage: by value; numbers of a row are there once the passes before are over. full: whether a value is one for each
    element. kept: full values that later passes read.
    """

    stage: list[int]
    full: list[bool]
    kept: list[int]
    passes: int


def schedule(
    program: Sequence[Instruction], along: Sequence[bool], results: Sequence[int], sums: Sequence[int] = ()
) -> Schedule:
    """Each full value as late as those who need it allow, so that little has to be kept. sums: those added up over rows."""
    n = len(along)
    full, level = list(along), [0] * n
    for step in program:
        reduces = step.op in REDUCTIONS
        level.append(max(level[i] for i in step.operands) + reduces)
        full.append(not reduces and any(full[i] for i in step.operands))
    last = max(level)
    needed = [last] * len(level)
    elsewhere = {i for step in program for i in step.operands} | {n + k for k in results}
    for i in sums:
        if i not in elsewhere:  # to add it up later, what it is made of would have to be kept
            needed[i] = level[i]
    readers: list[list[int]] = [[] for _ in level]
    for k in range(len(program) - 1, -1, -1):
        value, step = n + k, program[k]
        at = level[value] - 1 if step.op in REDUCTIONS else needed[value] if full[value] else level[value]
        if step.op in REDUCTIONS or full[value]:
            for i in step.operands:
                needed[i] = min(needed[i], at)
                readers[i].append(at)
    stage = [needed[i] if full[i] else level[i] for i in range(len(level))]
    kept = [i for i in range(len(level)) if full[i] and any(at > stage[i] for at in readers[i])]
    written = max([stage[i] for i in (*[n + k for k in results], *sums) if full[i]], default=-1)
    return Schedule(stage, full, kept, max(last, written + 1))


class Shape(NamedTuple):
    """How a kernel goes over rows of `length` elements: threads a row, elements a thread takes at once, and rows of one block.

    blocks: how many there are, each going over many rows; 0 where each has its rows and no more.
    """

    length: int
    threads: int
    width: int
    rows: int
    blocks: int = 0

    @property
    def turns(self) -> int:
        return -(-self.length // (self.threads * self.width))

    @property
    def beside(self) -> int:
        """Blocks that a multiprocessor should have room for."""
        return max(1, -(-self.blocks // MULTIPROCESSORS))

    @property
    def each(self) -> int:
        """Elements of a row that a thread has."""
        return self.turns * self.width


def shape_of(length: int, width: int, count: int = 0, kept: int = 0, sums: int = 0) -> Shape:
    """The shape for `count` rows of which a thread keeps `kept` values an element, and adds up `sums`.

    Where rows are many, a warp has one to itself, so that no warp waits for another; where they are few, each has two accesses
    a thread, if it is long enough for a block of them and short enough for a block.
    """
    if sums:
        return _summing(length, width, count, kept + sums)
    threads = WARP
    if count >= 8 * MULTIPROCESSORS:
        shape = Shape(length, WARP, width, 8)
        if shape.each * max(1, kept) <= FEW:
            return shape
    while threads < 1024 and threads * width * 2 < length:
        threads *= 2
    return Shape(length, threads, width, 8 if threads == WARP else 1)


def _summing(length: int, width: int, count: int, numbers: int) -> Shape:
    """The shape of a kernel that holds so many numbers for each element of a row. Each block walks over rows.

    Threads of more than one warp a row wait for each other, so that several blocks have to share a multiprocessor.
    """
    shape = Shape(length, WARP, width, 1)
    while shape.threads < 1024 and shape.each * numbers > (MOST if shape.threads == WARP else SUMMING[-2][0]):
        shape = shape._replace(threads=shape.threads * 2)
    room = next((threads for most, threads in SUMMING if shape.each * numbers <= most), SUMMING[-1][1])
    at_once = ROWS if shape.threads == WARP else 2
    rows = max(1, min(at_once, room // shape.threads, SHARED // (4 * length), -(-count // MULTIPROCESSORS)))
    most = MULTIPROCESSORS * max(1, room // (shape.threads * rows))
    return shape._replace(rows=rows, blocks=max(1, min(most, -(-count // rows))))


def held(plan: Schedule, shape: Shape) -> int:
    """Numbers that a thread holds between passes."""
    return len(plan.kept) * shape.each
