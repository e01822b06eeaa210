"""Data on the command line: a .npz whose arrays are the model's inputs and targets by name, cut into batches."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer

from flamert.errors import InputError
from flamert.model import Model
from flamert.training.data import Batches

Arrays = dict[str, np.ndarray]

about = functools.partial(typer.Option, rich_help_panel="Data")
"""An option under this heading of the help."""

Data = Annotated[str, about("--data", help="A .npz: arrays by the model's input names, and targets.", show_default=False)]
Labels = Annotated[
    list[str] | None,
    about("--labels", help="Array that is a target; by default all that are no inputs. Repeatable."),
]
BatchSize = Annotated[int, about("--batch-size", help="Examples in a batch.", min=1)]


@dataclass(frozen=True)
class Examples:
    """Inputs and targets by name, one example a row."""

    inputs: Arrays
    targets: Arrays

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, rows: np.ndarray) -> Examples:
        """These examples."""
        return Examples({n: a[rows] for n, a in self.inputs.items()}, {n: a[rows] for n, a in self.targets.items()})

    def batches(self, size: int, seed: int = 0, shuffle: bool = True) -> Batches:
        """Cut into batches, in another order each epoch."""
        return Batches(self.inputs, self.targets, size, seed=seed, shuffle=shuffle)


def examples(path: str, model: Model, labels: Sequence[str] | None) -> Examples:
    """The arrays of a file, as inputs and targets. Raises InputError for what is missing or of another length."""
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {name: loaded[name] for name in loaded.files} if hasattr(loaded, "files") else None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if arrays is None:
        raise InputError(f"{path}: one array alone; write inputs and targets by name with np.savez")
    names = {spec.name for spec in model.inputs}
    known = f"{path} holds {', '.join(arrays) or 'nothing'}"
    inputs = {name: array for name, array in arrays.items() if name in names}
    if not inputs:
        raise InputError(f"{known}; none is an input of the model, which are {', '.join(names)}")
    if missing := [name for name in labels or () if name not in arrays]:
        raise InputError(f"--labels {missing[0]}: {known}")
    targets = {name: array for name, array in arrays.items() if (name in labels if labels else name not in names)}
    if scalars := [name for name, array in {**inputs, **targets}.items() if not array.ndim]:
        raise InputError(f"{path}: {scalars[0]!r} is a single number; examples go along the first axis")
    if len({len(array) for array in (*inputs.values(), *targets.values())}) > 1:
        lengths = ", ".join(f"{name} {len(array)}" for name, array in {**inputs, **targets}.items())
        raise InputError(f"{path}: arrays hold different numbers of examples: {lengths}; --labels chooses targets")
    return Examples(inputs, targets)


def divided(given: Examples, validation: str | None, model: Model, seed: int) -> tuple[Examples, Examples | None]:
    """What to train and what to validate on. validation: another file, or the fraction of the examples that is set aside."""
    if validation is None:
        return given, None
    try:
        fraction = float(validation)
    except ValueError:
        return given, examples(validation, model, list(given.targets))
    aside = round(len(given) * fraction)
    if not 0 < aside < len(given):
        raise InputError(
            f"--validation {validation}: sets {aside} of {len(given)} examples aside; a fraction in (0, 1), or a file"
        )
    order = np.random.default_rng(seed).permutation(len(given))
    return given.take(np.sort(order[aside:])), given.take(np.sort(order[:aside]))
