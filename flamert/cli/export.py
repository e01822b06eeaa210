"""`flamert export`: a checkpoint as a tuned ONNX model, and a training step as one that other runtimes can run."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import typer

from flamert.cli import dataset, recipe
from flamert.cli.console import DeviceName, Json, ModelPath, emit, working
from flamert.errors import CheckpointError, InputError
from flamert.model import Model


def command(
    model: ModelPath,
    checkpoint: Annotated[str | None, typer.Option("--checkpoint", help="A file that `finetune` or a Trainer wrote.")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Write the model with the checkpoint's weights.")] = None,
    averaged: Annotated[bool, typer.Option("--averaged/--current", help="Moving averages of the weights, where kept.")] = True,
    training_graph: Annotated[
        str | None, typer.Option("--training-graph", help="Write forward, loss, backward and update as one ONNX model.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="A .npz whose first batch says what the graph takes.")] = None,
    labels: dataset.Labels = None,
    batch_size: dataset.BatchSize = 32,
    updates: Annotated[int, typer.Option("--updates", help="Of the whole training, for the schedule.", min=1)] = 1000,
    loss: recipe.Loss = "cross_entropy",
    loss_on: recipe.LossOn = None,
    optimizer: recipe.OptimizerName = "adamw",
    lr: recipe.Rate = 1e-3,
    schedule: recipe.ScheduleName = "constant",
    trainable: recipe.Patterns = None,
    replace_head: recipe.Head = None,
    lora: recipe.Lora = None,
    rank: recipe.Rank = 8,
    alpha: recipe.Alpha = 16.0,
    clip_norm: recipe.ClipNorm = None,
    ema: recipe.Average = None,
    inference_form: recipe.Frozen = False,
    precision: recipe.Precision = "fp32",
    seed: recipe.Seed = 0,
    device: DeviceName = None,
    json: Json = False,
) -> None:
    """Write a checkpoint's weights as an ONNX model, or a whole training step as one.

    Example: flamert export model.onnx --checkpoint run.ckpt -o tuned.onnx
    """
    from flamert.importers.load import load

    if (checkpoint is None) != (output is None) or (training_graph is None) != (data is None):
        raise InputError("give --checkpoint with -o, or --training-graph with --data, or all four")
    if output is None and training_graph is None:
        raise InputError("nothing to export: give --checkpoint and -o, or --training-graph and --data")
    with working(f"reading {model}"):
        loaded = load(model, device=device)
    written = {}
    if checkpoint is not None and output is not None:
        notes = take_over(loaded, checkpoint, averaged)
        loaded.save(output)
        written[output] = f"{model} with the weights of {checkpoint}, after {notes['steps']} updates"
    if training_graph is not None and data is not None:
        how = recipe.Recipe(
            loss, loss_on, optimizer, lr, schedule, trainable, clip_norm, 1, ema, inference_form, precision, seed
        )
        examples = dataset.examples(data, loaded, labels)
        if checkpoint is None:
            recipe.adapt(loaded, how, replace_head, lora, rank, alpha)
        first = examples.take(np.arange(min(batch_size, len(examples))))
        with working(f"writing {training_graph}"):
            trainer = how.trainer(loaded, updates)
            trainer.export_training_graph(training_graph, **first.inputs, **first.targets)
        written[training_graph] = f"one training step of {len(trainer.trainable)} parameters, for {len(first)} examples"
    emit({"written": written}, [f"{path}: {what}" for path, what in written.items()], json)


def take_over(model: Model, path: str, averaged: bool) -> dict[str, Any]:
    """Let the model have a checkpoint's weights, and the new head and low-rank terms that were trained. Returns its notes."""
    from flamert.adapters import readapt
    from flamert.checkpoint import read
    from flamert.training.step import STEPS, average

    arrays, notes = read(path)
    try:
        readapt(model, notes.get("adaptations", ()))
        for name in sorted([n for n in arrays if not n.startswith("flamert/")]):
            array = arrays.get(average(name), arrays[name]) if averaged else arrays[name]
            there = model.params.get(name)
            if there is None or there.shape != array.shape:
                here = "missing" if there is None else list(there.shape)
                raise CheckpointError(f"a checkpoint of another model: {name!r} is {list(array.shape)} there and {here} here")
            model.params[name] = array.astype(there.dtype)
    except CheckpointError as error:
        error.at(path)
        raise
    return {**notes, "steps": int(arrays[STEPS])}
