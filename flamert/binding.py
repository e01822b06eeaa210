"""onnxruntime's OrtValue and IOBinding: inputs and outputs that stay where they are, on the host or on a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flamert.errors import InputError
from flamert.feeds import on_gpu
from flamert.graph import TensorType
from flamert.importers.about import element_name, element_number
from flamert.importers.onnx import dtype_of
from flamert.runtime.device import Device, device

if TYPE_CHECKING:
    from flamert.session import InferenceSession


def device_of(device_type: str, device_id: int = 0) -> Device:
    """The device that onnxruntime calls ("cpu", 0) or ("cuda", 1)."""
    kind = device_type.lower()
    return device("cpu" if kind in ("cpu", "cuda_pinned") else f"{kind}:{device_id}")


def _element_type(given: Any) -> np.dtype:
    """An element type given as NumPy's or as ONNX's number."""
    return dtype_of(given) if isinstance(given, int) else np.dtype(given)


class OrtValue:
    """A tensor (or a list of them) on a device. Make one with the class methods."""

    def __init__(self, value: Any, where: Device, dtype: np.dtype | None = None) -> None:
        self.value = value
        self.where = where
        self.dtype = dtype if dtype is not None else getattr(value, "dtype", None)

    @classmethod
    def ortvalue_from_numpy(cls, numpy_obj: np.ndarray, device_type: str = "cpu", device_id: int = 0) -> OrtValue:
        """A tensor that shares the array's memory on the CPU, and is a copy elsewhere."""
        where = device_of(device_type, device_id)
        array = np.asarray(numpy_obj)
        return cls(array if array.dtype.hasobject else where.upload(array), where, array.dtype)

    @classmethod
    def ortvalue_from_shape_and_type(
        cls, shape: Sequence[int], element_type: Any = np.float32, device_type: str = "cpu", device_id: int = 0
    ) -> OrtValue:
        """Uninitialised memory for a tensor. element_type: NumPy's, or ONNX's number."""
        where = device_of(device_type, device_id)
        type = TensorType(tuple(shape), _element_type(element_type))
        memory = where.afford(lambda: where.allocate(type.nbytes), type.nbytes, type)
        return cls(where.view(memory, 0, type), where, type.dtype)

    @classmethod
    def from_dlpack(cls, data: Any) -> OrtValue:
        """A tensor that shares the memory of any array that speaks DLPack."""
        if not on_gpu(data):
            return cls.ortvalue_from_numpy(np.from_dlpack(data))
        where = device(f"cuda:{data.__dlpack_device__()[1]}")
        return cls(where.adopt(data), where)

    def numpy(self) -> Any:
        """The tensor as a NumPy array; of a sequence, a list of them."""
        if isinstance(self.value, list):
            return [OrtValue(v, self.where).numpy() for v in self.value]
        if isinstance(self.value, np.ndarray) or self.dtype is None:
            return self.value
        return self.where.download(self.value, self.dtype)

    def update_inplace(self, data: np.ndarray) -> None:
        """Copy new contents of the same type into the tensor's memory."""
        if tuple(data.shape) != tuple(self.value.shape) or data.dtype != self.dtype:
            raise InputError(f"the tensor is {self.dtype}{self.shape()}, not {data.dtype}{list(data.shape)}")
        self.value[...] = self.where.upload(data)

    def shape(self) -> list[int]:
        """Dimensions."""
        return list(self.value.shape)

    def data_type(self) -> str:
        """As onnxruntime writes it: "tensor(float)"."""
        if isinstance(self.value, list):
            return f"seq({OrtValue(self.value[0], self.where).data_type()})" if self.value else "seq(tensor(float))"
        return f"tensor({element_name(self.dtype)})" if self.dtype is not None else "undefined"

    def element_type(self) -> int:
        """ONNX's number for the element type."""
        assert self.dtype is not None
        return element_number(self.dtype)

    def device_name(self) -> str:
        """The kind of device: "cpu" or "cuda"."""
        return self.where.name.partition(":")[0]

    def data_ptr(self) -> int:
        """Address of the first element, on the device; the others follow in C order."""
        if not self.value.flags.c_contiguous:
            self.value = self.where.xp.ascontiguousarray(self.value)  # a large result can be a view
        return self.value.data.ptr if self.where.remote else self.value.ctypes.data

    def tensor_size_in_bytes(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.value.shape) * self.value.dtype.itemsize

    def has_value(self) -> bool:
        """Whether this is anything but an absent optional."""
        return self.value is not None

    def is_tensor(self) -> bool:
        """Whether this is a tensor."""
        return hasattr(self.value, "shape")

    def is_tensor_sequence(self) -> bool:
        """Whether this is a sequence of tensors."""
        return isinstance(self.value, list)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.value.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.value.__dlpack_device__()


class Target(NamedTuple):
    """Where an output goes: a device, and memory there if the caller gave some."""

    where: Device
    buffer: Any


class IOBinding:
    """Inputs and outputs of a session by name, each on a device; `session.run_with_iobinding(binding)` runs on them."""

    def __init__(self, session: InferenceSession) -> None:
        self._session = session
        self._inputs: dict[str, Any] = {}
        self._targets: dict[str, Target] = {}
        self._results: dict[str, OrtValue] = {}

    def bind_cpu_input(self, name: str, arr_on_cpu: np.ndarray) -> None:
        """An input on the host."""
        self._inputs[name] = arr_on_cpu

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], buffer_ptr: int
    ) -> None:
        """An input in memory that the caller keeps alive."""
        type = TensorType(tuple(shape), _element_type(element_type))
        self._inputs[name] = device_of(device_type, device_id).borrow(buffer_ptr, type)

    def bind_ortvalue_input(self, name: str, ortvalue: OrtValue) -> None:
        """An input that an OrtValue holds."""
        self._inputs[name] = ortvalue.value

    def bind_output(
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: Any = None,
        shape: Sequence[int] | None = None,
        buffer_ptr: int | None = None,
    ) -> None:
        """Ask for an output on a device; with a pointer, its elements are written there."""
        where = device_of(device_type, device_id)
        buffer = None
        if buffer_ptr is not None:
            if shape is None or element_type is None:
                raise InputError(f"output {name!r}: a buffer needs element_type and shape")
            buffer = where.borrow(buffer_ptr, TensorType(tuple(shape), _element_type(element_type)))
        self._targets[name] = Target(where, buffer)

    def bind_ortvalue_output(self, name: str, ortvalue: OrtValue) -> None:
        """Have an output written into an OrtValue."""
        self._targets[name] = Target(ortvalue.where, ortvalue.value)

    def run(self) -> None:
        """Run the session on what is bound. Outputs without memory of their own are new tensors each time."""
        names = tuple(self._targets)
        model = self._session.model
        host = not (model.device.remote and any(t.where.remote for t in self._targets.values()))
        for name, result in zip(names, model.execute(self._inputs, names, host=host), strict=True):
            where, buffer = self._targets[name]
            if hasattr(result, "dtype") and where.remote is host:
                result = where.upload(result) if where.remote else model.device.download(result, result.dtype)
            if buffer is not None:
                if tuple(buffer.shape) != tuple(result.shape) or buffer.dtype != result.dtype:
                    needed = f"{result.dtype}{list(result.shape)}"
                    raise InputError(f"output {name!r} is {needed}, its buffer {buffer.dtype}{list(buffer.shape)}")
                buffer[...] = result
                result = buffer
            self._results[name] = OrtValue(result, where)

    def get_outputs(self) -> list[OrtValue]:
        """The outputs of the last run, in the order in which they were bound."""
        return [self._results[name] for name in self._targets]

    def copy_outputs_to_cpu(self) -> list[Any]:
        """The outputs of the last run as NumPy arrays."""
        return [value.numpy() for value in self.get_outputs()]

    def synchronize_inputs(self) -> None:
        """Wait until copies to the device are done."""
        self._session.model.device.synchronize()

    def synchronize_outputs(self) -> None:
        """Wait until the device is done."""
        self._session.model.device.synchronize()

    def clear_binding_inputs(self) -> None:
        """Forget all inputs."""
        self._inputs.clear()

    def clear_binding_outputs(self) -> None:
        """Forget all outputs, results included."""
        self._targets.clear()
        self._results.clear()
