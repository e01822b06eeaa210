"""Parts of concatenations are made where they belong, if whatever makes them can write there and nobody else reads them."""

import numpy as np
import pytest

from flamert import dtypes, ops
from flamert import graph as g
from flamert.graph import Graph, TensorType
from flamert.ops.evaluate import evaluate
from flamert.ops.op import OPS, kernel
from flamert.runtime import joins
from flamert.runtime.device import device
from flamert.runtime.plan import Plan

F32 = np.dtype(np.float32)


def value(*shape, dtype=F32):
    return g.input(TensorType(shape, np.dtype(dtype)))


def turned(x, *shape):
    """A copy that a plan makes: a reshape of what does not lie in one piece."""
    return ops.reshape(ops.transpose(x, perm=(0, 2, 1)), shape=shape)


@pytest.fixture
def strided(monkeypatch):
    """sin and cos as kernels that write results of any strides."""
    for op in (ops.sin, ops.cos):
        monkeypatch.setattr(op, "kernels", list(op.kernels))

        @kernel(op, "numpy", strided=True)
        def _(xp, out, x, function=getattr(np, op.name)):
            function(x, out=out)


def run(inputs, outputs):
    """Names of the plan's steps; results are compared with those of the graph, twice."""
    graph = Graph(inputs, outputs)
    plan = Plan(graph, device("cpu"))
    rng = np.random.default_rng(0)
    for _ in range(2):
        feeds = {v: rng.standard_normal(v.shape).astype(v.dtype) for v in inputs}
        for got, want in zip(plan(*feeds.values()), evaluate(graph.outputs, feeds), strict=True):
            np.testing.assert_array_equal(got, want)
    return [step.node.op.name for step in plan.steps]


def test_parts_are_made_in_their_place(strided):
    x, y = value(2, 3, 4, 8), value(2, 3, 4, 8)
    for axis in (0, 1, 2, 3, -1):
        names = run([x, y], [ops.concat(ops.sin(x), ops.cos(y), axis=axis) * 2])
        assert names == ["sin", "cos", "mul"]


def test_parts_in_one_piece_are_anybodys():
    x, y = value(3, 8), value(2, 8)
    assert run([x, y], [ops.concat(ops.sin(x), ops.cos(y), axis=0) * 2]) == ["sin", "cos", "mul"]
    apart = ops.concat(ops.reshape(ops.sin(x), shape=(24,)), ops.reshape(ops.cos(y), shape=(16,)), axis=0)
    assert run([x, y], [apart * 2]) == ["sin", "cos", "mul"]
    assert "concat" in run([x], [ops.concat(ops.sin(x), ops.cos(x), axis=1) * 2])
    odd = value(3, 3)
    names = run([odd, x], [ops.concat(ops.sin(odd), ops.cos(odd), axis=0) * 2])
    assert names == ["sin", "cos", "copy", "mul"], "where the second begins, wide accesses may not"


def test_views_between_are_undone(strided):
    x, y = value(2, 5, 3, 4), value(2, 3, 5, 4)
    flat = ops.reshape(ops.sin(x), shape=(2, 5, 12))
    moved = ops.reshape(ops.transpose(ops.cos(y), perm=(0, 2, 1, 3)), shape=(2, 5, 12))
    assert run([x, y], [ops.concat(flat, moved, axis=2) * 2]) == ["sin", "cos", "mul"]
    # Whose rows would go on in the next row.
    rows = ops.reshape(ops.sin(x), shape=(10, 12))
    made = ops.concat(rows, ops.reshape(ops.cos(y), shape=(10, 12)), axis=1)
    assert run([x, y], [made * 2]) == ["sin", "cos", "copy", "mul"]


def test_the_others_are_copied(strided):
    x, y = value(6, 8), value(6, 4)
    s = ops.sin(x)
    c = g.constant(np.ones((6, 4), F32))
    assert run([x, y], [ops.concat(s, y, c, axis=1) * 2]) == ["sin", "copy", "copy", "mul"]
    assert run([x, y], [ops.concat(y, s, y, axis=1) * 2]) == ["sin", "copy", "copy", "mul"]


def test_what_has_other_readers_stays_where_it_is(strided):
    x = value(6, 8)
    s = ops.sin(x)
    assert "concat" in run([x], [ops.concat(s, s, axis=1) * 2])
    assert "concat" in run([x], [ops.concat(s, x, axis=1) * 2, s])
    assert "concat" in run([x], [ops.concat(s, x, axis=1) * 2, s * 3])
    assert "concat" in run([x], [ops.concat(s, x, axis=1)])
    assert "concat" in run([x], [ops.concat(ops.sqrt(x * x), x, axis=1) * 2])


def test_odd_parts_are_not_written_wide(strided):
    x, y, z = value(6, 3), value(6, 5), value(6, 4)
    assert run([x, y], [ops.concat(ops.sin(x), ops.cos(y), axis=1) * 2]) == ["sin", "cos", "copy", "mul"]
    assert "concat" in run([x, z], [ops.concat(ops.sin(x), ops.cos(z), axis=1) * 2])


def test_views_of_a_whole_may_be_outputs(strided):
    x, y = value(64, 4096), value(64, 4096)
    whole = ops.concat(ops.sin(x), ops.cos(y), axis=1)
    assert run([x, y], [ops.reshape(whole, shape=(8, 65536))]) == ["sin", "cos"]


def test_copies_are_made_in_their_place():
    x, y = value(2, 8, 5), value(2, 5, 8)
    made = ops.concat(turned(x, 10, 8), ops.reshape(y, shape=(10, 8)), axis=1)
    assert run([x, y], [made * 2]) == ["reshape", "copy", "mul"]
    # One whose rows could not be seen in the place of its own.
    made = ops.concat(turned(x, 4, 20), ops.reshape(y, shape=(4, 20)), axis=1)
    assert "concat" in run([x, y], [made * 2])


def test_lifetimes_begin_with_the_first_part(strided):
    x = value(64, 64)
    first, others = ops.sin(x), x
    for _ in range(6):
        others = ops.sqrt(ops.abs(others + ops.transpose(others, perm=(1, 0))))
    run([x], [ops.concat(first, ops.cos(others), axis=1) * 2])


def test_places_of_attention_gradients():
    b, l, h, d = 2, 16, 3, 8
    q, k, v, dy = (value(b, h, l, d, dtype=dtypes.bfloat16) for _ in range(4))
    y, sums = ops.attention_blhd(q, k, v, scale=1.0, sums=True)
    y = ops.transpose(y, perm=(0, 2, 1, 3))
    flows = OPS["attention_gradient_blhd"](dy, y, sums, q, k, v, scale=1.0)
    parts = [ops.reshape(v, shape=(b, l, h * d)) for v in flows]
    whole = ops.concat(*parts, axis=2)
    found = joins.parts_of(Graph([q, k, v, dy], [whole * 2]), {})
    assert [found[v].offset for v in flows] == [0, h * d * 2, 2 * h * d * 2]
    row = 3 * h * d * 2
    assert all(found[v].strides == (l * row, row, d * 2, 2) for v in flows)
