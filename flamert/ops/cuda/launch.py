"""Launches of our own kernels: what memory they read and write, and those of one kernel on many tensors as a single one."""

from __future__ import annotations

import bisect
import functools
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np

Extent = tuple[int, int]
"""An address, and the one behind the last byte."""

WINDOW = 64
"""Groups of launches that one may move ahead of."""


AT_ONCE = 16
"""Kernels that are compiled at a time, on as many processors as there are."""


class Compiling:
    """A kernel that other threads compile, or load if its code is on disk; whoever launches it first waits for that.

    A plan makes all its launches before the first of them is due, and the compiler lets go of Python's lock.
    """

    def __init__(self, kernel: Any) -> None:
        import cupy

        device = cupy.cuda.runtime.getDevice()

        def make() -> None:
            with cupy.cuda.Device(device):
                kernel.compile()

        self._kernel = kernel
        self._made: Future[None] | None = _compilers().submit(make)
        _underway.add(self._made)
        self._made.add_done_callback(_underway.discard)

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        if self._made is not None:
            self._made.result()
            self._made = None
        self._kernel(grid, block, arguments)


_underway: set[Future[None]] = set()


def settle() -> None:
    """Wait until nothing is being compiled: it would show in what is timed."""
    wait(tuple(_underway))


@functools.cache
def _compilers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1), "flamert-compiler")


@functools.lru_cache(1024)
def compiled(source: str, name: str) -> Compiling:
    """A kernel to launch; that it is compiled begins now."""
    import cupy

    return Compiling(cupy.RawKernel(source, name, ("-std=c++17", "--ftz=false")))


def extent(x: Any) -> Extent:
    """What an array's elements lie in."""
    if not x.size:
        return x.data.ptr, x.data.ptr
    spans = [(d - 1) * s for d, s in zip(x.shape, x.strides, strict=True)]
    return x.data.ptr + sum(s for s in spans if s < 0), x.data.ptr + sum(s for s in spans if s > 0) + x.itemsize


def meet(some: Iterable[Extent], others: Collection[Extent]) -> bool:
    """Whether any of the first have an address in common with any of the others."""
    return any(start < end and first < last for start, last in some for first, end in others)


def _address(x: Any) -> int | None:
    """Where an argument lies, if it is an array."""
    return x.data.ptr if hasattr(x, "strides") and hasattr(x.data, "ptr") else None


class Flat(NamedTuple):
    """A launch over contiguous tensors of n elements each, which others of the same kernel can join.

    key: what they share. arrays: operands and results in the kernel's order. make: the kernel over a table, when it is needed.
    step: elements that a block of that kernel takes.
    """

    key: str
    arrays: tuple[Any, ...]
    n: int
    make: Callable[[], Any]
    step: int


class Launch:
    """A kernel's launch; calling it makes it. held: what must live as long as its arguments, besides them."""

    __slots__ = ("arguments", "blocks", "flat", "held", "kernel", "reads", "threads", "writes")

    def __init__(
        self,
        kernel: Any,
        blocks: tuple[int, ...],
        threads: int,
        arguments: tuple[Any, ...],
        reads: Sequence[Extent],
        writes: Sequence[Extent],
        flat: Flat | None = None,
    ) -> None:
        self.kernel, self.blocks, self.threads, self.arguments = kernel, blocks, threads, arguments
        self.reads, self.writes, self.flat = tuple(reads), tuple(writes), flat
        self.held: Any = None

    def __call__(self) -> None:
        self.kernel(self.blocks, (self.threads,), self.arguments)

    def writes_alone(self, address: int) -> bool:
        """Whether exactly one of the arguments lies there, and it is all that is written."""
        return len(self.writes) == 1 and sum(_address(x) == address for x in self.arguments) == 1

    def reads_of(self, other: Launch) -> bool:
        """Whether it reads what another one writes."""
        return meet(self.reads, other.writes)

    def onto(self, address: int, result: Any) -> Launch:
        """This launch with another array in the place of the one there."""
        arguments = tuple([result if _address(x) == address else x for x in self.arguments])
        return Launch(self.kernel, self.blocks, self.threads, arguments, self.reads, [extent(result)])

    @classmethod
    def groups(cls, calls: Sequence[Launch]) -> list[list[int]]:
        """Numbers of those that can become one launch each, in an order that leaves all results as they are.

        A launch may join an earlier one of its kernel if it has nothing to do with that group's memory, nor with that of the
        groups in between, except that both may read.
        """
        found: list[_Group] = []
        for number, call in enumerate(calls):
            home = None
            for group in reversed(found[-WINDOW:]):
                if group.meets(call):
                    break
                if call.flat is not None and group.key == call.flat.key:
                    home = group
                    break
            if home is None:
                home = _Group(None if call.flat is None else call.flat.key)
                found.append(home)
            home.add(number, call)
        return [group.numbers for group in found]

    @classmethod
    def chain(cls, calls: Sequence[Launch]) -> Launch:
        """These launches of one kernel, which do not depend on each other, as one over a table in the device's memory."""
        import cupy

        flats = [call.flat for call in calls if call.flat is not None]
        table, owners = table_of([f.arrays for f in flats], [f.n for f in flats], flats[0].step)
        arguments = (cupy.asarray(table), cupy.asarray(owners))
        reads, writes = [e for c in calls for e in c.reads], [e for c in calls for e in c.writes]
        joined = cls(flats[0].make(), (len(owners),), calls[0].threads, arguments, reads, writes)
        joined.held = calls
        return joined


def table_of(arrays: Sequence[Sequence[Any]], sizes: Sequence[int], step: int) -> tuple[np.ndarray, np.ndarray]:
    """(a row of addresses and a size for each tensor, and for each block of `step` elements its row and its number there)."""
    rows = [[*[x.data.ptr for x in members], n] for members, n in zip(arrays, sizes, strict=True)]
    blocks = np.array([-(-n // step) for n in sizes])
    starts = np.cumsum(blocks) - blocks
    owner = np.repeat(np.arange(len(blocks)), blocks)
    owners = np.stack([owner, np.arange(int(blocks.sum())) - starts[owner]], axis=1)
    return np.array(rows, np.uint64), owners.astype(np.uint32)


class _Extents:
    """A set of addresses: extents in order, none touching another."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []

    def meet(self, extent: Extent) -> bool:
        """Whether one of them and this have an address in common."""
        at = bisect.bisect_right(self.ends, extent[0])
        return at < len(self.starts) and self.starts[at] < extent[1]

    def add(self, extent: Extent) -> None:
        start, end = extent
        if start == end:
            return
        first, last = bisect.bisect_left(self.ends, start), bisect.bisect_right(self.starts, end)
        if first < last:
            start, end = min(start, self.starts[first]), max(end, self.ends[last - 1])
        self.starts[first:last], self.ends[first:last] = [start], [end]


class _Group:
    """Launches that become one, and their memory."""

    def __init__(self, key: str | None) -> None:
        self.key = key
        self.numbers: list[int] = []
        self.read, self.written = _Extents(), _Extents()

    def meets(self, call: Launch) -> bool:
        """Whether the order of this group and the launch matters."""
        written = any(self.written.meet(e) for e in (*call.reads, *call.writes))
        return written or any(self.read.meet(e) for e in call.writes)

    def add(self, number: int, call: Launch) -> None:
        self.numbers.append(number)
        for e in call.reads:
            self.read.add(e)
        for e in call.writes:
            self.written.add(e)
