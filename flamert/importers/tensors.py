"""TensorProtos as arrays and back: element types, packing, and where the bytes lie: in the proto, cut out of it, elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import onnx
from onnx import TensorProto

from flamert import dtypes
from flamert.errors import InvalidModel, UnsafeModel, UnsupportedType
from flamert.importers.external import Folder
from flamert.importers.wire import Tickets
from flamert.limits import MAX_ELEMENTS, require_memory

DTYPES: dict[int, np.dtype] = {
    TensorProto.FLOAT: dtypes.float32,
    TensorProto.UINT8: dtypes.uint8,
    TensorProto.INT8: dtypes.int8,
    TensorProto.UINT16: dtypes.uint16,
    TensorProto.INT16: dtypes.int16,
    TensorProto.INT32: dtypes.int32,
    TensorProto.INT64: dtypes.int64,
    TensorProto.STRING: dtypes.string,
    TensorProto.BOOL: dtypes.bool_,
    TensorProto.FLOAT16: dtypes.float16,
    TensorProto.DOUBLE: dtypes.float64,
    TensorProto.UINT32: dtypes.uint32,
    TensorProto.UINT64: dtypes.uint64,
    TensorProto.COMPLEX64: dtypes.complex64,
    TensorProto.COMPLEX128: dtypes.complex128,
    TensorProto.BFLOAT16: dtypes.bfloat16,
    TensorProto.FLOAT8E4M3FN: dtypes.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: dtypes.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: dtypes.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: dtypes.float8_e5m2fnuz,
    TensorProto.FLOAT8E8M0: dtypes.float8_e8m0fnu,
    TensorProto.FLOAT4E2M1: dtypes.float4_e2m1fn,
    TensorProto.FLOAT6E2M3: dtypes.float6_e2m3fn,
    TensorProto.FLOAT6E3M2: dtypes.float6_e3m2fn,
    TensorProto.UINT4: dtypes.uint4,
    TensorProto.INT4: dtypes.int4,
    TensorProto.UINT2: dtypes.uint2,
    TensorProto.INT2: dtypes.int2,
}


def dtype_of(element_type: int) -> np.dtype:
    """The element type of an ONNX TensorProto.DataType number."""
    try:
        return DTYPES[element_type]
    except KeyError:
        raise UnsupportedType(f"unknown ONNX element type {element_type}") from None


TensorReader = Callable[[TensorProto], np.ndarray]
"""How a TensorProto becomes an array: inline data, or external data where that is allowed."""


class Tensors:
    """The tensors of one model as read-only arrays, wherever their bytes lie. A TensorReader.

    tickets: those of `wire.cut`, for tensors taken out of the file. folder: where external data may come from, if anywhere.
    """

    def __init__(self, tickets: Tickets | None = None, folder: Folder | None = None) -> None:
        self.tickets = tickets or Tickets()
        self.folder = folder
        self.kept: dict[int, np.ndarray] = {}
        """By ticket: the bytes of tensors in attributes and subgraphs, which belong to the file. Weights live in `params`."""

    def __call__(self, proto: TensorProto) -> np.ndarray:
        array = self._read(proto)
        array.flags.writeable = False
        return array

    def _read(self, proto: TensorProto) -> np.ndarray:
        dtype, shape, size = declared(proto)
        if proto.data_location == TensorProto.EXTERNAL:
            if dtype == dtypes.string:
                raise InvalidModel(f"tensor {proto.name!r} has strings in a data file, where only numbers can be")
            if self.folder is None:
                raise UnsafeModel(
                    f"tensor {proto.name!r} lies in another file; a model given as bytes or proto has no folder: give its path"
                )
            return unpack(_aligned(self.folder.read(proto, stored_bytes(dtype, size)), dtype), dtype, size).reshape(shape)
        number = self.tickets.number(proto.raw_data) if len(proto.raw_data) == Tickets.SIZE else None
        if number is None:
            return inline_tensor(proto)
        _check_length(proto, dtype, len(self.tickets.cut[number]), size)
        # Copied: the file can then be closed, rewritten or truncated, and tensors start where their element type wants it.
        raw = np.array(np.frombuffer(self.tickets.cut[number], np.uint8))
        self.kept[number] = raw
        return unpack(raw, dtype, size).reshape(shape)

    def release(self, weights: Iterable[TensorProto]) -> None:
        """Let go of the file's bytes, once all tensors have been read, and of second copies of the weights."""
        self.tickets.cut.clear()
        for proto in weights:
            if (number := self.tickets.number(proto.raw_data)) is not None:
                self.kept.pop(number, None)


def declared(proto: TensorProto) -> tuple[np.dtype, tuple[int, ...], int]:
    """Element type, shape and number of elements. Raises InvalidModel for dimensions that no tensor can have."""
    shape = tuple(proto.dims)
    return dtype_of(proto.data_type), shape, elements(shape, f"tensor {proto.name!r}")


def elements(shape: tuple[int, ...], what: str) -> int:
    """Number of elements. Raises InvalidModel for negative dimensions, and where their product overflows 64 bits."""
    if any(d < 0 for d in shape):
        raise InvalidModel(f"{what} has a negative dimension in {shape}")
    if math.prod(d or 1 for d in shape) > MAX_ELEMENTS:
        raise InvalidModel(f"{what} of shape {shape} has more elements than any machine can address")
    return math.prod(shape)


def stored_bytes(dtype: np.dtype, size: int) -> int:
    """Bytes that so many elements take in a file."""
    return -(-size * dtypes.bits(dtype) // 8)


def inline_tensor(proto: TensorProto) -> np.ndarray:
    """The array of a TensorProto that holds its own data, checked against its dims. Raw data is not copied."""
    dtype, shape, size = declared(proto)
    if proto.HasField("raw_data") and dtype != dtypes.string:
        raw = proto.raw_data
        _check_length(proto, dtype, len(raw), size)
        return unpack(np.frombuffer(raw, np.uint8), dtype, size).reshape(shape)
    return _from_fields(proto, dtype, size).reshape(shape)


def _check_length(proto: TensorProto, dtype: np.dtype, held: int, size: int) -> None:
    want = stored_bytes(dtype, size)
    if held != want or dtype == dtypes.string:
        shape = tuple(proto.dims)
        raise InvalidModel(f"tensor {proto.name!r} of shape {shape} and type {dtype.name} needs {want} bytes, holds {held}")


def _aligned(raw: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The same bytes, where elements start on multiples of their size: NumPy is slow on others, and some kernels refuse."""
    return raw if raw.ctypes.data % max(dtype.itemsize, 1) == 0 else raw.copy()


def unpack(raw: np.ndarray, dtype: np.dtype, size: int) -> np.ndarray:
    """Bytes of an ONNX file as elements: little-endian, types under a byte packed from the low bits up.

    raw: exactly the bytes that so many elements take.
    """
    bits = dtypes.bits(dtype)
    if dtype == dtypes.bool_:
        return raw != 0  # a byte other than 0 and 1 would be a bool that NumPy does not expect
    if bits >= 8:
        return raw.view(dtype)
    if bits == 6:
        rows = np.unpackbits(raw, bitorder="little")[: 6 * size].reshape(size, 6)
        return np.packbits(rows, axis=1, bitorder="little").reshape(size).view(dtype)
    per_byte = 8 // bits
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    codes = ((raw[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)[:size]
    if dtype in dtypes.NARROW_INTEGER:
        signed = codes.astype(np.int8)
        if dtype in dtypes.SIGNED:
            signed[signed >= 1 << (bits - 1)] -= 1 << bits
        return signed.astype(dtype)
    return codes.view(dtype)


def pack(array: np.ndarray) -> np.ndarray:
    """Elements as the bytes of an ONNX file: the inverse of `unpack`."""
    bits = dtypes.bits(array.dtype)
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if bits >= 8:
        return flat
    if bits == 6:
        rows = np.unpackbits(flat[:, None], axis=1, bitorder="little")[:, :6]
        return np.packbits(rows.reshape(-1), bitorder="little")
    per_byte = 8 // bits
    codes = np.zeros(-(-flat.size // per_byte) * per_byte, np.uint8)
    codes[: flat.size] = flat & ((1 << bits) - 1)
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    return np.bitwise_or.reduce(codes.reshape(-1, per_byte) << shifts, axis=1)


_INT32_FIELD = frozenset({dtypes.int32, dtypes.int16, dtypes.int8, dtypes.uint16, dtypes.uint8, dtypes.bool_})


def _from_fields(proto: TensorProto, dtype: np.dtype, size: int) -> np.ndarray:
    """A tensor stored in the typed repeated fields (float_data, int32_data, …)."""
    bits = dtypes.bits(dtype)
    if dtype == dtypes.string:
        data = np.array([s.decode("utf-8", "surrogateescape") for s in proto.string_data] or [], object)
    elif dtype in (dtypes.float32, dtypes.complex64):
        data = np.array(proto.float_data, np.float32).view(dtype)
    elif dtype in (dtypes.float64, dtypes.complex128):
        data = np.array(proto.double_data, np.float64).view(dtype)
    elif dtype == dtypes.int64:
        data = np.array(proto.int64_data, np.int64)
    elif dtype in (dtypes.uint32, dtypes.uint64):
        data = np.array(proto.uint64_data, np.uint64).astype(dtype)
    elif bits < 8:
        data = unpack(np.array(proto.int32_data, np.int32).astype(np.uint8), dtype, size)
    elif dtype in _INT32_FIELD:
        data = np.array(proto.int32_data, np.int32).astype(dtype)
    else:  # float16, bfloat16, float8: bit patterns
        data = np.array(proto.int32_data, np.int32).astype(f"u{dtype.itemsize}").view(dtype)
    if data.size != size:
        raise InvalidModel(f"tensor {proto.name!r} of shape {tuple(proto.dims)} needs {size} elements, holds {data.size}")
    return data


def dense(proto: onnx.SparseTensorProto, tensors: TensorReader) -> np.ndarray:
    """A SparseTensorProto as an array; indices are linear or one row per element, in any order."""
    name, shape = proto.values.name, tuple(proto.dims)
    values, indices = tensors(proto.values).reshape(-1), tensors(proto.indices)
    size = elements(shape, f"sparse tensor {name!r}")
    require_memory(size * values.dtype.itemsize, f"sparse tensor {name!r} of shape {shape}, written out,")
    rows = indices if indices.ndim == 2 else np.stack(np.unravel_index(_within(indices, size, name), shape), 1)
    if rows.shape != (values.size, len(shape)):
        raise InvalidModel(f"sparse tensor {name!r} has {values.size} values and indices of shape {indices.shape}")
    for axis, d in enumerate(shape):
        _within(rows[:, axis], d, name)
    result = np.zeros(shape, values.dtype)
    result[tuple(rows.T)] = values
    return result


def _within(indices: np.ndarray, size: int, name: str) -> np.ndarray:
    if indices.dtype not in dtypes.INTEGER or (indices.size and (indices.min() < 0 or indices.max() >= size)):
        raise InvalidModel(f"sparse tensor {name!r} has indices outside its shape")
    return indices
