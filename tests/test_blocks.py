"""Whole blocks moved on a GPU: concatenations, borders and scattered slices, as emulated and on one."""

import numpy as np
import pytest

from flamert import dtypes
from flamert import graph as g
from flamert.graph import OPERATORS, Graph, TensorType
from flamert.ops.cuda import copy, shape
from flamert.ops.cuda.emit_copy import UNITS
from flamert.ops.evaluate import evaluate
from flamert.runtime.device import device
from flamert.runtime.plan import Plan
from tests import bound
from tests.cases.shape import CASES
from tests.emulated import Kernel
from tests.test_emit import compile_source, nvrtc

TYPES = [np.dtype(np.bool_), dtypes.bfloat16, dtypes.float32, np.dtype(np.int64), np.dtype(np.complex128)]
OPS = ("concat", "pad", "unslice")
NUMERIC = [t for t in TYPES if t != np.bool_]


@pytest.mark.parametrize("size", UNITS)
def test_fillers_compile(size):
    lib, include = nvrtc()
    for unit in (u for u in UNITS if u >= size):
        compile_source(lib, include, shape.fill_source(size, unit, 3, 4, False))
    compile_source(lib, include, shape.fill_source(size, size, 1, 1, True))


@pytest.fixture
def on_cpu(monkeypatch):
    for module in (copy, shape):
        monkeypatch.setattr(module, "compiled", Kernel)


@pytest.mark.parametrize("op", OPS)
def test_tables_as_emulated(op, on_cpu):
    assert any([bound.check(case, dtypes.float32) for case in CASES if case.op == op and case.inputs[0].dtype != object])


def drawn(*shape, dtype):
    return np.random.default_rng(sum(shape)).integers(0, 100, shape).astype(dtype)


def calls(dtype):
    """(op, operands, attributes)."""
    a, b, c = drawn(3, 5, 8, dtype=dtype), drawn(3, 5, 3, dtype=dtype), drawn(3, 5, 0, dtype=dtype)
    yield "concat", [a, b, c, a], {"axis": -1}
    yield "concat", [a.transpose(2, 0, 1), drawn(2, 3, 5, dtype=dtype)], {"axis": 0}
    yield "concat", [a], {"axis": 1}
    for value in (None, np.ones(1, dtype)):
        for pads in ((0, 1, 0, 0, 2, 0), (2, 3, 1, 0, 1, 5), (0,) * 6):
            yield "pad", [a.transpose(0, 2, 1), value], {"pads": pads}
        yield "pad", [c, value], {"pads": (1, 1, 1, 1, 1, 1)}
    if dtype != np.bool_:
        yield "unslice", [a], {"shape": (3, 9, 8), "starts": (0, 2, 0), "steps": (1, 1, 1)}
        yield "unslice", [b], {"shape": (9, 5, 6), "starts": (8, 4, 1), "steps": (-3, -1, 2)}
        yield "unslice", [c], {"shape": (3, 5, 6), "starts": (0, 0, 0), "steps": (1, 1, 1)}
        yield "unslice", [b[:, ::2]], {"shape": (3, 3, 3), "starts": (0, 0, 0), "steps": (1, 1, 1)}


def reference(op, inputs, attrs):
    given = [x for x in inputs if x is not None]
    values = [g.input(TensorType(x.shape, x.dtype)) for x in given]
    [y] = evaluate([OPERATORS[op](*values, **attrs)], dict(zip(values, given, strict=True)))
    return y


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
def test_blocks_as_emulated(dtype, on_cpu, monkeypatch):
    for launch in (1 << 22, 0):
        monkeypatch.setattr(shape, "LAUNCH_BYTES", launch)
        for op, inputs, attrs in calls(dtype):
            [got] = bound.run(op, inputs, attrs)
            assert got.tobytes() == reference(op, inputs, attrs).tobytes(), (op, attrs)


def test_slabs_fill_what_a_box_leaves():
    count = np.zeros((6, 7, 5), int)
    for slab in shape.slabs(count.shape, (1, 0, 2), (4, 7, 1)):
        count[slab] += 1
    count[1:5, :, 2:3] += 1
    assert (count == 1).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
def test_blocks(dtype):
    on = device("cuda")
    large = drawn(8, 300, 768, dtype=dtype)
    more = [("concat", [large, large], {"axis": 1}), ("pad", [large], {"pads": (0, 1, 0, 0, 1, 0)})]
    for op, inputs, attrs in [*calls(dtype), *more]:
        given = [np.ascontiguousarray(x) for x in inputs if x is not None]
        values = [g.input(TensorType(x.shape, x.dtype)) for x in given]
        plan = Plan(Graph(values, [OPERATORS[op](*values, **attrs)]), on, hot=True)
        assert [step.kernel.backend for step in plan.steps] == ["cupy"]
        for _ in range(3):
            [got] = plan(*map(on.upload, given))
            assert on.download(got, dtype).tobytes() == reference(op, given, attrs).tobytes(), (op, attrs)
        assert plan.obstacle is None
