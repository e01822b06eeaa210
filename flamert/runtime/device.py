"""Devices: the array module, memory and copies of each. The only place outside `ops/cuda` that imports CuPy."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from flamert.errors import DeviceError, InputError, OutOfMemory
from flamert.graph import TensorType
from flamert.limits import available_memory, physical_memory, readable, require_memory
from flamert.ops.cpu.shape import copier

ALIGNMENT = 256
"""Bytes; every buffer of an arena starts on a multiple of it (wide loads on GPUs, cache lines on CPUs)."""

STRAIGHT = 1 << 20
"""Bytes from which on page-locked memory on the way to a GPU does not pay for one copy."""

Made = TypeVar("Made")

_keepers: weakref.WeakSet[Any] = weakref.WeakSet()
"""Who keeps memory only to save time, of all devices."""


class Device:
    """A place where plans run. `backend` names the kernels it takes; `xp` is its array module."""

    backend: str
    xp: Any
    name: str
    remote = False
    """Whether arrays live in memory of its own, so that those of the host must be uploaded."""
    records = False
    """Whether calls can be recorded and replayed as one; see capture.py."""
    tunes = False
    """Whether a plan that is called often is worth making again, with kernels that cost more to set up."""
    allow_tf32: bool | None = False
    """Whether products of float32 may round their operands to TF32; None: those of convolutions only."""

    @functools.cached_property
    def signature(self) -> tuple[Any, ...]:
        """What passes depend on besides a graph."""
        return self.name, self.allow_tf32

    def allocate(self, nbytes: int) -> Any:
        """Uninitialised memory for an arena. Raises MemoryError."""
        raise NotImplementedError

    def view(self, memory: Any, offset: int, type: TensorType, strides: tuple[int, ...] | None = None) -> Any:
        """An array inside `memory`, starting `offset` bytes in."""
        raise NotImplementedError

    def afford(self, make: Callable[[], Made], nbytes: int, what: object) -> Made:
        """`make()`, which takes memory. Where there is too little, memory that is merely kept is given back, for a second try.

        Raises OutOfMemory where that is not enough.
        """
        with contextlib.suppress(MemoryError):  # and on with it out here: the error holds on to what `make` had
            return make()
        self.reclaim()
        try:
            return make()
        except OutOfMemory:
            raise
        except MemoryError as error:
            free, total = self.room()
            room = f"of its {readable(total)} {readable(free)} are free"
            raise OutOfMemory(f"{what} of {readable(nbytes)} does not fit on {self.name}: {room}") from error

    def keeps(self, keeper: Any) -> None:
        """From now on `keeper`, of which this is the `device`, is asked to `drop` what it merely keeps when memory runs out."""
        _keepers.add(keeper)

    def reclaim(self) -> None:
        """Give back all memory that is kept only to save time."""
        for keeper in list(_keepers):
            if keeper.device.name == self.name:
                keeper.drop()
        gc.collect()

    def trim(self) -> None:
        """Give back memory that nothing uses, which allocators keep."""

    def room(self) -> tuple[int, int]:
        """Bytes of memory that are free, and that there are."""
        return available_memory(), physical_memory()

    def synchronize(self) -> None:
        """Wait until everything asked of the device is done."""

    @property
    def faulty(self) -> bool:
        """Whether `check` would raise."""
        return False

    def check(self) -> None:
        """Raise what kernels found wrong that could not say so at once, as far as they are done."""

    def upload(self, array: np.ndarray, lasting: bool = False) -> Any:
        """A NumPy array as this device holds it. No copy is made where none is needed. lasting: of weights and the like, which
        are waited for; other arrays may still be on their way."""
        raise NotImplementedError

    def download(self, array: Any, dtype: np.dtype) -> np.ndarray:
        """A device array as a NumPy array of element type `dtype`. Raises what `check` does, about all that led to it."""
        raise NotImplementedError

    def adopt(self, array: Any) -> Any:
        """An array of any library in GPU memory as this device holds it, without a copy where it lies on this device."""
        raise InputError(f"an array in GPU memory was given to a model on {self.name}; load the model with device='cuda'")

    def borrow(self, pointer: int, type: TensorType) -> Any:
        """Memory that somebody else owns, as an array. Nothing keeps it alive."""
        raise NotImplementedError

    def owned(self, array: Any) -> Any:
        """A fresh copy that no arena will overwrite."""
        return array.copy()

    def settle(self) -> None:
        """Wait until nothing goes on besides that times would show."""

    def fresh(self, like: Any) -> Any:
        """A contiguous array of this one's shape and type, of no contents."""
        return self.xp.empty(like.shape, like.dtype)

    def filled(self, shape: tuple[int, ...], number: Any) -> Any:
        """A contiguous array that holds one number everywhere. number: an array with that one element."""
        made = self.fresh(self.xp.broadcast_to(number, shape))
        made[...] = number
        return made

    def copier(self, out: Any, x: Any) -> Callable[[], Any]:
        """A call that copies x into `out`, an array of the same shape and type, whatever the strides of the two."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<Device {self.name}>"


class Host(Device):
    """The CPU: NumPy arrays."""

    backend = "numpy"
    xp = np
    name = "cpu"

    def allocate(self, nbytes: int) -> Any:
        require_memory(nbytes, "one call's memory")
        try:
            memory = np.empty(nbytes + ALIGNMENT, np.uint8)
        except MemoryError as error:
            raise OutOfMemory(f"an arena of {nbytes} bytes does not fit into memory") from error
        start = -memory.ctypes.data % ALIGNMENT
        return memory[start : start + nbytes]

    def view(self, memory: Any, offset: int, type: TensorType, strides: tuple[int, ...] | None = None) -> Any:
        return np.ndarray(type.shape, type.dtype, memory, offset, strides)

    def upload(self, array: np.ndarray, lasting: bool = False) -> Any:
        return array

    def borrow(self, pointer: int, type: TensorType) -> Any:
        memory = (ctypes.c_ubyte * type.nbytes).from_address(pointer)
        return np.ctypeslib.as_array(memory).view(type.dtype).reshape(type.shape)

    def copier(self, out: Any, x: Any) -> Callable[[], Any]:
        return copier(out, x)

    def download(self, array: Any, dtype: np.dtype) -> np.ndarray:
        return array


class Cuda(Device):
    """An NVIDIA GPU: CuPy arrays. Element types that CuPy lacks are held as unsigned integers of the same width."""

    backend = "cupy"
    tunes = True
    remote = True
    records = True

    def __init__(self, index: int = 0, allow_tf32: bool | None = None, deterministic: bool = False) -> None:
        import cupy

        import flamert.ops.cuda  # noqa: F401 (registers the kernels)

        self.xp = cupy
        self.index = index
        self.allow_tf32, self.deterministic = allow_tf32, deterministic
        self.name = f"cuda:{index}"

    def allocate(self, nbytes: int) -> Any:
        with self.xp.cuda.Device(self.index):
            return self.xp.empty(max(nbytes, 1), self.xp.uint8)

    @functools.cached_property
    def signature(self) -> tuple[Any, ...]:
        from flamert.ops.cuda import cudnn, tuning

        installed = self.xp.__version__, self.xp.cuda.runtime.runtimeGetVersion(), cudnn.available()
        return tuning.machine(self.index), *installed, self.allow_tf32, self.deterministic

    def reclaim(self) -> None:
        with self.xp.cuda.Device(self.index) as here:
            here.synchronize()
            super().reclaim()
            self.trim()

    def settle(self) -> None:
        from flamert.ops.cuda.launch import settle

        settle()

    def trim(self) -> None:
        with self.xp.cuda.Device(self.index):
            self.xp.get_default_memory_pool().free_all_blocks()

    def room(self) -> tuple[int, int]:
        with self.xp.cuda.Device(self.index) as here:
            free, total = here.mem_info
        return free, total

    def owned(self, array: Any) -> Any:
        return self.afford(functools.partial(self._copied, array), array.nbytes, "a result")

    def fresh(self, like: Any) -> Any:
        return self.afford(functools.partial(self.xp.empty, like.shape, like.dtype), like.nbytes, "a result")

    def _copied(self, array: Any) -> Any:
        """By the engine that copies memory as it lies, where CuPy would copy element by element."""
        made = self.xp.empty(array.shape, array.dtype)
        if not array.flags.c_contiguous or not array.size:
            self.copier(made, array)()
            return made
        made.data.copy_from_device_async(array.data, array.nbytes, self.xp.cuda.get_current_stream())
        return made

    def view(self, memory: Any, offset: int, type: TensorType, strides: tuple[int, ...] | None = None) -> Any:
        return self.xp.ndarray(type.shape, storage(type.dtype), memory.data + offset, strides)

    def upload(self, array: np.ndarray, lasting: bool = False) -> Any:
        with self.xp.cuda.Device(self.index):
            held, type = array.view(storage(array.dtype)), TensorType(array.shape, array.dtype)
            straight = lasting and array.nbytes >= STRAIGHT and array.flags.c_contiguous
            return self.afford(lambda: (self._straight if straight else self.xp.asarray)(held), array.nbytes, type)

    def _straight(self, array: np.ndarray) -> Any:
        """A copy that no memory is page-locked for, which would take longer than the copy itself."""
        made = self.xp.empty(array.shape, array.dtype)
        stream = self.xp.cuda.get_current_stream()
        made.data.copy_from_host_async(array.ctypes.data, array.nbytes, stream)
        stream.synchronize()
        return made

    def adopt(self, array: Any) -> Any:
        with self.xp.cuda.Device(self.index):
            if not isinstance(array, self.xp.ndarray):
                array = self.xp.from_dlpack(array)
            return array if array.device.id == self.index else array.copy()

    def borrow(self, pointer: int, type: TensorType) -> Any:
        memory = self.xp.cuda.UnownedMemory(pointer, type.nbytes, None, self.index)
        return self.xp.ndarray(type.shape, storage(type.dtype), self.xp.cuda.MemoryPointer(memory, 0))

    def copier(self, out: Any, x: Any) -> Callable[[], Any]:
        from flamert.ops.cuda.copy import copier

        return copier(out, x)

    def download(self, array: Any, dtype: np.dtype) -> np.ndarray:
        found = self.xp.asnumpy(array).view(dtype)
        self.check()
        return found

    def synchronize(self) -> None:
        self.xp.cuda.get_current_stream().synchronize()

    @functools.cached_property
    def faults(self) -> Any:
        """Where kernels note indices out of range."""
        from flamert.runtime.faults import Faults

        return Faults.of(self.xp, self.index)

    @property
    def faulty(self) -> bool:
        return self.faults.found

    def check(self) -> None:
        self.faults.check()


_NATIVE = frozenset(map(np.dtype, "?bhilqBHILQefdFD"))


@functools.cache
def storage(dtype: np.dtype) -> np.dtype:
    """The element type that a GPU array of `dtype` has: itself, or unsigned bytes where CuPy has no such type."""
    return dtype if dtype in _NATIVE or dtype == np.dtype(ml_dtypes.bfloat16) else np.dtype(f"u{dtype.itemsize}")


@functools.cache
def device(name: str | None = None, allow_tf32: bool | None = None, deterministic: bool = False) -> Device:
    """`None` (CUDA if there is a GPU, else the CPU), "cpu", "cuda" or "cuda:1".

    allow_tf32: whether products of float32 may round their operands to TF32's ten bits; None: those of convolutions only.
    deterministic: the same bits for the same inputs, whatever that costs. A CPU does the latter and not the former.
    """
    if name is None:
        name = "cuda" if _gpus() else "cpu"
    if name == "cpu":
        return Host()
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index or "0").isdigit():
        raise DeviceError(f"unknown device {name!r}: use None, 'cpu', 'cuda' or 'cuda:N'")
    if int(index or 0) >= _gpus():
        raise DeviceError(f"{name!r}: CuPy finds {_gpus()} GPUs here. Install flamert[gpu] and a driver, or use 'cpu'")
    return Cuda(int(index or 0), allow_tf32, deterministic)


@functools.cache
def _gpus() -> int:
    try:
        import cupy

        return cupy.cuda.runtime.getDeviceCount() if cupy.cuda.is_available() else 0
    except Exception:  # CuPy absent, or a driver that fails to answer: both mean that no GPU can be used
        return 0
