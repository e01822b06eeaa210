"""Element types of at most eight bits as bytes: tables that decode and encode them on devices that have no such types."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from flamert import dtypes

ROUND_MODES = ("up", "down", "nearest")
"""How a number between two powers of two becomes a float8_e8m0fnu; other types round to nearest, halves to even."""


@functools.cache
def _values(dtype: np.dtype) -> np.ndarray:
    """What each byte means: int8 for integers, float32 for floats."""
    return np.arange(256, dtype=np.uint8).view(dtype).astype(np.int8 if dtype in dtypes.NARROW_INTEGER else np.float32)


@functools.cache
def _positive(dtype: np.dtype) -> np.ndarray:
    """The finite values from 0 up, which are the codes 0, 1, 2, … (float8_e8m0fnu starts at 2⁻¹²⁷)."""
    if dtype == dtypes.float8_e8m0fnu:
        return np.ldexp(np.float32(1), np.arange(-127, 128)).astype(np.float32)
    values = _values(dtype)[: 1 << (_bits(dtype) - 1)]
    return values[np.isfinite(values)]


def _bits(dtype: np.dtype) -> int:
    return 6 if dtype in (dtypes.float6_e2m3fn, dtypes.float6_e3m2fn) else dtypes.bits(dtype)


@functools.cache
def _thresholds(dtype: np.dtype, round_mode: str) -> np.ndarray:
    """x ≥ 0 has the code n where exactly n thresholds lie below x. The last one marks the overflow."""
    values = _positive(dtype).astype(np.float64)
    if dtype == dtypes.float8_e8m0fnu:
        if round_mode == "up":
            return values.astype(np.float32)
        borders = (values[1:] if round_mode == "down" else values[:-1] * 1.5).astype(np.float32)
        # A number on the border goes up, and the last border is beyond float32.
        return np.append(
            np.nextafter(borders, np.float32(0)), np.float32(values[-1] * 1.5 if round_mode == "nearest" else np.inf)
        )
    beyond = 2 * values[-1] - values[-2]
    middles = ((values + np.append(values[1:], beyond)) / 2).astype(np.float32)
    # Halves go to the even code: a middle above an odd code counts as already passed when it is met.
    middles[1::2] = np.nextafter(middles[1::2], np.float32(0))
    return middles


def decode(xp: Any, codes: Any, dtype: np.dtype) -> Any:
    """Bytes that stand for `dtype` as float32 (or, for integers, int8)."""
    return xp.take(xp.asarray(_values(dtype)), codes)


def encode(xp: Any, x: Any, dtype: np.dtype, saturate: bool = True, round_mode: str = "up") -> Any:
    """float32 as bytes that stand for the narrow float `dtype`.

    Where x rounds to something beyond the largest number: that number (`saturate`), else ∞ or, lacking one, NaN.
    Types without ∞ and NaN always saturate; float8_e8m0fnu has no sign, and takes |x|.
    """
    size = xp.abs(x)
    codes = xp.searchsorted(xp.asarray(_thresholds(dtype, round_mode)), size).astype(xp.uint8)
    largest = len(_positive(dtype)) - 1
    nan, infinity = _special(dtype)
    if nan is None or saturate:
        codes = xp.minimum(codes, xp.uint8(largest))
    else:
        codes = xp.where(codes > largest, xp.uint8(infinity), codes)
        if dtype == dtypes.float8_e8m0fnu:
            codes = xp.where(size < xp.float32(2.0**-127), xp.uint8(nan), codes)
    if dtype != dtypes.float8_e8m0fnu:
        sign = xp.signbit(x)
        if dtype in (dtypes.float8_e4m3fnuz, dtypes.float8_e5m2fnuz):
            sign &= (codes > 0) & (codes != nan)  # the code of −0 is NaN's
        codes = codes | (sign.astype(xp.uint8) << (_bits(dtype) - 1))
    return codes if nan is None else xp.where(xp.isnan(x), xp.uint8(nan), codes)


def _special(dtype: np.dtype) -> tuple[int | None, int | None]:
    """The codes of NaN and of what lies beyond the largest number."""
    if dtype in (dtypes.float4_e2m1fn, dtypes.float6_e2m3fn, dtypes.float6_e3m2fn):
        return None, None
    nan = int(np.array(np.nan, np.float32).astype(dtype).view(np.uint8)) & (
        0xFF if "fnuz" in dtype.name or "e8m0" in dtype.name else 0x7F
    )
    return (nan, 0x7C) if dtype == dtypes.float8_e5m2 else (nan, nan)
