"""Element types by their field-standard names, and the questions type rules ask of them. No arithmetic here."""

from __future__ import annotations

import ml_dtypes
import numpy as np

bool_ = np.dtype(np.bool_)
int8, int16, int32, int64 = (np.dtype(t) for t in (np.int8, np.int16, np.int32, np.int64))
uint8, uint16, uint32, uint64 = (np.dtype(t) for t in (np.uint8, np.uint16, np.uint32, np.uint64))
float16, float32, float64 = (np.dtype(t) for t in (np.float16, np.float32, np.float64))
complex64, complex128 = np.dtype(np.complex64), np.dtype(np.complex128)
string = np.dtype(object)

bfloat16 = np.dtype(ml_dtypes.bfloat16)
float8_e4m3fn, float8_e4m3fnuz = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e4m3fnuz)
float8_e5m2, float8_e5m2fnuz = np.dtype(ml_dtypes.float8_e5m2), np.dtype(ml_dtypes.float8_e5m2fnuz)
float8_e8m0fnu = np.dtype(ml_dtypes.float8_e8m0fnu)
float6_e2m3fn, float6_e3m2fn = np.dtype(ml_dtypes.float6_e2m3fn), np.dtype(ml_dtypes.float6_e3m2fn)
float4_e2m1fn = np.dtype(ml_dtypes.float4_e2m1fn)
int4, uint4 = np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.uint4)
int2, uint2 = np.dtype(ml_dtypes.int2), np.dtype(ml_dtypes.uint2)

HALF = frozenset({float16, bfloat16})
STANDARD_FLOAT = frozenset({float16, bfloat16, float32, float64})
FLOAT8 = frozenset({float8_e4m3fn, float8_e4m3fnuz, float8_e5m2, float8_e5m2fnuz, float8_e8m0fnu})
NARROW_FLOAT = FLOAT8 | {float6_e2m3fn, float6_e3m2fn, float4_e2m1fn}
FLOAT = STANDARD_FLOAT | NARROW_FLOAT
COMPLEX = frozenset({complex64, complex128})
SIGNED = frozenset({int2, int4, int8, int16, int32, int64})
UNSIGNED = frozenset({uint2, uint4, uint8, uint16, uint32, uint64})
INTEGER = SIGNED | UNSIGNED
NARROW_INTEGER = frozenset({int2, uint2, int4, uint4})
ALL = FLOAT | COMPLEX | INTEGER | {bool_, string}


def accumulator(dtype: np.dtype) -> np.dtype:
    """The type that sums of `dtype` are kept in: float32 for half and narrower floats, else `dtype` itself."""
    return float32 if dtype in HALF or dtype in NARROW_FLOAT else dtype


def widens(of: np.dtype, to: np.dtype) -> bool:
    """Whether `to` is a wider standard floating type, so that a cast to it keeps every number what it is."""
    return {of, to} <= STANDARD_FLOAT and of.itemsize < to.itemsize


def bits(dtype: np.dtype) -> int:
    """Bits that one element takes in an ONNX file, where types below a byte are packed."""
    if dtype in (int2, uint2):
        return 2
    if dtype in (int4, uint4, float4_e2m1fn):
        return 4
    if dtype in (float6_e2m3fn, float6_e3m2fn):
        return 6
    return dtype.itemsize * 8
