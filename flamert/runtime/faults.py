"""Indices out of range that a GPU's kernels met: noted there without stopping anything, raised here when the host looks."""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np

from flamert.graph import Node
from flamert.ops.index import outside

INTEGERS = np.iinfo(np.int64)


def named(node: Node) -> str:
    """A node as errors name it: its place in the file, the op, and what it works on."""
    operands = ", ".join("_" if v is None else str(v.type) for v in node.inputs)
    return f"{node.source or 'a node without source'}: {node.op.name}({operands})"


class Faults:
    """The faults of one GPU that nobody has been told of.

    A kernel takes `record`, int64[4] on the device, and the number of its `place`. It writes down the place of the first fault,
    with the least and the greatest of the indices that are wrong there, and then sets a flag in host memory: so looking
    whether there is one waits for nothing, and finds all faults of kernels that are known to be done.
    """

    def __init__(self, xp: Any, index: int) -> None:
        self._xp, self._index = xp, index
        self._places: dict[tuple[str, int], int] = {}
        self._lock = threading.Lock()
        with xp.cuda.Device(index):
            self._memory = xp.cuda.alloc_pinned_memory(8)
            self._flag = np.frombuffer(self._memory, np.int64, 1)
            self.record = xp.empty(4, np.int64)
            self._clear()

    @staticmethod
    @functools.cache
    def of(xp: Any, index: int) -> Faults:
        """Those of a GPU, whatever models run there."""
        return Faults(xp, index)

    def place(self, node: Node, size: int) -> int:
        """The number, from 1, of an axis of this size that a node indexes."""
        with self._lock:
            return self._places.setdefault((named(node), size), len(self._places) + 1)

    @property
    def found(self) -> bool:
        """Whether there is one, as far as kernels are done."""
        return bool(self._flag[0])

    def check(self) -> None:
        """Raise the first one, as on the CPU, and forget it."""
        if not self.found:
            return
        with self._lock, self._xp.cuda.Device(self._index) as device:
            if not self.found:  # another thread was told
                return
            device.synchronize()
            place, low, high, _ = self.record.get().tolist()
            self._clear()
            where, size = next(at for at, number in self._places.items() if number == place)
        raise outside(low, high, size).at(where)

    def _clear(self) -> None:
        self._flag[0] = 0
        self.record.set(np.array([0, INTEGERS.max, INTEGERS.min, self._memory.ptr], np.int64))
