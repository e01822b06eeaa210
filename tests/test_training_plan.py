"""What makes a training step fast on a CPU changes no result: fused updates in place, turned products, native LSTMs."""

import numpy as np
import pytest

import flamert as fr
from flamert import dtypes, ops
from flamert import graph as g
from flamert.graph import Graph, TensorType
from flamert.ops.cpu.library import library
from flamert.ops.evaluate import apply, evaluate
from flamert.ops.op import kernel
from flamert.passes.pipeline import prepare
from flamert.passes.products import turn_products
from flamert.runtime.device import device
from flamert.runtime.plan import Plan
from tests.training_models import perceptron, rows

F32 = dtypes.float32
native = pytest.mark.skipif(library() is None, reason="the native library is not built")
rng = np.random.default_rng(0)


def value(*shape):
    return g.input(TensorType(shape, F32))


def random(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def names(graph):
    return [node.op.name for node in graph.nodes if node.inputs]


@native
def test_an_update_is_one_pass_over_memory_in_place():
    """Parameter and moments are made together, where they lie, and the non-finite step changes nothing."""
    p, m, grad, good = value(400, 500), value(400, 500), value(400, 500), g.input(TensorType((), np.dtype(np.bool_)))
    moved = m * 0.9 + grad * 0.1
    updates = [ops.where(good, moved, m), ops.where(good, p - moved * 0.01, p)]
    graph = prepare(Graph([p, m, grad, good], updates), True, device("cpu"), {})
    assert names(graph) == ["pointwise_many"]
    held = {v: random(400, 500) for v in (p, m)}
    before = {v: a.copy() for v, a in held.items()}
    plan = Plan(graph, device("cpu"), state=held, updates={0: held[m], 1: held[p]})
    assert plan.nbytes < 3 * p.type.nbytes
    with np.errstate(all="ignore"):
        plan(np.full((400, 500), np.nan, np.float32), np.False_)
    assert all(np.array_equal(held[v], before[v]) for v in held)
    x = random(400, 500)
    plan(x, np.True_)
    wanted = before[m] * np.float32(0.9) + x * np.float32(0.1)
    np.testing.assert_allclose(held[m], wanted, rtol=1e-6)
    np.testing.assert_allclose(held[p], before[p] - wanted * np.float32(0.01), rtol=1e-6)


@native
def test_state_that_is_read_again_waits_for_the_end():
    p, x = value(30, 30), value(30, 30)
    new = p + x
    graph = Graph([p, x], [new, ops.matmul(new, p)])
    held, start, fed = random(30, 30), None, random(30, 30)
    start = held.copy()
    (product,) = Plan(graph, device("cpu"), state={p: held}, updates={0: held})(fed)
    np.testing.assert_allclose(product, (start + fed) @ start, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(held, start + fed)


def test_state_is_not_what_kernels_are_tried_on(monkeypatch):
    monkeypatch.setattr(ops.sin, "kernels", list(ops.sin.kernels))

    @kernel(ops.sin, "numpy", hot=True, bind=True)
    def _(site, out, x):
        out[...] = 7
        return lambda: np.sin(x, out=out)

    p, x = value(30, 30), value(30, 30)
    held, given = random(30, 30), random(30, 30)
    before = held.copy()
    plan = Plan(Graph([p, x], [ops.sin(x)]), device("cpu"), hot=True, state={p: held}, updates={0: held})
    np.testing.assert_array_equal(held, before)
    plan(given)
    np.testing.assert_array_equal(held, np.sin(given))


@native
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("left", "right"),
    [
        *(((5, 7), (7, 9)), ((130, 65), (65, 33)), ((1, 400), (400, 700)), ((300, 500), (500, 3)), ((9, 1), (1, 40))),
        *(((3, 5, 7), (7, 9)), ((5, 7), (2, 7, 9)), ((2, 3, 5, 7), (2, 3, 7, 9)), ((2, 3, 5, 7), (1, 1, 7, 9))),
        ((2, 1, 5, 7), (1, 3, 7, 9)),
    ],
)
def test_products_of_turned_operands(left, right, threads):
    def swapped(x):
        return ops.transpose(x, perm=(*range(x.rank - 2), x.rank - 1, x.rank - 2))

    a, b = random(*left), random(*right)
    fr.set_threads(threads)
    try:
        for turn_a in (False, True):
            for turn_b in (False, True):
                x, y = (np.ascontiguousarray(z.swapaxes(-1, -2)) if t else z for z, t in ((a, turn_a), (b, turn_b)))
                u, v = value(*x.shape), value(*y.shape)
                graph = Graph([u, v], [ops.matmul(swapped(u) if turn_a else u, swapped(v) if turn_b else v)])
                (result,) = Plan(graph, device("cpu"))(x, y)
                np.testing.assert_allclose(result, a.astype(float) @ b.astype(float), rtol=1e-4, atol=1e-4)
    finally:
        fr.set_threads(2)


def test_a_product_is_made_the_way_round_that_it_is_wanted():
    a, b = value(4, 5), value(5, 6)
    graph = Graph([a, b], [ops.transpose(ops.matmul(a, b), perm=(1, 0)) * 2.0])
    turned = turn_products(graph)
    assert names(turned) == ["transpose", "transpose", "matmul", "mul"]
    feeds = {a: random(4, 5), b: random(5, 6)}
    np.testing.assert_allclose(evaluate(turned.outputs, feeds)[0], evaluate(graph.outputs, feeds)[0], rtol=1e-6)


@native
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("t", "b", "i", "h"), [(5, 3, 7, 33), (1, 2, 3, 4), (6, 1, 5, 64), (3, 50, 8, 32)])
@pytest.mark.parametrize("given", [0, 1, 2])
def test_native_lstms_are_the_reference(direction, t, b, i, h, given):
    d = 2 if direction == "bidirectional" else 1
    bias = random(d, 8 * h) if given else None
    states = [random(d, b, h), random(d, b, h)] if given == 2 else [None, None]
    operands = [random(t, b, i), random(d, 4 * h, i) * 0.3, random(d, 4 * h, h) * 0.3, bias, None, *states]
    y, *_ = check_native(ops.OPS["lstm"], operands, direction)
    flows = [[None, random(d, b, h)], [random(t, d, b, h)], [random(t, d, b, h), random(d, b, h), random(d, b, h)]][given]
    check_native(ops.OPS["lstm_gradient"], [*operands[:3], y, *operands[3:], None, *flows], direction)


def check_native(op, operands, direction):
    """A native kernel's results, once they are found to be those of the reference, twice."""
    values = [None if x is None else value(*x.shape) for x in operands]
    node = op.node(tuple(values), {"direction": direction})
    assert node.op.kernel_for(node, "numpy").backend == "numpy"
    present = [x for x in operands if x is not None]
    plan = Plan(Graph([v for v in values if v is not None], node.outputs), device("cpu"))
    results, again = plan(*present), plan(*present)
    for result, same, expected in zip(results, again, apply(node, operands[: len(node.inputs)]), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5 * (1 + np.abs(expected).max()))
        np.testing.assert_array_equal(result, same)
    return results


def test_steps_need_no_second_copy_of_the_weights():
    """A step's memory holds gradients and activations, but neither new weights nor new moments."""
    trainer = fr.Trainer(fr.load(perceptron(features=256, hidden=2048), device="cpu"), "cross_entropy", fr.optim.AdamW(lr=1e-3))
    x, target = rows(n=1, features=256)[0]
    trainer.step(x, target)
    ((planned,),) = trainer.plans._known.values()
    weights = sum(trainer.state.types[n].nbytes for n in trainer.trainable)
    assert planned.plan.nbytes < 2 * weights or library() is None
