"""A binding of cuBLASLt, as far as matrix products need it: row-major arrays, own workspace and stream, safe to capture."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from flamert import dtypes
from flamert.errors import DeviceError

WORKSPACE_BYTES = 32 << 20

CANDIDATES = 16
"""Algorithms that are tried where a product is tuned."""

_TYPES = {dtypes.float32: 0, dtypes.float64: 1, dtypes.float16: 2, dtypes.bfloat16: 14}  # cudaDataType
_COMPUTE_32F, _COMPUTE_64F, _COMPUTE_TF32 = 68, 70, 77  # cublasComputeType_t
_TRANSA, _TRANSB, _EPILOGUE, _BIAS = 3, 4, 7, 8  # cublasLtMatmulDescAttributes_t
_EPILOGUES = {"": 4, "gelu_tanh": 36}  # cublasLtEpilogue_t: a bias, and what is made of the sum
_BATCH_COUNT, _BATCH_STRIDE = 5, 6  # cublasLtMatrixLayoutAttribute_t
_MAX_WORKSPACE, _ALIGNMENTS = 1, (5, 6, 7, 8)  # cublasLtMatmulPreferenceAttributes_t; of A, B, C and D

MOST_ALIGNED = 256
"""Bytes that cuBLASLt takes addresses to be multiples of unless it is told otherwise; not all algorithms need that."""


ACTIVATIONS = frozenset(_EPILOGUES)
"""What a product with a bias can end with. There is a relu, too, which makes 0 of NaN."""


class _Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    from cuda.pathfinder import load_nvidia_dynamic_lib

    return ctypes.CDLL(load_nvidia_dynamic_lib("cublasLt").abs_path)


@functools.cache
def _handle(device: int) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    _check(_library().cublasLtCreate(ctypes.byref(handle)), "create")
    return handle


@functools.cache
def version() -> int:
    """Of the library."""
    _library().cublasLtGetVersion.restype = ctypes.c_size_t
    return int(_library().cublasLtGetVersion())


def _check(status: int, what: str) -> None:
    if status:
        raise DeviceError(f"cuBLASLt {what} failed with status {status}")


class Matrix(NamedTuple):
    """How one operand lies: rows × columns as multiplied, and the stride between rows (transposed: columns) in elements."""

    rows: int
    columns: int
    leading: int
    transposed: bool
    batch_stride: int


class Product:
    """D[b] = activation(factor · A[b] · B[b] + bias) for b < batch, with D row-major and contiguous. Built once, then launched.

    dtype: of all, but for D where `result` says so; halves accumulate in float32, and can leave a D of it. tf32: let float32
    products round their operands to TF32. bias: the address of one number for each column of D, where there is a bias; without
    one there is no activation. activation: one of `ACTIVATIONS`. alignments: bytes, up to `MOST_ALIGNED`, that the
    addresses of A, B and D are multiples of.
    """

    def __init__(
        self,
        a: Matrix,
        b: Matrix,
        batch: int,
        dtype: np.dtype,
        *,
        tf32: bool,
        device: int,
        result: np.dtype | None = None,
        factor: float = 1.0,
        bias: int | None = None,
        activation: str = "",
        alignments: tuple[int, int, int] = (MOST_ALIGNED,) * 3,
    ) -> None:
        self._lib = _library()
        self.device, self.tf32 = device, tf32
        more: list[Any] = [] if bias is None else ["bias", *([activation] if activation else [])]
        more += [] if min(alignments) == MOST_ALIGNED else [alignments]
        more += [] if result in (None, dtype) else [result.name]
        self.key = repr((a, b, batch, dtype.name, tf32, *more))
        kind = _TYPES[dtype]
        double = dtype == dtypes.float64
        compute = _COMPUTE_64F if double else _COMPUTE_TF32 if tf32 and dtype == dtypes.float32 else _COMPUTE_32F
        scale = ctypes.c_double if double else ctypes.c_float
        self._factor, self._zero = scale(factor), scale(0)
        self._desc = ctypes.c_void_p()
        _check(self._lib.cublasLtMatmulDescCreate(ctypes.byref(self._desc), compute, 1 if double else 0), "description")
        # Row-major D = A·B is column-major Dᵀ = Bᵀ·Aᵀ: cuBLASLt is given B first.
        self._set("MatmulDesc", self._desc, _TRANSA, ctypes.c_int32(b.transposed))
        self._set("MatmulDesc", self._desc, _TRANSB, ctypes.c_int32(a.transposed))
        self._bias, self._columns = bias, b.columns
        if bias is not None:
            # Columns of D are what cuBLASLt calls rows, to each of which it adds one number.
            self._set("MatmulDesc", self._desc, _EPILOGUE, ctypes.c_int32(_EPILOGUES[activation]))
            self._set("MatmulDesc", self._desc, _BIAS, ctypes.c_uint64(bias))
        self._a = self._layout(kind, b, batch)
        self._b = self._layout(kind, a, batch)
        self._d = self._layout(_TYPES[result or dtype], Matrix(a.rows, b.columns, b.columns, False, a.rows * b.columns), batch)
        self.candidates = self._found(alignments)
        self.algorithm = self.candidates[0]

    def _set(self, kind: str, where: ctypes.c_void_p, key: int, value: Any) -> None:
        setter = getattr(self._lib, f"cublasLt{kind}SetAttribute")
        _check(setter(where, key, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value))), f"attribute {key}")

    def _layout(self, kind: int, m: Matrix, batch: int) -> ctypes.c_void_p:
        """The column-major view of a row-major operand as it lies in memory."""
        layout = ctypes.c_void_p()
        rows, columns = (m.rows, m.columns) if m.transposed else (m.columns, m.rows)
        create = self._lib.cublasLtMatrixLayoutCreate
        status = create(
            ctypes.byref(layout), kind, ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(max(m.leading, rows, 1))
        )
        _check(status, "layout")
        if batch > 1:
            self._set("MatrixLayout", layout, _BATCH_COUNT, ctypes.c_int32(batch))
            self._set("MatrixLayout", layout, _BATCH_STRIDE, ctypes.c_int64(m.batch_stride))
        return layout

    def _found(self, alignments: tuple[int, int, int]) -> list[_Heuristic]:
        """Algorithms for this product, the most promising first."""
        preference = ctypes.c_void_p()
        _check(self._lib.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)), "preference")
        self._set("MatmulPreference", preference, _MAX_WORKSPACE, ctypes.c_uint64(WORKSPACE_BYTES))
        a, b, d = alignments
        for attribute, bytes_ in zip(_ALIGNMENTS, (b, a, d, d), strict=True):
            self._set("MatmulPreference", preference, attribute, ctypes.c_uint32(bytes_))
        found, count = (_Heuristic * CANDIDATES)(), ctypes.c_int()
        status = self._lib.cublasLtMatmulAlgoGetHeuristic(
            *(_handle(self.device), self._desc, self._a, self._b, self._d, self._d, preference),
            *(CANDIDATES, found, ctypes.byref(count)),
        )
        self._lib.cublasLtMatmulPreferenceDestroy(preference)
        _check(status or (0 if count.value else 15), "heuristic")
        return list(found[: count.value])

    @contextlib.contextmanager
    def without_bias(self, xp: Any) -> Iterator[None]:
        """Launches add zeros in this block."""
        if self._bias is not None:
            zeros = xp.zeros(self._columns, np.float64)  # of any type
            self._set("MatmulDesc", self._desc, _BIAS, ctypes.c_uint64(zeros.data.ptr))
        try:
            yield
        finally:
            if self._bias is not None:
                self._set("MatmulDesc", self._desc, _BIAS, ctypes.c_uint64(self._bias))

    def recall(self, chosen: str) -> None:
        """Take an algorithm that was chosen before: its contents in hex."""
        restored = _Heuristic()
        ctypes.memmove(ctypes.byref(restored), bytes.fromhex(chosen), ctypes.sizeof(restored.algorithm))
        self.algorithm = restored

    @property
    def choice(self) -> str:
        """The algorithm's contents in hex; they mean the same to this version of the library."""
        return bytes(self.algorithm.algorithm).hex()

    def __call__(self, a: int, b: int, d: int, workspace: int, stream: int) -> None:
        """Launch on device addresses."""
        pointer = ctypes.c_void_p
        status = self._lib.cublasLtMatmul(
            *(_handle(self.device), self._desc, ctypes.byref(self._factor), pointer(b), self._a, pointer(a), self._b),
            *(ctypes.byref(self._zero), pointer(d), self._d, pointer(d), self._d, ctypes.byref(self.algorithm)),
            *(pointer(workspace), ctypes.c_size_t(WORKSPACE_BYTES), pointer(stream)),
        )
        _check(status, "product")

    def __del__(self) -> None:
        for layout in (getattr(self, name, None) for name in ("_a", "_b", "_d")):
            if layout:
                self._lib.cublasLtMatrixLayoutDestroy(layout)
        if getattr(self, "_desc", None):
            self._lib.cublasLtMatmulDescDestroy(self._desc)
