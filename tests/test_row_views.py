"""Reshapes that keep rows change places with elementwise ops where that saves memory, and nowhere else."""

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.graph import Graph, TensorType
from flamert.ops.cuda.pointwise import elementwise
from flamert.ops.evaluate import evaluate
from flamert.passes.row_views import views_first
from tests.test_passes import count

F, B = dtypes.float32, dtypes.bfloat16


def value(*shape, dtype=F):
    return g.input(TensorType(shape, dtype))


def kept(graph):
    """The graph after the pass, which computes the same."""
    after = views_first(graph, elementwise)
    feeds = {v: np.random.default_rng(0).standard_normal(v.shape).astype(v.dtype) for v in graph.inputs}
    for old, new in zip(evaluate(graph.outputs, feeds), evaluate(after.outputs, feeds), strict=True):
        np.testing.assert_array_equal(old, new)
    return after


def viewed(graph):
    return [node.inputs[0] for node in graph.nodes if node.op is ops.reshape]


def test_a_product_is_viewed_before_it_is_widened_and_scaled():
    x, w, scale = value(12, 8, dtype=B), value(8, 6, dtype=B), value(6)
    product = ops.matmul(x, w)
    wide = ops.cast(product, to=F)
    rows = [ops.reshape(v, shape=(3, 4, 6)) for v in (wide, wide * scale)]
    graph = kept(Graph([x, w, scale], [ops.exp(rows[0]), ops.reduce_max(rows[1], axes=(2,), keepdims=True)]))
    assert {v.node.op.name for v in viewed(graph)} == {"matmul"}


def test_what_a_product_reads_stays_where_it_was_made():
    x, w = value(3, 4, 8), value(8, 6)
    graph = Graph([x, w], [ops.matmul(ops.reshape(ops.exp(x), shape=(12, 8)), w)])
    assert views_first(graph, elementwise) is graph


def test_two_operands_are_not_viewed_instead_of_one_result():
    x, y = value(3, 4, 8), value(3, 4, 8)
    graph = Graph([x, y], [ops.exp(ops.reshape(x * y, shape=(12, 8)))])
    assert views_first(graph, elementwise) is graph


def test_what_costs_something_is_not_made_twice():
    x = value(3, 4, 8)
    y = ops.exp(x)
    graph = Graph([x], [ops.tanh(ops.reshape(y, shape=(12, 8))), ops.sin(y)])
    assert views_first(graph, elementwise) is graph


def test_other_rows_and_vectors_of_rows_stay():
    x, mean = value(3, 4, 8), value(3, 4, 1)
    graph = Graph([x, mean], [ops.exp(ops.reshape(x * 2.0, shape=(6, 16))), ops.exp(ops.reshape(x - mean, shape=(12, 8)))])
    assert count(kept(graph))["reshape"] == 2 and views_first(graph, elementwise) is graph
