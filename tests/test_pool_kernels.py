"""Pooling kernels for GPUs: they compile, and give what the ops' tables say, as emulated; on a GPU what the reference gives."""

import numpy as np
import pytest

from flamert import dtypes
from flamert import graph as g
from flamert.graph import OPERATORS, Graph, TensorType
from flamert.ops.cuda import pool
from flamert.ops.evaluate import evaluate
from flamert.runtime.device import device
from flamert.runtime.plan import Plan
from tests import bound
from tests.cases import fused
from tests.cases.pool import CASES, windows
from tests.emulated import Kernel
from tests.test_emit import compile_source, nvrtc

TYPES = [dtypes.float32, dtypes.float16, dtypes.bfloat16, dtypes.float64]
OPS = [f"{kind}_pool{gradient}_channels_last" for kind in ("max", "average") for gradient in ("", "_gradient")]
STEM = windows((3, 3), (2, 2), (1, 1, 1, 1))
SOURCES = [pool.max_source, pool.winners_source, pool.max_gradient_source, pool.average_source, pool.average_gradient_source]


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
def test_pools_compile(dtype):
    lib, include = nvrtc()
    for image, results, channels, attrs in (
        ((112, 112), (56, 56), 64, STEM),
        ((40, 41), (21, 22), 3, windows((20, 20), (1, 1))),
    ):
        of = pool.windows_of((2, *image, channels), (2, *results, channels), attrs)
        for make in SOURCES:
            compile_source(lib, include, make(of, dtype, 16 // dtype.itemsize if channels == 64 else 1))


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(pool, "compiled", Kernel)


@pytest.mark.parametrize("op", OPS)
def test_tables_as_emulated(op, on_cpu):
    assert any([bound.check(case, dtypes.float32) for case in (*CASES, *fused.CASES) if case.op == op])


def geometries():
    yield (2, 9, 8, 8), STEM
    yield (1, 7, 9, 12), windows((3, 2), (1, 3), (1, 0, 2, 1), (2, 1))
    yield (2, 6, 6, 3), windows((2, 2), (2, 2))
    yield (1, 17, 18, 2), windows((16, 17), (1, 1))
    yield (2, 19, 16), windows((3,), (2,), (1, 1))


def drawn(shape, dtype, seed=0):
    """Few different numbers, so that many are equal."""
    rng = np.random.default_rng(seed)
    return rng.integers(-3, 4, shape).astype(dtype)


def spoilt(x):
    """With NaN, infinities, and a corner of −∞."""
    x = x.copy()
    x[0, 1, ..., ::2] = -np.inf
    x[0, 2:4, ..., 0] = np.inf
    x[-1, 3, ..., -1] = np.nan
    return x


def turned(x):
    return np.moveaxis(x, -1, 1)


def reference(op, inputs, attrs):
    values = [g.input(TensorType(x.shape, x.dtype)) for x in inputs]
    with np.errstate(all="ignore"):
        [y] = evaluate([OPERATORS[op](*values, **attrs)], dict(zip(values, inputs, strict=True)))
    return y


def calls(image, attrs, dtype):
    """(op, operands, attributes) of all four."""
    x = spoilt(drawn(image, dtype))
    dy = drawn(reference("max_pool_channels_last", [x], attrs).shape, dtype, 1)
    yield "max_pool_channels_last", [x], attrs
    yield "max_pool_gradient_channels_last", [dy, x], attrs
    for counted in (attrs["pads"], (0,) * len(attrs["pads"])):
        yield "average_pool_channels_last", [drawn(image, dtype)], {**attrs, "counted": counted}
        yield "average_pool_gradient_channels_last", [dy], {**attrs, "counted": counted, "spatial": image[1:-1]}


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
def test_pools_as_emulated(dtype, on_cpu):
    for image, attrs in geometries():
        for op, inputs, attributes in calls(image, attrs, dtype):
            [got] = bound.run(op, inputs, attributes)
            check(op, got, reference(op, inputs, attributes), image)


def check(op, got, want, image):
    rtol = {2: 1e-2, 4: 2e-6, 8: 1e-14}[got.itemsize] if "average" in op else 0
    np.testing.assert_allclose(got.astype(float), want.astype(float), rtol, rtol, err_msg=f"{op} {image}")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
def test_pools(dtype):
    on = device("cuda")
    for image, attrs in [*geometries(), ((4, 56, 57, 64), STEM)]:
        for op, inputs, attributes in calls(image, attrs, dtype):
            values = [g.input(TensorType(x.shape, x.dtype)) for x in inputs]
            plan = Plan(Graph(values, [OPERATORS[op](*values, **attributes)]), on, hot=True)
            assert [step.kernel.backend for step in plan.steps] == ["cupy"]
            for _ in range(3):
                [got] = plan(*map(on.upload, inputs))
                check(op, on.download(got, dtype), reference(op, inputs, attributes), image)
            assert plan.obstacle is None
