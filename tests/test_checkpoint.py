"""Checkpoints: training goes on bit for bit, from any batch; no kill leaves a broken file; broken files are told."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import flamert as fr
from flamert import checkpoint, safetensors
from flamert.errors import CheckpointError, NonFiniteLoss
from flamert.training.data import Batches
from tests import training_models as models


def trainer_of(proto=None, optimizer=None, **options):
    model = fr.load(proto or models.perceptron(drops=True), device="cpu")
    schedule = fr.optim.warmup_cosine(1e-2, 3, 40)
    return fr.Trainer(model, "cross_entropy", optimizer or fr.optim.AdamW(schedule), **options)


def batches():
    x, t = (np.concatenate(part) for part in zip(*models.rows(10), strict=True))
    return Batches(x, t, 8, seed=3)


def same(a, b):
    assert list(a.state) == list(b.state)
    for name in a.state:
        np.testing.assert_array_equal(a.state[name], b.state[name], err_msg=name)


OPTIONS = {
    "plain": {},
    "average": {"ema": 0.9, "clip_norm": 1.0},
    "accumulating": {"accumulate": 3},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_training_goes_on_bit_for_bit(tmp_path, options):
    whole, first, second = (trainer_of(**options) for _ in range(3))
    whole.fit(batches(), epochs=3, progress=False)

    def interrupt(trainer, loss):
        return trainer.position == (1, 4)

    class Stop(fr.Callback):
        on_step = staticmethod(interrupt)

    first.fit(batches(), epochs=3, callbacks=[Stop()], progress=False)
    first.save(tmp_path / "there")
    second.restore(tmp_path / "there")
    assert second.position == (1, 4)
    history = second.fit(batches(), epochs=3, progress=False)
    same(whole, second)
    assert history.losses == whole.history.losses
    assert [row["loss"] for row in history.epochs] == [row["loss"] for row in whole.history.epochs]


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RMSprop", "Adamax", "NAdam", "RAdam", "LAMB", "Lion", "Adafactor"])
def test_every_optimizer_is_restored(tmp_path, name):
    arguments = {"momentum": 0.9} if name == "SGD" else {}
    one, other = (trainer_of(optimizer=getattr(fr.optim, name)(1e-2, **arguments)) for _ in range(2))
    rows = models.rows(6)
    for x, t in rows[:3]:
        one.step(x, t)
    one.save(tmp_path / "there")
    other.restore(tmp_path / "there")
    for x, t in rows[3:]:
        assert one.step(x, t) == other.step(x, t)
    same(one, other)


def test_running_statistics_are_restored(tmp_path):
    one, other = (trainer_of(models.normalized()) for _ in range(2))
    x = np.random.default_rng(0).standard_normal((4, 2, 5, 5)).astype(np.float32)
    one.step(x, np.zeros(4, np.int64))
    one.save(tmp_path / "there")
    other.restore(tmp_path / "there")
    assert other.model.params["norm.mean"].any()
    np.testing.assert_array_equal(one.model.params["norm.var"], other.model.params["norm.var"])


def test_fit_resumes_from_its_checkpoint(tmp_path):
    whole = trainer_of()
    whole.fit(batches(), epochs=3, progress=False)
    path = tmp_path / "there"
    trainer_of().fit(batches(), epochs=2, checkpoint=path, progress=False)
    second = trainer_of()
    history = second.fit(batches(), epochs=3, checkpoint=path, progress=False)
    same(whole, second)
    assert len(history) == 30 and len(history.epochs) == 3
    again = trainer_of()
    assert len(again.fit(batches(), epochs=3, checkpoint=path, progress=False)) == 30, "nothing is left to do"
    fresh = trainer_of()
    fresh.fit(batches(), epochs=1, checkpoint=path, resume=False, progress=False)
    assert fresh.steps == 10


def test_ctrl_c_saves(tmp_path):
    path = tmp_path / "there"

    class Impatient(fr.Callback):
        def on_step(self, trainer, loss):
            if trainer.position == (0, 6):
                os.kill(os.getpid(), signal.SIGINT)

    trainer = trainer_of()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(batches(), epochs=2, checkpoint=path, callbacks=[Impatient()], progress=False)
    whole, second = trainer_of(), trainer_of()
    whole.fit(batches(), epochs=2, progress=False)
    second.fit(batches(), epochs=2, checkpoint=path, progress=False)
    assert trainer.steps == 6
    same(whole, second)


SCRIPT = """
import sys
import tests.test_checkpoint as t
trainer = t.trainer_of()
print("ready", flush=True)
trainer.fit(t.batches(), epochs=30, checkpoint=sys.argv[1], save_steps=1, progress=False)
print("done", flush=True)
"""


def test_killing_it_again_and_again_changes_nothing(tmp_path):
    path = tmp_path / "there"
    rng = np.random.default_rng(0)
    for attempt in range(12):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, path], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        if attempt < 4:
            time.sleep(rng.uniform(0.05, 0.4))
            process.kill()
        said = process.communicate()[0]
        if path.exists():
            checkpoint.read(path)
        if "done" in said:
            break
    assert "done" in said
    whole, last = trainer_of(), trainer_of()
    whole.fit(batches(), epochs=30, progress=False)
    last.restore(path)
    same(whole, last)
    assert last.position == (30, 0)


def test_other_tools_find_parameters_by_their_names(tmp_path):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    trainer = trainer_of()
    trainer.step(*models.rows()[0])
    trainer.save(tmp_path / "there.safetensors")
    found = load_file(tmp_path / "there.safetensors")
    for name in trainer.trainable:
        np.testing.assert_array_equal(found[name], trainer.model.params[name])


def test_safetensors_of_every_type(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {str(d): rng.integers(0, 2, (3, 2)).astype(d) for d in safetensors.TYPES.values()}
    arrays |= {"empty": np.zeros((0, 3), np.float32), "scalar": np.float64(2)[()] * np.ones(())}
    (tmp_path / "file").write_bytes(safetensors.contents(arrays, {"a": "b"}))
    found, metadata = safetensors.read(tmp_path / "file")
    assert metadata == {"a": "b"} and found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def saved(tmp_path):
    trainer = trainer_of()
    trainer.step(*models.rows()[0])
    trainer.save(tmp_path / "there")
    return trainer, (tmp_path / "there").read_bytes()


def test_damage_is_found(tmp_path):
    trainer, contents = saved(tmp_path)
    before = trainer.state.snapshot()
    rng = np.random.default_rng(0)
    broken = [b"", contents[:5], contents[:100], contents[:-1], contents + b"\0", b"\xff" * 8 + contents[8:]]
    for at in (*rng.integers(8, len(contents), 60), 9, len(contents) - 1):
        broken.append(contents[:at] + bytes([contents[at] ^ 1 << rng.integers(8)]) + contents[at + 1 :])
    told = 0
    for data in broken:
        (tmp_path / "broken").write_bytes(data)
        try:
            trainer.restore(tmp_path / "broken")
        except CheckpointError as error:
            told += 1
            assert "broken" in str(error)
    assert told >= len(broken) - 1, "only padding may change unnoticed"
    for name, array in before.items():
        np.testing.assert_array_equal(trainer.state[name], array)


def test_headers_that_lie_are_found(tmp_path):
    headers = [
        [],
        {"a": 1},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1 << 62], "data_offsets": [0, 1 << 64]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"},
    ]
    for header in headers:
        text = json.dumps(header).encode()
        (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
        with pytest.raises(CheckpointError):
            safetensors.read(tmp_path / "file")


def test_what_does_not_fit_is_told(tmp_path):
    _, _ = saved(tmp_path)
    path = tmp_path / "there"
    for other, said in [
        (trainer_of(optimizer=fr.optim.SGD(0.1)), "does not fit"),
        (trainer_of(optimizer=fr.optim.Adam(0.1)), "optimizer"),
        (trainer_of(models.perceptron(hidden=9)), "a.weight"),
        (trainer_of(trainable="a.*"), "does not fit"),
        (trainer_of(ema=0.5), "missing in the file"),
    ]:
        with pytest.raises(CheckpointError, match=said):
            other.restore(path)
        assert other.steps == 0
    with pytest.raises(CheckpointError):
        trainer_of().restore(tmp_path / "nowhere")
    plain = {"a": np.zeros(3, np.float32)}
    (tmp_path / "plain").write_bytes(safetensors.contents(plain, {}))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        trainer_of().restore(tmp_path / "plain")


def test_a_full_disk_leaves_the_last_good_file(tmp_path, monkeypatch):
    trainer, contents = saved(tmp_path)
    trainer.step(*models.rows()[0])
    real = os.fsync

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        trainer.save(tmp_path / "there")
    monkeypatch.setattr(os, "fsync", real)
    assert (tmp_path / "there").read_bytes() == contents
    assert os.listdir(tmp_path) == ["there"]
    with pytest.raises(CheckpointError):
        trainer.save(tmp_path / "no folder" / "there")
    with pytest.raises(CheckpointError, match="no folder for"):
        trainer.fit(models.rows(2), checkpoint=tmp_path / "no folder" / "there", progress=False)


def test_parameters_that_overflowed_are_not_saved(tmp_path):
    trainer, contents = saved(tmp_path)
    trainer.state["a.bias"] = np.full(8, np.inf, np.float32)
    with pytest.raises(NonFiniteLoss, match=r"a\.bias"):
        trainer.save(tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == contents


def test_nan_keeps_the_last_good_checkpoint(tmp_path):
    rows = models.rows(5)
    rows[3] = (rows[3][0] * np.nan, rows[3][1])
    trainer = trainer_of()
    with pytest.raises(NonFiniteLoss, match=r"step 4: .*'x' holds NaN"):
        trainer.fit(rows, epochs=1, checkpoint=tmp_path / "there", save_steps=1, progress=False)
    good = trainer_of()
    good.restore(tmp_path / "there")
    assert good.steps == 3 and good.position == (0, 3)
    for name, array in good.weights().items():
        assert np.isfinite(array).all()
        np.testing.assert_array_equal(trainer.weights()[name], array)
