"""Sums over rows with what is in front of them: graphs keep their meaning, and kernels compute them, on the CPU if need be."""

import numpy as np
import pytest

from flamert import dtypes, ops
from flamert import graph as g
from flamert.grad import grad
from flamert.graph import Graph, TensorType
from flamert.ops.cuda import columns as on_gpu
from flamert.ops.cuda import pointwise as pointwise_on_gpu
from flamert.ops.cuda.lay_columns import MULTIPROCESSORS, THREADS, WARP, laid
from flamert.ops.cuda.pointwise import elementwise
from flamert.ops.evaluate import evaluate
from flamert.ops.op import Site
from flamert.passes.columns import MAX_RESULTS, fuse_columns
from flamert.passes.deduplicate import deduplicate
from flamert.passes.finish import MAX_WANTED, finish_columns
from flamert.passes.gates import remake_gates
from flamert.passes.keep import keep_columns
from flamert.passes.moments import shift_moments
from flamert.passes.pointwise import fuse_pointwise
from flamert.passes.repeat import repeat_free
from tests.emulated import Kernel, Memory
from tests.test_emit import compile_source, nvrtc
from tests.test_passes import count

F, B = dtypes.float32, dtypes.bfloat16


def value(*shape, dtype=F):
    return g.input(TensorType(shape, dtype))


def fused(graph):
    graph = repeat_free(remake_gates(deduplicate(graph), elementwise), elementwise)
    for apply in (fuse_columns, keep_columns, finish_columns):
        graph = apply(graph, elementwise, on_gpu.fits)
    return fuse_pointwise(graph, elementwise)


def expanded(x):
    """Its parts down to basic ops."""
    from flamert.runtime.plan import decompose

    return decompose(x, "cupy")


def batch_norm():
    """Training's batch norm with relu behind it, channels last, forward and backward, in halves as autocast has it."""
    x, dy = value(4, 8, 8, 24, dtype=B), value(4, 8, 8, 24, dtype=B)
    scale, bias = value(24), value(24)
    wide = ops.cast(x, to=F)
    mean, var = ops.moments(wide, axes=(0, 1, 2))
    y = ops.cast((wide - mean) * (scale / ops.sqrt(var + 1e-5)) + bias, to=B)
    out = ops.relu(y)
    flow = ops.cast(ops.where(out > 0.0, dy, 0.0), to=F)
    back = ops.batch_norm_gradient(flow, wide, scale, ops.reshape(mean, shape=(24,)), ops.reshape(var, shape=(24,)), axis=3)
    return shift_moments(deduplicate(expanded(Graph([x, dy, scale, bias], [out, ops.cast(back[0], to=B), *back[1:]]))))


def layer_norm():
    x, scale, bias, dy = value(6, 20, 32), value(32), value(32), value(6, 20, 32)
    y = ops.layer_norm(x, scale, bias, axis=-1)
    return expanded(Graph([x, scale, bias, dy], grad([y], [x, scale, bias], [dy])))


def residual():
    """The gate behind a sum of two batch norms, whose gradient flows into both, backward."""
    x, other, y, dy, more = (value(4, 8, 8, 24, dtype=B) for _ in range(5))
    scale, mean, var = (value(24) for _ in range(3))
    flow = ops.where(y > 0.0, dy + more, 0.0)
    to = [ops.batch_norm_gradient(ops.cast(flow, to=F), ops.cast(v, to=F), scale, mean, var, axis=3) for v in (x, other)]
    return expanded(Graph([x, other, y, dy, more, scale, mean, var], [flow, *[ops.cast(d, to=B) for d, *_ in to], *to[0][1:]]))


def gelu():
    """Its gradient, which a product reads as well as the sum that is the gradient of a bias."""
    x, dy, w, keep = (value(50, 32, dtype=dtypes.float16) for _ in range(4))
    d = grad([ops.gelu(x)], [x], [dy])[0]
    return expanded(Graph([x, dy, w, keep], [ops.matmul(ops.transpose(d, perm=(1, 0)), w), ops.reduce_sum(d, axes=(0,))]))


GRAPHS = {"batch_norm": (batch_norm, 2), "layer_norm": (layer_norm, 1), "residual": (residual, 1), "gelu": (gelu, 1)}


def fed(graph):
    rng = np.random.default_rng(1)
    return {v: rng.standard_normal(v.shape).astype(v.dtype) for v in graph.inputs}


@pytest.mark.parametrize("name", GRAPHS)
def test_groups_compute_what_the_graph_did(name):
    make, wanted = GRAPHS[name]
    graph = make()
    after = fused(graph)
    assert count(after)["columns"] == wanted, count(after)
    for old, new in zip(evaluate(graph.outputs, fed(graph)), evaluate(after.outputs, fed(graph)), strict=True):
        np.testing.assert_allclose(new.astype(F), old.astype(F), rtol=2e-2, atol=2e-2)


def test_batch_norm_passes_over_memory_as_seldom_as_can_be():
    """Once for the statistics, once forward, twice backward; no float32 tensor of the whole size is ever written, and nothing
    is launched for what there is one of for each channel."""
    after = fused(batch_norm())
    made = [n for n in after.nodes if n.inputs and n.op.name not in ("reshape", "slice")]
    assert [n.op.name for n in made] == ["columns", "pointwise", "columns", "pointwise"]
    assert all(t.dtype == B for n in made for t in n.types if t.rank > 1)


def test_relus_gate_is_made_again_from_what_is_read_anyway(monkeypatch):
    """Backward, y is not read at all; and what is above zero there is so in the forward pass's kernel, bit by bit."""
    monkeypatch.setattr(pointwise_on_gpu, "compiled", Kernel)
    graph = batch_norm()
    x, dy, *_ = graph.inputs
    forward, backward = (n for n in fused(graph).nodes if n.op is ops.pointwise)
    assert [[v for v in n.inputs if v.shape == x.shape] for n in (forward, backward)] == [[x], [x, dy]]

    rng = np.random.default_rng(0)
    rows = (rng.integers(-8, 8, x.shape) / 8).astype(B)
    mean, factor = (rng.standard_normal(24).astype(F) for _ in range(2))
    # So that some numbers are zero but for rounding.
    bias = -((rows.reshape(-1, 24)[:24].diagonal().astype(F) - mean) * factor)

    def made(node, steps, dtype):
        """The last of so many steps of a chain, by its kernel."""
        program, n = node.attrs["program"][:steps], len(node.inputs)
        [add] = [step for step in program if step.op == "add"]
        product = program[add.operands[0] - n]
        centred = program[product.operands[0] - n]
        given = {0: rows, centred.operands[1]: mean, product.operands[1]: factor, add.operands[1]: bias}
        arrays = [Memory(given.get(i, np.zeros(v.shape, v.dtype))) for i, v in enumerate(node.inputs)]
        out = Memory(np.zeros(x.shape, dtype))
        literals = [pointwise_on_gpu.known(v) for v in node.inputs]
        assert node.inputs[0] is x
        pointwise_on_gpu.launch([out], arrays, [v.type for v in node.inputs], literals, program, (steps - 1,))()
        return out.array

    names = [step.op for step in backward.attrs["program"]]
    y = made(forward, len(forward.attrs["program"]), B).astype(F)
    assert 0.2 < (y > 0).mean() < 0.8 and (np.abs(y) < 1e-3).mean() > 0
    np.testing.assert_array_equal(made(backward, names.index("greater") + 1, bool), y > 0)


def test_what_is_summed_up_is_written_where_it_is():
    """The gradient behind a gate is not read for the sums, nor is it launched for by itself."""
    graph = residual()
    after = fused(graph)
    [sums] = [n for n in after.nodes if n.op is ops.columns]
    assert graph.outputs[0] not in after.outputs and after.outputs[0].node is sums
    whole = [n for n in after.nodes if n.op is ops.pointwise and n.types[0].rank == 4]
    assert len(whole) == 2 and all(after.outputs[0] in n.inputs for n in whole)
    [sums] = [n for n in fused(gelu()).nodes if n.op is ops.columns]
    assert sums.types[1:] == (TensorType((50, 32), dtypes.float16),)


def test_what_needs_the_sums_of_what_it_is_summed_up_with_closes_no_circle():
    x, y, w = value(64, 8), value(64, 8), value(8, 8)
    z = x * y
    later = ops.exp(ops.matmul(z, w))
    graph = Graph([x, y, w], [later, ops.reduce_sum(z * later, axes=(0,)), ops.reduce_sum(z, axes=(0,))])
    after = fused(graph)
    for old, new in zip(evaluate(graph.outputs, fed(graph)), evaluate(after.outputs, fed(graph)), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-4)


def test_gates_are_read_where_making_them_again_would_read_more():
    x, y, dy = value(64, 8), value(64, 8), value(64, 8)
    w = value(8, 8)
    product = ops.matmul(x, w)
    two = ops.relu(product + y)
    alone = ops.relu(product * 2.0)
    for out in (two, alone):
        graph = Graph([x, y, dy, w], [out, ops.where(out > 0.0, dy, 0.0) * x])
        assert remake_gates(graph, elementwise) is graph


def test_what_is_made_of_sums_of_each_other_closes_no_circle():
    x, y, p = value(64, 8), value(64, 8), value(8)
    a, b = (ops.reduce_sum(v, axes=(0,)) for v in (x, y))
    graph = Graph([x, y, p], [a + b * 2.0, b + a * 3.0, ops.reshape(a, shape=(1, 8)) * p, (a * 3.0) / 2.0])
    after = fused(graph)
    assert count(after)["columns"] == 2
    for old, new in zip(evaluate(graph.outputs, fed(graph)), evaluate(after.outputs, fed(graph)), strict=True):
        np.testing.assert_array_equal(new, old)


def test_what_is_made_of_sums_has_bounds():
    x = value(64, 8)
    total = ops.reduce_sum(x, axes=(0,))
    ways = [ops.exp(total * float(i)) for i in range(2, 2 + 2 * MAX_WANTED)]
    graph = Graph([x], [*ways, ops.cast(total, to=B)])
    after = fused(graph)
    [sums] = [n for n in after.nodes if n.op is ops.columns]
    assert 2 < len(sums.types) <= MAX_WANTED
    for old, new in zip(evaluate(graph.outputs, fed(graph)), evaluate(after.outputs, fed(graph)), strict=True):
        np.testing.assert_array_equal(new, old)


def test_sums_that_depend_on_each_other_stay_apart():
    x, y = value(64, 8), value(64, 8)
    first = ops.reduce_sum(x * y, axes=(0,))
    second = ops.reduce_sum(x * first, axes=(0,))
    third = ops.reduce_sum(y * second, axes=(0,))
    graph = Graph([x, y], [first, second, third])
    after = fused(graph)
    assert count(after)["columns"] == 3
    feeds = {v: a / 8 for v, a in fed(graph).items()}
    for old, new in zip(evaluate(graph.outputs, feeds), evaluate(after.outputs, feeds), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-4)


def test_groups_have_bounds():
    x = value(64, 8)
    graph = Graph([x], [ops.reduce_sum(x * float(i), axes=(0,)) for i in range(2, 2 + 3 * MAX_RESULTS)])
    after = fused(graph)
    assert count(after)["columns"] >= 3 and all(len(n.types) <= MAX_RESULTS for n in after.nodes if n.op is ops.columns)


def test_what_has_many_other_readers_is_read_and_not_made_again():
    x, y, w = value(64, 8), value(64, 8), value(8, 8)
    z = ops.exp(x) * y
    graph = Graph([x, y, w], [ops.reduce_sum(z, axes=(0,)), ops.matmul(z, w)])
    [sums] = [n for n in fuse_columns(graph, elementwise, on_gpu.fits).nodes if n.op is ops.columns]
    assert sums.attrs["program"] == () and sums.inputs[0].node.op is ops.mul


def test_relu_is_not_repeated_where_its_operand_would_have_to_be_kept():
    x, y = value(64, 8), value(64, 8)
    z = ops.relu(x * y)
    graph = Graph([x, y], [ops.exp(z), ops.tanh(z)])
    assert repeat_free(graph, elementwise) is graph
    kept = Graph([x, y], [ops.exp(z), ops.tanh(z), z.node.inputs[0]])
    assert count(repeat_free(kept, elementwise))["relu"] == 2
    wide = ops.cast(value(64, 8, dtype=B), to=F)
    split = repeat_free(Graph([wide.node.inputs[0]], [ops.exp(wide), ops.tanh(wide)]), elementwise)
    assert count(split)["cast"] == 2


def nodes():
    return [node for make, _ in GRAPHS.values() for node in fused(make()).nodes if node.op is ops.columns]


def resized(node, rows):
    """The node for so many rows."""
    full = on_gpu._full(node)
    shapes = {"whole": (rows, full[-1]), "row": (rows, 1), "column": full[-1:], "one": ()}
    fresh = [v if v.constant is not None else value(*shapes[on_gpu._kind(v.shape, full)], dtype=v.dtype) for v in node.inputs]
    return ops.columns.node(tuple(fresh), node.attrs)


class Xp:
    """As much of an array module as binding needs."""

    @staticmethod
    def zeros(shape, dtype):
        return Memory(np.zeros(shape, dtype))


def bound(monkeypatch, node, arrays, outs, compiled):
    """The kernel's launch."""
    monkeypatch.setattr(on_gpu, "compiled", compiled)
    work = [Memory(np.full(t.shape, np.nan, t.dtype)) for t in on_gpu._parts(node)]
    kernel = next(k for k in ops.columns.kernels if k.backend == "cupy")
    return kernel.run(Site(Xp, node, tuple(work)), tuple(outs), *map(Memory, arrays), **node.attrs), work


@pytest.mark.parametrize("node", nodes(), ids=lambda node: "_".join(s.op for s in node.attrs["program"]))
@pytest.mark.parametrize("rows", [33, 5000])
def test_kernels_compute_the_op(monkeypatch, node, rows):
    node = resized(node, rows)
    assert on_gpu.fits(node)
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal(v.shape).astype(v.dtype) if v.constant is None else v.constant for v in node.inputs]
    outs = [Memory(np.full(t.shape, np.nan, t.dtype)) for t in node.types]
    launch, _work = bound(monkeypatch, node, arrays, outs, Kernel)
    feeds = {v: a for v, a in zip(node.inputs, arrays, strict=True) if v.constant is None}
    for _ in range(2):
        launch()
        for got, want in zip(outs, evaluate(node.outputs, feeds), strict=True):
            np.testing.assert_allclose(got.array.astype(F), want.astype(F), rtol=2e-3, atol=2e-2)


def test_kernels_compile(monkeypatch):
    sources = []
    for node in nodes():
        for rows in (33, 5000):
            again = resized(node, rows)
            arrays = [np.empty(v.shape, v.dtype) for v in again.inputs]
            outs = [Memory(np.empty(t.shape, t.dtype)) for t in again.types]
            bound(monkeypatch, again, arrays, outs, lambda source, name: sources.append(source))
    for source in dict.fromkeys(sources):
        compile_source(*nvrtc(), source)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("inner", [64, 128, 256, 512, 768, 1024, 2048, 3072])
def test_blocks_fill_a_large_gpu(inner, size):
    of = laid(50000, inner, [size, size], 3)
    blocks = of.blocks * of.splits
    assert blocks / (-(-blocks // MULTIPROCESSORS) * MULTIPROCESSORS) > 0.9
    assert of.batch * of.width * 2 * size >= 32 and of.columns * 4 * THREADS // WARP * MAX_RESULTS <= 48 << 10


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_moments_take_one_pass_and_stay_precise(offset):
    x = value(6, 5, 16, 16)
    graph = expanded(Graph([x], ops.moments(x, axes=(0, 2, 3))))
    after = shift_moments(deduplicate(graph))
    sums = [n for n in after.nodes if n.op is ops.reduce_mean]
    assert len(sums) == 2 and not any(v.node in sums for n in sums for v in n.inputs[0].node.inputs), "neither needs the other"
    array = np.random.default_rng(0).standard_normal(x.shape) * np.arange(1, 6)[:, None, None] + offset
    wide = array.astype(F).astype(np.float64)
    got = evaluate(after.outputs, {x: array.astype(F)})
    np.testing.assert_allclose(got[0], wide.mean((0, 2, 3), keepdims=True), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[1], wide.var((0, 2, 3), keepdims=True), rtol=2e-5)


def test_moments_of_rows_are_left_to_rows():
    x = value(6, 40, 32)
    graph = expanded(Graph([x], ops.moments(x, axes=(2,))))
    assert shift_moments(graph) is graph
