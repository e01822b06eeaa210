"""Checkpoints: training goes on bit for bit, from any batch; no kill leaves a broken file; broken files are told."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import flamert as fr
from flamert import checkpoint, safetensors
from flamert.errors import CheckpointError, NonFiniteLoss, UnsafeModel
from flamert.training.data import Batches
from tests import training_models as models
from tests.placed import PLACED


def trainer_of(proto=None, optimizer=None, **options):
    model = fr.load(proto or models.perceptron(drops=True), **PLACED)
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


LONG = 400
"""Epochs of a training that is never over before it is killed."""

KILLER = """
import os, random, signal, sys, time
from flamert import checkpoint
from tests import test_checkpoint as t

path, kills = sys.argv[1], int(sys.argv[2])
moments = random.Random(5)
for attempt in range(kills):
    begun, told = os.pipe()
    child = os.fork()
    if not child:
        tell = lambda trainer, loss: os.write(told, b".") and None
        callback = type("Telling", (), {"on_step": staticmethod(tell), "on_epoch": staticmethod(tell)})
        t.trainer_of().fit(t.batches(), epochs=t.LONG, checkpoint=path, save_steps=1, callbacks=[callback], progress=False)
        os._exit(0)
    if attempt % 4:
        os.read(begun, 1)
    time.sleep(moments.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it was over already"
    os.close(begun), os.close(told)
    if os.path.exists(path):
        print(checkpoint.read(path)[0]["flamert/steps"], flush=True)
"""


@pytest.mark.parametrize("kills", [6, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are made by fork")
def test_killing_it_again_and_again_changes_nothing(tmp_path, kills):
    path = tmp_path / "there"
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-c", KILLER, path, str(kills)], env={**os.environ, **one_thread}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    steps = [int(line) for line in done.stdout.split()]
    assert steps == sorted(steps) and steps[-1] > kills // 4, steps
    epochs = steps[-1] // 10 + 2
    whole, last = trainer_of(), trainer_of()
    whole.fit(batches(), epochs=epochs, progress=False)
    history = last.fit(batches(), epochs=epochs, checkpoint=path, progress=False)
    same(whole, last)
    assert last.position == (epochs, 0) and last.steps == 10 * epochs
    assert history.losses == whole.history.losses
    assert os.listdir(tmp_path) == ["there"], "what killed writers left is cleared away"


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

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="No space left"):
            patch.setattr(os, call, full)
            trainer.save(tmp_path / "there")
        assert (tmp_path / "there").read_bytes() == contents
        assert os.listdir(tmp_path) == ["there"]


@pytest.fixture
def disk(tmp_path):
    """A file system of 256 KiB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"nothing can be mounted: {error}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def goes_on(path, epochs=3):
    """Whether training from this checkpoint ends as if nothing had happened."""
    whole, again = trainer_of(), trainer_of()
    whole.fit(batches(), epochs=epochs, progress=False)
    again.fit(batches(), epochs=epochs, checkpoint=path, progress=False)
    same(whole, again)


class Filling(fr.Callback):
    """Fills a disk at one step of training."""

    def __init__(self, path, at=13):
        self.path, self.at = path, at

    def on_step(self, trainer, loss):
        if trainer.steps == self.at:
            with open(self.path, "wb", 0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(512))


def test_a_disk_that_fills_up_in_training(disk):
    trainer = trainer_of()
    with pytest.raises(CheckpointError, match="No space left"):
        trainer.fit(
            batches(), epochs=3, checkpoint=disk / "there", save_steps=1, callbacks=[Filling(disk / "filling")], progress=False
        )
    assert trainer.steps == 13, "the trainer itself is as it was"
    arrays, notes = checkpoint.read(disk / "there")
    assert arrays["flamert/steps"] == 12 and notes["position"] == [1, 2]
    assert sorted(os.listdir(disk)) == ["filling", "there"]
    with pytest.raises(CheckpointError, match="No space left"):
        trainer.save(disk / "elsewhere")
    os.remove(disk / "filling")
    goes_on(disk / "there")


def test_a_log_on_a_full_disk(disk, tmp_path):
    class Noting(Filling):
        def on_epoch(self, trainer, row):
            trainer.save(tmp_path / "there")

    with pytest.raises(CheckpointError, match="cannot write logs"):
        trainer_of().fit(batches(), epochs=12, log_dir=disk, callbacks=[Noting(disk / "filling")], progress=False)
    goes_on(tmp_path / "there", epochs=12)


def test_a_disk_that_becomes_read_only(disk):
    class Locking(fr.Callback):
        def on_step(self, trainer, loss):
            if trainer.steps == 13:
                subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

    with pytest.raises(CheckpointError, match="Read-only"):
        trainer_of().fit(batches(), epochs=3, checkpoint=disk / "there", save_steps=1, callbacks=[Locking()], progress=False)
    assert checkpoint.read(disk / "there")[0]["flamert/steps"] == 12
    begun = trainer_of()
    with pytest.raises(CheckpointError, match="Read-only"):
        begun.fit(batches(), checkpoint=disk / "other", progress=False)
    assert begun.steps == 0, "what cannot be saved is told before there is something to lose"
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    goes_on(disk / "there")


def test_a_limit_on_file_size(tmp_path):
    """As a full disk, and where nothing can be mounted too."""
    resource = pytest.importorskip("resource")
    trainer = trainer_of()
    trainer.fit(batches(), checkpoint=tmp_path / "there", progress=False)
    contents = (tmp_path / "there").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(contents) // 2, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            trainer.save(tmp_path / "there")
        with pytest.raises(CheckpointError, match="File too large"):
            trainer.fit(batches(), epochs=2, checkpoint=tmp_path / "there", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "there").read_bytes() == contents
    assert os.listdir(tmp_path) == ["there"]
    goes_on(tmp_path / "there")


def test_places_that_cannot_be_written_are_told_before_training(tmp_path):
    trainer = trainer_of()
    (tmp_path / "folder").mkdir()
    (tmp_path / "locked").mkdir(mode=0o500)
    places = [tmp_path / "no folder" / "there", tmp_path / "folder", "/proc/there"]
    if not os.access(tmp_path / "locked", os.W_OK):
        places.append(tmp_path / "locked" / "there")
    for path in places:
        with pytest.raises((CheckpointError, UnsafeModel), match=os.path.basename(path)):
            trainer.fit(models.rows(2), checkpoint=path, progress=False)
    with pytest.raises(CheckpointError, match="no folder for"):
        trainer.fit(models.rows(2), checkpoint=tmp_path / "no folder" / "there", progress=False)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot write logs"):
        trainer.fit(models.rows(2), log_dir=tmp_path / "file", progress=False)
    assert trainer.steps == 0
    with pytest.raises(CheckpointError):
        trainer.save(tmp_path / "no folder" / "there")


def test_weights_alone_are_taken(tmp_path):
    trainer, _ = saved(tmp_path)
    other = trainer_of(optimizer=fr.optim.SGD(0.1), ema=0.5, trainable="a.*")
    other.step(*models.rows()[1])
    other.restore(tmp_path / "there", weights_only=True)
    assert other.steps == 1 and other.trainable == ("a.weight", "a.bias")
    for name in other.trainable:
        for averaged in (False, True):
            np.testing.assert_array_equal(other.weights(averaged)[name], trainer.model.params[name])
        np.testing.assert_array_equal(other.model.params[name], trainer.model.params[name])
    other.save(tmp_path / "less")
    with pytest.raises(CheckpointError, match=r"b\.weight.* missing in the file"):
        trainer.restore(tmp_path / "less", weights_only=True)


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
