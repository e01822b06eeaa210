"""Training steps within so many bytes: as little as possible is made again, and every number stays as it is."""

import numpy as np
import pytest

import flamert as fr
from flamert import ops
from flamert.errors import InputError, OutOfMemory
from flamert.grad.transform import grad
from flamert.graph import Graph, TensorType, input
from flamert.limits import bytes_of, readable
from flamert.ops.evaluate import evaluate
from flamert.passes import pipeline
from flamert.passes.budget import Budget
from flamert.passes.liveness import Trace
from flamert.passes.recompute import ALL, CHEAP, Step, kind_of
from models.bert.make import CONFIGURATIONS as BERTS
from models.bert.make import bert
from models.gpt2.make import CONFIGURATIONS as GPTS
from models.gpt2.make import gpt2
from tests.test_builders import TINY, drawn, stirred
from tests.test_gpu_passes import NETWORKS, Elsewhere, squares
from tests.test_updates import step_graph

F = np.dtype(np.float32)
DROPPING = {"bert": bert(**BERTS["tiny"] | {"drop": 0.3}), "gpt2": gpt2(**GPTS["tiny"] | {"drop": 0.3})}


def trained(network, again, steps=3):
    """Losses, the state afterwards, and the step's plan."""
    feeds = drawn(network, 16)
    if all(x.dtype.kind == "f" for x in feeds.values()):
        feeds = drawn(network, 64)
    feeds = {n: x if x.dtype.kind == "f" else x % 2 for n, x in feeds.items()}
    trainer = fr.Trainer(stirred(fr.load(network.proto(), device="cpu")), squares, fr.optim.AdamW(1e-3), recompute=again)
    losses = [float(trainer.step(feeds)) for _ in range(steps)]
    [[planned]] = trainer.plans._known.values()
    return losses, trainer.state.snapshot(), planned.plan


@pytest.mark.parametrize(
    "network", [*NETWORKS.values(), *DROPPING.values()], ids=[*NETWORKS, *[f"{n} drops" for n in DROPPING]]
)
def test_networks_within_budgets_compute_the_same_bits(network):
    losses, state, plain = trained(network, None)
    reached = []
    for share in (0.85, 0.6, 0.4):
        budget = int(share * plain.nbytes)
        try:
            others, same, plan = trained(network, budget)
        except OutOfMemory as error:
            assert readable(budget) in str(error) and "Largest buffers" in str(error)
            break
        assert plan.nbytes <= budget and len(plan.steps) >= len(plain.steps)
        assert others == losses
        for name, array in state.items():
            np.testing.assert_array_equal(array, same[name], err_msg=name, strict=True)
        reached.append(share)
    assert 0.85 in reached


def chain(depth, width=64, rows=512):
    """A step of layers that each keep a product and what is made of it, on float32 of one width."""
    x = input(TensorType((rows, width), F), "x")
    weights = [input(TensorType((width, width), F), f"w{i}") for i in range(depth)]
    y = x
    for w in weights:
        y = ops.tanh(ops.matmul(y, w))
    loss = ops.reduce_mean(y * y, axes=(0, 1), keepdims=False)
    updates = [w - g * 0.1 for w, g in zip(weights, grad(loss, weights), strict=True)]
    return Graph([x, *weights], [loss, *reversed(updates)]), weights  # as gradients come to be


def test_a_deep_chain_needs_the_square_root_of_its_depth():
    graph, weights = chain(64)
    budget = Budget(graph, graph.outputs[0], weights, len(weights), "numpy")
    layer = 512 * 64 * 4
    assert budget.plain.nbytes >= 64 * layer
    least = budget.within(0)
    assert least.nbytes <= 24 * layer
    half = budget.within(budget.plain.nbytes // 2)
    assert least.seconds > half.seconds > 0
    feeds = {v: np.random.default_rng(0).standard_normal(v.shape).astype(F) * 0.1 for v in graph.inputs}
    for choice in (least, half):
        after = budget.graph(choice)
        for got, want in zip(evaluate(after.outputs, feeds), evaluate(graph.outputs, feeds), strict=True):
            np.testing.assert_array_equal(got, want)


def test_copies_come_just_before_they_are_read():
    graph, _ = chain(8)
    step = Step(graph, graph.outputs[0])
    again = {node for node in step.forward if node.op is ops.tanh}
    order = [step.forward[node] // 2 for node, copy in step.order(again) if copy]
    assert sorted(order) == list(range(8))
    assert all(abs(found - wanted) <= 1 for found, wanted in zip(order, reversed(range(8)), strict=True)), order
    graph = step.repeated(again)
    place = {node: i for i, node in enumerate(graph.nodes)}
    assert all(place[v.node] < place[node] for node in graph.nodes for v in node.inputs if v is not None)


def test_a_step_for_a_gpu():
    graph, updates = step_graph(TINY["vit"], {"optimizer": fr.optim.SGD(0.1, momentum=0.9)}, 64)
    prepared = pipeline.prepare(graph, True, Elsewhere, {}, updates=updates)
    state = prepared.inputs[1:]
    budget = Budget(prepared, prepared.outputs[0], state, updates, "numpy")
    choice = budget.within(int(0.6 * budget.plain.nbytes))
    assert 0 < choice.nbytes <= 0.6 * budget.plain.nbytes and choice.again
    rng = np.random.default_rng(0)
    feeds = {v: (rng.random(v.shape) * 2).astype(v.dtype) for v in graph.inputs}
    for got, want in zip(evaluate(budget.graph(choice).outputs, feeds), evaluate(prepared.outputs, feeds), strict=True):
        np.testing.assert_array_equal(got, want)


def test_long_chains_are_gone_through_few_times(monkeypatch):
    graph, weights = chain(800, 8, 256)
    assert len(graph.nodes) > 10_000
    looked, peak = [], Trace.peak
    monkeypatch.setattr(Trace, "peak", lambda *arguments: looked.append(1) or peak(*arguments))
    budget = Budget(graph, graph.outputs[0], weights, len(weights), "numpy")
    assert budget.within(budget.plain.nbytes // 3).nbytes <= budget.plain.nbytes // 3
    assert len(looked) <= 24


@pytest.mark.parametrize(("seed", "counted", "level"), [(1, True, CHEAP), (None, True, ALL + 1), (1, False, ALL + 1)])
def test_random_numbers_are_made_again_where_they_are_the_same(seed, counted, level):
    counter = input(TensorType((), np.dtype(np.uint64)), "calls") if counted else None
    assert kind_of(ops.random_uniform(counter, shape=(2, 3), seed=seed).node) == level


def test_what_does_not_fit_says_what_would():
    with pytest.raises(OutOfMemory, match=r"recompute=1 KiB: it takes [\d.]+ KiB .* Largest buffers: [\d.]+ KiB"):
        trained(TINY["vit"], "1KiB")


@pytest.mark.parametrize("size", ["", "much", "-1GB", "0", 0, -5, "1.2.3MB", [1], 1e400])
def test_sizes_that_are_none(size):
    with pytest.raises(InputError, match="recompute="):
        trained(TINY["vit"], size)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("2GB", 2 * 10**9),
        ("512MiB", 512 << 20),
        ("1.5 GiB", 3 << 29),
        ("64kb", 64000),
        ("17", 17),
        ("17 bytes", 17),
        (1 << 30, 1 << 30),
    ],
)
def test_sizes(text, nbytes):
    assert bytes_of(text) == nbytes
    assert abs(bytes_of(readable(nbytes)) - nbytes) <= 1e-3 * nbytes
