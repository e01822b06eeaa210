"""Passes around matrix products and attention on a GPU, as graphs: what they make, and that values stay what they were."""

from collections import Counter

import numpy as np
import pytest

from flamert import dtypes, ops
from flamert import graph as g
from flamert.graph import TensorType
from flamert.ops.evaluate import evaluate
from flamert.ops.shape import narrow
from flamert.passes.autocast import autocast
from flamert.passes.fold import fold
from flamert.passes.heads import lay_heads
from flamert.passes.parts import join_parts, scatter_onto
from flamert.passes.products import (
    lay_weights,
    merge_products,
    scale_products,
    take_activations,
    take_biases,
    turn_products,
    widen_results,
)
from flamert.passes.simplify import simplify
from flamert.passes.views import settle_views
from flamert.runtime.device import device
from flamert.runtime.plan import Plan
from tests.test_passes import count, graph_of

F32, BF16 = dtypes.float32, dtypes.bfloat16
rng = np.random.default_rng(0)


def same_values(graph, after, arrays):
    results = [evaluate(x.outputs, dict(zip(graph.inputs, arrays, strict=True))) for x in (graph, after)]
    for old, new in zip(*results, strict=True):
        np.testing.assert_allclose(new.astype(np.float64), old.astype(np.float64), rtol=1e-5, atol=1e-5)


def test_a_transposed_weight_is_cast_as_it_lies():
    def build(x, w):
        return ops.matmul(x, ops.cast(ops.transpose(w, perm=(1, 0)), to=BF16))

    graph, arrays = graph_of(build, TensorType((4, 8), BF16), (6, 8))
    after = settle_views(graph)
    [cast] = [n for n in after.nodes if n.op is ops.cast]
    assert cast.inputs[0] is graph.inputs[1]
    same_values(graph, after, arrays)


def test_a_transposed_gradient_is_made_the_way_round_that_it_is_wanted():
    def build(x, dy):
        product = ops.cast(ops.matmul(ops.transpose(x, perm=(1, 0)), dy), to=F32)
        return ops.transpose(product, perm=(1, 0)) * 2.0

    graph, arrays = graph_of(build, TensorType((4, 8), BF16), TensorType((4, 6), BF16))
    after = turn_products(settle_views(graph))
    [product] = [n for n in after.nodes if n.op is ops.matmul]
    assert product.types[0].shape == (6, 8) and product.inputs[1] is graph.inputs[0]
    same_values(graph, after, arrays)


def test_casts_there_and_back_between_products_cancel():
    def build(a, b, c):
        wide = ops.cast(ops.matmul(a, b), to=F32)
        seen = ops.reshape(ops.transpose(wide, perm=(1, 0)), shape=(8, 3, 2))
        return ops.matmul(ops.cast(seen, to=BF16), c)

    graph, arrays = graph_of(build, *(TensorType(s, BF16) for s in ((6, 4), (4, 8), (2, 5))))
    after = simplify(settle_views(graph))
    assert "cast" not in count(after)
    same_values(graph, after, arrays)


def test_a_narrowing_cast_and_back_stays():
    graph, _ = graph_of(lambda x: ops.cast(ops.cast(x, to=BF16), to=F32), (4,))
    assert count(simplify(graph))["cast"] == 2


def test_finiteness_is_asked_of_what_was_made():
    def build(a, b):
        wide = ops.transpose(ops.cast(ops.matmul(a, b), to=F32), perm=(1, 0))
        return ops.all_finite(wide), wide * 2.0

    graph, arrays = graph_of(build, TensorType((6, 4), BF16), TensorType((4, 8), BF16))
    after = settle_views(graph)
    [asked] = [n for n in after.nodes if n.op is ops.all_finite]
    assert asked.inputs[0].dtype == BF16
    assert count(turn_products(after))["transpose"] == 2, "of the operands: the product is made the other way round"
    same_values(graph, settle_views(graph), arrays)


@pytest.mark.parametrize(("indices", "kept"), [(1, True), ([0, 1, 2], True), ([1, 3], True), ([-1], True), ([2, 1], False)])
def test_evenly_spaced_entries_are_a_slice(indices, kept):
    graph, arrays = graph_of(lambda x: ops.gather(x, np.array(indices), axis=1), (2, 4, 3))
    after = simplify(graph)
    assert ("gather" in count(after)) is not kept
    same_values(graph, after, arrays)


def test_an_index_out_of_range_is_left_for_the_kernel_to_refuse():
    graph, _ = graph_of(lambda x: ops.gather(x, np.array(4), axis=1), (2, 4, 3))
    assert "gather" in count(simplify(graph))


def parts(*starts, size=2, shape=(6, 3)):
    def build(*xs):
        total = None
        for start, x in zip(starts, xs, strict=True):
            part = ops.unslice(x, shape=shape, starts=(start, 0), steps=(1, 1))
            total = part if total is None else total + part
        return total

    return graph_of(build, *[(size, shape[1])] * len(starts))


def test_parts_side_by_side_become_one_piece():
    graph, arrays = parts(2, 0, 4)
    after = join_parts(graph)
    assert count(after)["concat"] == 1 and "add" not in count(after)
    same_values(graph, after, arrays)


@pytest.mark.parametrize("turned", [False, True])
def test_entries_are_added_where_a_sum_has_them(turned):
    at = np.array([[1], [4], [1]])

    def build(x, updates):
        sums = ops.scatter_nd(ops.expand(np.float32(0), shape=(6, 3)), at, updates, reduction="add")
        x = narrow(ops.sqrt(x * x), 0, 0, 6)
        return x + sums if turned else sums + x

    graph, arrays = graph_of(build, (8, 3), (3, 3))
    after = scatter_onto(graph)
    assert count(after)["scatter_nd"] == 1 and "add" not in count(after)
    same_values(graph, after, arrays)
    plan = Plan(after, device("cpu"))
    # What is more than the result wants is taken over as well.
    assert plan.steps[-1].outputs[0][1].storage is plan.steps[-1].inputs[0][1].storage
    [want] = evaluate(graph.outputs, dict(zip(graph.inputs, arrays, strict=True)))
    np.testing.assert_allclose(plan(*arrays)[0], want, rtol=1e-5, atol=1e-5)


def test_entries_that_are_read_or_start_elsewhere_stay_apart():
    at = np.array([[1], [4], [1]])

    def build(x, updates):
        ones = ops.scatter_nd(ops.expand(np.float32(1), shape=(6, 3)), at, updates, reduction="add")
        sums = ops.scatter_nd(ops.expand(np.float32(0), shape=(6, 3)), at, updates, reduction="add")
        return ones + x, sums + x, sums * 2

    graph, _ = graph_of(build, (6, 3), (3, 3))
    assert scatter_onto(graph) is graph


@pytest.mark.parametrize("starts", [(0, 1, 4), (0, 4), (0, 0, 4)])
def test_parts_that_overlap_or_leave_gaps_are_added_up(starts):
    graph, arrays = parts(*starts)
    assert "concat" not in count(join_parts(graph))
    same_values(graph, join_parts(graph), arrays)


def test_a_bias_is_taken_into_the_product():
    graph, arrays = graph_of(lambda x, w, b: b + ops.matmul(x, w), (2, 4, 8), (8, 6), (6,))
    after = take_biases(graph)
    assert count(after)["linear"] == 1 and "add" not in count(after)
    same_values(graph, after, arrays)


def test_an_activation_is_taken_into_the_product():
    def build(x, w, b, c):
        y = ops.matmul(x, w)
        return ops.gelu_tanh(b + y), ops.gelu_tanh(c + ops.matmul(y, x))

    graph, arrays = graph_of(build, (8, 8), (8, 8), (8,), (8,))
    after = take_activations(take_biases(graph), lambda node: True)
    assert [n.attrs["activation"] for n in after.nodes if n.op is ops.linear] == ["gelu_tanh"]
    same_values(graph, after, arrays)
    assert count(take_activations(take_biases(graph), lambda node: False))["gelu_tanh"] == 2


def test_factors_of_both_operands_go_behind_the_product():
    def build(q, k):
        q, k = q * 0.5, ops.transpose(k, perm=(0, 2, 1)) * 0.5
        return ops.exp(ops.matmul(q, k))

    graph, arrays = graph_of(build, (2, 3, 4), (2, 5, 4))
    after = scale_products(graph)
    assert count(after)["mul"] == 1
    same_values(graph, after, arrays)
    halves, _ = graph_of(build, *[TensorType(s, dtypes.float16) for s in ((2, 3, 4), (2, 5, 4))])
    assert count(scale_products(halves))["mul"] == 2, "the product of what is not yet scaled may be out of range"


def test_a_product_that_is_read_without_its_bias_keeps_to_itself():
    def build(x, w, b):
        y = ops.matmul(x, w)
        return y + b, y

    graph, _ = graph_of(build, (4, 8), (8, 6), (6,))
    assert "linear" not in count(take_biases(graph))


def test_products_of_one_operand_become_one():
    weights = [rng.standard_normal((8, n)).astype(F32) for n in (6, 6, 2)]
    biases = [rng.standard_normal(n).astype(F32) for n in (6, 6, 2)]

    def build(x):
        return tuple(ops.matmul(x, w) + b for w, b in zip(weights, biases, strict=True))

    graph, arrays = graph_of(build, (2, 4, 8))
    after = fold(merge_products(take_biases(graph)), {})
    assert count(after)["linear"] == 1 and count(after)["slice"] == 3
    same_values(graph, after, arrays)


def test_products_with_what_is_not_known_stay_apart():
    graph, _ = graph_of(lambda x, v, w: (ops.matmul(x, v), ops.matmul(x, w)), (4, 8), (8, 6), (8, 6))
    assert count(merge_products(graph))["matmul"] == 2


def test_heads_are_laid_by_position_and_the_gradient_gets_the_sums():
    def build(q, k, v, dy):
        q, k, v = (ops.transpose(x, perm=(0, 2, 1, 3)) for x in (q, k, v))
        y = ops.attention(q, k, v, scale=0.5)
        back = ops.attention_gradient(dy, y, q, k, v, scale=0.5)
        return tuple(ops.transpose(x, perm=(0, 2, 1, 3)) for x in (y, *back))

    graph, arrays = graph_of(build, *[(2, 5, 3, 4)] * 3, (2, 3, 5, 4))
    after = simplify(lay_heads(graph, lambda node: True))
    found = count(after)
    assert found["attention_blhd"] == found["attention_gradient_blhd"] == 1
    assert all(v.node.op.name.endswith("blhd") for v in after.outputs)
    assert not Counter(n.op.name for n in after.nodes)["attention"]
    same_values(graph, after, arrays)
    assert lay_heads(graph, lambda node: False) is graph


def test_the_bias_of_a_product_is_a_half_as_the_product_is():
    def build(x, w, b, r):
        return ops.matmul(x, w) + b + r

    graph, _ = graph_of(build, (2, 4, 8), (8, 6), (6,), (2, 4, 6))
    first, second = [n for n in autocast(graph, BF16).nodes if n.op is ops.add]
    assert (first.types[0].dtype, second.types[0].dtype) == (BF16, F32)


def test_without_islands_weights_and_tables_are_halves():
    table, bias = rng.standard_normal((9, 4)).astype(F32), rng.standard_normal((3, 4)).astype(F32)
    huge = np.full((3, 4), 1e6, F32)

    def build(ids):
        x = ops.gather(table, ids, axis=0)
        return x + bias, x + huge

    graph, _ = graph_of(build, np.zeros(3, np.int64))
    types = [n.types[0].dtype for n in autocast(graph, dtypes.float16, islands=False).nodes if n.op is ops.add]
    assert types == [dtypes.float16, F32]


def test_constant_matrices_lie_as_tensor_cores_read_them():
    w = rng.standard_normal((32, 24)).astype(np.float32)
    cache = {}
    graph, arrays = graph_of(lambda x: ops.matmul(x, w), (4, 32))
    after, again = (lay_weights(g, cache) for g in (graph, graph))
    [product], [other] = ([n for n in g.nodes if n.op is ops.matmul] for g in (after, again))
    lies = product.inputs[1].node.inputs[0].constant
    assert lies.flags.c_contiguous and lies.shape == (24, 32)
    assert lies is other.inputs[1].node.inputs[0].constant, "plans of one model share it"
    same_values(graph, after, arrays)


def test_matrices_that_are_laid_have_other_readers_and_their_places_in_the_file():
    w = rng.standard_normal((32, 24)).astype(np.float32)

    def build(x, y):
        table = g.constant(w)
        with g.sourced("file.onnx: MatMul 'scores'"):
            there = ops.matmul(x, table)
        return there, ops.matmul(y, ops.transpose(table, perm=(1, 0))), ops.gather(table, np.array([3, 1]), axis=0)

    graph, arrays = graph_of(build, (4, 32), (4, 24))
    after = lay_weights(fold(graph, {}), {})
    assert after.outputs[0].node.source == graph.outputs[0].node.source
    assert after.outputs[0].node.source is not None
    same_values(graph, after, arrays)


@pytest.mark.parametrize("sliced", [False, True])
def test_results_that_leave_as_float32_are_made_so(sliced):
    def build(x, w):
        y = ops.matmul(x, w)
        return ops.cast(narrow(y, -1, 0, 15) if sliced else y, to=F32)

    graph, arrays = graph_of(build, TensorType((2, 4, 8), BF16), TensorType((8, 16), BF16))
    after = widen_results(graph)
    assert count(after)["wide_matmul"] == 1 and not {"matmul", "cast"} & set(count(after))
    [old], [new] = (evaluate(x.outputs, dict(zip(graph.inputs, arrays, strict=True))) for x in (graph, after))
    exact = (arrays[0].astype(np.float64) @ arrays[1].astype(np.float64))[..., : old.shape[-1]]
    assert np.abs(new - exact).max() < 1e-5 < np.abs(old - exact).max()


def test_a_few_columns_of_a_product_are_not_worth_all_of_it():
    """Scores of the last position alone, say."""
    x, w = (g.input(TensorType(s, BF16)) for s in ((2, 40, 8), (8, 8)))
    y = ops.slice(ops.matmul(x, w), starts=(0, 39, 0), sizes=(2, 1, 8), steps=(1, 1, 1))
    assert count(widen_results(g.Graph([x, w], [ops.cast(y, to=F32)])))["wide_matmul"] == 0


@pytest.mark.parametrize("also", ["half", "more", "activation", "double"])
def test_results_that_others_read_are_not(also):
    x, w = (g.input(TensorType(s, BF16)) for s in ((4, 8), (8, 8)))
    y = ops.matmul(x, w)
    wide = ops.cast(y, to=np.dtype(np.float64) if also == "double" else F32)
    outputs = {"half": [wide, y], "more": [wide, wide * 2.0], "activation": [ops.tanh(wide)], "double": [wide]}[also]
    assert count(widen_results(g.Graph([x, w], outputs)))["wide_matmul"] == 0
