"""Groups of rows that add up what they read and make, and values that are made again: steps keep their meaning, kernels too."""

import numpy as np
import pytest

from flamert import dtypes, ops
from flamert import graph as g
from flamert.grad import grad
from flamert.graph import Graph, TensorType
from flamert.ops.cuda import row_plan
from flamert.ops.cuda import rows as on_gpu
from flamert.ops.cuda.pointwise import elementwise
from flamert.ops.evaluate import evaluate
from flamert.ops.op import Site
from flamert.passes.deduplicate import deduplicate
from flamert.passes.pipeline import lower, prepare
from flamert.passes.remade import remake_rows
from flamert.passes.row_sums import sum_rows
from flamert.passes.rows import fuse_rows, open_rows
from flamert.runtime.device import device
from flamert.runtime.plan import Plan
from tests.emulated import Kernel, Memory
from tests.test_emit import compile_source, nvrtc
from tests.test_passes import count

F, B = dtypes.float32, dtypes.bfloat16


def value(*shape, dtype=F):
    return g.input(TensorType(shape, dtype))


class Cuda:
    """As much of a device as passes ask for."""

    backend, allow_tf32, tunes = "cupy", True, False


def network(kind, batch=6, length=9, width=64, depth=2):
    """(input, parameters, loss) of residual blocks. kind: "before" or "behind", where norms are; "rows": before, and
    products are of [batch · length, …].
    """
    x, parameters = value(batch, length, width), []

    def parameter(*shape):
        parameters.append(value(*shape))
        return parameters[-1]

    def norm(h):
        return ops.layer_norm(h, parameter(width), parameter(width), axis=-1)

    def dense(h, outputs):
        w, bias = parameter(h.shape[-1], outputs), parameter(outputs)
        if kind != "rows":
            return ops.matmul(h, w) + bias
        return ops.reshape(
            ops.gemm(ops.reshape(h, shape=(batch * length, h.shape[-1])), w, bias), shape=(batch, length, outputs)
        )

    h = x
    for _ in range(depth):
        inner = h if kind == "behind" else norm(h)
        h = h + dense(ops.gelu(dense(inner, 2 * width)), width)
        h = norm(h) if kind == "behind" else h
    y = dense(h if kind == "behind" else norm(h), 16)
    return x, parameters, ops.reduce_mean(y * y, axes=(0, 1, 2))


def step(kind, half, **sizes):
    """A training step's graph, and what passes for a GPU make of it."""
    x, parameters, loss = network(kind, **sizes)
    forward = lower(Graph([x, *parameters], [loss]), half, Cuda, {})
    graph = Graph([x, *parameters], [*forward.outputs, *grad(forward.outputs[0], parameters)])
    return graph, prepare(graph, True, Cuda, {})


KINDS = [("before", B), ("behind", B), ("rows", B), ("before", None), ("behind", None)]


def named(case):
    return case if isinstance(case, str) else "float32" if case is None else case.name


def groups(graph, summing=True):
    return [n for n in graph.nodes if n.op is ops.rows and bool(n.attrs["sums"]) == summing]


@pytest.mark.parametrize(("kind", "half"), KINDS, ids=named)
def test_steps_keep_their_meaning(kind, half):
    graph, after = step(kind, half)
    rng = np.random.default_rng(0)
    feeds = {v: (rng.standard_normal(v.shape) * 0.3).astype(F) for v in graph.inputs}
    for old, new in zip(evaluate(graph.outputs, feeds), evaluate(after.outputs, feeds), strict=True):
        bound = 2e-5 if half is None else 1e-2
        np.testing.assert_allclose(new, old, rtol=bound, atol=bound * np.abs(old).max())


@pytest.mark.parametrize(("kind", "half"), KINDS, ids=named)
def test_norms_backward_read_and_write_only_what_is_new(kind, half):
    """A scale's, a bias's and a linear layer's gradients are made where rows are; nothing is widened into memory for them."""
    _, after = step(kind, half)
    summing = groups(after)
    assert summing and all(len(n.attrs["sums"]) == 3 for n in summing)
    for node in summing:
        whole = [t for t in node.types if t.size == 6 * 9 * 64]
        # The next norm's gradient takes it in float32, if there is one, and products as a half.
        assert len(whole) <= (1 if half is None else 2)


@pytest.mark.parametrize("half", [B, None], ids=named)
def test_what_a_norm_made_of_the_residual_is_made_again(half):
    """Of x, in memory anyway, mean and deviation; where what a norm makes is the residual, scale and bias come again."""
    _, after = step("before", half)
    _first, forward, _last = [n for n in groups(after, summing=False) if n.attrs["axes"] == 1][:3]
    assert [t.size for t in forward.types].count(54) == 2
    assert [t.size for t in forward.types].count(54 * 64) == 2
    _, after = step("behind", B)
    forward = groups(after, summing=False)[0]
    assert [(t.size // 54, t.dtype) for t in forward.types] == [(1, F), (64, F), (64, B)]


def behind_a_product(to):
    """A group whose result a product reads, and as the type `to` only another group behind the product."""
    x, w = value(40, 64), value(64, 64)
    y = ops.softmax(x, axis=-1)
    gated = ops.cast(y * 2.0, to=to) * ops.cast(ops.matmul(y, w), to=to)
    graph = Graph([x, w], [gated - ops.reduce_max(gated, axes=(1,), keepdims=True)])
    fused = fuse_rows(deduplicate(open_rows(graph)), elementwise, on_gpu.fits)
    after = remake_rows(fused, on_gpu.fits)
    feeds = {v: np.random.default_rng(3).standard_normal(v.shape).astype(F) for v in graph.inputs}
    [old], [new] = evaluate(graph.outputs, feeds), evaluate(after.outputs, feeds)
    assert old.tobytes() == new.tobytes()
    return [[t.dtype for t in n.types] for n in groups(after, summing=False)]


def test_the_larger_is_not_kept_for_the_smaller():
    assert behind_a_product(F) == [[F], [F]]
    assert behind_a_product(B) == [[F, B], [B]]


def test_rows_are_not_made_again_within_longer_ones():
    """What a group of two axes to a row read in the place of x − m would be one number for each of the shorter rows."""
    x, m = value(4, 64), value(4, 1)
    norms = ops.reduce_max((x - m) * 2.0, axes=(1,), keepdims=True)
    graph = Graph([x, m], [norms, ops.reduce_sum((x - m) * (x - m + 1.0), axes=(0, 1), keepdims=True)])
    fused = fuse_rows(deduplicate(open_rows(graph)), elementwise, on_gpu.fits)
    after = remake_rows(fused, on_gpu.fits)
    shorter, longer = groups(after, summing=False)
    assert (shorter.attrs["axes"], longer.attrs["axes"]) == (1, 2)
    assert [v.shape for v in longer.inputs] == [(4, 64)]


def summed(make):
    graph = deduplicate(open_rows(make))
    return sum_rows(fuse_rows(graph, elementwise, on_gpu.fits), elementwise, on_gpu.fits)


def test_a_group_that_needs_a_sum_does_not_make_it():
    x = value(50, 64)
    total = ops.reduce_sum(x, axes=(0,))
    shifted = x + total
    graph = Graph([x], [shifted - ops.reduce_max(shifted, axes=(1,), keepdims=True)])
    assert count(summed(graph))["reduce_sum"] == 1


def test_groups_do_not_wait_for_each_other():
    """Each reads what the other's sum is made of, and one of them needs the other's sum already."""
    x, y = value(50, 64), value(50, 64)
    sx, sy = ops.reduce_sum(x, axes=(0,)), ops.reduce_sum(y, axes=(0,))
    a, b = x * sy, y * sx
    graph = Graph([x, y], [ops.softmax(a, axis=-1), ops.softmax(b, axis=-1)])
    after = summed(graph)
    feeds = {v: np.random.default_rng(3).standard_normal(v.shape).astype(F) for v in (x, y)}
    for old, new in zip(evaluate(graph.outputs, feeds), evaluate(after.outputs, feeds), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-4)


def test_operands_that_are_broadcast_over_rows_are_not_added_up():
    x, p = value(4, 40, 64), value(1, 40, 64)
    graph = Graph([x, p], [ops.softmax(x + p, axis=-1), ops.reduce_sum(p, axes=(0, 1))])
    assert count(summed(graph))["reduce_sum"] == 1


def test_views_of_rows_do_not_matter():
    x = value(4, 40, 64)
    y = ops.softmax(x, axis=-1)
    turned = ops.reshape(ops.transpose(y, perm=(1, 0, 2)), shape=(160, 64))
    graph = Graph([x], [turned, ops.reduce_sum(turned, axes=(0,), keepdims=True)])
    after = summed(graph)
    assert count(after)["reduce_sum"] == 0
    feeds = {x: np.random.default_rng(3).standard_normal(x.shape).astype(F)}
    for old, new in zip(evaluate(graph.outputs, feeds), evaluate(after.outputs, feeds), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)


def resized(node, count, length):
    """The node for so many rows of so many elements."""
    full = on_gpu._row(node)
    fresh = []
    for v in node.inputs:
        own = (1,) * (len(full) - v.rank) + v.shape
        rows = (1,) * (v.rank - 1) if own[:-1] != full[:-1] else (1, count)
        fresh.append(v if v.constant is not None else value(*rows, length if own[-1] > 1 else 1, dtype=v.dtype))
    return ops.rows.node(tuple(fresh), node.attrs)


def bound(monkeypatch, node, arrays, outs, compiled):
    monkeypatch.setattr(on_gpu, "compiled", compiled)
    work = tuple(Memory(np.full(t.shape, np.nan, t.dtype)) for t in on_gpu._parts(node))
    kernel = next(k for k in ops.rows.kernels if k.backend == "cupy")
    return kernel.run(Site(np, node, work), tuple(outs), *map(Memory, arrays), **node.attrs), work


def distinct():
    """Groups of rows of these steps, each program once."""
    found = {}
    for kind, half in KINDS:
        _, after = step(kind, half, depth=3)
        for node in (n for summing in (True, False) for n in groups(after, summing) if n.attrs["axes"] == 1):
            key = str(node.attrs), tuple(v.dtype for v in node.inputs)
            found.setdefault(key, (f"{kind}-{named(half)}-{len(found)}", node))
    return dict(found.values())


NODES = distinct()
SIZES = [(1, 64), (80, 64), (40, 768), (29, 100), (13, 770), (5, 1031)]


@pytest.mark.parametrize(("rows", "length"), SIZES, ids=str)
@pytest.mark.parametrize("name", NODES)
def test_kernels_compute_the_op(monkeypatch, name, rows, length):
    monkeypatch.setattr(row_plan, "MULTIPROCESSORS", 3)
    node = resized(NODES[name], rows, length)
    assert on_gpu.fits(node)
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal(v.shape).astype(v.dtype) if v.constant is None else v.constant for v in node.inputs]
    outs = [Memory(np.full(t.shape, np.nan, t.dtype)) for t in node.types]
    run, _work = bound(monkeypatch, node, arrays, outs, Kernel)
    feeds = {v: a for v, a in zip(node.inputs, arrays, strict=True) if v.constant is None}
    wanted = evaluate(node.outputs, feeds)
    for _ in range(2):
        before = [y.array.tobytes() for y in outs]
        run()
        for got, want in zip(outs, wanted, strict=True):
            exact = want.astype(np.float64)
            tolerance = 2e-2 if want.dtype in dtypes.HALF else 1e-4
            assert np.isfinite(exact).all()
            np.testing.assert_allclose(
                got.array.astype(np.float64), exact, rtol=tolerance, atol=tolerance * np.abs(exact).max()
            )
    assert before == [y.array.tobytes() for y in outs]


def test_kernels_compile(monkeypatch):
    sources = []
    for node in NODES.values():
        for rows, length in ((12608, 768), (165, 64), (300, 2051), (4096, 1600)):
            again = resized(node, rows, length)
            arrays = [np.empty(v.shape, v.dtype) for v in again.inputs]
            outs = [Memory(np.empty(t.shape, t.dtype)) for t in again.types]
            bound(monkeypatch, again, arrays, outs, lambda source, name: sources.append(source))
    for source in dict.fromkeys(sources):
        compile_source(*nvrtc(), source)


def test_shapes_of_kernels_that_add_up_rows():
    shape = row_plan.shape_of(768, 4, count=12608, kept=2, sums=3)
    assert shape == (768, 32, 4, 12, 132) and shape.each == 24
    assert row_plan.shape_of(768, 4, count=60, kept=2, sums=3)[3:] == (1, 60)
    long = row_plan.shape_of(4096, 4, count=5000, kept=2, sums=3)
    assert long.each * 5 <= row_plan.MOST and long.threads * long.rows <= 512


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "half"), KINDS, ids=named)
@pytest.mark.parametrize("sizes", [(6, 9, 64), (16, 197, 768), (5, 77, 100)], ids=str)
def test_a_gpu_agrees(kind, half, sizes):
    graph, after = step(kind, half, batch=sizes[0], length=sizes[1], width=sizes[2])
    on = device("cuda")
    rng = np.random.default_rng(0)
    arrays = [(rng.standard_normal(v.shape) * 0.1).astype(F) for v in graph.inputs]
    plan = Plan(after, on, hot=True)
    wanted = evaluate(graph.outputs, dict(zip(graph.inputs, arrays, strict=True)))
    given = [on.upload(x) for x in arrays]
    runs = [[on.download(y, w.dtype) for y, w in zip(plan(*given), wanted, strict=True)] for _ in range(3)]
    for got, again, want in zip(runs[0], runs[2], wanted, strict=True):
        assert got.tobytes() == again.tobytes()
        # Products are in TF32 there.
        np.testing.assert_allclose(got, want, rtol=3e-2, atol=3e-2 * np.abs(want).max())
