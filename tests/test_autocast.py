"""Mixed precision: which ops are computed in halves, and that training in them goes as it does in float32."""

import numpy as np
import pytest

import flamert as fr
from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import InputError, NonFiniteLoss
from flamert.graph import Graph, TensorType
from flamert.ops.evaluate import evaluate
from flamert.passes.autocast import autocast, widen
from flamert.training.step import FIRST_SCALE, SCALE
from tests import training_models as models

F = np.dtype(np.float32)
HALVES = [dtypes.bfloat16, dtypes.float16]


def types_of(graph):
    return {node.op.name: node.types[0].dtype for node in graph.nodes if node.inputs}


@pytest.mark.parametrize("half", HALVES, ids=lambda t: t.name)
@pytest.mark.parametrize("islands", [True, False])
def test_which_ops_are_halves(half, islands):
    x, w, s = (g.input(TensorType(shape, F)) for shape in ((4, 8), (8, 8), (8,)))
    h = ops.gelu(ops.matmul(x, w) * 0.5 + 1.0)
    n = ops.layer_norm(h, s, axis=-1)
    graph = autocast(Graph([x, w, s], [ops.tanh(n), ops.exp(h)]), half, islands=islands)
    found = types_of(graph)
    assert [v.dtype for v in graph.outputs] == [F, F]
    assert found["matmul"] == found["gelu"] == found["mul"] == found["add"] == half
    assert found["exp"] == F
    assert found["layer_norm"] == found["tanh"] == (F if islands else half)
    rng = np.random.default_rng(0)
    feeds = [rng.standard_normal(v.shape).astype(F) for v in (x, w, s)]
    got = evaluate(graph.outputs, dict(zip((x, w, s), feeds, strict=True)))
    want = evaluate([ops.tanh(n), ops.exp(h)], dict(zip((x, w, s), feeds, strict=True)))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.1, atol=0.1)


def test_numbers_that_a_half_cannot_hold_stay_as_they_are():
    x = g.input(TensorType((2, 2), F))
    graph = autocast(Graph([x], [ops.where(ops.matmul(x, x) > 0, ops.matmul(x, x), -1e9)]), dtypes.float16)
    assert types_of(graph)["where"] == F
    other = autocast(Graph([x], [ops.where(ops.matmul(x, x) > 0, ops.matmul(x, x), -1e9)]), dtypes.bfloat16)
    assert types_of(other)["where"] == dtypes.bfloat16


def test_types_that_are_not_float32_are_left_alone():
    x = g.input(TensorType((2, 2), np.dtype(np.float64)))
    graph = Graph([x], [ops.matmul(x, x)])
    assert types_of(autocast(graph, dtypes.bfloat16))["matmul"] == np.float64


def curve(precision, steps=30):
    model = fr.load(models.normalized(), device="cpu")
    trainer = fr.Trainer(model, "cross_entropy", fr.optim.AdamW(1e-2), precision=precision)
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((8, 2, 5, 5)).astype(np.float32), rng.integers(0, 3, 8)
    return trainer, [float(trainer.step(x, t)) for _ in range(steps)]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_training_goes_as_in_float32(precision, tmp_path):
    trainer, losses = curve(precision)
    _, plain = curve("fp32")
    np.testing.assert_allclose(losses, plain, atol=0.05)
    assert losses[-1] < losses[0] * 0.7
    assert all(trainer.state[n].dtype == np.float32 for n in trainer.trainable)
    trainer.save(tmp_path / "there")
    again, _ = curve(precision, 1)
    again.restore(tmp_path / "there")
    assert again.steps == 30 and (SCALE in again.state) == (precision == "fp16")


def test_a_scale_that_is_too_large_is_halved_and_the_step_left_out():
    trainer, _ = curve("fp16", 1)
    before = trainer.state.snapshot()
    trainer.state[SCALE] = np.float32(3e38)
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((8, 2, 5, 5)).astype(np.float32), rng.integers(0, 3, 8)
    trainer.step(x, t)
    assert trainer.steps == 1 and trainer.state[SCALE] == np.float32(1.5e38)
    for name in trainer.trainable:
        np.testing.assert_array_equal(trainer.state[name], before[name])
    trainer.state[SCALE] = np.float32(FIRST_SCALE)
    trainer.step(x, t)
    assert trainer.steps == 2
    x[0] = np.nan
    with pytest.raises(NonFiniteLoss):
        trainer.step(x, t)
        trainer.check()


def test_a_precision_that_there_is_not():
    with pytest.raises(InputError, match="'fp64'"):
        curve("fp64")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_inference_in_halves(precision):
    x = np.random.default_rng(0).standard_normal((4, 2, 5, 5)).astype(np.float32)
    plain, half = (fr.load(models.normalized(), device="cpu", precision=p) for p in (None, precision))
    want, got = plain.run({"x": x})["y"], half.run({"x": x})["y"]
    assert got.dtype == np.float32 and not np.array_equal(got, want)
    np.testing.assert_allclose(got, want, rtol=0.05, atol=0.05)
    with pytest.raises(InputError, match="'int8'"):
        fr.load(models.normalized(), precision="int8")


def test_halves_computed_in_float32():
    x = g.input(TensorType((64, 64), dtypes.float16))
    graph = widen(Graph([x], [ops.exp(ops.matmul(x, x) * 0.01)]))
    assert types_of(graph) == {"cast": dtypes.float16, "matmul": F, "mul": F, "exp": F}
    assert graph.outputs[0].dtype == dtypes.float16
