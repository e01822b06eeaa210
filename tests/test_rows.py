"""Reductions of rows fused with their neighbours: graphs keep their meaning, kernels compile, and a GPU agrees."""

import numpy as np
import pytest

from flamert import dtypes, ops
from flamert import graph as g
from flamert.grad import grad
from flamert.graph import Graph, TensorType
from flamert.ops.cuda import reduce
from flamert.ops.cuda.emit_reduce import laid, source
from flamert.ops.cuda.emit_rows import rows_kernel
from flamert.ops.cuda.pointwise import elementwise, value_types
from flamert.ops.cuda.reduce import layout_of
from flamert.ops.cuda.row_plan import schedule, shape_of
from flamert.ops.cuda.rows import _operands, _shape, fits
from flamert.ops.evaluate import evaluate
from flamert.passes.pointwise import fuse_pointwise
from flamert.passes.rows import fuse_rows, open_rows
from flamert.runtime.device import device
from flamert.runtime.plan import Plan
from tests.emulated import Kernel, Memory
from tests.test_emit import compile_source, nvrtc

F = np.dtype(np.float32)


def value(*shape, dtype=F):
    return g.input(TensorType(shape, dtype))


def with_gradient(y, *wrt):
    weights = g.constant(np.random.default_rng(5).standard_normal(y.shape).astype(y.dtype))
    total = ops.reduce_sum(y * weights, axes=tuple(range(y.rank)))
    return [y, *grad(total, wrt)]


def softmax():
    x = value(3, 5, 40)
    return [x], with_gradient(ops.softmax(x * 2, axis=-1), x)


def log_softmax():
    x = value(7, 33)
    return [x], with_gradient(ops.log_softmax(x, axis=1), x)


def layer_norm():
    x, r, s, b = value(2, 6, 768), value(2, 6, 768), value(768), value(768)
    return [x, r, s, b], with_gradient(ops.layer_norm(x + r, s, b, axis=-1), x, s, b)


def two_axes():
    x, s = value(4, 6, 8), value(6, 8)
    return [x, s], with_gradient(ops.layer_norm(x, s, axis=1), x, s)


def rms_norm_of_halves():
    x, s = value(9, 64, dtype=dtypes.bfloat16), value(64, dtype=dtypes.bfloat16)
    return [x, s], [ops.rms_norm(x, s, axis=-1)]


def masked_softmax():
    x, mask = value(2, 4, 6, 16), value(2, 1, 1, 16, dtype=np.dtype(np.bool_))
    scores = ops.where(mask, x * 0.25, -1e9)
    return [x, mask], with_gradient(ops.softmax(scores, axis=-1), x)


def long_rows():
    x = value(2, 5003)
    return [x], [ops.log_softmax(x, axis=-1), ops.reduce_max(x, axes=(1,)), ops.reduce_min(x * x, axes=(1,), keepdims=True)]


def between():
    """What lies outside between two reductions must not end up in a circle."""
    x, w = value(8, 16), value(16, 16)
    n = x - ops.reduce_mean(x, axes=(1,), keepdims=True)
    y = ops.matmul(n, w) + n
    return [x, w], [y * ops.reduce_sum(y * n, axes=(1,), keepdims=True), n * ops.reduce_max(y, axes=(1,), keepdims=True)]


GRAPHS = [softmax, log_softmax, layer_norm, two_axes, rms_norm_of_halves, masked_softmax, long_rows, between]


def fused(make):
    inputs, outputs = make()
    graph = open_rows(Graph(inputs, outputs))
    return Graph(inputs, outputs), fuse_rows(graph, elementwise, fits)


def arrays_for(graph):
    rng = np.random.default_rng(0)
    drawn = [rng.standard_normal(v.shape) for v in graph.inputs]
    return [(x > -1 if v.dtype == np.bool_ else x).astype(v.dtype) for x, v in zip(drawn, graph.inputs, strict=True)]


def compare(results, wanted):
    for got, want in zip(results, wanted, strict=True):
        tolerance = 2e-2 if want.dtype in dtypes.HALF else 2e-5
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("make", GRAPHS, ids=lambda m: m.__name__)
def test_graphs_keep_their_meaning(make):
    plain, graph = fused(make)
    arrays = arrays_for(plain)
    groups = [node for node in graph.nodes if node.op.name == "rows"]
    assert groups and len(graph.nodes) < len(plain.nodes) + 12
    results = evaluate(graph.outputs, dict(zip(graph.inputs, arrays, strict=True)))
    compare(results, evaluate(plain.outputs, dict(zip(plain.inputs, arrays, strict=True))))


def test_a_softmax_is_one_node():
    x = value(4, 32)
    graph = fuse_rows(open_rows(Graph([x], [ops.softmax(x * 2 + 1, axis=-1)])), elementwise, fits)
    assert [n.op.name for n in graph.nodes if n.inputs] == ["rows"]


@pytest.mark.parametrize("make", GRAPHS, ids=lambda m: m.__name__)
def test_kernels_compile(make):
    lib, include = nvrtc()
    for node in fused(make)[1].nodes:
        if node.op.name == "rows":
            operands = [o._replace(steps=(True, False)) for o in _operands(node)]
            types = value_types(node.attrs["program"], [v.type for v in node.inputs])
            text = rows_kernel(node.attrs["program"], types, operands, node.attrs["results"], 2, _shape(node))
            compile_source(lib, include, text)


def test_values_are_computed_as_late_as_they_may():
    program = fused(softmax)[1].nodes
    node = next(n for n in program if n.op.name == "rows")
    plan = schedule(node.attrs["program"], [o.along for o in _operands(node)], node.attrs["results"])
    assert plan.passes <= 4 and len(plan.kept) <= 4
    assert shape_of(768, 4) == (768, 128, 4, 1, 0) and shape_of(768, 4).turns == 2
    assert shape_of(768, 4, count=12608, kept=2) == (768, 32, 4, 8, 0) and shape_of(768, 4, count=12608, kept=3).threads == 128
    assert shape_of(40, 4).rows == 8


@pytest.mark.gpu
@pytest.mark.parametrize("make", GRAPHS, ids=lambda m: m.__name__)
def test_a_gpu_agrees(make):
    plain, graph = fused(make)
    on = device("cuda")
    arrays = arrays_for(plain)
    plan = Plan(fuse_pointwise(graph, elementwise, together=True), on, hot=True)
    wanted = evaluate(plain.outputs, dict(zip(plain.inputs, arrays, strict=True)))
    for _ in range(3):
        results = plan(*[on.upload(x) for x in arrays])
        compare([on.download(r, w.dtype) for r, w in zip(results, wanted, strict=True)], wanted)


@pytest.mark.parametrize("sizes", [(1, 4096, 768), (3, 4096, 33), (700, 40, 3), (2, 100000, 1), (5, 70, 1)], ids=str)
@pytest.mark.parametrize("name", ["reduce_sum", "reduce_mean", "reduce_max", "reduce_min"])
def test_other_reductions_compile(name, sizes):
    lib, include = nvrtc()
    for of, to in ((F, dtypes.float16), (dtypes.bfloat16, F), (np.dtype(np.float64), np.dtype(np.float64))):
        compile_source(lib, include, source(name, of, to, laid(*sizes, of.itemsize)))


def test_layouts():
    assert layout_of((4, 8, 16), (0, 1), 4) == (1, 32, 16, 1, 4)
    assert layout_of((4, 8, 17), (1,), 4) == (4, 8, 17, 1, 1)
    assert layout_of((4, 8, 16), (0, 2), 4) is None
    assert layout_of((4, 1, 16), (0, 2), 4) == (1, 64, 1, 1, 4)
    long = layout_of((1 << 20,), (0,), 4)
    assert long.splits > 100 and long.chunk * long.splits >= 1 << 20 > long.chunk * (long.splits - 1)
    bias = layout_of((4096, 768), (0,), 2)
    assert (bias.width, bias.across(2), bias.blocks(2), bias.splits) == (8, 8, 12, 22)


REDUCED = [
    ((4096, 768), (0,)),
    ((3, 500, 40), (1,)),
    ((1 << 20,), (0,)),
    ((5, 70001), (1,)),
    ((2, 3, 4), (0, 1, 2)),
    ((7, 33), (0,)),
    ((9001, 3), (0,)),
    ((300, 1030), (0,)),
    ((2, 3001, 6), (1,)),
]


@pytest.mark.parametrize(("shape", "axes"), REDUCED)
def test_reductions_as_emulated(shape, axes, monkeypatch):
    monkeypatch.setattr(reduce, "compiled", Kernel)
    for name, of, to, bound in (("reduce_mean", F, F, 1e-6), ("reduce_max", dtypes.bfloat16, F, 0)):
        x = np.random.default_rng(2).standard_normal(shape).astype(of)
        fold = {"reduce_sum": np.sum, "reduce_mean": np.mean, "reduce_max": np.max}[name]
        want = fold(x.astype(np.float64), axis=axes)
        layout = layout_of(shape, axes, of.itemsize)
        out, parts = np.zeros(want.shape, to), np.zeros(layout.outer * layout.splits * layout.inner, dtypes.accumulator(of))
        work = Memory(parts) if layout.splits > 1 else None
        call = reduce.reduction(name, layout, (of, to), np, Memory(x), Memory(out), work)
        call()
        once = out.copy()
        call()
        assert once.tobytes() == out.tobytes()
        np.testing.assert_allclose(out, want, rtol=bound, atol=bound * x.size / want.size)


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "axes"), REDUCED)
@pytest.mark.parametrize("dtype", [F, dtypes.bfloat16, np.dtype(np.float64)], ids=lambda t: t.name)
@pytest.mark.parametrize("name", ["reduce_sum", "reduce_mean", "reduce_max", "reduce_min"])
def test_a_gpu_reduces(name, dtype, shape, axes):
    x = value(*shape, dtype=dtype)
    graph = Graph([x], [getattr(ops, name)(x, axes=axes, keepdims=True)])
    on = device("cuda")
    [array] = arrays_for(graph)
    [want] = evaluate(graph.outputs, {x: array.astype(np.float64).astype(dtype)})
    plan = Plan(graph, on, hot=True)
    got = [on.download(plan(on.upload(array))[0], dtype) for _ in range(3)]
    assert got[0].tobytes() == got[1].tobytes() == got[2].tobytes()
    tolerance = {2: 2e-2, 4: 1e-4, 8: 1e-12}[dtype.itemsize]
    np.testing.assert_allclose(got[0].astype(np.float64), want.astype(np.float64), rtol=tolerance, atol=tolerance * 30)
