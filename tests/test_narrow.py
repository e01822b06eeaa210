"""The byte codecs of ops/narrow.py against ml_dtypes, on every code, every border between codes, and their neighbours."""

import ml_dtypes
import numpy as np
import pytest

from flamert import dtypes, ops
from flamert import graph as g
from flamert.ops.evaluate import evaluate
from flamert.ops.narrow import decode, encode

FLOATS = sorted(dtypes.NARROW_FLOAT - {dtypes.float8_e8m0fnu}, key=str)


def borders(dtype):
    values = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
    values = np.unique(values[np.isfinite(values)])
    middles = (values[1:] + values[:-1]) / 2
    largest = values[-1] + (values[-1] - values[-2]) * np.array([0.5, 1, 2, 1000], np.float32)
    x = np.concatenate([values, middles, largest, -largest]).astype(np.float32)
    infinity = np.float32(np.inf)
    return np.concatenate([x, np.nextafter(x, infinity), np.nextafter(x, -infinity), np.array([0.0, -0.0], np.float32)])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_encode_rounds_as_ml_dtypes_does(dtype):
    x = borders(dtype)
    with np.errstate(all="ignore"):
        expected = x.astype(dtype).astype(np.float32)
    got = encode(np, x, dtype, saturate=False).view(dtype).astype(np.float32)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got[expected != 0]), np.signbit(expected[expected != 0]))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_encode_saturates(dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    x = np.array([np.inf, -np.inf, 1e30, -1e30], np.float32)
    np.testing.assert_array_equal(encode(np, x, dtype).view(dtype).astype(np.float32), largest * np.sign(x))


@pytest.mark.parametrize("dtype", sorted(dtypes.NARROW_FLOAT | dtypes.NARROW_INTEGER, key=str), ids=str)
def test_decode(dtype):
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(decode(np, codes, dtype).astype(np.float64), codes.view(dtype).astype(np.float64))


@pytest.mark.parametrize(
    ("round_mode", "expected"), [("up", [0, 1, 2, 3, 128]), ("down", [0, 0, 1, 2, 127]), ("nearest", [0, 0, 1, 3, 128])]
)
def test_e8m0_rounds_as_asked(round_mode, expected):
    x = np.array([2.0**-127, 1.25 * 2.0**-127, 1.25 * 2.0**-126, 1.5 * 2.0**-125, 1.75], np.float32)
    np.testing.assert_array_equal(encode(np, x, dtypes.float8_e8m0fnu, round_mode=round_mode), expected)


def test_e8m0_out_of_range():
    x = np.array([0, np.inf, 1.9 * 2.0**127, np.nan], np.float32)
    np.testing.assert_array_equal(encode(np, x, dtypes.float8_e8m0fnu), [0, 254, 254, 255])
    np.testing.assert_array_equal(encode(np, x, dtypes.float8_e8m0fnu, saturate=False, round_mode="nearest"), [255] * 4)


@pytest.mark.parametrize("dtype", [d for d in FLOATS if d in dtypes.FLOAT8], ids=str)
def test_cast_without_saturation(dtype):
    x = g.constant(np.float32([1e6, -1e6, np.nan, 1.5]))
    got = evaluate([ops.cast(x, to=dtype, saturate=False)])[0].astype(np.float32)
    beyond = np.inf if dtype == dtypes.float8_e5m2 else np.nan
    np.testing.assert_array_equal(got, np.float32([beyond, -beyond, np.nan, 1.5]))
