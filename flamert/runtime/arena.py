"""Arenas: the memory that plans compute in, and who has it when. What lies where inside one is memory.py's business."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

from flamert.runtime.device import Device

IDLE_ARENAS = 4
"""Arenas kept for later calls; more are made while more calls are in flight."""

LAZY = 1 << 28
"""Bytes up to which an arena on the CPU is rounded up to a power of two, above to a multiple of this."""


class Arena:
    """A piece of memory, and the calls of each plan that were bound to it; they go when it goes."""

    __slots__ = ("bound", "memory", "nbytes")

    def __init__(self, memory: Any, nbytes: int) -> None:
        self.memory = memory
        self.nbytes = nbytes
        self.bound: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


class Arenas:
    """The arenas that the plans of one model take turns with: `take` one for a call, `give` it back.

    So a model takes the memory of its largest plan, times the calls in flight, however many signatures it has met.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._idle: list[Arena] = []
        device.keeps(self)

    @staticmethod
    def of(device: Device, cache: dict) -> Arenas:
        """Those of the model whose cache this is; on a GPU every plan has its own, since captured calls hold addresses."""
        if device.remote:
            return Arenas(device)
        shared = cache.get(Arenas)
        return shared if shared is not None else cache.setdefault(Arenas, Arenas(device))

    def take(self, nbytes: int) -> Arena:
        """An arena of at least this size. One that proves too small is replaced. Raises OutOfMemory."""
        try:
            arena = self._idle.pop()
        except IndexError:
            arena = None
        if arena is None or arena.nbytes < nbytes:
            del arena
            size = nbytes if self.device.remote else rounded(nbytes)
            arena = Arena(self.device.afford(partial(self.device.allocate, size), size, "an arena"), size)
        return arena

    def give(self, arena: Arena) -> None:
        """Keep an arena for the next call."""
        if len(self._idle) < IDLE_ARENAS:
            self._idle.append(arena)

    def drop(self) -> None:
        """Let go of all that no call has."""
        self._idle.clear()


def rounded(nbytes: int) -> int:
    """Growing arenas are replaced, and plans bound again, only now and then; pages that nothing touches cost nothing."""
    return max(1 << 12, 1 << (nbytes - 1).bit_length()) if nbytes <= LAZY else -(-nbytes // LAZY) * LAZY
