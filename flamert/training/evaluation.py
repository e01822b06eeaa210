"""Evaluation: the mean loss and metrics of a model over batches, with the weights that a trainer holds."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flamert.errors import InputError
from flamert.graph import Value
from flamert.metrics import Function, Metric
from flamert.training.data import Batch, Source
from flamert.training.state import Draft
from flamert.training.step import Objective, place, target_of

if TYPE_CHECKING:
    from flamert.trainer import Trainer


def evaluate(trainer: Trainer, source: Source, metrics: Sequence[Metric | Function]) -> dict[str, float]:
    """The mean loss over examples (targets there must be, or a loss that needs none) and each metric, by name."""
    totals: dict[str, list[Any]] = {}
    weights = 0.0
    with contextlib.closing(source.epoch(0)) as batches:
        for batch in batches:
            for name, sums in _batch(trainer, batch, metrics).items():
                so_far = totals.setdefault(name, [0.0] * len(sums))
                totals[name] = [a + b for a, b in zip(so_far, sums, strict=True)]
            weights += batch.examples
    if not weights:
        raise InputError(f"there is nothing to evaluate on: {type(source.data).__name__} yields no examples")
    found: dict[str, float] = {}
    for name, sums in totals.items():
        judge = next((m for m in metrics if m.name == name and isinstance(m, Metric)), None)
        found[name] = float(sums[0]) / weights if judge is None else judge.result(*map(np.asarray, sums))
    return found


def _batch(trainer: Trainer, batch: Batch, metrics: Sequence[Metric | Function]) -> dict[str, list[Any]]:
    """Sums of one batch, on the host. The loss and users' metrics are weighted by examples."""
    judges = tuple(m for m in metrics if isinstance(m, Metric))
    functions = [m for m in metrics if isinstance(m, Function)]
    outputs = [o.name for o in trainer.model.outputs] if functions else []

    def draft(task: Objective) -> tuple[Draft, list[Sequence[Value]]]:
        assert task.loss is not None
        groups: list[Sequence[Value]] = [[task.loss], [task.outputs[n] for n in outputs]]
        groups += [m.sums(task.outputs[trainer.output], target_of(task.targets, trainer.output)) for m in judges]
        sketch = Draft(trainer.state)
        values = iter(place(sketch, task, [v for group in groups for v in group], averaged=True))
        return sketch, [[next(values) for _ in group] for group in groups]

    planned, passed = trainer.plans.find(batch, ("evaluate", judges, bool(functions)), None, outputs, draft)
    (loss,), results, *sums = planned.run(passed, host=True)
    found: dict[str, list[Any]] = {"loss": [float(loss) * batch.examples]}
    found.update((m.name, group) for m, group in zip(judges, sums, strict=True))
    for m in functions:
        targets = {n: np.asarray(t) for n, t in batch.targets.items()}
        found[m.name] = [float(m.run(dict(zip(outputs, results, strict=True)), targets)) * batch.examples]
    return found
