"""What passes make of whole training steps for a GPU means the same: planned on the CPU, losses go as they go without them."""

import numpy as np
import pytest

import flamert as fr
from flamert import ops
from flamert.ops.cuda import attention
from flamert.passes import pipeline
from flamert.training import step
from models.bert.make import CONFIGURATIONS as BERTS
from models.bert.make import bert
from models.gpt2.make import CONFIGURATIONS as GPTS
from models.gpt2.make import gpt2
from tests.test_builders import TINY, drawn, stirred

NETWORKS = {
    "resnet": TINY["resnet"],
    "vit": TINY["vit"],
    "unet": TINY["unet"],
    "bert": bert(**BERTS["tiny"] | {"drop": 0.0}),
    "gpt2": gpt2(**GPTS["tiny"] | {"drop": 0.0}),
}


class Elsewhere:
    """What passes ask of a GPU."""

    backend, name, allow_tf32, deterministic, tunes = "cupy", "cuda:0", True, True, False


def squares(outputs, targets):
    """Of everything that a network gives."""
    floating = [y for y in outputs.values() if y.dtype.kind == "f"]
    means = [ops.reduce_mean(y * y, axes=tuple(range(y.rank)), keepdims=False) for y in floating]
    return sum(means[1:], means[0])


def curve(network, precision, feeds, prepare=None, steps=3):
    """Losses. prepare: what a graph goes through instead of the CPU's passes."""
    model = stirred(fr.load(network.proto(), device="cpu"))
    model._prepare = prepare or model._prepare
    trainer = fr.Trainer(model, squares, fr.optim.AdamW(1e-2, eps=1e-3), precision=precision, clip_norm=1.0)
    return [float(trainer.step(feeds)) for _ in range(steps)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_training_for_a_gpu_goes_the_same_way(name, precision, monkeypatch):
    network = NETWORKS[name]
    feeds = {n: x if x.dtype.kind == "f" else x % 2 for n, x in drawn(network, 8).items()}
    plain = curve(network, precision, feeds)
    lower = step.lower
    monkeypatch.setattr(attention, "available", lambda: True)
    monkeypatch.setattr(step, "lower", lambda graph, to, device, cache: lower(graph, to, Elsewhere, cache))
    made = curve(network, precision, feeds, lambda graph, hot, _, *a, **k: pipeline.prepare(graph, hot, Elsewhere, *a, **k))
    np.testing.assert_allclose(made, plain, rtol=3e-2 if precision == "bf16" else 1e-4)
