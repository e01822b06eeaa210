"""Group normalisation on a GPU: the sums that it is made of, and how graphs come to have them with channels last."""

import numpy as np
import pytest

from flamert import dtypes, ops
from flamert import graph as g
from flamert.grad import grad
from flamert.graph import Graph, TensorType
from flamert.ops.cuda import copy, groups
from flamert.ops.evaluate import evaluate
from flamert.passes.deduplicate import deduplicate
from flamert.passes.groups import open_groups
from flamert.passes.layout import channels_last
from flamert.passes.simplify import simplify
from flamert.runtime.device import device
from flamert.runtime.plan import Plan, decompose
from tests import bound
from tests.cases import normalize
from tests.emulated import Kernel
from tests.test_emit import compile_source, nvrtc

F32 = np.dtype(np.float32)
TYPES = [dtypes.float16, dtypes.bfloat16, F32, dtypes.float64]

SHAPES = [
    ((3, 16, 8, 8), 4, 1),
    ((3, 8, 8, 16), 4, -1),
    ((2, 40, 40, 12), 3, -1),
    ((2, 5, 7, 10), 2, -1),
    ((2, 10, 5, 7), 2, 1),
    ((2, 3, 600), 50, -1),
    ((1, 300, 1280), 32, -1),
    ((2, 32, 2048), 32, 1),
]
"""Shapes, groups, and where the channels are."""


@pytest.fixture
def on_cpu(monkeypatch):
    for module in (copy, groups):
        monkeypatch.setattr(module, "compiled", Kernel)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
def test_kernels_compile(dtype):
    lib, include = nvrtc()
    for shape, count, axis in SHAPES:
        for name in ("group_moments", "group_sums"):
            of = groups.laid(shape, count, axis, dtype.itemsize, name == "group_sums")
            flows = F32 if dtype in dtypes.HALF and name == "group_sums" else dtype
            compile_source(lib, include, groups.source(name, (dtype, flows), of))


@pytest.mark.parametrize("op", ["group_moments", "group_sums"])
def test_tables_as_emulated(op, on_cpu):
    rows = [c for c in normalize.CASES if c.op == op]
    assert rows and all(bound.check(c, F32) for c in rows)


def drawn(shape, dtype, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * 2 + 5).astype(dtype)


def near(got, want, scale=1):
    np.testing.assert_allclose(got, want, 2e-5, 2e-5 * scale)


def test_operands_may_begin_anywhere(on_cpu):
    x, dy = (drawn((2 * 5 * 8 + 1,), F32, seed)[1:].reshape(2, 5, 8) for seed in (0, 1))
    attrs = {"groups": 2, "axis": -1}
    found = bound.run("group_moments", [x], attrs)
    for got, want in zip(found, normalize.group_moments(x.astype(np.float64), **attrs), strict=True):
        near(got, want)
    sums = [bound.run("group_sums", [d, y, found[0]], attrs) for d, y in ((dy, x), (dy.copy(), x.copy()))]
    for got, want in zip(*sums, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize(("shape", "count", "axis"), SHAPES)
def test_sums_as_emulated(shape, count, axis, dtype, on_cpu):
    x, attrs = drawn(shape, dtype), {"groups": count, "axis": axis}
    mean, var = bound.run("group_moments", [x], attrs)
    wanted = normalize.group_moments(x.astype(np.float64), **attrs)
    near(mean, wanted[0])
    near(var, wanted[1])
    for flows in {dtype, mean.dtype}:
        dy = drawn(shape, flows, 1) - flows.type(5)
        found = bound.run("group_sums", [dy, x, mean], attrs)
        size = np.sqrt(x.size)
        for got, want in zip(
            found, normalize.group_sums(dy.astype(np.float64), x.astype(np.float64), mean, **attrs), strict=True
        ):
            near(got, want, size)


def test_parts_cover_all_rows():
    for shape, count, axis in SHAPES:
        for size in (2, 4, 8):
            for each in (False, True):
                of = groups.laid(shape, count, axis, size, each)
                assert of.images * of.rows * of.across * of.width == np.prod(shape)
                assert (of.splits - 1) * of.chunk < of.rows <= of.splits * of.chunk


def value(*shape, dtype=F32):
    return g.input(TensorType(shape, np.dtype(dtype)))


def normalised(half):
    """Two convolutions with group norm between them, and its gradients."""
    dtype = dtypes.bfloat16 if half else F32
    x, w, v = value(2, 8, 6, 6, dtype=dtype), value(16, 8, 3, 3, dtype=dtype), value(4, 16, 1, 1, dtype=dtype)
    scale, bias = value(16), value(16)
    same = {"strides": (1, 1), "dilations": (1, 1), "group": 1}
    y = ops.conv(x, w, pads=(1, 1, 1, 1), **same)
    y = ops.swish(ops.group_norm(ops.cast(y, to=F32) if half else y, scale, bias, groups=4))
    y = ops.conv(ops.cast(y, to=dtype) if half else y, v, pads=(0, 0, 0, 0), **same)
    loss = ops.reduce_sum(ops.cast(y * y, to=F32), axes=(0, 1, 2, 3))
    inputs = [x, w, v, scale, bias]
    return Graph(inputs, [loss, *grad(loss, inputs[1:])])


@pytest.mark.parametrize("half", [False, True])
def test_all_of_it_has_channels_last(half):
    graph = normalised(half)
    made = channels_last(open_groups(graph), lambda node: True)
    for apply in (simplify, deduplicate):
        made = apply(made)
    sums = [node for node in made.nodes if node.op.name in ("group_moments", "group_sums")]
    assert [node.op.name for node in sums] == ["group_moments", "group_sums"]
    assert all(node.attrs["axis"] == 3 for node in sums)
    assert sums[0].inputs[0].dtype == sums[1].inputs[1].dtype == (dtypes.bfloat16 if half else F32)
    turned = [node for node in made.nodes if node.op is ops.transpose and node.types[0].size >= 2 * 16 * 36]
    assert not turned
    rng = np.random.default_rng(0)
    feeds = {v: (rng.standard_normal(v.shape) / 2).astype(v.dtype) for v in graph.inputs}
    pairs = zip(*[evaluate(decompose(of, "numpy").outputs, feeds) for of in (graph, made)], strict=True)
    for want, got in pairs:
        most = np.abs(want.astype(F32)).max()
        np.testing.assert_allclose(got.astype(F32) / most, want.astype(F32) / most, atol=2e-2 if half else 1e-5)


def laid_last(build):
    """A convolution, build(its result), a convolution: transpositions of the whole that are left, once values are the same."""
    x = value(2, 8, 4, 6)
    same = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "group": 1}
    y = build(ops.conv(x, g.constant(drawn((8, 8, 1, 1), F32)), **same))
    graph = Graph([x], [ops.conv(y, g.constant(drawn((4, y.shape[1], 1, 1), F32)), **same)])
    graph = decompose(graph, "numpy")
    made = deduplicate(simplify(channels_last(graph, lambda node: True)))
    feeds = {x: drawn(x.shape, F32)}
    [want], [got] = (evaluate(decompose(of, "numpy").outputs, feeds) for of in (graph, made))
    np.testing.assert_allclose(got, want, 1e-4, 1e-3)
    inside = [node for node in made.nodes if node.op is ops.transpose and not node.known]
    return len([node for node in inside if node.inputs[0] not in made.inputs and node.outputs[0] not in made.outputs])


def test_what_works_on_positions_leaves_channels_last():
    def positions(y):
        rows = ops.transpose(ops.reshape(y, shape=(2, 8, 24)), perm=(0, 2, 1))
        mixed = ops.matmul(rows, g.constant(drawn((8, 8), F32)))
        return ops.concat(y, y + ops.reshape(ops.transpose(mixed, perm=(0, 2, 1)), shape=y.shape), axis=1)

    assert laid_last(positions) == 0


def test_repeated_elements_leave_channels_last():
    assert laid_last(lambda y: ops.repeat(y, repeats=(1, 1, 2, 3))) == 0
    assert laid_last(lambda y: ops.repeat(y, repeats=(1, 2, 1, 2))) == 0
    # Whole rows, one after the other, which is no repetition of elements.
    laid_last(lambda y: ops.tile(y, repeats=(1, 1, 2, 3)))
    laid_last(lambda y: ops.reshape(y, shape=(2, 24, 2, 4)))


def test_group_norm_without_neighbours_is_the_same():
    x, scale, bias = value(3, 12, 5), value(12), value(12)
    graph = Graph([x, scale, bias], [ops.group_norm(x, scale, bias, groups=3)])
    made = open_groups(graph)
    assert "group_norm" not in [node.op.name for node in made.nodes]
    feeds = {v: drawn(v.shape, F32, i) for i, v in enumerate(graph.inputs)}
    np.testing.assert_allclose(evaluate(made.outputs, feeds)[0], evaluate(graph.outputs, feeds)[0], 1e-4, 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize(("shape", "count", "axis"), [*SHAPES, ((16, 64, 64, 128), 32, -1), ((16, 16, 16, 512), 32, -1)])
def test_sums(shape, count, axis, dtype):
    on, attrs = device("cuda"), {"groups": count, "axis": axis}
    given = [drawn(shape, dtype, 1) - dtype.type(5), drawn(shape, dtype)]
    values = [value(*shape, dtype=dtype) for _ in given]
    mean, var = ops.group_moments(values[1], **attrs)
    plan = Plan(Graph(values, [mean, var, *ops.group_sums(*values, mean, **attrs)]), on, hot=True)
    assert {step.kernel.backend for step in plan.steps} == {"cupy"} and plan.obstacle is None
    dy, x = (a.astype(np.float64) for a in given)
    wanted = normalize.group_moments(x, **attrs)
    wanted += normalize.group_sums(dy, x, wanted[0], **attrs)
    once = None
    for _ in range(3):
        found = [on.download(y, v.dtype) for y, v in zip(plan(*map(on.upload, given)), plan.graph.outputs, strict=True)]
        for got, want, scale in zip(found, wanted, (1, 1, np.sqrt(x.size), np.sqrt(x.size)), strict=True):
            near(got, want, scale)
        assert once is None or all(a.tobytes() == b.tobytes() for a, b in zip(once, found, strict=True))
        once = found
