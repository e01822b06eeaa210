"""The training loop: histories, logs, stopping, kinds of data."""

import io
import json
import math
import signal
import struct
import threading
import xml.etree.ElementTree

import numpy as np
import pytest

import flamert as fr
from flamert.errors import InputError
from flamert.training.data import ahead, arrays_of
from flamert.training.history import History
from flamert.training.tensorboard import masked_crc32c
from tests import training_models as models
from tests.test_trainer import trainer_of


def test_fit_tells_what_happened():
    trainer = trainer_of()
    seen = []

    class Watching(fr.Callback):
        def on_step(self, trainer, loss):
            seen.append(float(loss))

    rows = models.rows()
    history = trainer.fit(
        rows[:30],
        epochs=2,
        validation=rows[30:],
        metrics=["accuracy"],
        callbacks=[Watching(), lambda trainer, row: seen.append(row["epoch"])],
        progress=False,
    )
    assert history is trainer.history and len(history.losses) == 60 and [row["epoch"] for row in history.epochs] == [1, 2]
    assert seen == [*history.losses[:30], 1, *history.losses[30:], 2]
    last = history.epochs[-1]
    assert last["loss"] == pytest.approx(np.mean(history.losses[30:]))
    found = trainer.evaluate(rows[30:], ["accuracy"])
    assert (last["val_loss"], last["val_accuracy"]) == (found["loss"], found["accuracy"])
    assert last["examples_per_s"] > 0 and last["lr"] == pytest.approx(1e-2) and last["step"] == 60
    again = trainer.fit(rows, epochs=1, progress=False)
    assert len(again.epochs) == 1, "a second call is a new run on the same weights"


def test_early_stopping(tmp_path):
    trainer = trainer_of(optimizer=fr.optim.SGD(0.0))
    rows = models.rows(4)
    history = trainer.fit(
        rows, epochs=20, validation=rows, callbacks=[fr.EarlyStopping(patience=2, best=tmp_path / "best")], progress=False
    )
    assert len(history.epochs) == 3 and (tmp_path / "best").exists()
    rising = trainer_of()
    history = rising.fit(rows, epochs=4, callbacks=[fr.EarlyStopping("loss", patience=1)], progress=False)
    assert len(history.epochs) == 4
    with pytest.raises(InputError, match="val_loss"):
        rising.fit(rows, callbacks=[fr.EarlyStopping()], progress=False)


def test_pictures(tmp_path):
    trainer = trainer_of()
    rows = models.rows()
    history = trainer.fit(rows, epochs=3, validation=rows[:3], progress=False)
    history.plot(tmp_path / "curve.svg", "a < b")
    root = xml.etree.ElementTree.parse(tmp_path / "curve.svg").getroot()
    lines = [e for e in root.iter() if e.tag.endswith("polyline")]
    assert len(lines) >= 4 and "a < b" in {e.text for e in root.iter()}
    for flat in (History(), History([1.0]), History([2.0, 2.0]), History([float("nan"), 1.0])):
        flat.plot(tmp_path / "flat.svg")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match="matplotlib"):
            history.plot(tmp_path / "curve.png")
    else:
        history.plot(tmp_path / "curve.png")


def test_tensorboard_files(tmp_path):
    assert masked_crc32c(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF
    trainer = trainer_of()
    history = trainer.fit(models.rows(7), validation=models.rows(2), log_dir=tmp_path / "log", progress=False)
    (file,) = (tmp_path / "log").iterdir()
    scalars = [event for record in records(file.read_bytes()) for event in scalars_of(record)]
    assert [s[2] for s in scalars if s[0] == "loss"] == pytest.approx(history.losses)
    assert [s[1] for s in scalars if s[0] == "loss"] == list(range(1, 8))
    assert {s[0] for s in scalars} >= {"loss", "validation/loss", "lr", "examples_per_s"}


def records(data):
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8])
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked_crc32c(data[12 : 12 + length])
        yield data[12 : 12 + length]
        data = data[16 + length :]


def fields(data):
    """(number, value) of a protobuf message."""

    def varint():
        shift = result = 0
        while True:
            byte = stream.read(1)[0]
            result |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return result

    stream = io.BytesIO(data)
    while stream.tell() < len(data):
        key = varint()
        if key & 7 == 2:
            yield key >> 3, stream.read(varint())
        else:
            yield key >> 3, varint() if key & 7 == 0 else stream.read(8 if key & 7 == 1 else 4)


def scalars_of(record):
    event = dict(fields(record))
    for number, entry in fields(event.get(5, b"")):
        value = dict(fields(entry))
        assert number == 1
        yield value[1].decode(), event[2], struct.unpack("<f", value[2])[0]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress(monkeypatch, terminal):
    from rich import console

    text = io.StringIO()
    real = console.Console
    monkeypatch.setattr(console, "Console", lambda **_: real(file=text, force_terminal=terminal, width=120))
    trainer_of().fit(models.rows(5), epochs=2)
    assert ("epoch 2/2" in text.getvalue() and "examples/s" in text.getvalue() and "loss" in text.getvalue()) == terminal


class Columns(list):
    """A data set in the manner of Hugging Face's: examples, read by columns."""

    features = ("x", "label", "text")

    def iter(self, batch_size):
        for i in range(0, len(self), batch_size):
            part = self[i : i + batch_size]
            yield {name: [row[name] for row in part] for name in self.features}


class Foreign:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_kinds_of_data():
    rows = models.rows(4)

    def curve(batches, **options):
        return trainer_of().fit(batches, epochs=2, progress=False, **options).losses

    expected = curve(rows)
    assert curve([{"x": x, "label": t} for x, t in rows]) == expected
    assert curve([({"x": x}, {"t": t}) for x, t in rows]) == expected
    assert curve([[Foreign(x), Foreign(t)] for x, t in rows]) == expected
    assert curve([((x,), t.tolist()) for x, t in rows]) == expected
    examples = Columns(
        {"x": x, "label": int(label), "text": "said"} for xs, ts in rows for x, label in zip(xs, ts, strict=True)
    )
    assert curve(examples, batch_size=8) == expected
    x, t = (np.concatenate(part) for part in zip(*rows, strict=True))
    assert curve(fr.Batches(x, t, 8, shuffle=False)) == expected
    assert curve(fr.Batches({"x": x}, {"t": t}, 8, shuffle=False)) == expected
    assert curve(fr.Batches(list(x), t.tolist(), 8, shuffle=False)) == expected
    assert curve(fr.Batches(x, t, 8)) != expected


def test_python_numbers_take_the_types_that_the_model_wants():
    """As data sets give them whose columns are lists: floats without a type."""
    rows = models.rows(4)
    examples = Columns({"x": x.tolist(), "label": int(t), "text": ""} for xs, ts in rows for x, t in zip(xs, ts, strict=True))
    expected = trainer_of().fit(rows, progress=False).losses
    assert trainer_of().fit(examples, batch_size=8, progress=False).losses == expected
    trainer = trainer_of()
    assert [float(trainer.step(x.tolist(), t.tolist())) for x, t in rows] == expected
    with pytest.raises(InputError, match="float64"):
        trainer.step(rows[0][0].astype(np.float64), rows[0][1])
    with pytest.raises(InputError, match="no array can be made of a list"):
        trainer.step([[1.0, 2.0], [3.0]], [0, 1])


def test_hugging_face_data():
    datasets = pytest.importorskip("datasets")
    rows = models.rows(4)
    x, t = (np.concatenate(part) for part in zip(*rows, strict=True))
    data = datasets.Dataset.from_dict({"x": x.tolist(), "label": t.tolist(), "text": ["said"] * len(t)})
    expected = trainer_of().fit(rows, epochs=2, progress=False).losses
    for form in (None, "numpy", "torch"):
        assert trainer_of().fit(data.with_format(form), epochs=2, batch_size=8, progress=False).losses == expected
    assert trainer_of().fit(data.to_iterable_dataset(), epochs=2, batch_size=8, progress=False).losses == expected


def test_torch_loaders():
    torch = pytest.importorskip("torch")
    rows = models.rows(4)
    x, t = (torch.from_numpy(np.concatenate(part)) for part in zip(*rows, strict=True))
    expected = trainer_of().fit(rows, progress=False).losses
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, t), batch_size=8)
    assert trainer_of().fit(loader, progress=False).losses == expected
    by_name = torch.utils.data.DataLoader([{"x": a, "labels": b} for a, b in zip(x, t, strict=True)], batch_size=8)
    trainer = trainer_of()
    assert trainer.fit(by_name, validation=loader, progress=False).losses == expected
    assert trainer.evaluate(by_name) == trainer.evaluate(loader)
    trainer = trainer_of()
    capsules = [(Foreign(a), Foreign(b)) for a, b in zip(x.split(8), t.split(8), strict=True)]
    assert [float(trainer.step(*batch)) for batch in capsules] == expected
    with pytest.raises(InputError, match="grad"):
        trainer.step(x[:8].requires_grad_(), t[:8])


class Told(list):
    """Batches with a sampler that listens to epochs, as torch's distributed one."""

    def __init__(self, rows):
        super().__init__(rows)
        self.sampler = self
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def test_samplers_are_told_the_epoch():
    rows = Told(models.rows(2))
    trainer_of().fit(rows, epochs=3, progress=False)
    assert sorted(set(rows.epochs)) == [0, 1, 2]


class Reused:
    """Fills the same two arrays again for every batch."""

    def __init__(self, rows):
        self.rows = rows
        self.x, self.t = (np.empty_like(a) for a in rows[0])

    def __iter__(self):
        for x, t in self.rows:
            self.x[...], self.t[...] = x, t
            yield self.x, self.t


def test_buffers_may_be_used_again():
    rows = models.rows(20)
    assert trainer_of().fit(Reused(rows), progress=False).losses == trainer_of().fit(rows, progress=False).losses


def reading():
    """Threads that read ahead."""
    return [t for t in threading.enumerate() if t.name == "flamert-batches"]


class Endless:
    """Batches for ever, and how many were asked for."""

    def __init__(self):
        self.batch, self.count = models.rows(1)[0], 0

    def __iter__(self):
        while True:
            self.count += 1
            yield self.batch


class Raising(fr.Callback):
    """Raises after some steps."""

    def __init__(self, error, at=5):
        self.error, self.at = error, at

    def on_step(self, trainer, loss):
        if trainer.steps == self.at:
            raise self.error


@pytest.mark.parametrize("error", [ValueError("enough"), KeyboardInterrupt(), SystemExit(3)], ids=["error", "ctrl-c", "exit"])
def test_what_callbacks_raise_ends_training_there(error):
    trainer, data = trainer_of(), Endless()
    with pytest.raises(type(error)):
        trainer.fit(data, callbacks=[Raising(error)], progress=False)
    assert trainer.steps == 5 and len(trainer.history.losses) == 5 and trainer.position == (0, 5)
    assert not reading() and data.count <= 5 + 4
    before = trainer.weights()
    for name, array in trainer.model.params.items():
        np.testing.assert_array_equal(array, before[name])
    assert trainer.fit(models.rows(3), progress=False).losses, "and it can go on"


def test_what_data_raises_comes_out():
    def broken():
        yield from models.rows(3)
        raise OSError("the file is gone")

    class Data:
        __iter__ = staticmethod(broken)

    trainer = trainer_of()
    with pytest.raises(OSError, match="the file is gone"):
        trainer.fit(Data(), progress=False)
    assert trainer.steps == 3 and not reading()
    with pytest.raises(OSError, match="the file is gone"):
        trainer.evaluate(Data())
    assert not reading()


def test_ctrl_c_in_the_last_validation_is_not_lost(tmp_path):
    class Pressing(list):
        def __iter__(self):
            signal.raise_signal(signal.SIGINT)
            return super().__iter__()

    trainer = trainer_of()
    validation = Pressing(models.rows(2))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(models.rows(3), validation=validation, checkpoint=tmp_path / "there", progress=False)
    assert signal.getsignal(signal.SIGINT) is before
    again = trainer_of()
    again.restore(tmp_path / "there")
    assert again.position == (1, 0) and len(again.history.epochs) == 1


def test_the_end_is_told(tmp_path):
    ends = []

    class Ending(fr.Callback):
        def on_end(self, trainer):
            ends.append((trainer.steps, (tmp_path / "there").exists()))

    options = {"callbacks": [Ending(), lambda trainer, row: None], "checkpoint": tmp_path / "there", "progress": False}
    trainer_of().fit(models.rows(3), **options)
    trainer_of().fit(models.rows(3), **options)
    assert ends == [(3, True)] * 2, "also where nothing was left to do"
    with pytest.raises(ValueError):
        trainer_of().fit(models.rows(9), epochs=2, callbacks=[Ending(), Raising(ValueError())], progress=False)
    assert len(ends) == 2


def test_the_best_weights_are_restored(tmp_path):
    rows = models.rows(8)
    kept = {}

    class Keeping(fr.Callback):
        def on_epoch(self, trainer, row):
            kept[row["epoch"]] = trainer.weights()

    def rising(trainer, row):
        row["judged"] = abs(row["epoch"] - 2) if row["epoch"] != 4 else math.nan

    stopping = fr.EarlyStopping("judged", patience=3, best=tmp_path / "best", restore=True)
    trainer = trainer_of()
    callbacks = [rising, stopping, Keeping()]
    history = trainer.fit(rows, epochs=20, callbacks=callbacks, checkpoint=tmp_path / "last", progress=False)
    assert len(history.epochs) == 5 and trainer.steps == 40
    last = trainer_of()
    last.restore(tmp_path / "last")
    for name in trainer.trainable:
        np.testing.assert_array_equal(trainer.model.params[name], kept[2][name])
        np.testing.assert_array_equal(last.model.params[name], kept[5][name])
    for wrong in ({"restore": True}, {"mode": "best"}):
        with pytest.raises(InputError):
            fr.EarlyStopping(**wrong)


def test_nothing_to_train_on_is_told():
    class Once:
        """Re-iterable in name only."""

        def __init__(self, rows):
            self.rows = iter(rows)

        def __iter__(self):
            return self.rows

    with pytest.raises(InputError, match="no batches in epoch 1"):
        trainer_of().fit([], progress=False)
    with pytest.raises(InputError, match="no batches in epoch 2; Once"):
        trainer_of().fit(Once(models.rows(3)), epochs=2, progress=False)
    with pytest.raises(InputError, match="nothing to evaluate"):
        trainer_of().evaluate([])
    with pytest.raises(InputError, match="save_steps"):
        trainer_of().fit(models.rows(1), save_steps=0, progress=False)


def test_one_metric_or_several():
    trainer, rows = trainer_of(), models.rows(2)
    assert (
        trainer.evaluate(rows, "accuracy")
        == trainer.evaluate(rows, ["accuracy"])
        == trainer.evaluate(rows, fr.metrics.accuracy())
    )
    with pytest.raises(InputError, match="<lambda>"):
        trainer.evaluate(rows, [lambda o, t: 0.0, lambda o, t: 1.0])


def test_tensorboard_reads_the_files(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = trainer_of()
    history = trainer.fit(models.rows(7), epochs=2, validation=models.rows(2), log_dir=tmp_path, progress=False)
    events = loader.EventAccumulator(str(tmp_path))
    events.Reload()
    assert {"loss", "validation/loss", "lr", "examples_per_s"} <= set(events.Tags()["scalars"])
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(history.losses)
    assert [(e.step, e.value) for e in events.Scalars("validation/loss")] == [
        (row["step"], pytest.approx(row["val_loss"])) for row in history.epochs
    ]


def test_shuffled_batches_follow_seed_and_epoch():
    def order(seed, epoch):
        data = fr.Batches(np.arange(20), None, 6, seed=seed)
        data.set_epoch(epoch)
        return [x.tolist() for x, _ in data]

    assert order(0, 0) == order(0, 0) != order(0, 1) and order(1, 0) != order(0, 0)
    assert sorted(i for batch in order(0, 3) for i in batch) == list(range(20))
    assert len(fr.Batches(np.arange(20), None, 6)) == 4 and len(fr.Batches(np.arange(20), None, 6, drop_last=True)) == 3


def test_reading_ahead():
    assert list(ahead(iter(range(100)))) == list(range(100))

    def failing():
        yield 1
        raise ValueError("no more")

    items = ahead(failing())
    assert next(items) == 1
    with pytest.raises(ValueError, match="no more"):
        next(items)
    before = threading.active_count()
    items = ahead(iter(range(10**9)))
    next(items)
    items.close()
    assert threading.active_count() == before


def test_mistakes_are_named():
    trainer = trainer_of()
    with pytest.raises(InputError, match="re-iterable"):
        trainer.fit(iter(models.rows(2)), progress=False)
    with pytest.raises(InputError, match="and no int"):
        trainer.fit(5, progress=False)
    with pytest.raises(InputError, match="pair"):
        trainer.fit([(1, 2, 3)], progress=False)
    with pytest.raises(InputError, match="one pair alone"):
        trainer.fit(models.rows(1)[0], progress=False)
    with pytest.raises(InputError, match="batch_size"):
        trainer.fit(models.rows(2), batch_size=3, progress=False)
    with pytest.raises(InputError, match="none is an input"):
        trainer.fit([{"y": 1}], progress=False)
    with pytest.raises(InputError, match="there is no metric"):
        trainer.evaluate(models.rows(1), ["beauty"])
    with pytest.raises(InputError, match="one length"):
        fr.Batches(np.zeros(3), np.zeros(4))
    with pytest.raises(InputError, match="2 inputs"):
        arrays_of((1, 2), {"x": None})
    assert json.loads(json.dumps(trainer.history.epochs)) == []
