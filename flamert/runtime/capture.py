"""Capture: the calls of a plan recorded as one CUDA graph, which a single launch replays."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flamert.graph import Node

MEMCPY_NODE = 1
"""CU_GRAPH_NODE_TYPE_MEMCPY."""

HOST_MEMORY = 1
"""CU_MEMORYTYPE_HOST."""

SOURCE_KIND_AT = 32
"""Where CUDA_MEMCPY3D says what memory it copies from."""


class Replay:
    """Calls that run one by one at first, then are recorded, and are one launch from there on.

    The first run compiles kernels and fills caches, which a recording must not do. obstacle: why these calls cannot be
    recorded, as somebody who asks is told; None while nothing speaks against it.
    """

    def __init__(self, device: Any, calls: Sequence[Callable[[], Any]], obstacle: str | None) -> None:
        self.obstacle = obstacle
        self._device, self._calls = device, calls
        self._graph: Any = None
        self._pool: Any = None
        self._warm = False

    @property
    def recorded(self) -> bool:
        """Whether a launch does it all."""
        return self._graph is not None

    def __call__(self) -> bool:
        """Launch the recording; make it first if it is time to. False: there is none, so the calls must be made."""
        if self._graph is None:
            if self.obstacle is not None or not self._warm:
                self._warm = True
                return False
            self._record()
            if self._graph is None:
                return False
        self._graph.launch()
        return True

    def _record(self) -> None:
        """Record the calls, or note what is in the way."""
        cuda = self._device.xp.cuda
        stream, pool = cuda.Stream(non_blocking=True), cuda.MemoryPool()
        self._device.synchronize()
        with cuda.Device(self._device.index), cuda.using_allocator(pool.malloc), stream, _no_collection():
            stream.begin_capture()
            try:
                for call in self._calls:
                    call()
            except Exception as error:
                self.obstacle = f"a kernel cannot be recorded: {error}"
            except BaseException:  # whoever interrupts this leaves no stream that still records
                with contextlib.suppress(Exception):
                    stream.end_capture()
                raise
            try:
                graph = stream.end_capture()
            except Exception as error:  # a recording that was broken off cannot even be ended
                self.obstacle = self.obstacle or f"the recording failed: {error}"
        if self.obstacle is None and reads_host_memory(graph.graph):
            self.obstacle = "a kernel copies from host memory, which may hold something else when the recording is replayed"
        if self.obstacle is None:
            self._graph, self._pool = graph, pool


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """What the collector frees on the device in the middle of a recording would break it."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def obstacle_of(node: Node, hosted: bool) -> str | None:
    """Why one node cannot be part of a recording, as far as can be told from outside."""
    what = f"{node.source or 'a node without source'}: {node.op.name}"
    if hosted:
        return f"{what} runs on the host"
    if node.op.random and "counter" in node.op.operands:
        at = node.op.operands.index("counter")
        if at >= len(node.inputs) or node.inputs[at] is None:
            return f"{what} draws other numbers at every call, and is given no counter to draw them by"
    return None


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if hasattr(ctypes, "WinDLL") else "libcuda.so.1")


def reads_host_memory(graph: int) -> bool:
    """Whether a recorded graph (a CUgraph) holds copies from host memory."""
    driver, count = _driver(), ctypes.c_size_t()
    handle = ctypes.c_void_p(graph)
    driver.cuGraphGetNodes(handle, None, ctypes.byref(count))
    nodes = (ctypes.c_void_p * count.value)()
    driver.cuGraphGetNodes(handle, nodes, ctypes.byref(count))
    kind = ctypes.c_int()
    for node in nodes:
        driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind))
        if kind.value == MEMCPY_NODE:
            parameters = (ctypes.c_uint8 * 512)()
            driver.cuGraphMemcpyNodeGetParams(ctypes.c_void_p(node), ctypes.byref(parameters))
            if int.from_bytes(bytes(parameters[SOURCE_KIND_AT : SOURCE_KIND_AT + 4]), "little") == HOST_MEMORY:
                return True
    return False
