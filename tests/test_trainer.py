"""Training: curves of PyTorch, what training changes and what it leaves, evaluation, and faults that are found and named."""

import numpy as np
import onnx
import pytest

import flamert as fr
from flamert import ops
from flamert.errors import InputError, NoGradient, NonFiniteLoss, ShapeError
from flamert.training import plans
from flamert.training.step import slot
from tests import training_models as models
from tests.placed import PLACED


def trainer_of(proto=None, loss="cross_entropy", optimizer=None, **options):
    model = fr.load(proto or models.perceptron(), **PLACED)
    return fr.Trainer(model, loss, optimizer or fr.optim.AdamW(1e-2), **options)


def losses(trainer, batches):
    return [float(trainer.step(x, t)) for x, t in batches]


OPTIMIZERS = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3},
    "AdamW": {"lr": 3e-3, "eps": 1e-5},
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["perceptron", "convolutional", "transformer", "recurrent"])
def test_loss_curves_are_those_of_torch(name, optimizer):
    pytest.importorskip("torch")
    network, draw = models.torch_networks()[name]
    arguments = OPTIMIZERS[optimizer]
    batches = models.steady(network, draw, optimizer, arguments, steps=100)
    proto = models.exported(network, batches[0][0])
    trainer = trainer_of(proto, optimizer=getattr(fr.optim, optimizer)(**arguments), clip_norm=1.0)
    expected = models.torch_curve(network, batches, optimizer, arguments)
    curve = losses(trainer, batches)
    np.testing.assert_allclose(curve[:20], expected[:20], rtol=1e-4)
    np.testing.assert_allclose(curve, expected, rtol=1e-2)


def test_the_model_has_the_trained_weights(tmp_path):
    trainer = trainer_of()
    model = trainer.model
    before = {n: a.copy() for n, a in model.params.items()}
    x, t = models.rows()[0]
    first = model.run({"x": x})["y"]
    curve = losses(trainer, models.rows())
    assert np.mean(curve[-5:]) < 0.7 * np.mean(curve[:5])
    assert all((model.params[n] != a).any() for n, a in before.items())
    assert not np.allclose(model.run({"x": x})["y"], first)
    model.save(tmp_path / "tuned.onnx")
    again = fr.load(tmp_path / "tuned.onnx", **PLACED)
    np.testing.assert_array_equal(again.run({"x": x})["y"], model.run({"x": x})["y"])
    model.params["a.weight"] = before["a.weight"]
    trainer.step(x, t)
    assert np.abs(model.params["a.weight"] - before["a.weight"]).max() < 0.05, "an assigned parameter is trained from there"


def test_only_what_is_selected_trains():
    trainer = trainer_of(trainable="b.*")
    before = {n: a.copy() for n, a in trainer.model.params.items()}
    losses(trainer, models.rows(3))
    changed = {n for n, a in trainer.model.params.items() if (a != before[n]).any()}
    assert changed == {"b.weight", "b.bias"} == set(trainer.trainable)
    assert trainer_of(trainable=lambda name: name.endswith("bias")).trainable == ("a.bias", "b.bias")
    with pytest.raises(InputError, match=r"c\.\*"):
        trainer_of(trainable=["a.*", "c.*"])


def test_batch_norm_trains_though_exported_for_inference(tmp_path):
    trainer = trainer_of(models.normalized(), optimizer=fr.optim.SGD(0.0))
    assert trainer.trainable == ("conv.weight", "norm.weight", "norm.bias", "head.weight")
    x = np.random.default_rng(0).standard_normal((4, 2, 5, 5)).astype(np.float32) * 3 + 1
    for _ in range(3):
        trainer.step(x, np.zeros(4, np.int64))
    inner = trainer.model.run({"x": x}, ["c"])["c"]
    np.testing.assert_allclose(trainer.model.params["norm.mean"], inner.mean((0, 2, 3)) * (1 - 0.8**3), rtol=1e-4)
    var = inner.var((0, 2, 3))
    np.testing.assert_allclose(trainer.model.params["norm.var"], var + (1 - var) * 0.8**3, rtol=1e-4)
    trainer.export(tmp_path / "tuned.onnx")
    kept = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "tuned.onnx").graph.initializer}
    np.testing.assert_array_equal(kept["norm.mean"], trainer.model.params["norm.mean"])
    frozen = trainer_of(models.normalized(), train_mode=False)
    frozen.step(x, np.zeros(4, np.int64))
    np.testing.assert_array_equal(frozen.model.params["norm.mean"], 0)


def test_a_single_number_per_channel_is_normalized_by_running_statistics():
    trainer = trainer_of(models.normalized())
    x = np.ones((1, 2, 1, 1), np.float32)
    losses(trainer, [(x, np.array([1]))] * 3)
    np.testing.assert_array_equal(trainer.model.params["norm.mean"], 0)


@pytest.mark.parametrize("opset", [6, 7, 9, 14, 15])
def test_batch_norm_of_every_opset(opset):
    proto = models.normalized(opset)
    trainer = trainer_of(proto)
    x = np.random.default_rng(0).standard_normal((4, 2, 5, 5)).astype(np.float32)
    trainer.step(x, np.zeros(4, np.int64))
    assert trainer.model.params["norm.mean"].any()


def test_dropout_drops_in_training_and_follows_the_seed():
    batches = models.rows(5)
    curves = [losses(trainer_of(models.perceptron(drops=True), seed=s), batches) for s in (0, 0, 1)]
    assert curves[0] == curves[1] != curves[2]
    still = [losses(trainer_of(models.perceptron(drops=drops), train_mode=False), batches) for drops in (True, False)]
    assert still[0] == still[1] != curves[0]


@pytest.mark.parametrize("opset", [1, 6, 7, 10, 12, 22])
def test_dropout_of_every_opset(opset):
    attributes = {"ratio": 0.5} if opset < 12 else {}
    nodes = [
        onnx.helper.make_node("Mul", ["x", "w"], ["h"], **({"broadcast": 1} if opset < 7 else {})),
        onnx.helper.make_node("Dropout", ["h"], ["y"], **({"is_test": 1} if opset < 7 else {}), **attributes),
    ]
    ends = {"x": (models.FLOAT, [4, 100])}, {"y": (models.FLOAT, [4, 100])}
    proto = models.built(nodes, *ends, {"w": np.ones((1,) if opset < 7 else (1, 100), np.float32)}, opset)
    seen = []

    def loss(outputs, targets):
        return ops.reduce_sum(ops.cast(ops.equal(outputs["y"], 0.0), to=np.dtype(np.float32)) + outputs["y"] * 0.0, axes=(0, 1))

    trainer = trainer_of(proto, loss)
    seen = losses(trainer, [(np.ones((4, 100), np.float32), None)] * 3)
    assert all(140 < n < 260 for n in seen) and len(set(seen)) > 1


def test_accumulation_equals_a_big_batch():
    batches = models.rows(8)
    small = trainer_of(accumulate=4, clip_norm=0.5)
    losses(small, batches)
    big = trainer_of(clip_norm=0.5)
    for i in (0, 4):
        big.step(*(np.concatenate(part) for part in zip(*batches[i : i + 4], strict=True)))
    assert (small.steps, big.steps) == (2, 2)
    for name in small.trainable:
        np.testing.assert_allclose(small.model.params[name], big.model.params[name], rtol=1e-5, atol=1e-6)


def test_moving_averages(tmp_path):
    trainer = trainer_of(ema=0.5)
    start = trainer.model.params["b.bias"].copy()
    x, t = models.rows()[0]
    trainer.step(x, t)
    after = trainer.model.params["b.bias"]
    np.testing.assert_allclose(trainer.weights(averaged=True)["b.bias"], (start + after) / 2, rtol=1e-6)
    trainer.export(tmp_path / "average.onnx")
    exported = fr.load(tmp_path / "average.onnx", **PLACED)
    np.testing.assert_allclose(exported.params["b.bias"], (start + after) / 2, rtol=1e-6)
    expected = fr.losses.CrossEntropy()
    assert trainer.evaluate([(x, t)])["loss"] == pytest.approx(_cross_entropy(exported.run({"x": x})["y"], t), rel=1e-5)
    assert isinstance(expected, fr.losses.Loss)
    np.testing.assert_array_equal(trainer.model.params["b.bias"], after)


def _cross_entropy(logits, t):
    shifted = logits - logits.max(1, keepdims=True)
    log = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -log[np.arange(len(t)), t].mean()


def test_schedules_advance_with_steps():
    trainer = trainer_of(optimizer=fr.optim.SGD(fr.optim.linear(1.0, 4)), accumulate=2)
    assert trainer.lr == pytest.approx(1.0)
    losses(trainer, models.rows(5))
    assert (trainer.steps, trainer.lr) == (2, pytest.approx(0.5))


def test_parameter_groups():
    optimizer = fr.optim.SGD(0.1, groups=[{"params": "a.*", "lr": 0.0}])
    trainer = trainer_of(optimizer=optimizer)
    before = {n: a.copy() for n, a in trainer.model.params.items()}
    losses(trainer, models.rows(2))
    np.testing.assert_array_equal(trainer.model.params["a.weight"], before["a.weight"])
    assert (trainer.model.params["b.weight"] != before["b.weight"]).any()


def test_half_weights_are_updated_in_float32():
    proto = models.perceptron()
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    trainer = trainer_of(proto, optimizer=fr.optim.SGD(1e-5))
    x, t = models.rows()[0]
    for _ in range(5):
        trainer.step(x.astype(np.float16), t)
    assert trainer.state["b.bias"].dtype == np.float32 and trainer.state["b.bias"].any()
    assert trainer.model.params["b.bias"].dtype == np.float16


def test_losses_of_every_kind():
    x, t = models.rows()[0]
    own = trainer_of(loss=lambda outputs, targets: fr.losses.CrossEntropy()(outputs["y"], targets["t"]))
    expected = [float(trainer_of().step(x, t)) for _ in range(1)]
    assert [float(own.step({"x": x}, {"t": t}))] == expected
    assert [float(trainer_of(loss=fr.losses.CrossEntropy()).step({"x": x}, {"labels": t}))] == expected
    nodes = [*models.perceptron().graph.node, onnx.helper.make_node("ReduceMean", ["y"], ["loss"], keepdims=0)]
    base = models.perceptron()
    del base.graph.node[:], base.graph.output[:]
    base.graph.node.extend(nodes)
    base.graph.output.append(onnx.helper.make_tensor_value_info("loss", models.FLOAT, []))
    trainer = trainer_of(base, None)
    curve = losses(trainer, [(x, None)] * 3)
    assert curve[0] > curve[1] > curve[2]


def test_the_loss_is_read_when_it_is_looked_at():
    trainer = trainer_of()
    loss = trainer.step(*models.rows()[0])
    assert loss > 0 and f"{loss:.2f}" == f"{float(loss):.2f}" and loss + 1 == 1 + loss and loss == loss.item()
    assert np.asarray(loss).shape == () and loss <= loss and not loss < loss and -loss < 0 and abs(-loss) == loss


def test_evaluation_and_metrics():
    trainer = trainer_of()
    batches = [*models.rows(3), (models.rows()[0][0][:3], models.rows()[0][1][:3])]
    x, t = (np.concatenate(part) for part in zip(*batches, strict=True))
    logits = trainer.model.run({"x": x})["y"]

    def share_of_zeros(outputs, targets):
        return float((outputs["y"].argmax(1) == 0).mean())

    found = trainer.evaluate(batches, ["accuracy", fr.metrics.top_k(2), "f1", "perplexity", share_of_zeros])
    guess = logits.argmax(1)
    assert found["loss"] == pytest.approx(_cross_entropy(logits, t), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]), rel=1e-5)
    assert found["accuracy"] == pytest.approx((guess == t).mean())
    assert found["top_2"] == pytest.approx(np.mean([a in row for a, row in zip(t, logits.argsort(1)[:, -2:], strict=True)]))
    scores = [2 * ((guess == c) & (t == c)).sum() / max((guess == c).sum() + (t == c).sum(), 1) for c in range(3)]
    assert found["f1"] == pytest.approx(np.mean(scores))
    assert found["share_of_zeros"] == pytest.approx((guess == 0).mean())
    plans = len(trainer.plans)
    trainer.evaluate(batches, ["accuracy", fr.metrics.top_k(2)])
    trainer.evaluate(batches, [fr.metrics.accuracy])
    trainer.evaluate(batches, ["accuracy"])
    assert len(trainer.plans) <= plans + 4
    regression = trainer_of(loss="mse")
    targets = [(x, np.zeros((len(x), 3), np.float32)) for x, _ in batches]
    found = regression.evaluate(targets, ["mse", "mae"])
    assert found["mse"] == pytest.approx((logits**2).mean(), rel=1e-5)
    assert found["mae"] == pytest.approx(np.abs(logits).mean(), rel=1e-5)


def test_binary_metrics():
    proto = models.perceptron(classes=1)
    trainer = trainer_of(proto, loss=lambda o, t: fr.losses.BCEWithLogits()(ops.reshape(o["y"], shape=(8,)), t["target"]))
    x, t = models.rows()[0]
    t = (t > 0).astype(np.float32)
    guess = trainer.model.run({"x": x})["y"][:, 0] > 0
    found = trainer.evaluate([(x, t)], ["accuracy", fr.metrics.f1("binary")])
    assert found["accuracy"] == pytest.approx((guess == t).mean())
    assert found["f1"] == pytest.approx(2 * (guess & (t > 0)).sum() / (guess.sum() + t.sum()))


def root_of(proto):
    """The model with a square root in it, named "root"."""
    proto.graph.node[1].CopyFrom(onnx.helper.make_node("Sqrt", ["h"], ["r"], name="root"))
    return proto


@pytest.mark.parametrize("lag", [False, True])
def test_what_is_not_finite_stops_training_and_names_the_node(monkeypatch, lag):
    proto = models.perceptron()
    proto.graph.node[0].CopyFrom(onnx.helper.make_node("Mul", ["x", "scale"], ["h"], name="first"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(6, np.float32), "scale"))
    proto.graph.node[2].input[1] = "c.weight"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((6, 3), np.float32), "c.weight"))
    trainer = trainer_of(root_of(proto), trainable=["b.bias", "c.*"])
    good = np.abs(models.rows()[0][0]), models.rows()[0][1]
    bad = -good[0], good[1]
    if lag:  # as on a GPU, where nobody asks after each step
        monkeypatch.setattr(type(trainer.device), "remote", True)
    losses(trainer, [good] * 3)
    weights = trainer.weights()
    with pytest.raises(NonFiniteLoss, match=r"step 4: .*Sqrt node 'root'.*NaN"):
        for _ in range(1 if not lag else 100):
            trainer.step(*bad)
        if not lag:
            trainer.check()
    monkeypatch.undo()
    assert trainer.steps == 3
    for name, array in trainer.weights().items():
        np.testing.assert_array_equal(array, weights[name])
    assert np.isfinite(losses(trainer, [good] * 2)).all(), "training can go on"
    assert trainer.steps == 5


def test_a_gradient_that_is_not_finite_is_found_too():
    trainer = trainer_of(root_of(models.perceptron()), lambda o, t: ops.reduce_sum(o["r"], axes=(0, 1)), output="r")
    with pytest.raises(NonFiniteLoss, match="gradient"):
        trainer.step(np.zeros((8, 6), np.float32), None)
        trainer.check()


def test_infinite_masks_are_no_fault():
    nodes = [
        onnx.helper.make_node("Mul", ["x", "w"], ["h"], name="scale"),
        onnx.helper.make_node("Where", ["m", "h", "never"], ["s"], name="mask"),
        onnx.helper.make_node("Softmax", ["s"], ["p"], name="shares"),
        onnx.helper.make_node("Log", ["x"], ["l"], name="logarithm"),
        onnx.helper.make_node("ReduceSum", ["l"], ["q"], keepdims=0, name="total"),
        onnx.helper.make_node("ReduceSum", ["p"], ["k"], keepdims=0, name="other"),
        onnx.helper.make_node("Mul", ["q", "k"], ["y"], name="product"),
    ]
    weights = {"w": np.ones((1, 3), np.float32), "never": np.float32(-np.inf)}
    inputs = {"x": (models.FLOAT, [2, 3]), "m": (onnx.TensorProto.BOOL, [2, 3])}
    trainer = trainer_of(models.built(nodes, inputs, {"y": (models.FLOAT, [])}, weights), None)
    mask = np.array([[True, False, True]] * 2)
    trainer.step({"x": np.ones((2, 3), np.float32), "m": mask})
    with pytest.raises(NonFiniteLoss, match="Log node 'logarithm'"):
        trainer.step({"x": np.zeros((2, 3), np.float32), "m": mask})
        trainer.check()


def test_the_first_floating_output_is_judged():
    """Models give token numbers, too, and what is inside them can be judged as well."""
    proto = models.perceptron()
    proto.graph.node.append(onnx.helper.make_node("ArgMax", ["y"], ["class"], axis=1, keepdims=0))
    proto.graph.output.insert(0, onnx.helper.make_tensor_value_info("class", models.INT64, ["N"]))
    x, t = models.rows()[0]
    trainer = trainer_of(proto)
    assert trainer.output == "y" and float(trainer.step(x, t)) == float(trainer_of().step(x, t))
    inside = trainer_of(loss="mse", output="h")
    first = float(inside.step(x, np.zeros((8, 8), np.float32)))
    assert first == pytest.approx((inside.model.run({"x": x}, ["h"])["h"] ** 2).mean(), rel=0.2)
    with pytest.raises(InputError, match="'logits'"):
        trainer_of(output="logits")


def test_mistakes_are_named():
    with pytest.raises(InputError):
        trainer_of(loss="hinge")
    with pytest.raises(InputError):
        trainer_of(accumulate=0)
    with pytest.raises(InputError, match="fp8"):
        trainer_of(precision="fp8")
    trainer = trainer_of()
    x, t = models.rows()[0]
    for wrong in ({"optimizer": "adam"}, {"loss": 3}):
        with pytest.raises(InputError, match="a Trainer takes"):
            trainer_of(**wrong)
    for loss in ("cross_entropy", "nll"):
        for target in (t.astype(np.float32), t.astype(str)):
            with pytest.raises(InputError, match="class numbers"):
                trainer_of(loss=loss).step(x, target)
        assert float(trainer_of(loss=loss).step(x, t.astype(np.uint8))) == float(trainer_of(loss=loss).step(x, t))
    with pytest.raises(ShapeError, match="index 7"):  # a GPU finds out when the loss is looked at
        float(trainer.step(x, t + 7 - t.max()))
    with pytest.raises(InputError, match="required inputs"):
        trainer.step({}, t)
    with pytest.raises(InputError, match="which target belongs"):
        trainer.step(x, {"a": t, "b": t})
    with pytest.raises(ShapeError):
        trainer.step(x, t[:3])
    with pytest.raises(NoGradient, match="no parameter"):
        trainer_of(loss=lambda o, t: ops.reduce_sum(ops.cast(t["target"], to=np.dtype(np.float32)), axes=(0,))).step(x, t)
    with pytest.raises(ShapeError, match="one floating number"):
        trainer_of(loss=lambda o, t: o["y"]).step(x, t)


def test_signatures_share_state():
    trainer = trainer_of()
    x, t = models.rows()[0]
    losses(trainer, [(x, t), (x[:5], t[:5]), (x, t)])
    assert trainer.steps == 3 and len(trainer.plans) == 2
    assert slot("m", "a.weight") in trainer.state


def test_ever_new_shapes_are_remarked_upon(caplog, monkeypatch):
    caplog.set_level("WARNING", logger="flamert")
    monkeypatch.setattr(plans, "MAX_PLANS", 2)
    trainer = trainer_of()
    x, t = models.rows()[0]
    for n in (1, 2, 3, 4, 3):
        trainer.step(x[:n], t[:n])
    assert len(trainer.plans) == 2 and [r.levelname for r in caplog.records if "shapes" in r.message] == ["WARNING"]


def test_statistics_are_found_wherever_they_are():
    """In a branch, under a name that the graph around it uses for something else; through a function's parameters."""
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("BatchNormalization", ["x", "one", "zero", "w", "var"], ["n"])],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("n", models.FLOAT, [4, 3])],
        [onnx.numpy_helper.from_array(np.full(3, n, np.float32), name) for name, n in (("w", 0), ("var", 1))],
    )
    nodes = [
        onnx.helper.make_node("Constant", [], ["yes"], value=onnx.numpy_helper.from_array(np.array(True))),
        onnx.helper.make_node("Identity", ["w"], ["one"]),
        onnx.helper.make_node("If", ["yes"], ["b"], then_branch=inner, else_branch=inner, name="choose"),
        onnx.helper.make_node("Normalize", ["b", "w", "zero", "mean", "spread"], ["y"], domain="own"),
    ]
    weights = {"w": np.ones(3, np.float32), "zero": np.zeros(3, np.float32)}
    weights |= {"mean": np.zeros(3, np.float32), "spread": np.ones(3, np.float32)}
    proto = models.built(nodes, {"x": (models.FLOAT, [4, 3])}, {"y": (models.FLOAT, [4, 3])}, weights)
    body = [onnx.helper.make_node("BatchNormalization", ["x", "scale", "shift", "m", "v"], ["y"])]
    opset = [onnx.helper.make_opsetid("", 21)]
    proto.functions.append(onnx.helper.make_function("own", "Normalize", ["x", "scale", "shift", "m", "v"], ["y"], body, opset))
    proto.opset_import.append(onnx.helper.make_opsetid("own", 1))
    trainer = trainer_of(proto, "mse")
    assert trainer.trainable == ("w", "zero")
    trainer.step(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32) + 5, np.zeros((4, 3), np.float32))
    params = trainer.model.params
    moved = {n for n in params if n not in ("w", "zero") and (params[n] != (0 if "w" in n or "mean" in n else 1)).any()}
    assert moved >= {"choose.then_branch.w", "spread"}


@pytest.mark.gpu
@pytest.mark.parametrize("make", [models.perceptron, models.normalized])
def test_a_gpu_trains_like_the_cpu(tmp_path, make):
    rng = np.random.default_rng(0)
    shape = (8, 6) if make is models.perceptron else (8, 2, 5, 5)
    batches = [(rng.standard_normal(shape).astype(np.float32), rng.integers(0, 3, 8)) for _ in range(60)]
    curves, trainers = [], []
    for device in ("cpu", "cuda"):
        optimizer = fr.optim.AdamW(fr.optim.warmup_cosine(1e-2, 3, 60), eps=1e-5)
        trainers.append(fr.Trainer(fr.load(make(), device=device), "cross_entropy", optimizer, clip_norm=1.0, ema=0.9))
        curves.append(trainers[-1].fit(batches, progress=False, checkpoint=tmp_path / device).losses)
    np.testing.assert_allclose(*curves, rtol=2e-3)
    cpu, gpu = trainers
    gpu.restore(tmp_path / "cpu")
    assert gpu.evaluate(batches, ["accuracy"])["loss"] == pytest.approx(cpu.evaluate(batches)["loss"], rel=1e-3)
    x, t = batches[0]
    import cupy

    with pytest.raises(NonFiniteLoss, match="holds NaN"):
        for i in range(100):
            gpu.step({"x": cupy.asarray(x * (np.nan if i == 3 else 1))}, cupy.asarray(t))
    assert gpu.steps == cpu.steps + 3
    assert all(np.isfinite(a).all() for a in gpu.weights().values())
    restored = fr.Trainer(fr.load(make(), device="cuda"), "cross_entropy", gpu.optimizer, clip_norm=1.0, ema=0.9)
    gpu.save(tmp_path / "there")
    restored.restore(tmp_path / "there")
    assert [float(gpu.step(*b)) for b in batches[:5]] == [float(restored.step(*b)) for b in batches[:5]]


@pytest.mark.parametrize("make", [models.perceptron, models.normalized])
def test_another_runtime_takes_the_same_steps(tmp_path, make):
    runtime = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    shape = (8, 6) if make is models.perceptron else (8, 2, 5, 5)
    batches = [(rng.standard_normal(shape).astype(np.float32), rng.integers(0, 3, 8)) for _ in range(10)]
    trainer = trainer_of(make(), optimizer=fr.optim.AdamW(fr.optim.cosine(1e-2, 10)), clip_norm=1.0)
    trainer.export_training_graph(tmp_path / "step.onnx", x=batches[0][0], target=batches[0][1])
    session = runtime.InferenceSession(tmp_path / "step.onnx", providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    state = {i.name: trainer.state[i.name] for i in session.get_inputs() if i.name not in ("x", "target")}
    for x, t in batches:
        found = dict(zip(names, session.run(None, {"x": x, "target": t, **state}), strict=True))
        state.update({n.removesuffix(".new"): a for n, a in found.items() if n != "loss"})
        np.testing.assert_allclose(found["loss"], float(trainer.step(x, t)), rtol=1e-4)
    np.testing.assert_allclose(state["flamert/steps"], trainer.steps)
