"""Updates of state are set aside while passes look at the rest of a step, and what comes of it is what would have."""

import gc
import threading
from collections import Counter

import numpy as np
import pytest

import flamert as fr
from flamert import ops
from flamert.graph import Graph, TensorType, input
from flamert.ops.evaluate import evaluate
from flamert.passes import pipeline
from flamert.passes.updates import without_updates
from flamert.rewrite import Template
from flamert.runtime.device import device
from flamert.training.garbage import OBJECTS, seldom_collected
from tests.test_builders import TINY, drawn, stirred
from tests.test_gpu_passes import Elsewhere, squares

OPTIMIZERS = {
    "adamw": {"optimizer": fr.optim.AdamW(1e-3), "clip_norm": 1.0},
    "fp16": {"optimizer": fr.optim.AdamW(1e-3), "precision": "fp16"},
    "lamb": {"optimizer": fr.optim.LAMB(1e-3), "ema": 0.9},
    "sgd": {"optimizer": fr.optim.SGD(1e-3, momentum=0.9), "accumulate": 2},
}


class Caught(Exception):
    pass


def step_graph(network, options, batch=2):
    """The graph of a training step, and how many of its outputs are new state."""
    model = stirred(fr.load(network.proto(), device="cpu"))
    found = []

    def prepare(graph, hot, where, *more, updates=0):
        found.extend((graph, updates))
        raise Caught

    model._prepare = prepare
    trainer = fr.Trainer(model, squares, **options)
    with pytest.raises(Caught):
        trainer.step({n: x if x.dtype.kind == "f" else x % 2 for n, x in drawn(network, batch).items()})
    return found


@pytest.mark.parametrize("where", [Elsewhere, device("cpu")], ids=["gpu", "cpu"])
@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_passes_make_of_a_step_what_they_make_of_it_whole(options, where):
    graph, updates = step_graph(TINY["vit"], options)
    apart, whole = (pipeline.prepare(graph, True, where, {}, updates=n) for n in (updates, 0))
    if not isinstance(options["optimizer"], fr.optim.LAMB):  # whose moments are part of what is reduced
        assert Counter(n.op.name for n in apart.nodes) == Counter(n.op.name for n in whole.nodes)
    rng = np.random.default_rng(0)
    feeds = {v: (rng.random(v.shape) * 2).astype(v.dtype) for v in graph.inputs}
    for got, want in zip(evaluate(apart.outputs, feeds), evaluate(whole.outputs, feeds), strict=True):
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=1e-5, atol=1e-6)


def test_most_of_a_step_is_updates():
    graph, updates = step_graph(TINY["vit"], OPTIMIZERS["adamw"])
    seen = []
    eligible = pipeline._elementwise("cupy")
    after = without_updates(graph, updates, eligible, lambda rest: seen.append(rest) or rest)
    assert len(seen[0].nodes) < len(graph.nodes) / 2
    assert len(after.nodes) == len(graph.nodes)


def test_what_updates_have_in_common_is_written_once():
    """Adam's corrections are powers of the step's number: two for each shape, however many parameters have it."""
    graph, updates = step_graph(TINY["vit"], {"optimizer": fr.optim.AdamW(1e-3)})
    shapes = {v.shape for v in graph.outputs[-updates:] if v.dtype == np.float32}
    assert len(shapes) < updates / 6
    powers = [n for n in graph.nodes if n.op.name == "exp" and n.types[0].shape == ()]
    assert len(powers) == 2 * len(shapes)


def test_a_template_keeps_what_no_argument_reaches():
    x, rate, outer, y = (input(TensorType((3,), np.dtype(np.float32)), n) for n in ("x", "rate", "outer", "y"))
    power = ops.exp(rate)
    template = Template(Graph([x, rate], [x * power, power]), {rate: outer})
    (a, kept), (b, again) = template(x), template(y)
    assert a.node.inputs == (x, kept) and b.node.inputs == (y, kept)
    assert again is kept and kept.node.inputs == (outer,)


def test_what_others_read_and_what_is_no_chain_stays():
    x, held = (input(TensorType((4, 4), np.dtype(np.float32)), n) for n in ("x", "held"))
    y = ops.exp(x)
    new = held + ops.reduce_sum(y * 2.0, axes=(0, 1))
    graph = Graph([x, held], [y * 3.0, new, ops.sin(new)])
    seen = []
    same = without_updates(graph, 2, pipeline._elementwise("cupy"), lambda rest: seen.append(rest) or rest)
    assert [n.op.name for n in seen[0].nodes if n.inputs] == ["exp", "mul", "mul", "reduce_sum"]
    assert same.outputs == graph.outputs
    for n in (0, 1, 3):
        without_updates(graph, n, pipeline._elementwise("cupy"), lambda rest: seen.append(rest) or rest)
    assert seen[1] is graph


def test_searches_for_cycles_are_rare_while_graphs_are_made_and_as_before_afterwards():
    usual = gc.get_threshold()
    inside, outside = threading.Event(), threading.Event()

    def other():
        with seldom_collected():
            inside.set()
            outside.wait(10)

    thread = threading.Thread(target=other)
    with seldom_collected():
        thread.start()
        assert inside.wait(10)
        with pytest.raises(Caught), seldom_collected():
            assert gc.get_threshold() == (max(OBJECTS, usual[0]), *usual[1:])
            raise Caught
    assert gc.get_threshold()[0] >= OBJECTS
    outside.set()
    thread.join()
    assert gc.get_threshold() == usual
