"""Layers of the same activations become one before they are differentiated."""

import numpy as np
import pytest

from flamert import dtypes, ops
from flamert.grad.transform import grad
from flamert.graph import Graph, TensorType, input
from flamert.ops.evaluate import evaluate
from flamert.passes.layers import merge_layers
from flamert.passes.parts import join_parts
from tests.test_passes import count

F32, BF16 = dtypes.float32, dtypes.bfloat16
rng = np.random.default_rng(0)


def layers(sizes, half, biased=True, turned=True):
    """Inputs, and the layers' results: x · wᵀ + b."""
    x = input(TensorType((2, 5, 8), BF16 if half else F32), "x")
    weights = [input(TensorType((n, 8) if turned else (8, n), F32), f"w{i}") for i, n in enumerate(sizes)]
    biases = [input(TensorType((n,), F32), f"b{i}") for i, n in enumerate(sizes)]
    cast = (lambda v: ops.cast(v, to=BF16)) if half else (lambda v: v)
    seen = [ops.transpose(w, perm=(1, 0)) if turned else w for w in weights]
    products = [ops.matmul(x, cast(w)) for w in seen]
    results = [p + cast(b) for p, b in zip(products, biases, strict=True)] if biased else products
    return [x, *weights, *(biases if biased else [])], results


def arrays_for(inputs):
    """Small whole numbers: their sums are exact in whatever order a product makes them."""
    return {v: rng.integers(-3, 4, v.shape).astype(v.dtype) for v in inputs}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_layers_of_one_operand_become_one_and_so_do_their_gradients(half, biased):
    inputs, results = layers((6, 4, 6), half, biased)
    graph = Graph(inputs, results)
    after = merge_layers(graph)
    assert count(after)["matmul"] == 1
    arrays = arrays_for(inputs)
    for old, new in zip(*(evaluate(g.outputs, arrays) for g in (graph, after)), strict=True):
        np.testing.assert_array_equal(old.astype(np.float32), new.astype(np.float32))
    loss = [ops.reduce_sum(ops.cast(y, to=F32) * ops.cast(y, to=F32), axes=(0, 1, 2)) for y in after.outputs]
    total = loss[0] + loss[1] + loss[2]
    before = [ops.reduce_sum(ops.cast(y, to=F32) * ops.cast(y, to=F32), axes=(0, 1, 2)) for y in results]
    slopes = join_parts(Graph(inputs, grad(total, inputs)))
    wanted = Graph(inputs, grad(before[0] + before[1] + before[2], inputs))
    assert count(slopes)["matmul"] == 3
    for old, new in zip(*(evaluate(g.outputs, arrays) for g in (wanted, slopes)), strict=True):
        scale = abs(old.astype(np.float32)).max()
        np.testing.assert_allclose(new.astype(np.float32), old.astype(np.float32), atol=scale * (2e-2 if half else 1e-6))


def test_other_layers_are_left_alone():
    inputs, results = layers((6, 4), False, turned=False)
    assert merge_layers(Graph(inputs, results)).outputs == tuple(results)
    inputs, results = layers((6,), False)
    assert merge_layers(Graph(inputs, results)).outputs == tuple(results)


def test_a_product_that_others_read_goes_without_its_bias():
    inputs, results = layers((6, 4), False)
    products = [y.node.inputs[0] for y in results]
    graph = Graph(inputs, [*results, *products])
    after = merge_layers(graph)
    assert count(after)["matmul"] == 1
    arrays = arrays_for(inputs)
    for old, new in zip(*(evaluate(g.outputs, arrays) for g in (graph, after)), strict=True):
        np.testing.assert_array_equal(old, new)
