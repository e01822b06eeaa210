"""What differences cannot settle about gradients: kinks, saturation, half types, codes passed straight through, drawn masks."""

import math

import numpy as np
import pytest

from flamert import dtypes, ops
from flamert import graph as g
from flamert.grad import grad
from flamert.graph import TensorType
from flamert.ops.evaluate import evaluate
from flamert.testing import TOLERANCE
from tests.cases import CASES
from tests.cases.activation import FAR

EVERYWHERE = dtypes.STANDARD_FLOAT


def slopes(op, *arrays, cotangent=None, wrt=None, **attrs):
    """Gradients of the sum of op(*arrays), or of its product with `cotangent`, with respect to all floating operands.

    cotangent: an array, or a function of its shape.
    """
    given = [None if x is None else g.input(TensorType(np.shape(x), np.asarray(x).dtype)) for x in arrays]
    y = op(*given, **attrs)
    y = y[0] if isinstance(y, tuple) else y
    cotangent = cotangent(y.shape) if callable(cotangent) else cotangent
    seed = None if cotangent is None else [g.constant(np.asarray(cotangent, y.dtype))]
    operands = [v for v in given if v is not None and v.dtype in EVERYWHERE] if wrt is None else [given[i] for i in wrt]
    flows = grad(y, operands, seed)
    values = iter(evaluate([f for f in flows if f is not None], dict(zip(given, arrays, strict=True))))
    return [None if f is None else next(values) for f in flows]


def f64(*values):
    return np.array(values, np.float64)


@pytest.mark.parametrize(
    ("op", "attrs", "x", "expected"),
    [
        (ops.abs, {}, 0, 0),
        (ops.sqrt, {}, 0, math.inf),
        (ops.relu, {}, 0, 0),
        (ops.leaky_relu, {"alpha": 0.3}, 0, 0.3),
        (ops.elu, {"alpha": 0.3}, 0, 0.3),
        (ops.selu, {"alpha": 0.5, "gamma": 3.0}, 0, 1.5),
        (ops.thresholded_relu, {"alpha": 2.0}, 2, 0),
        (ops.shrink, {"lambd": 1.0}, 1, 0),
        (ops.hard_sigmoid, {"alpha": 0.5, "beta": 0.5}, -1, 0),
        (ops.hard_sigmoid, {"alpha": 0.5, "beta": 0.5}, 1, 0),
        (ops.hard_swish, {}, -3, 0),
        (ops.hard_swish, {}, 3, 1),
        (ops.softsign, {}, 0, 1),
    ],
    ids=str,
)
def test_kinks_are_torchs(op, attrs, x, expected):
    assert slopes(op, f64(x), **attrs)[0] == expected


def test_ties_are_split():
    for op in (ops.maximum, ops.minimum):
        np.testing.assert_array_equal(slopes(op, f64(1, 2, 3), f64(2, 2, 2))[0] + slopes(op, f64(1, 2, 3), f64(2, 2, 2))[1], 1)
    np.testing.assert_array_equal(slopes(ops.maximum, f64(1, 2, 3), f64(2, 2, 2)), [[0, 0.5, 1], [1, 0.5, 0]])


def test_clip_passes_its_bounds():
    x = f64(-2, -1, 0, 1, 2)
    np.testing.assert_array_equal(slopes(ops.clip, x, f64(-1)[0], f64(1)[0])[0], [0, 1, 1, 1, 0])
    assert slopes(ops.clip, x, f64(-1)[0], f64(1)[0])[1:] == [1, 1]
    assert slopes(ops.clip, x, None, f64(1)[0])[1] == 1
    dx, low, high = slopes(ops.clip, x, f64(1)[0], f64(-1)[0])
    assert not dx.any() and (low, high) == (0, 5), "where bounds cross, the upper one holds"


def test_prelu_at_zero():
    assert slopes(ops.prelu, f64(0), f64(0.3)) == [0.3, 0]


def test_powers_of_zero():
    a, b = f64(0, 0, 0, 0, 2), f64(0, 1, 2, 3, 0)
    base, exponent = slopes(ops.pow, a, b)
    np.testing.assert_array_equal(base, [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(exponent, [0, 0, 0, 0, math.log(2)])
    (cube,) = slopes(lambda x: x**3.0, f64(-2, 0, 1))
    np.testing.assert_array_equal(cube, [12, 0, 3])
    x = g.input(TensorType((2,), dtypes.float64))
    (first,) = grad(x**2.0, [x])
    np.testing.assert_array_equal(evaluate(grad(first, [x]), {x: f64(0, -3)})[0], [2, 2])


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64])
def test_far_out_gradients_are_finite(dtype):
    for case in CASES:
        if case.name == "far" and ops.OPS[case.op].family == "activation":
            (dx,) = slopes(ops.OPS[case.op], FAR.astype(dtype), **case.attrs)
            assert np.isfinite(dx).all(), case


def quarters(shape):
    """Small numbers that every type holds exactly."""
    return np.random.default_rng(3).integers(-8, 9, shape) / 4


NARROW = dtypes.HALF | {dtypes.float32}
TRIED = sorted({(case.op, dtype.name) for case in CASES for dtype in case.dtypes if case.gradient and dtype in NARROW})


@pytest.mark.parametrize(("op", "dtype"), TRIED)
def test_in_every_type(op, dtype):
    """The gradient in a narrower type is that in float64 at the same place, rounded."""
    op, dtype = ops.OPS[op], np.dtype(dtype)
    rtol, atol = TOLERANCE[dtype]
    rows = [case for case in CASES if case.op == op.name and case.gradient and dtype in case.dtypes]
    for case in [c for c in rows if not (op.random or op.name == "bit_cast" or c.constants)]:
        given = [None if x is None else np.asarray(x) for x in case.inputs]
        arrays = [x.astype(dtype) if x is not None and x.dtype in dtypes.STANDARD_FLOAT else x for x in given]
        wide = [x.astype(np.float64) if x is not None and x.dtype in dtypes.STANDARD_FLOAT else x for x in arrays]
        both = [slopes(op, *xs, cotangent=quarters, **case.attrs) for xs in (arrays, wide)]
        for got, want in zip(*both, strict=True):
            if want is not None:
                assert got.dtype == dtype
                size = max(1.0, float(np.abs(want).max(initial=0)))
                np.testing.assert_allclose(got.astype(np.float64), want, 2 * rtol, 2 * atol * size, err_msg=str(case))


def rounded(x, scale, zero):
    codes = ops.quantize(x, scale, zero, to=dtypes.int8)
    return ops.dequantize(ops.reshape(codes, shape=(5, 1)), scale, zero, to=x.dtype)


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float16])
def test_codes_pass_gradients_straight_through(dtype):
    x, scale, zero = np.array([-70, -1.3, 0, 0.6, 80], dtype), np.array(0.5, dtype), np.array(3, np.int8)
    dx, dscale = slopes(rounded, x, scale, zero)
    assert dx.dtype == dtype and dscale.dtype == dtype
    np.testing.assert_array_equal(dx, [0, 1, 1, 1, 0])
    # As in learned step sizes: the bound where codes saturate, else what rounding added, in steps.
    np.testing.assert_allclose(dscale, -131 + 124 + (-3 + 2.6) + (1 - 1.2), rtol=2e-3)


def test_blocks_have_gradients_of_their_own():
    codes, scale = np.arange(-6, 6, dtype=np.int8).reshape(2, 6), np.array([[1, 2], [3, 4]], np.float32)
    (dscale,) = slopes(ops.dequantize, codes, scale, to=dtypes.float32, axis=1, block_size=3)
    np.testing.assert_array_equal(dscale, [[-15, -6], [3, 12]])
    (dscale,) = slopes(ops.dequantize, codes, scale[0], np.int8([1, 0]), to=dtypes.float32, axis=0)
    np.testing.assert_array_equal(dscale, [-27, 15])
    (dscale,) = slopes(ops.dequantize, codes, scale, to=dtypes.float32, axis=1, block_size=4)
    np.testing.assert_array_equal(dscale, [[-18, -3], [6, 9]])


def test_narrow_floats_pass_gradients():
    def through(x):
        return ops.cast(ops.cast(x, to=dtypes.float8_e4m3fn), to=dtypes.float32) * 2

    np.testing.assert_array_equal(slopes(through, np.float32([0.3, 7]))[0], [2, 2])


@pytest.mark.parametrize("dequantized", ["cast", "requantize"])
def test_products_of_codes_pass_gradients(dequantized):
    a, b = np.float32([[0.5, -1], [2, 0.25]]), np.float32([[1, 2, -1], [0.5, -2, 1]])

    def product(a, b):
        (qa, sa, za), (qb, sb, zb) = ops.dynamic_quantize(a), ops.dynamic_quantize(b)
        sums = ops.matmul_integer(qa, qb, za, zb)
        if dequantized == "cast":
            return ops.cast(sums, to=dtypes.float32) * (sa * sb)
        step = g.constant(np.float32(0.05))
        codes = ops.requantize(sums, sa * sb / step, g.constant(np.int8(0)), to=dtypes.int8)
        return ops.dequantize(codes, step, to=dtypes.float32)

    da, db = slopes(product, a, b)
    np.testing.assert_allclose(da, np.ones((2, 3)) @ b.T, atol=0.1)
    np.testing.assert_allclose(db, a.T @ np.ones((2, 3)), atol=0.1)


def test_integers_stop_gradients():
    x = g.input(TensorType((3,), dtypes.float32))
    assert grad(ops.cast(ops.cast(x, to=dtypes.int32), to=dtypes.float32), [x]) == [None]
    assert grad(ops.cast(x > 0, to=dtypes.float32), [x]) == [None]


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float16])
def test_dropout_keeps_its_mask(dtype):
    x, ratio = g.input(TensorType((50,), dtype)), g.input(TensorType((), dtype))
    y, mask = ops.dropout(x, ratio)
    dx, dratio = grad(y, [x, ratio])
    at = {x: np.ones(50, dtype), ratio: np.array(0.25, dtype)}
    kept, dx, dratio = evaluate([mask, dx, dratio], at)
    np.testing.assert_allclose(dx, kept / 0.75, rtol=1e-3)
    np.testing.assert_allclose(dratio, kept.sum() / 0.75**2, rtol=2e-3)
    flows = evaluate([mask, *grad(y, [x, ratio])], {**at, ratio: np.array(1, dtype)})
    assert not any(f.any() for f in flows)


def test_draws_have_no_gradient():
    p = g.input(TensorType((3,), dtypes.float32))
    assert grad(ops.bernoulli(p, dtype=dtypes.float32), [p]) == [None]


def test_coupled_pairs_against_their_exact_minimiser():
    """Where the pairs agree with probabilities p, rᵢⱼ = pᵢ / (pᵢ + pⱼ), changes of p go through to the result."""
    p, change = f64(0.2, 0.5, 0.3), f64(0.01, -0.03, 0.02)

    def pairs(p):
        return (p[:, None] / (p[:, None] + p))[None]

    step = 1e-6
    dr = (pairs(p + step * change) - pairs(p - step * change)) / (2 * step)
    for i in range(3):
        (slope,) = slopes(ops.couple_pairs, pairs(p), cotangent=[np.eye(3)[i]])
        np.testing.assert_allclose((slope * dr).sum(), change[i], rtol=1e-5)
