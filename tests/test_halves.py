"""Bounds of values hold whatever the inputs; products that may be TF32 are made of halves under them, and no worse for it."""

import numpy as np
import pytest

from flamert import dtypes, ops
from flamert import graph as g
from flamert.graph import Graph, TensorType
from flamert.ops.cuda.pointwise import elementwise
from flamert.ops.evaluate import evaluate
from flamert.passes.bounds import bounds_of, known_bound
from flamert.passes.halves import halve_products
from flamert.passes.pipeline import prepare
from tests.test_passes import count

F = np.dtype(np.float32)


def value(*shape):
    return g.input(TensorType(shape, F))


def weights(rng, *shape, by=1.0):
    return g.constant((by * rng.standard_normal(shape)).astype(F))


def block(rng, x, by=1.0, scale=1.0, n=64):
    """A feed-forward layer behind a norm, as transformers have it."""
    normal = ops.layer_norm(x, weights(rng, n, by=scale), weights(rng, n, by=scale), axis=-1)
    hidden = ops.gelu(ops.linear(normal, weights(rng, n, 4 * n, by=by), weights(rng, 4 * n, by=by * scale)))
    return ops.matmul(hidden, weights(rng, 4 * n, n, by=by))


def chains(rng):
    """Values of one operand [4, 6, 16], each with a bound."""
    x = value(4, 6, 16)
    normal = ops.layer_norm(x, weights(rng, 16), weights(rng, 16), axis=-1)
    rms = ops.rms_norm(x, weights(rng, 16), axis=-1)
    hidden = ops.linear(normal, weights(rng, 16, 24), weights(rng, 24))
    turned = ops.matmul(rms, ops.transpose(weights(rng, 8, 16), perm=(1, 0)))
    found = [normal, rms, hidden, turned, ops.layer_norm(x, axis=1), ops.softmax(x, axis=-1), ops.tanh(x), ops.sigmoid(x)]
    found += [getattr(ops, name)(hidden) for name in ("relu", "gelu", "gelu_tanh", "swish", "hard_swish", "abs", "neg")]
    found += [
        ops.maximum(hidden, g.constant(F.type(0))),
        ops.minimum(ops.maximum(rms, ops.tanh(x)), normal),
        hidden * ops.tanh(hidden),
    ]
    found += [normal + ops.tanh(x), normal - rms, ops.reshape(normal, shape=(24, 16)), ops.reshape(normal, shape=(96, 4))]
    found += [ops.transpose(normal, perm=(2, 0, 1)), ops.slice(hidden, starts=(0, 0, 2), sizes=(4, 6, 5), steps=(1, 1, 1))]
    found += [ops.matmul(ops.relu(hidden), weights(rng, 24, 3)), ops.expand(ops.tanh(x), shape=(2, 4, 6, 16))]
    return x, found


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("spikes", [False, True])
def test_bounds_hold(size, spikes):
    rng = np.random.default_rng(0)
    x, found = chains(rng)
    array = (size * rng.standard_normal(x.shape)).astype(F)
    if spikes:
        array[..., 3] *= 1e4  # a row of a norm is nearest to its bound where one element is all there is
    bounds = bounds_of(Graph([x], found))
    for v, y in zip(found, evaluate(found, {x: array}), strict=True):
        bound = bounds[v]
        assert np.abs(y).max() <= bound.most * 1.00001, v
        assert np.sqrt((y.astype(np.float64) ** 2).sum(-1)).max() <= bound.norm * 1.00001, v


def test_bounds_are_near():
    """They are worth little where they are far above what occurs."""
    x = value(2, 64)
    spike = np.zeros((2, 64), F)
    spike[:, 5] = 1e3
    normal = ops.layer_norm(x, axis=-1)
    [y] = evaluate([normal], {x: spike})
    bound = bounds_of(Graph([x], [normal]))[normal]
    assert bound.most <= 1.02 * np.abs(y).max() and bound.norm == pytest.approx(8)


def test_what_is_not_known_has_no_bound():
    x, w, scale = value(4, 8), value(8, 8), value(8)
    normal = ops.layer_norm(x, axis=-1)
    unbounded = [x, ops.relu(x), x + normal, ops.matmul(normal, w), ops.layer_norm(x, scale, axis=-1), ops.exp(normal)]
    assert not bounds_of(Graph([x, w, scale], unbounded)).keys() & set(unbounded)
    assert np.isnan(known_bound(g.constant(np.full((8, 8), np.nan, F))).most)


def test_bounds_take_no_longer_for_paths_that_meet():
    """Both operands of each sum are the same, and there are 500: paths are more than anyone can count."""
    x = value(2, 8)
    y = ops.tanh(x)
    for _ in range(500):
        y = ops.neg(y + y)
    assert bounds_of(Graph([x], [y]))[y].most == 2.0**500


def halved(graph):
    return halve_products(graph, {}, elementwise)


def rounded(array):
    bits = np.ascontiguousarray(array, F).view(np.uint32)
    return ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(F)


def in_double(graph, feeds, operand=lambda x: x):
    """A graph's one result with everything in float64. operand: what is made of those of products."""
    at = {v: np.asarray(x, np.float64) for v, x in feeds.items()}
    for node in graph.nodes:
        if node.op is g.CONSTANT:
            at[node.outputs[0]] = node.attrs["value"].astype(np.float64)
        elif node.inputs:
            operands = [at[v] for v in node.inputs]
            if node.op in (ops.matmul, ops.linear):
                operands[:2] = [np.asarray(operand(x), np.float64) for x in operands[:2]]
            inputs = [g.input(TensorType(x.shape, x.dtype)) for x in operands]
            made = node.op(*inputs, **node.attrs)
            [at[node.outputs[0]]] = evaluate([made], dict(zip(inputs, operands, strict=True)))
    return at[graph.outputs[0]]


@pytest.mark.parametrize("by", [1e-12, 0.02, 1e12])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_halves_are_as_good_as_tf32(by, scale):
    """Whatever the sizes of weights: there is no other range to fall out of."""
    rng = np.random.default_rng(1)
    x = value(2, 9, 64)
    graph = Graph([x], [block(rng, x, by, scale)])
    after = halved(graph)
    assert count(after)["wide_matmul"] == 2 and not {"linear", "matmul"} & set(count(after))
    feeds = {x: rng.standard_normal(x.shape).astype(F)}
    with np.errstate(all="ignore"):
        [got] = evaluate(after.outputs, feeds)
        exact, near = in_double(graph, feeds), in_double(graph, feeds, rounded)
    error, allowed = (float(np.linalg.norm(v - exact) / np.linalg.norm(exact)) for v in (got, near))
    assert error <= 1.5 * allowed + 1e-6


def test_nan_and_infinity_are_not_lost():
    rng = np.random.default_rng(2)
    x = value(3, 64)
    graph = Graph([x], [block(rng, x)])
    feed = rng.standard_normal(x.shape).astype(F)
    feed[0, 3], feed[1, 4] = np.nan, np.inf
    with np.errstate(all="ignore"):
        [got] = evaluate(halved(graph).outputs, {x: feed})
    assert np.isnan(got[:2]).all() and np.isfinite(got[2]).all()


def test_what_has_no_bound_stays_as_it_is():
    rng = np.random.default_rng(3)
    x, w = value(4, 64), value(64, 64)
    normal = ops.layer_norm(x, axis=-1)
    holes = np.ones((64, 64), F)
    holes[2, 3] = np.inf
    kept = [
        ops.matmul(x, weights(rng, 64, 64)),
        ops.matmul(normal, w),
        ops.matmul(normal, g.constant(holes)),
        ops.matmul(normal, g.constant(np.zeros((64, 64), F))),
        ops.matmul(normal, weights(rng, 64, 33)),
        ops.matmul(ops.softmax(ops.matmul(x, w), axis=-1), w),
    ]
    after = halved(Graph([x, w], kept))
    assert count(after)["wide_matmul"] == 0


class Where:
    """As much of a GPU as passes ask."""

    backend, name, deterministic, tunes = "cupy", "cuda:0", False, False

    def __init__(self, allow_tf32):
        self.allow_tf32 = allow_tf32


@pytest.mark.parametrize("allowed", [None, False, True])
def test_only_where_tf32_is_allowed(allowed):
    rng = np.random.default_rng(4)
    x = value(2, 9, 64)
    graph = Graph([x], [x + block(rng, x)])
    after = prepare(graph, True, Where(allowed), {})
    assert count(after)["wide_matmul"] == (2 if allowed else 0)
    if allowed:
        half, hidden = (n.inputs[0] for n in after.nodes if n.op is ops.wide_matmul)
        assert half.node.op is ops.rows and [t.dtype for t in half.node.types] == [dtypes.float16]
        assert hidden.node.op is ops.pointwise and hidden.dtype == dtypes.float16
    [got], [want] = (evaluate(p.outputs, {p.inputs[0]: np.ones(x.shape, F)}) for p in (after, graph))
    assert np.linalg.norm(got - want) <= 1e-3 * np.linalg.norm(want)


def test_weights_are_halved_once_for_a_model():
    rng = np.random.default_rng(5)
    cache, matrix = {}, weights(rng, 64, 64)
    found = []
    for rows in (3, 5):
        x = value(rows, 64)
        after = halve_products(Graph([x], [ops.matmul(ops.layer_norm(x, axis=-1), matrix)]), cache, elementwise)
        found += [after, *[n.inputs[1].constant for n in after.nodes if n.op is ops.wide_matmul]]
    assert found[1] is found[3]
