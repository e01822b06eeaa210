"""`flamert finetune`: train a model on the arrays of a .npz and write the tuned one."""

from __future__ import annotations

import functools
import os
import sys
import time
from typing import Annotated, Any

import typer

from flamert.cli import dataset, recipe
from flamert.cli.checkpoint import epoch_table
from flamert.cli.choices import made
from flamert.cli.console import DeviceName, Json, ModelPath, emit, working
from flamert.errors import InputError
from flamert.metrics import METRICS
from flamert.trainer import Trainer
from flamert.training.fit import Callback, EarlyStopping
from flamert.training.history import History, Row

tracking = functools.partial(typer.Option, rich_help_panel="Keeping track")

EVERY = 10.0
"""Seconds between lines where there is no terminal to draw a bar on."""


def command(
    model: ModelPath,
    data: dataset.Data,
    output: Annotated[str, typer.Option("-o", "--output", help="Write the tuned model here.", show_default=False)],
    labels: dataset.Labels = None,
    validation: Annotated[
        str | None,
        dataset.about("--validation", help="Another .npz, or the fraction of the examples to set aside."),
    ] = None,
    loss: recipe.Loss = "cross_entropy",
    loss_on: recipe.LossOn = None,
    optimizer: recipe.OptimizerName = "adamw",
    lr: recipe.Rate = 1e-3,
    schedule: recipe.ScheduleName = "constant",
    epochs: Annotated[int, recipe.learning("--epochs", help="Times to go through the examples.", min=1)] = 3,
    batch_size: dataset.BatchSize = 32,
    trainable: recipe.Patterns = None,
    replace_head: recipe.Head = None,
    lora: recipe.Lora = None,
    rank: recipe.Rank = 8,
    alpha: recipe.Alpha = 16.0,
    clip_norm: recipe.ClipNorm = None,
    accumulate: recipe.Accumulate = 1,
    ema: recipe.Average = None,
    inference_form: recipe.Frozen = False,
    precision: recipe.Precision = "fp32",
    recompute: recipe.Recompute = None,
    metrics: Annotated[
        list[str] | None,
        tracking(
            "--metrics",
            help=f"Of the validation: {', '.join(METRICS)}, with options as in top_k:k=3. Repeatable.",
        ),
    ] = None,
    patience: Annotated[
        int | None,
        tracking("--patience", help="Stop when so many epochs have not lowered the validation loss.", min=1),
    ] = None,
    checkpoint: Annotated[str | None, tracking("--checkpoint", help="File to go on from, kept up to date.")] = None,
    resume: Annotated[bool, tracking("--resume/--no-resume", help="Go on from the checkpoint if it is there.")] = True,
    log_dir: Annotated[str | None, tracking("--log-dir", help="Folder for TensorBoard's event files.")] = None,
    plot: Annotated[str | None, tracking("--plot", help="Draw the losses: .svg, or others with matplotlib.")] = None,
    save_lora: Annotated[str | None, tracking("--save-lora", help="Write the low-rank terms alone, too.")] = None,
    seed: recipe.Seed = 0,
    device: DeviceName = None,
    json: Json = False,
) -> None:
    """Train a model on examples and write it as ONNX with better weights.

    Example: flamert finetune model.onnx --data train.npz --labels y --validation 0.1 --epochs 3 -o tuned.onnx
    """
    from flamert.importers.load import load

    how = recipe.Recipe(
        loss, loss_on, optimizer, lr, schedule, trainable, clip_norm, accumulate, ema, inference_form, precision, seed
    )  # fmt: skip
    _check_paths(output, checkpoint, plot, save_lora)
    judges = [made("--metrics", m, METRICS) for m in metrics or ()]
    with working(f"reading {model}"):
        loaded = load(model, device=device)
        train, held_out = dataset.divided(dataset.examples(data, loaded, labels), validation, loaded, seed)
        recipe.adapt(loaded, how, replace_head, lora, rank, alpha)
    if held_out is None and (judges or patience):
        raise InputError("--metrics and --patience judge the validation: give --validation")
    batches = train.batches(batch_size, seed)
    trainer = how.trainer(loaded, epochs * len(batches) // accumulate, recompute)
    if checkpoint is not None and resume and os.path.exists(checkpoint):
        print(f"going on from {checkpoint}", file=sys.stderr)
    history = trainer.fit(
        batches,
        epochs=epochs,
        validation=None if held_out is None else held_out.batches(batch_size, shuffle=False),
        metrics=judges,
        callbacks=[Lines(epochs, len(batches)), *([EarlyStopping(patience=patience)] if patience else [])],
        checkpoint=checkpoint,
        resume=resume,
        log_dir=log_dir,
    )
    trainer.export(output)
    if plot is not None:
        history.plot(plot, os.path.basename(output))
    if save_lora is not None:
        loaded.save_lora(save_lora)
    report(trainer, history, len(train), model, output, json)


class Lines(Callback):
    """A line on stderr for each epoch, and now and then in between where there is no terminal."""

    def __init__(self, epochs: int, batches: int) -> None:
        self.epochs, self.batches, self.said = epochs, batches, time.monotonic()

    def on_step(self, trainer: Trainer, loss: Any) -> None:
        if not sys.stderr.isatty() and time.monotonic() - self.said > EVERY:
            self.said = time.monotonic()
            epoch, batch = trainer.position
            print(f"epoch {epoch + 1} of {self.epochs}: {batch} of {self.batches} batches, loss {loss:.4f}", file=sys.stderr)

    def on_epoch(self, trainer: Trainer, row: Row) -> None:
        self.said = time.monotonic()
        numbers = ", ".join(f"{name} {row[name]:.5g}" for name in row if name not in ("epoch", "step"))
        print(f"epoch {row['epoch']} of {self.epochs}: {numbers}", file=sys.stderr)


def report(trainer: Trainer, history: History, examples: int, model: str, output: str, as_json: bool) -> None:
    """What came of it: a row for each epoch."""
    params = trainer.model.params
    trained = sum(params[name].size for name in trainer.trainable)
    data = {
        "model": model,
        "output": output,
        "device": trainer.device.name,
        "examples": examples,
        "trained_parameters": trained,
        "updates": trainer.steps,
        "epochs": history.epochs,
    }
    title = (
        f"{model} → {output} on {trainer.device.name}: {examples} examples, {trained:,} parameters in {trainer.steps} updates"
    )
    emit(data, [title, epoch_table(history.epochs)], as_json)


def _check_paths(output: str, checkpoint: str | None, plot: str | None, save_lora: str | None) -> None:
    """Raise before the training what would else be raised after it: a folder that is not there."""
    for option, path in (("-o", output), ("--checkpoint", checkpoint), ("--plot", plot), ("--save-lora", save_lora)):
        if path is not None and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise InputError(f"{option} {path}: there is no such folder")
