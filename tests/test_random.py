"""What random ops draw: distributions, independence of calls, and what seeds and counters promise."""

import numpy as np
import pytest

from flamert import dtypes, ops
from flamert import graph as g
from flamert.graph import Graph
from flamert.ops.random import Stream, philox
from flamert.runtime.device import device
from flamert.runtime.plan import Plan

N = 20_000


def plan(*outputs, inputs=()):
    return Plan(Graph(inputs, outputs), device("cpu"))


class Elsewhere:
    """NumPy posing as another array module, so that the code for GPUs runs here."""

    def __getattr__(self, name):
        return getattr(np, name)


def streams(seed=None):
    return [Stream(np, seed), Stream(Elsewhere(), seed)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stream", [*streams(), *streams(3)])
def test_uniform(stream, dtype):
    x = np.empty(N, dtype)
    stream.uniform(x)
    assert x.min() >= 0 and x.max() < 1
    counts, _ = np.histogram(x, 10, (0, 1))
    np.testing.assert_allclose(counts / N, 0.1, atol=0.015)
    assert abs(np.corrcoef(x[1:], x[:-1])[0, 1]) < 0.04


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stream", [*streams(), *streams(3)])
def test_normal(stream, dtype):
    x = np.empty(N, dtype)
    stream.normal(x)
    assert abs(x.mean()) < 0.04 and abs(x.std() - 1) < 0.03
    np.testing.assert_allclose((np.abs(x) < 1).mean(), 0.6827, atol=0.02)


def test_philox_gives_the_published_numbers():
    np.testing.assert_array_equal(philox(np, 4, 0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8])


@pytest.mark.parametrize("op", [ops.random_uniform, ops.random_normal])
def test_calls_differ_and_seeds_repeat(op):
    seeded, again, free = (plan(op(shape=(50,), seed=s)) for s in (5, 5, None))
    first, second = seeded()[0], seeded()[0]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(again()[0], first)
    np.testing.assert_array_equal(again()[0], second)
    assert not np.array_equal(free()[0], free()[0])


def test_a_seeded_stream_goes_on_when_the_plan_is_made_again():
    graph, cache = Graph((), [ops.random_uniform(shape=(9,), seed=5)]), {}
    first, second = (Plan(graph, device("cpu"), cache=cache)()[0] for _ in range(2))
    assert not np.array_equal(first, second)


def test_a_counter_decides():
    counter = g.input(g.TensorType((), dtypes.uint64), "counter")
    draw = plan(ops.random_normal(counter, shape=(50,), seed=5), inputs=[counter])
    one, two, one_again = (draw(np.array(i, np.uint64))[0] for i in (1, 2, 1))
    np.testing.assert_array_equal(one, one_again)
    assert not np.array_equal(one, two)


def test_bernoulli():
    p = np.repeat(np.float32([0.1, 0.5, 0.9]), N)
    drawn = plan(ops.bernoulli(g.constant(p), dtype=dtypes.int32, seed=1))()[0].reshape(3, N)
    np.testing.assert_allclose(drawn.mean(axis=1), [0.1, 0.5, 0.9], atol=0.02)


def test_dropout():
    x = np.full((N,), 3, np.float32)
    y, mask = plan(*ops.dropout(g.constant(x), 0.25, seed=1))()
    np.testing.assert_allclose(mask.mean(), 0.75, atol=0.02)
    np.testing.assert_allclose(y, np.where(mask, 4, 0), rtol=1e-6)


def test_multinomial():
    share = np.array([[0.1, 0.2, 0.7], [0.6, 0.4, 0.0]])
    with np.errstate(divide="ignore"):
        logits = (np.log(share) + np.array([[3], [-2]])).astype(np.float32)
    drawn = plan(ops.multinomial(g.constant(logits), samples=N, seed=1))()[0]
    np.testing.assert_allclose([np.bincount(row, minlength=3) / N for row in drawn], share, atol=0.02)
