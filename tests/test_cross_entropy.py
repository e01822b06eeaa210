"""Cross-entropy on a GPU: its kernels, on rows that lie anywhere, and how graphs come to use them."""

import numpy as np
import pytest

import flamert as fr
from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import ShapeError
from flamert.grad import grad
from flamert.graph import Graph, TensorType
from flamert.ops.cuda import copy, cross_entropy
from flamert.ops.evaluate import evaluate
from flamert.ops.op import OPS
from flamert.passes.cross_entropy import losses_by_rows, narrow_losses, widen_losses
from flamert.passes.deduplicate import deduplicate
from flamert.passes.products import align_products
from flamert.passes.simplify import simplify
from flamert.passes.views import settle_views
from flamert.runtime.device import device
from flamert.runtime.plan import Plan
from tests import bound
from tests.cases.loss import CASES
from tests.emulated import Kernel
from tests.test_emit import compile_source, nvrtc

TYPES = [dtypes.float32, dtypes.float16, dtypes.bfloat16, dtypes.float64]
I64 = np.dtype(np.int64)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
def test_kernels_compile(dtype):
    lib, include = nvrtc()
    for threads in (32, 512):
        for dsums in (None, False, True):
            compile_source(lib, include, cross_entropy.source(dtype, np.dtype(np.int32 if dsums else np.int64), threads, dsums))


@pytest.fixture
def on_cpu(monkeypatch):
    for module in (copy, cross_entropy):
        monkeypatch.setattr(module, "compiled", Kernel)
    bound.FAULTS.record[:] = 0, np.iinfo(np.int64).max, np.iinfo(np.int64).min, np.zeros(1, np.int64).ctypes.data


@pytest.mark.parametrize("op", ["cross_entropy", "cross_entropy_gradient"])
def test_tables_as_emulated(op, on_cpu):
    rows = [bound.check(c, t) for c in CASES if c.op == op for t in (TYPES if "gradient" not in op else TYPES[:1])]
    assert sum(rows) >= 2


def lying(rows, length, dtype):
    """Scores [rows, length]: together, with space between rows, beginning anywhere, or the other way round."""
    rng = np.random.default_rng(rows + length)

    def drawn(*shape):
        return (rng.standard_normal(shape) * 4).astype(dtype)

    yield drawn(rows, length)
    yield drawn(rows, length + 7)[:, :length]
    yield drawn(rows * length + 3)[3:].reshape(rows, length)
    yield drawn(rows, length + 16)[:, 5 : 5 + length]
    yield drawn(length, rows).T


def spoilt(x):
    """With masked scores, and with rows that are masked altogether, or hold NaN."""
    x = x.copy()
    x[:, ::5] = -np.inf
    if len(x) > 3:
        x[2], x[3, 1] = -np.inf, np.nan
    return x


def reference(op, *inputs):
    values = [g.input(TensorType(x.shape, x.dtype)) for x in inputs]
    with np.errstate(all="ignore"):
        return evaluate(
            OPS[op].node(tuple(values), {}).outputs, dict(zip(values, map(np.ascontiguousarray, inputs), strict=True))
        )


def flows(rows, dtype):
    rng = np.random.default_rng(rows)
    return [rng.standard_normal(rows).astype(dtypes.accumulator(dtype)) for _ in range(2)]


def near(got, want, tolerance):
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), tolerance, tolerance)


PRECISION = {2: 1e-2, 4: 2e-5, 8: 1e-12}


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (9, 21), (5, 253), (4, 1001), (2, 9003)])
def test_rows_as_emulated(rows, length, dtype, on_cpu):
    t = np.random.default_rng(0).integers(-length, length, rows)
    for number, x in enumerate(lying(rows, length, dtype)):
        x = x if number else spoilt(x)
        t[0] = 0 if number else min(1, length - 1)
        wanted = reference("cross_entropy", x, t)
        results = [np.zeros_like(y) for y in wanted]
        for got, want in zip(bound.run("cross_entropy", [x, t], {}, results), wanted, strict=True):
            near(got, want, 1e-12 if dtype == np.float64 else 2e-5)
        dlosses, dsums = flows(rows, dtype)
        for operands in ([x, t, wanted[1], dlosses], [x, t, wanted[1], dlosses, dsums]):
            [dx] = reference("cross_entropy_gradient", *operands)
            room = np.zeros(rows * length + 3, dtype)
            given = room[number % 4 :][: rows * length].reshape(rows, length)
            near(bound.run("cross_entropy_gradient", operands, {}, [given])[0], dx, PRECISION[x.itemsize])
            assert not room[: number % 4].any() and not room[number % 4 + rows * length :].any()


@pytest.mark.parametrize("zeros", [1, 3, 70])
@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
def test_zeros_behind_classes_as_emulated(dtype, zeros, on_cpu):
    rows, length = 9, 253
    x = np.random.default_rng(zeros).standard_normal((rows, length + zeros)).astype(dtype)
    t = np.random.default_rng(0).integers(-length, length, rows)
    for seen in (x[:, :length], np.ascontiguousarray(x[:, :length])):
        sums, (dlosses, dsums) = reference("cross_entropy", seen, t)[1], flows(rows, dtype)
        [dx] = reference("cross_entropy_gradient", seen, t, sums, dlosses, dsums)
        [got] = bound.run("cross_entropy_gradient", [seen, t, sums, dlosses, dsums], {"zeros": zeros})
        near(got[:, :length], dx, PRECISION[x.itemsize])
        assert got.shape == (rows, length + zeros) and not got[:, length:].any()


def test_a_class_out_of_range_is_told(on_cpu, monkeypatch):
    record, flag = np.zeros(4, np.int64), np.zeros(1, np.int64)
    record[:] = 0, np.iinfo(np.int64).max, np.iinfo(np.int64).min, flag.ctypes.data
    monkeypatch.setattr(bound.FAULTS, "record", record)
    x = np.zeros((3, 40), np.float32)
    losses, _ = bound.run("cross_entropy", [x, np.array([39, 40, -41])], {})
    assert np.isnan(losses).tolist() == [False, True, True] and flag[0] == 1
    assert record[:3].tolist() == [40, -41, 40]


def settled(graph):
    """As the pipeline has it on a GPU."""
    for apply in (losses_by_rows, simplify, deduplicate, settle_views, narrow_losses, simplify, deduplicate):
        graph = apply(graph)
    return graph


def value(*shape, dtype=dtypes.float32):
    return g.input(TensorType(shape, np.dtype(dtype)))


def names(graph):
    return [node.op.name for node in graph.nodes if node.inputs]


def kernels(graph):
    return [node for node in graph.nodes if node.op.name.startswith("cross_entropy")]


def check_same(before, after, feeds, tolerance):
    with np.errstate(all="ignore"):
        pairs = zip(evaluate(before.outputs, feeds), evaluate(after.outputs, feeds), strict=True)
    for want, got in pairs:
        near(got, want, tolerance)


@pytest.mark.parametrize("length", [None, 6])
def test_scores_stay_halves(length):
    h, w, t = value(2, 6, 8, dtype=dtypes.bfloat16), value(8, 11, dtype=dtypes.bfloat16), value(2, 6, dtype=np.int64)
    scores = ops.cast(ops.matmul(h, w), to=dtypes.float32)
    if length is None:
        shaped = ops.reshape(scores, shape=(12, 11)), ops.reshape(t, shape=(12,))
    else:
        shaped = ops.transpose(scores, perm=(0, 2, 1)), t
    loss = fr.losses.CrossEntropy()(*shaped)
    graph = Graph([h, w, t], [loss, *grad(loss, [h, w])])
    made = settled(graph)
    forward, backward = kernels(made)
    assert forward.inputs[0] is backward.inputs[0] and backward.inputs[0].type == TensorType((12, 11), dtypes.bfloat16)
    assert [n for n in made.nodes if n.op is ops.cast and n.types[0].size > 12] == []
    rng = np.random.default_rng(0)
    feeds = {h: rng.standard_normal(h.shape).astype(h.dtype), w: rng.standard_normal(w.shape).astype(w.dtype)}
    check_same(graph, made, {**feeds, t: np.where(rng.random((2, 6)) < 0.3, -100, rng.integers(0, 11, (2, 6)))}, 1e-2)


@pytest.mark.parametrize("half", [False, True])
def test_a_product_with_columns_beside_it_is_given_what_flows_back(half):
    dtype = dtypes.bfloat16 if half else dtypes.float32
    h, w, t = value(8, 16, 4, dtype=dtype), value(4, 259, dtype=dtype), value(128, dtype=np.int64)
    [scores] = align_products(Graph([h, w], [ops.matmul(h, w)])).outputs
    wide = ops.cast(scores, to=dtypes.float32) if half else scores
    loss = fr.losses.CrossEntropy()(ops.reshape(wide, shape=(128, 259)), t)
    graph = Graph([h, w, t], [loss, *grad(loss, [h, w])])
    made = widen_losses(settled(graph))
    assert "unslice" in names(graph) and "unslice" not in names(made)
    forward, backward = kernels(made)
    assert forward.inputs[0] is backward.inputs[0] and backward.types == (TensorType((128, 264), np.dtype(dtype)),)
    rng = np.random.default_rng(0)
    feeds = {v: rng.standard_normal(v.shape).astype(dtype) for v in (h, w)}
    check_same(graph, made, {**feeds, t: rng.integers(0, 259, 128)}, 1e-2 if half else 1e-5)


def test_columns_stay_apart_where_both_are_read():
    x, t, sums, flow = value(4, 6), value(4, dtype=np.int64), value(4), value(4)
    dx = ops.cross_entropy_gradient(x, t, sums, flow)
    padded = ops.pad(dx, pads=(0, 0, 0, 2))
    for outputs in ([dx, padded], [ops.pad(dx, pads=(0, 0, 1, 2))], [ops.pad(dx, pads=(0, 1, 0, 2))]):
        graph = Graph([x, t, sums, flow], outputs)
        assert widen_losses(graph) is graph
    [alone] = widen_losses(Graph([x, t, sums, flow], [padded])).outputs
    assert names(Graph([x, t, sums, flow], [alone])) == ["cross_entropy_gradient"]


def test_what_is_read_in_float32_stays_so():
    x, t = value(4, 6, dtype=dtypes.float16), value(4, dtype=np.int64)
    wide = ops.cast(x, to=dtypes.float32)
    loss = ops.cross_entropy(wide, t)[0]
    [dx] = grad(loss, [wide])
    made = settled(Graph([x, t], [loss, dx]))
    assert [node.inputs[0].dtype for node in kernels(made)] == [dtypes.float16, dtypes.float32]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("ignore_index", [None, 2, -1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(5,), (2, 3)])
def test_losses_of_onnx_use_it(shape, weighted, ignore_index, reduction):
    x, t = value(shape[0], 4, *shape[1:]), value(*shape, dtype=np.int64)
    rng = np.random.default_rng(0)
    weight = g.constant(rng.random(4).astype(np.float32)) if weighted else None
    attrs = {"reduction": reduction, "ignore_index": ignore_index}
    at = rng.integers(0, 4, shape)
    at.flat[1] = 2
    feeds = {x: rng.standard_normal(x.shape).astype(np.float32), t: np.where(at == 2, ignore_index or 2, at)}
    whole = ops.softmax_cross_entropy(x, t, weight, **attrs)
    parts = ops.nll_loss(ops.log_softmax(x, axis=1), t, weight, **attrs)
    for loss in (whole, parts):
        graph = Graph([x, t], [loss, *grad(whole, [x])])
        made = settled(graph)
        assert [node.op.name for node in kernels(made)] == ["cross_entropy", "cross_entropy_gradient"]
        assert not {"nll_loss", "log_softmax", "softmax"} & set(names(made))
        check_same(graph, made, feeds, 1e-5)


def test_sums_have_a_gradient_too():
    x, t = value(5, 7, dtype=np.float64), value(5, dtype=np.int64)
    losses, sums = ops.cross_entropy(x, t)
    rng = np.random.default_rng(0)
    feeds = {x: rng.standard_normal((5, 7)), t: rng.integers(0, 7, 5)}
    for total in (ops.reduce_sum(sums, axes=(0,)), ops.reduce_sum(losses + sums * 0.5, axes=(0,))):
        plain = ops.reduce_log_sum_exp(x, axes=(1,))
        picked = ops.reshape(ops.gather_elements(x, ops.reshape(t, shape=(5, 1)), axis=1), shape=(5,))
        parts = plain if total.node.inputs[0] is sums else plain * 1.5 - picked
        [got], [want] = grad(total, [x]), grad(ops.reduce_sum(parts, axes=(0,)), [x])
        np.testing.assert_allclose(*evaluate([got, want], feeds), rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (9, 21), (300, 1001), (64, 50257)])
def test_rows(rows, length, dtype):
    on = device("cuda")
    t = np.random.default_rng(0).integers(-length, length, rows)
    for number, x in enumerate(lying(rows, length, dtype)):
        x = np.ascontiguousarray(x if number else spoilt(x))
        wanted = reference("cross_entropy", x, t)
        dlosses, dsums = flows(rows, dtype)
        given = [np.pad(x, ((0, 0), (3, 4))), t, dlosses, dsums]
        values = [g.input(TensorType(a.shape, a.dtype)) for a in given]
        seen = ops.slice(values[0], starts=(0, 3), sizes=(rows, length), steps=(1, 1))
        losses, sums = ops.cross_entropy(seen, values[1])
        dx = ops.cross_entropy_gradient(seen, values[1], sums, *values[2:])
        plan = Plan(Graph(values, [losses, sums, dx]), on, hot=True)
        wanted += reference("cross_entropy_gradient", x, t, wanted[1], dlosses, dsums)
        once = None
        for _ in range(3):
            found = [on.download(y, v.dtype) for y, v in zip(plan(*map(on.upload, given)), plan.graph.outputs, strict=True)]
            for y, want in zip(found, wanted, strict=True):
                near(y, want, PRECISION[y.itemsize])
            assert once is None or all(a.tobytes() == b.tobytes() for a, b in zip(once, found, strict=True))
            once = found
        assert plan.obstacle is None and {step.kernel.backend for step in plan.steps} == {"cupy"}


@pytest.mark.gpu
def test_a_gpu_tells_of_a_class_out_of_range():
    on = device("cuda")
    x, t = value(3, 40), value(3, dtype=np.int64)
    plan = Plan(Graph([x, t], ops.cross_entropy(x, t)), on)
    losses = plan(on.upload(np.zeros((3, 40), np.float32)), on.upload(np.array([0, 40, 1])))[0]
    with pytest.raises(ShapeError, match="outside a dimension of 40"):
        on.download(losses, dtypes.float32)
