"""A trainer's plans: one for each kind of step and each signature of batches, made when it is first met."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from flamert import losses
from flamert.feeds import checked, on_gpu
from flamert.graph import Value
from flamert.model import Model
from flamert.runtime.device import Device
from flamert.runtime.plan import Plan
from flamert.training.data import Batch
from flamert.training.garbage import seldom_collected
from flamert.training.state import Again, Draft
from flamert.training.step import LossFunction, Objective, objective

log = logging.getLogger("flamert")

MAX_PLANS = 16
"""Signatures that plans are kept for; the least recently used go first."""

STEP = "train"
"""The kind of plan that takes a step, and has a backward pass."""

Drafting = Callable[[Objective], tuple[Draft, list[Sequence[Value]]]]
"""What a kind of step is: writes it for a model and its loss, and says which Values it returns, in groups."""


class Planned(NamedTuple):
    """A plan for batches of one signature. groups: how many outputs belong together. written: the state that it changes."""

    plan: Plan
    task: Objective
    groups: tuple[int, ...]
    written: tuple[str, ...]
    device: Device

    def run(self, passed: Sequence[Any], host: bool = False) -> list[list[Any]]:
        """The outputs in their groups, on the device or as NumPy arrays."""
        results = self.plan(*passed)
        if host:
            values = self.plan.graph.outputs
            results = [self.device.download(r, v.dtype) for r, v in zip(results, values, strict=False)]
        rest = iter(results)
        return [[next(rest) for _ in range(n)] for n in self.groups]


class Plans:
    """loss, output, precision: as for `step.objective`. weights: those that live in state. again: see `Draft.plan`."""

    def __init__(
        self,
        model: Model,
        loss: losses.Loss | LossFunction | None,
        output: str,
        weights: frozenset[str],
        precision: str = "fp32",
        again: Again = False,
    ) -> None:
        self.again = again
        self.model, self.loss, self.output, self.weights, self.precision = model, loss, output, weights, precision
        self._known: OrderedDict[Hashable, list[Planned]] = OrderedDict()
        self._told = False

    def __len__(self) -> int:
        return len(self._known)

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()

    def objective(self, batch: Batch, seed: int | None, outputs: Sequence[str] = ()) -> Objective:
        """The model and its loss for batches like this one; see `find`."""
        own = callable(self.loss) and not isinstance(self.loss, losses.Loss)
        names = (self.output, *outputs, *([o.name for o in self.model.outputs] if own else []))
        self.model.require(batch.inputs, names)
        feeds = {n: _host(x) for n, x in batch.inputs.items()}
        return objective(
            *(self.model, feeds, batch.targets, self.loss, self.output, names),
            weights=self.weights,
            seed=seed,
            precision=self.precision,
        )

    def find(
        self, batch: Batch, kind: Hashable, seed: int | None, outputs: Sequence[str], draft: Drafting
    ) -> tuple[Planned, list[Any]]:
        """The plan of this kind for batches like this one, made by `draft` if it is new, and what to pass to it.

        seed: of the training form; None: the file's form. outputs: those that are wanted besides what the loss is about.
        Raises InputError for a batch that does not fit the model.
        """
        model, device = self.model, self.model.device
        feeds = {n: checked(model.spec(n), x, device) for n, x in batch.inputs.items()}
        targets = {n: device.adopt(x) if on_gpu(x) else x for n, x in batch.targets.items()}
        model.require(feeds, ())
        key = (kind, *[(n, x.shape, x.dtype) for n, x in (*feeds.items(), *targets.items())])
        known = self._known.setdefault(key, [])
        self._known.move_to_end(key)
        found = next((p for p in known if all(np.array_equal(_host(feeds[n]), x) for n, x in p.task.static.items())), None)
        if found is None:
            found = self._made(feeds, targets, seed, outputs, draft, kind == STEP and self.again)
            known.append(found)
            while len(self._known) > MAX_PLANS:
                self._known.popitem(last=False)
                self._forget_once()
        arrays = [*[feeds[n] for n in found.task.feeds], *[targets[n] for n in found.task.targets]]
        return found, [device.upload(x) if isinstance(x, np.ndarray) else x for x in arrays]

    def _forget_once(self) -> None:
        """Say that plans are being forgotten, the first time."""
        if not self._told:
            self._told = True
            log.warning(
                f"batches come in more than {MAX_PLANS} different shapes; each shape that comes again is planned anew, which "
                "takes long. Pad or cut them to a few lengths"
            )

    def _made(
        self,
        feeds: dict[str, Any],
        targets: dict[str, Any],
        seed: int | None,
        outputs: Sequence[str],
        draft: Drafting,
        again: Again,
    ) -> Planned:
        with seldom_collected():
            task = self.objective(Batch(feeds, targets), seed, outputs)
            sketch, groups = draft(task)
            passed = [*task.feeds.values(), *task.targets.values()]
            plan = sketch.plan(self.model, passed, [v for group in groups for v in group], again=again)
        return Planned(plan, task, tuple(map(len, groups)), sketch.written, self.model.device)


def _host(x: Any) -> np.ndarray:
    """An array's contents on the host if structure may depend on them, else a stand-in of its type that takes no memory."""
    if isinstance(x, np.ndarray):
        return x
    return x.get() if x.dtype.kind in "iub" else np.broadcast_to(np.empty((), x.dtype), x.shape)
