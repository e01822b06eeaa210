"""Convolutional networks while they train on the CPU: values, layout, weights that move between steps, equal repeats."""

from collections import Counter

import numpy as np
import pytest

from flamert import dtypes, ops
from flamert import graph as g
from flamert.grad import grad
from flamert.graph import Graph, TensorType
from flamert.ops.cpu.library import library
from flamert.ops.evaluate import evaluate
from flamert.passes import pipeline
from flamert.runtime.device import device
from flamert.runtime.plan import Plan

CPU, F32 = device("cpu"), dtypes.float32
SAME = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
HALVED = {**SAME, "strides": (2, 2)}
native = pytest.mark.skipif(library() is None, reason="the native library is not built")


def normalized(x, *statistics):
    return ops.batch_norm_training(x, *statistics)[0]


def network(x, stem, a, b, around, depthwise, *statistics):
    """A residual network's first layers, and a depthwise one."""
    x = ops.relu(normalized(ops.conv(x, stem, **HALVED), *statistics))
    x = ops.max_pool(x, kernel=(3, 3), **HALVED)
    y = ops.relu(normalized(ops.conv(x, a, **HALVED), *statistics))
    y = normalized(ops.conv(y, b, **SAME), *statistics)
    beside = ops.conv(x, around, strides=(2, 2), pads=(0,) * 4, dilations=(1, 1))
    y = ops.relu(y + normalized(beside, *statistics))
    y = ops.relu(ops.conv(y, depthwise, **SAME, group=depthwise.shape[0]) + y)
    y = ops.average_pool(y, kernel=(2, 2), strides=(2, 2), pads=(0,) * 4, dilations=(1, 1), counted=(0,) * 4)
    return ops.reduce_sum(ops.global_average_pool(y) * ops.reduce_max(y, axes=(2, 3), keepdims=True), axes=(0, 1, 2, 3))


def training_graph(c=8):
    """The network, its loss and all gradients, and arrays to feed it with."""
    shapes = [(2, 3, 32, 28), (c, 3, 3, 3), (c, c, 3, 3), (c, c, 3, 3), (c, c, 1, 1), (c, 1, 3, 3), *[(c,)] * 4]
    rng = np.random.default_rng(0)
    inputs = [g.input(TensorType(shape, F32)) for shape in shapes]
    arrays = [rng.standard_normal(shape).astype(F32) for shape in shapes]
    loss = network(*inputs)
    return Graph(inputs, [loss, *grad(loss, inputs[1:8])]), arrays


def test_values_are_those_of_reference_kernels():
    graph, arrays = training_graph()
    results = Plan(pipeline.prepare(graph, True, CPU, {}), CPU, hot=True)(*arrays)
    wide = {v: a.astype(np.float64) for v, a in zip(graph.inputs, arrays, strict=True)}
    twin = {v: g.input(TensorType(v.shape, dtypes.float64)) for v in graph.inputs}
    loss = network(*twin.values())
    expected = evaluate([loss, *grad(loss, list(twin.values())[1:8])], {twin[v]: a for v, a in wide.items()})
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4 * np.abs(want).max())


@native
def test_channels_are_last_from_end_to_end():
    prepared = pipeline.prepare(training_graph()[0], True, CPU, {})
    found = Counter(node.op.name for node in prepared.nodes)
    turned = [n.inputs[0] for n in prepared.nodes if n.op is ops.transpose and n.attrs["perm"] in ((0, 2, 3, 1), (0, 3, 1, 2))]
    assert turned == [prepared.inputs[0]], "only the image that comes in is turned"
    assert found["conv_weight_gradient_channels_last"] == 5 and found["batch_norm_gradient"] == 4
    assert found["max_pool_gradient_channels_last"] == found["average_pool_gradient_channels_last"] == 1
    assert not found.keys() & {"conv", "conv_transpose", "conv_weight_gradient", "batch_norm"}
    assert any(len(n.inputs) == 5 for n in prepared.nodes if "conv" in n.op.name), "relu's gradient went into a convolution"


def test_gradients_follow_weights_that_are_state():
    x, w, dy = (g.input(TensorType(s, F32)) for s in ((2, 4, 6, 6), (4, 4, 3, 3), (2, 4, 6, 6)))
    (dx,) = grad(ops.conv(x, w, **SAME), [x], [dy])
    held, rng = np.ones(w.shape, F32), np.random.default_rng(0)
    plan = Plan(pipeline.prepare(Graph([w, dy], [dx]), True, CPU, {}), CPU, hot=True, state={w: held})
    for _ in range(2):
        held[...] = rng.standard_normal(w.shape)
        upstream = rng.standard_normal(dy.shape).astype(F32)
        (want,) = evaluate([dx], {w: held, dy: upstream})
        np.testing.assert_allclose(plan(upstream)[0], want, 1e-4, 1e-4)


@native
def test_repeats_are_equal_bit_for_bit():
    graph, arrays = training_graph(24)
    lib, prepared = library(), pipeline.prepare(graph, True, CPU, {})
    before, runs = lib.threads, []
    try:
        for threads in (2, 2, 1):
            lib.set_threads(threads)
            runs.append(Plan(prepared, CPU, hot=True)(*arrays))
    finally:
        lib.set_threads(before)
    for run in runs[1:]:
        for a, b in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(a, b)
