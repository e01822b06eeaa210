"""Checkpoints: all that a trainer needs to go on bit for bit, in one safetensors file whose checksum is verified.

Parameters and running statistics go by their ONNX names, so that any tool that reads safetensors can use them; everything else
is named flamert/… .
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from flamert import safetensors
from flamert.about import VERSION
from flamert.errors import CheckpointError, NonFiniteLoss
from flamert.files import write_files
from flamert.graph import TensorType
from flamert.training.step import average

if TYPE_CHECKING:
    from flamert.trainer import Trainer

FORMAT = "flamert checkpoint 1"
LOSSES = "flamert/losses"


def save(trainer: Trainer, path: str | os.PathLike[str]) -> None:
    """Write the trainer's state; whole or not at all. Raises CheckpointError where the system refuses."""
    books, losses = trainer.books()
    arrays = trainer.state.snapshot()
    for name in trainer.trainable:
        if not np.isfinite(arrays[name]).all():
            raise NonFiniteLoss(f"parameter {name!r} is no longer finite; {os.fspath(path)!r} is left as it was")
    arrays[LOSSES] = losses
    notes = json.dumps({"format": FORMAT, "version": VERSION, **books}, sort_keys=True)
    metadata = {"flamert": notes, "sha256": checksum(arrays, notes)}
    folder, name = os.path.split(os.path.abspath(os.fspath(path)))
    write_files(folder, {name: [safetensors.contents(arrays, metadata)]})


def restore(trainer: Trainer, path: str | os.PathLike[str]) -> None:
    """Read into the trainer what `save` wrote. Raises CheckpointError and changes nothing if it is damaged or does not fit."""
    arrays, notes = read(path)
    losses = arrays.pop(LOSSES)
    _compare(path, trainer.state.types, arrays)
    try:
        trainer.take_books(notes, losses)
    except CheckpointError as error:
        error.at(os.fspath(path))
        raise
    trainer.state.load(arrays)


def restore_weights(trainer: Trainer, path: str | os.PathLike[str]) -> None:
    """Read parameters and running statistics, and moving averages, which are the parameters where the file has none.

    What else the file holds does not matter. Raises CheckpointError and changes nothing if one is missing or does not fit.
    """
    arrays, _ = read(path)
    own = trainer.state.types
    names = [n for n in own if n in trainer.trainable or n in trainer.model.origin.statistics]
    taken = {n: arrays[n] for n in names if n in arrays}
    _compare(path, {n: own[n] for n in names}, taken)
    taken.update({average(n): arrays.get(average(n), arrays[n]) for n in names if average(n) in own})
    trainer.state.load(taken)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A checkpoint's arrays and notes, verified. Raises CheckpointError."""
    arrays, metadata = safetensors.read(path)
    notes = metadata.get("flamert")
    if notes is None:
        raise CheckpointError("a safetensors file, but no checkpoint of flamert").at(os.fspath(path))
    if metadata.get("sha256") != checksum(arrays, notes):
        raise CheckpointError("the checksum is wrong: the file was damaged after it was written").at(os.fspath(path))
    found = json.loads(notes)
    if found.get("format") != FORMAT:
        raise CheckpointError(f"the format is {found.get('format')!r}; this version reads {FORMAT!r}").at(os.fspath(path))
    return arrays, found


def checksum(arrays: Mapping[str, np.ndarray], notes: str) -> str:
    """SHA-256 of the notes, and of every tensor's name, type and bytes."""
    digest = hashlib.sha256(notes.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(json.dumps([name, array.dtype.name, arrays[name].shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _compare(path: str | os.PathLike[str], own: Mapping[str, TensorType], arrays: Mapping[str, np.ndarray]) -> None:
    """Raise unless the arrays of a file are exactly those that the trainer has."""
    for name in (*own, *arrays):
        ours = str(own[name]) if name in own else "missing"
        theirs = f"{arrays[name].dtype.name}[{','.join(map(str, arrays[name].shape))}]" if name in arrays else "missing"
        if ours != theirs:
            raise CheckpointError(
                f"the checkpoint does not fit this trainer: {name!r} is {theirs} in the file and {ours} here. Model, "
                "optimizer, trainable parameters, ema and accumulate must be those it was saved with"
            ).at(os.fspath(path))
