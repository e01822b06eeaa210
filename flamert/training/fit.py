"""The training loop: epochs over batches, with validation, checkpoints, logs, callbacks and a way to stop."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flamert.errors import CheckpointError, InputError
from flamert.files import make_ready
from flamert.metrics import Function, Metric
from flamert.training.data import Source
from flamert.training.evaluation import evaluate
from flamert.training.history import History, Row
from flamert.training.progress import Silent, shown
from flamert.training.scalar import Scalar
from flamert.training.tensorboard import EventFile

if TYPE_CHECKING:
    from flamert.trainer import Trainer

log = logging.getLogger("flamert")

FLUSH_EVERY = 50
"""Batches after which losses are read from the device for the history and the log."""


class Callback:
    """Base of callbacks. A method that returns something true ends the training."""

    def on_step(self, trainer: Trainer, loss: Scalar) -> Any:
        """After every batch. Looking at the loss makes the device finish first."""

    def on_epoch(self, trainer: Trainer, row: Row) -> Any:
        """After every epoch, with its summary."""

    def on_end(self, trainer: Trainer) -> Any:
        """When training has ended, and everything is saved; not where an error or Ctrl-C ended it."""


class EarlyStopping(Callback):
    """Ends the training when `monitor`, a column of `History.epochs`, has not improved by more than min_delta for `patience`
    epochs; what is not a number is no improvement.

    best: where to save a checkpoint whenever it has. restore: take the weights of the best epoch from there in the end, however
    training ended; a checkpoint of `fit` itself keeps the last ones, to go on from.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 3,
        min_delta: float = 0.0,
        *,
        mode: str = "min",
        best: str | os.PathLike[str] | None = None,
        restore: bool = False,
    ) -> None:
        if mode not in ("min", "max"):
            raise InputError(f"mode is 'min' or 'max', not {mode!r}")
        if restore and best is None:
            raise InputError("to restore the best weights they must be saved somewhere: best=path")
        self.monitor, self.patience, self.min_delta = monitor, patience, min_delta
        self.best, self.restore = best, restore
        self.sign = -1.0 if mode == "max" else 1.0

    def on_end(self, trainer: Trainer) -> None:
        if self.restore and self.best is not None and trainer.history.epochs:
            trainer.restore(self.best, weights_only=True)

    def on_epoch(self, trainer: Trainer, row: Row) -> bool:
        if self.monitor not in row:
            raise InputError(f"no column {self.monitor!r} to stop by; there are {', '.join(row)}")
        values = [self.sign * value for value in trainer.history.series(self.monitor)[1]]
        values = [math.inf if math.isnan(value) else value for value in values]
        record = 0
        for i, value in enumerate(values):
            if value < values[record] - self.min_delta:
                record = i
        if self.best is not None and record == len(values) - 1:
            trainer.save(self.best)
        return len(values) - 1 - record >= self.patience


class Interrupts:
    """Ctrl-C waits until a step is complete; the second one does not. Outside the main thread nothing changes."""

    requested = False

    def __enter__(self) -> Interrupts:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, *signal_: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


class Fit:
    """One call of `Trainer.fit`.

    source: batches; see `flamert.training.data.Source` for what may be given. epochs: how many, counted from the start of
    what is resumed. validation: batches that are evaluated after every epoch, with
    `metrics`. callbacks: objects with methods of `Callback`, or functions that are called as its on_epoch; what they raise ends
    the training there and then. checkpoint: a file
    that is replaced after every epoch, every `save_steps` batches and every `save_seconds`; with `resume` training goes on
    from it if it is there. log_dir: where TensorBoard's event files go.
    Ctrl-C ends the training between two steps, with a checkpoint, and raises KeyboardInterrupt. Where batches do not divide
    by `accumulate`, the rest of an epoch is gathered into the next one's first update.
    """

    def __init__(
        self,
        trainer: Trainer,
        source: Source,
        epochs: int,
        validation: Source | None,
        metrics: Sequence[Metric | Function],
        callbacks: Sequence[Any],
        checkpoint: str | os.PathLike[str] | None,
        save_steps: int | None,
        save_seconds: float | None,
    ) -> None:
        if save_steps is not None and save_steps < 1:
            raise InputError(f"save_steps is at least 1, or None; got {save_steps}")
        self.trainer, self.source, self.epochs = trainer, source, epochs
        self.validation, self.metrics = validation, metrics
        self.callbacks: list[Any] = [*callbacks] if isinstance(callbacks, list | tuple) else [callbacks]
        self.checkpoint, self.save_steps, self.save_seconds = checkpoint, save_steps, save_seconds
        self.saved = time.monotonic()
        self.events: EventFile | None = None
        self.interrupts = Interrupts()

    def run(self, resume: bool, log_dir: str | os.PathLike[str] | None, progress: bool) -> History:
        """Train; returns the history, which the trainer keeps too."""
        trainer = self.trainer
        if self.checkpoint is not None and not os.path.isdir(os.path.dirname(os.path.abspath(self.checkpoint))):
            raise CheckpointError(f"there is no folder for the checkpoint {os.fspath(self.checkpoint)!r}")
        if self.checkpoint is not None:
            make_ready(os.fspath(self.checkpoint))
        if resume and self.checkpoint is not None and os.path.exists(self.checkpoint):
            trainer.restore(self.checkpoint)
        if not (resume and trainer.resumed):
            trainer.position, trainer.history = type(trainer.position)(), History()
        trainer.resumed = False
        with contextlib.ExitStack() as stack:
            if log_dir is not None:
                self.events = stack.enter_context(EventFile(log_dir))
            display = stack.enter_context(shown(progress))
            stack.enter_context(self.interrupts)
            for epoch in range(trainer.position.epoch, self.epochs):
                if self._epoch(epoch, display):
                    break
            self._called("on_end")
        return trainer.history

    def _epoch(self, epoch: int, display: Silent) -> bool:
        """One epoch, from the batch on that it is at. Returns whether to end here."""
        trainer, done = self.trainer, self.trainer.position.batch
        begin, examples, stop = time.perf_counter(), 0, False
        display.epoch(f"epoch {epoch + 1}/{self.epochs}", len(self.source), done)
        with contextlib.closing(self.source.epoch(epoch, done)) as batches:
            for batch in batches:
                loss = trainer.train(batch)
                trainer.history.add(loss)
                trainer.position = trainer.position._replace(epoch=epoch, batch=trainer.position.batch + 1)
                examples += batch.examples
                display.step(loss, batch.examples)
                if len(trainer.history) % FLUSH_EVERY == 0:
                    self._log_losses()
                stop = self._called("on_step", loss)
                self._between_steps()
                if stop:
                    self._save()
                    return True
        if not trainer.position.batch:
            raise InputError(f"there are no batches in epoch {epoch + 1}; {type(self.source.data).__name__} yields none")
        row = self._summary(epoch, examples / max(time.perf_counter() - begin, 1e-9))
        trainer.position = type(trainer.position)(epoch + 1, 0)
        stop = self._called("on_epoch", row)
        self._save()
        if self.interrupts.requested:
            raise KeyboardInterrupt
        return stop

    def _summary(self, epoch: int, speed: float) -> Row:
        """Close an epoch: check it, validate, and note what came of it."""
        trainer, history = self.trainer, self.trainer.history
        trainer.check()
        self._log_losses()
        own = history.losses[len(history) - trainer.position.batch :]
        row: Row = {"epoch": epoch + 1, "step": len(history), "loss": sum(own) / max(len(own), 1), "lr": trainer.lr}
        row["examples_per_s"] = speed
        if self.validation is not None:
            found = evaluate(trainer, self.validation, self.metrics)
            row.update({f"val_{name}": value for name, value in found.items()})
        history.epochs.append(row)
        log.info("%s", ", ".join(f"{name} {value:.6g}" for name, value in row.items()))
        if self.events is not None:
            for name in row.keys() - {"epoch", "step", "loss"}:
                self.events.scalar(name.replace("val_", "validation/", 1), row[name], int(row["step"]))
            self.events.flush()
        return row

    def _log_losses(self) -> None:
        fresh = self.trainer.history.flush()
        if self.events is not None:
            first = len(self.trainer.history) - len(fresh) + 1
            for i, loss in enumerate(fresh):
                self.events.scalar("loss", loss, first + i)
            self.events.flush()

    def _called(self, method: str, *what: Any) -> bool:
        """Tell the callbacks; whether one of them wants to end."""
        answers = []
        for callback in self.callbacks:
            own = getattr(callback, method, None)
            if own is not None:
                answers.append(own(self.trainer, *what))
            elif method == "on_epoch":
                answers.append(callback(self.trainer, *what))
        return any(answers)

    def _between_steps(self) -> None:
        """Save if it is time to, or if this is where training is interrupted."""
        due = self.save_seconds is not None and time.monotonic() - self.saved > self.save_seconds
        if self.save_steps is not None and len(self.trainer.history) % self.save_steps == 0:
            due = True
        if due or self.interrupts.requested:
            self._save()
        if self.interrupts.requested:
            raise KeyboardInterrupt

    def _save(self) -> None:
        if self.checkpoint is not None:
            self._log_losses()
            self.trainer.save(self.checkpoint)
            self.saved = time.monotonic()
