"""Training on the command line: what is learnt, written, gone on from and refused."""

import json

import numpy as np
import onnx
import pytest

import flamert as fr
from flamert.cli.choices import made
from flamert.cli.recipe import LOSSES, OPTIMIZERS, SCHEDULES
from flamert.errors import InputError
from tests import training_models as models
from tests.test_cli import good, runner


@pytest.fixture
def flamert(capsys):
    return runner(capsys)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a model and examples for it, to be in."""
    monkeypatch.chdir(tmp_path)
    onnx.save(models.perceptron(), "model.onnx")
    rows = models.rows()
    x, y = (np.concatenate([row[i] for row in rows]) for i in (0, 1))
    np.savez("train.npz", x=x, y=y, number=np.arange(len(x)))
    np.savez("held_out.npz", x=x[:40], y=y[:40])
    np.savez("inputs.npz", x=x)
    np.savez("uneven.npz", x=x, y=y[:7])
    np.save("alone.npy", x)
    return tmp_path


TUNE = ("finetune", "model.onnx", "--data", "train.npz", "--labels", "y", "-o", "tuned.onnx")


def outputs(path):
    return fr.load(path, device="cpu").run({"x": np.load("train.npz")["x"]})["y"]


@pytest.mark.parametrize("command", ["finetune", "export", "checkpoint"])
def test_help_has_an_example(flamert, command):
    assert f"Example: flamert {command}" in " ".join(good(flamert(command, "--help")).split())


def test_finetune_learns_and_keeps_the_file(flamert, folder):
    more = ("--validation", "held_out.npz", "--metrics", "accuracy", "--metrics", "top_k:k=2", "--lr", "1e-2", "--epochs", 4)
    code, out, err = flamert(*TUNE, *more, "--plot", "curve.svg", "--log-dir", "logs", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["examples"] == 320 and found["updates"] == 40 and len(found["epochs"]) == 4
    assert found["epochs"][-1]["val_loss"] < 0.8 * found["epochs"][0]["val_loss"]
    assert 0 <= found["epochs"][-1]["val_accuracy"] <= found["epochs"][-1]["val_top_2"] <= 1
    assert err.count("epoch ") == 4 and "val_accuracy" in err
    before, after = onnx.load("model.onnx"), onnx.load("tuned.onnx")
    assert before.graph.node == after.graph.node and before.graph.initializer != after.graph.initializer
    assert (folder / "curve.svg").read_text().startswith("<svg") and list((folder / "logs").iterdir())


def test_going_on_is_the_same_as_not_stopping(flamert, folder):
    how = ("--validation", "0.25", "--ema", "0.9", "--clip-norm", "1", "--accumulate", "2", "--batch-size", "16")
    good(flamert(*TUNE, *how, "--epochs", 4))
    whole = (folder / "tuned.onnx").read_bytes()
    good(flamert(*TUNE, *how, "--epochs", 2, "--checkpoint", "run.ckpt"))
    assert (folder / "tuned.onnx").read_bytes() != whole
    code, _, err = flamert(*TUNE, *how, "--epochs", 4, "--checkpoint", "run.ckpt")
    assert code == 0 and "going on from run.ckpt" in err and "epoch 3 of 4" in err and "epoch 2 of 4" not in err
    assert (folder / "tuned.onnx").read_bytes() == whole
    good(flamert(*TUNE, *how, "--epochs", 1, "--checkpoint", "run.ckpt", "--no-resume"))
    assert (folder / "tuned.onnx").read_bytes() != whole


def test_less_memory_gives_the_same_file(flamert, folder):
    good(flamert(*TUNE, "--epochs", 1))
    whole = (folder / "tuned.onnx").read_bytes()
    for recompute in ("cheap", "1GB"):
        good(flamert(*TUNE, "--epochs", 1, "--recompute", recompute))
        assert (folder / "tuned.onnx").read_bytes() == whole


def test_only_what_is_chosen_trains(flamert, folder):
    good(flamert(*TUNE, "--trainable", "b.*", "--precision", "bf16"))
    before, after = (fr.load(path, device="cpu").params for path in ("model.onnx", "tuned.onnx"))
    assert [name for name in before if not np.array_equal(before[name], after[name])] == ["b.weight", "b.bias"]


@pytest.mark.parametrize(
    ("how", "calls"),
    [
        (("--replace-head", "5"), ["replace_head"]),
        (("--lora", "*", "--rank", "2", "--alpha", "4"), ["add_lora"]),
        (("--replace-head", "4", "--lora", "a", "--ema", "0.8"), ["replace_head", "add_lora"]),
    ],
)
def test_a_checkpoint_exports_what_was_trained(flamert, folder, how, calls):
    good(flamert(*TUNE, *how, "--checkpoint", "run.ckpt"))
    good(flamert("export", "model.onnx", "--checkpoint", "run.ckpt", "-o", "again.onnx"))
    assert (folder / "again.onnx").read_bytes() == (folder / "tuned.onnx").read_bytes()
    if "--ema" in how:
        good(flamert("export", "model.onnx", "--checkpoint", "run.ckpt", "-o", "again.onnx", "--current"))
        assert np.abs(outputs("again.onnx") - outputs("tuned.onnx")).max() > 1e-6
    assert "--replace-head" not in how or "head.weight" in fr.load("tuned.onnx", device="cpu").params
    changes = json.loads(good(flamert("checkpoint", "run.ckpt", "--json")))["adaptations"]
    assert [change["call"] for change in changes] == calls


def test_low_rank_terms_go_to_a_file_of_their_own(flamert, folder):
    good(flamert(*TUNE, "--lora", "*", "--save-lora", "terms.safetensors"))
    model = fr.load("model.onnx", device="cpu")
    model.load_lora("terms.safetensors")
    np.testing.assert_allclose(model.run({"x": np.load("train.npz")["x"]})["y"], outputs("tuned.onnx"), rtol=1e-4, atol=1e-5)


def test_a_training_step_is_exported(flamert, folder):
    how = (
        "--optimizer",
        "sgd:momentum=0.9",
        "--schedule",
        "cosine",
        "--batch-size",
        "8",
        "--data",
        "train.npz",
        "--labels",
        "y",
    )
    said = good(flamert("export", "model.onnx", "--training-graph", "step.onnx", *how))
    assert "4 parameters, for 8 examples" in said
    step = onnx.load("step.onnx")
    onnx.checker.check_model(step, full_check=True)
    assert {"x", "y", "a.weight"} <= {i.name for i in step.graph.input} and "loss" in {o.name for o in step.graph.output}


def test_checkpoint_shows_and_verifies(flamert, folder):
    good(flamert(*TUNE, "--checkpoint", "run.ckpt", "--epochs", 2, "--accumulate", 3))
    said = good(flamert("checkpoint", "run.ckpt"))
    for text in (
        "SHA-256 verified",
        "AdamW",
        "2 epochs, 0 batches of the next",
        "2 batches for the next update",
        "a.weight",
        "m, v",
    ):
        assert text in said, text
    assert "3 more" in good(flamert("checkpoint", "run.ckpt", "--rows", "1"))
    found = json.loads(good(flamert("checkpoint", "run.ckpt", "--json")))
    assert found["updates"] == 6 and found["batches"] == 20 and len(found["parameters"]) == 4 and len(found["epochs"]) == 2
    whole = bytearray((folder / "run.ckpt").read_bytes())
    whole[-5] ^= 1
    (folder / "run.ckpt").write_bytes(whole)
    code, _, err = flamert("checkpoint", "run.ckpt")
    assert code == 1 and "checksum" in err and err.count("\n") == 1


def test_everything_has_a_name_and_options():
    assert len(OPTIMIZERS) == 11 and len(SCHEDULES) == 8
    known = {"lr": 0.1, "max_lr": 0.1, "steps": 10, "warmup": 1}
    for name in SCHEDULES:
        more = {"step": ":step_size=3", "exponential": ":gamma=0.9"}.get(name, "")
        assert made("--schedule", name + more, SCHEDULES, **known)(1) < 0.101
    for name in OPTIMIZERS:
        assert made("--optimizer", name, OPTIMIZERS, lr=0.1).defaults["lr"] == 0.1
    assert made("--optimizer", "adam:betas=[0.8,0.9],eps=1e-6", OPTIMIZERS).defaults["betas"] == (0.8, 0.9)
    assert made("--optimizer", 'adamw:no_decay=["*.bias"]', OPTIMIZERS).no_decay == ("*.bias",)
    assert made("--loss", "none", LOSSES) is None
    for text, said in (
        ("adom", "choose one of sgd"),
        ("adam:momentum=1", "no option 'momentum'"),
        ("adam:lr", "key=value"),
        ("sgd:nesterov=true", "nesterov needs"),
    ):
        with pytest.raises(InputError, match=said):
            made("--optimizer", text, OPTIMIZERS)
    with pytest.raises(InputError, match="'gamma'"):
        made("--schedule", "exponential", SCHEDULES, lr=0.1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("finetune", "model.onnx", "--data", "train.npz"), "Missing option '-o'"),
        (("finetune", "model.onnx", "--data", "nowhere.npz", "-o", "t.onnx"), "No such file"),
        (("finetune", "model.onnx", "--data", "alone.npy", "-o", "t.onnx"), "np.savez"),
        (("finetune", "model.onnx", "--data", "uneven.npz", "-o", "t.onnx"), "x 320, y 7"),
        (("finetune", "model.onnx", "--data", "inputs.npz", "-o", "t.onnx"), "which target belongs to output 'y'"),
        (("finetune", "model.onnx", "--data", "train.npz", "-o", "nowhere/t.onnx"), "no such folder"),
        ((*TUNE, "--labels", "z"), "--labels z: train.npz holds x, y, number"),
        ((*TUNE, "--validation", "1.5"), "a fraction"),
        ((*TUNE, "--validation", "none.npz"), "none.npz"),
        ((*TUNE, "--metrics", "accuracy"), "give --validation"),
        ((*TUNE, "--loss", "crossentropy"), "choose one of cross_entropy"),
        ((*TUNE, "--loss-on", "z"), "'z'"),
        ((*TUNE, "--schedule", "step"), "step_size"),
        ((*TUNE, "--trainable", "c.*"), "no floating parameter fits 'c.*'"),
        ((*TUNE, "--lora", "c"), "fits 'c'"),
        ((*TUNE, "--epochs", "0"), "--epochs"),
        ((*TUNE, "--precision", "fp8"), "precision='fp8'"),
        ((*TUNE, "--recompute", "little"), "recompute='little'"),
        ((*TUNE, "--recompute", "100"), "does not fit into recompute=100 bytes"),
        ((*TUNE, "--lr", "1e30", "--epochs", "9"), "step "),
        (("export", "model.onnx"), "nothing to export"),
        (("export", "model.onnx", "-o", "t.onnx"), "--checkpoint with -o"),
        (("export", "model.onnx", "--checkpoint", "model.onnx", "-o", "t.onnx"), "not a safetensors file"),
        (("checkpoint", "nowhere.ckpt"), "cannot read 'nowhere.ckpt'"),
    ],
)
def test_errors_are_one_clear_line(flamert, folder, arguments, said):
    code, _, err = flamert(*arguments)
    lines = [line for line in err.splitlines() if not line.startswith("epoch ")]
    assert code != 0 and len(lines) == 1 and lines[0].startswith("flamert: error: ") and said in lines[0], err


def test_a_checkpoint_of_another_model_is_refused(flamert, folder):
    good(flamert(*TUNE, "--checkpoint", "run.ckpt"))
    onnx.save(models.perceptron(features=6, hidden=9), "other.onnx")
    code, _, err = flamert("export", "other.onnx", "--checkpoint", "run.ckpt", "-o", "t.onnx")
    assert code == 1 and "of another model: 'a.bias' is [8] there and [9] here" in err
