"""One number of many tensors on the GPU: whether all is finite, and the sum of squares."""

from types import SimpleNamespace

import numpy as np
import pytest

from flamert import dtypes, ops
from flamert import graph as g
from flamert.graph import Graph, TensorType
from flamert.ops.cuda import copy, totals
from flamert.runtime.device import device
from flamert.runtime.plan import Plan
from tests.emulated import Kernel, Memory
from tests.test_emit import compile_source, nvrtc

TYPES = [dtypes.float16, dtypes.bfloat16, np.dtype(np.float32), np.dtype(np.float64)]
SHAPES = [(3, 5), (), (0, 4), (40000,), (7,), (129, 257)]
"""Some of more than one chunk, one of them not a whole number of accesses."""


def drawn():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(s).astype(TYPES[i % 4]) for i, s in enumerate(SHAPES)]


def spoilt():
    """(what is wrong, tensors of which one element is)."""
    for bad in (np.nan, np.inf, -np.inf):
        for dtype in TYPES:
            for shape in ((40000,), (7,), ()):
                for at in (0, -1):
                    x = np.full(shape, np.finfo(np.float32).max if dtype.itemsize > 2 else 1e4).astype(dtype)
                    x.reshape(-1)[at] = bad
                    yield f"{bad} of {dtype}{shape} at {at}", [*drawn(), x]


@pytest.mark.parametrize("source", [totals.FINITE, *map(totals.squares, TYPES[2:])], ids=["finite", "float", "double"])
def test_kernels_compile(source):
    compile_source(*nvrtc(), source)


@pytest.fixture
def xp(monkeypatch):
    monkeypatch.setattr(totals, "compiled", Kernel)
    monkeypatch.setattr(copy, "compiled", Kernel)

    def empty(shape, dtype):
        return Memory(np.empty(shape, dtype))

    return SimpleNamespace(asarray=np.asarray, zeros=np.zeros, empty=empty)


def finite(xp, xs):
    out = np.zeros((), np.bool_)
    call = totals.over_tensors(totals.FINITE, "all_finite", xp, Memory(out), [Memory(x) for x in xs])
    found = []
    for _ in range(2):
        out[...] = not out
        call()
        found.append(bool(out))
    assert found[0] == found[1]
    return found[0]


def test_whether_all_is_finite(xp):
    assert finite(xp, drawn())
    assert finite(xp, [np.zeros((0, 3), np.float32)])
    assert finite(xp, [np.full((3, 40000), np.finfo(np.float32).max)[:, 5:]])
    for what, xs in spoilt():
        assert not finite(xp, xs), what


def test_tensors_may_lie_in_any_way(xp):
    x = np.ones((40, 50), np.float32)
    x[7, 9] = np.nan
    assert not finite(xp, [x.T]) and not finite(xp, [x[:, 3:10]]) and not finite(xp, [x[1::2]])
    assert finite(xp, [x[:, 10:]]) and finite(xp, [x[:7].T]) and finite(xp, [np.broadcast_to(x[:1], (3, 50))])
    assert not finite(xp, [np.broadcast_to(x[7:8], (3, 50))])
    lying = np.zeros(41, np.float16)
    lying[0] = np.inf
    assert finite(xp, [lying[1:]])


def total(xp, xs):
    to = np.float64 if any(x.dtype == np.float64 for x in xs) else np.float32
    out, parts = np.zeros((), to), np.zeros(64)
    call = totals.over_tensors(
        totals.squares(out.dtype), "sum_of_squares", xp, Memory(out), [Memory(x) for x in xs], [Memory(parts)]
    )
    call()
    once = out.copy()
    call()
    assert once.tobytes() == out.tobytes()
    return once


def test_sums_of_squares(xp):
    xs = drawn()
    want = sum(np.square(x.astype(np.float64)).sum() for x in xs)
    np.testing.assert_allclose(total(xp, xs), want, rtol=1e-6)
    lying = [xs[5].T, np.broadcast_to(xs[3][:9, None], (9, 4))]
    want = sum(np.square(x.astype(np.float64)).sum() for x in lying)
    np.testing.assert_allclose(total(xp, lying), want, rtol=1e-6)
    assert np.isnan(total(xp, [np.array([np.nan], np.float32)])) and total(xp, [np.zeros(0, np.float32)]) == 0


def planned(op, xs):
    inputs = [g.input(TensorType(x.shape, x.dtype)) for x in xs]
    return Plan(Graph(inputs, [op(*inputs)]), device("cuda"), hot=True)


@pytest.mark.gpu
def test_a_gpu_sees_what_is_not_finite():
    on = device("cuda")
    plan = planned(ops.all_finite, drawn())
    assert [s.kernel.backend for s in plan.steps] == ["cupy"] and plan.obstacle is None
    assert all(on.download(plan(*map(on.upload, drawn()))[0], np.dtype(np.bool_)) for _ in range(4))
    for what, xs in spoilt():
        assert not planned(ops.all_finite, xs)(*map(on.upload, xs))[0].get(), what
    empty = [np.zeros((0, 3), np.float32)]
    assert planned(ops.all_finite, empty)(*map(on.upload, empty))[0].get()


@pytest.mark.gpu
def test_a_recording_sees_every_call_anew():
    on = device("cuda")
    xs = drawn()
    plan = planned(ops.all_finite, xs)
    bad = [x.copy() for x in xs]
    bad[3][77] = np.nan
    for turn in range(12):
        given = bad if turn % 3 == 1 else xs
        assert bool(plan(*map(on.upload, given))[0].get()) == (given is xs)


@pytest.mark.gpu
def test_a_gpu_sums_squares_the_same_way_every_time():
    on = device("cuda")
    xs = [*drawn(), np.random.default_rng(1).standard_normal(3_000_017).astype(np.float32)]
    plan = planned(ops.sum_of_squares, xs)
    found = [float(plan(*map(on.upload, xs))[0].get()) for _ in range(4)]
    assert len(set(found)) == 1
    np.testing.assert_allclose(found[0], sum(np.square(x.astype(np.float64)).sum() for x in xs), rtol=1e-6)
