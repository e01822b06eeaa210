"""Trainer: what a user fine-tunes a model with. One step is one plan; this module keeps the plans, the state and the books."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flamert import dtypes, losses
from flamert.errors import CheckpointError, InputError, NonFiniteLoss
from flamert.feeds import checked
from flamert.graph import Value
from flamert.limits import bytes_of
from flamert.metrics import metrics_of
from flamert.model import Model
from flamert.optim.optimizer import Optimizer
from flamert.runtime.plan import Plan
from flamert.training.data import Batch, Source, arrays_of, batch_of, declared
from flamert.training.diagnosis import fault_of
from flamert.training.history import History
from flamert.training.plans import STEP, Planned, Plans
from flamert.training.scalar import Scalar
from flamert.training.state import Draft
from flamert.training.step import (
    BAD,
    CALLS,
    PRECISIONS,
    STEPS,
    LossFunction,
    Objective,
    Recipe,
    Trainable,
    average,
    gathered,
    initial_state,
    selected,
    step_draft,
    update_draft,
)

LOOK_EVERY = 50
"""Calls after which a GPU is asked whether all losses were finite. On the CPU asking costs nothing."""

HELD_BYTES = 1 << 28
"""Bytes of batches that are kept until then, to find the fault in them; with more the GPU is asked earlier."""


class Position(NamedTuple):
    """How far `fit` is in the data: whole epochs, and batches of the next one."""

    epoch: int = 0
    batch: int = 0


class Trainer:
    """Trains a model's parameters in place: `model.params`, `model.run` and `model.save` see the trained weights.

    loss: a name of `fr.losses`, an object of it, a function (outputs by name, targets by name) → Value, or None where the
    model's output is the loss. optimizer: of `fr.optim`. output: the one that a loss by name or object, or None, is about, by
    default the first floating one; any value inside the model will do, such as the logits in front of a softmax.
    trainable: glob patterns, a predicate on names, None for every floating parameter (and not for constants that exporters
    store like parameters: scalars of rank 0, names with "/Constant_" in them).
    train_mode: BatchNormalization goes by the batch's statistics and moves the running ones, and Dropout drops, as in
    training, though the file was exported for inference. precision: what matrix products and convolutions are computed in,
    "fp32" (as the file has it), "bf16" or "fp16", as under torch.autocast: weights, their updates, norms, softmax and losses
    stay float32, and for "fp16" losses are scaled, the scale halved and the step left out where gradients are too large for
    it. clip_norm: the global norm that gradients are scaled down to.
    accumulate: batches whose gradients are averaged for one update. ema: decay of moving averages of the parameters, which
    `evaluate` and `export` then use. recompute: True makes activations, norms and softmax again in the backward pass
    instead of keeping them: less memory for more passes over it, and the same numbers bit for bit. A size, "2GB" or a number of
    bytes, is what a step's plan may take (results, gradients and inputs; parameters and the optimizer's state are not in it):
    then as little is made again as that allows, attention and whole layers among it if need be. OutOfMemory where it is too
    little.
    Raises InputError for what does not fit the model; NoGradient, at the first step, where the loss cannot be differentiated.
    """

    def __init__(
        self,
        model: Model,
        loss: str | losses.Loss | LossFunction | None,
        optimizer: Optimizer,
        *,
        output: str | None = None,
        trainable: Trainable = None,
        train_mode: bool = True,
        precision: str = "fp32",
        clip_norm: float | None = None,
        accumulate: int = 1,
        seed: int = 0,
        ema: float | None = None,
        recompute: bool | int | str | None = None,
    ) -> None:
        judges = loss is None or isinstance(loss, str) or callable(loss)
        if not (isinstance(model, Model) and judges and isinstance(optimizer, Optimizer)):
            given = ", ".join(type(x).__name__ for x in (model, loss, optimizer))
            raise InputError(f"a Trainer takes a model of fr.load, a loss and an optimizer of fr.optim, not ({given})")
        if precision not in PRECISIONS:
            raise InputError(f"precision={precision!r}: one of {', '.join(map(repr, PRECISIONS))}")
        if accumulate < 1 or (ema is not None and not 0 < ema < 1) or (clip_norm is not None and clip_norm <= 0):
            raise InputError(f"accumulate={accumulate}, ema={ema}, clip_norm={clip_norm}: at least 1, in (0, 1), above 0")
        self.model, self.device = model, model.device
        self.loss = losses.by_name(loss) if isinstance(loss, str) else loss
        self.output = output or _judged(model)
        if self.output not in model.origin.values:
            raise InputError(f"invalid output name {output!r}; there are {', '.join(repr(o.name) for o in model.outputs)}")
        self.train_mode, self.seed = train_mode, seed
        self.recipe = Recipe(optimizer, selected(model, trainable), clip_norm, accumulate, ema)
        self.state = initial_state(model, self.trainable, optimizer, ema is not None, accumulate > 1, precision == "fp16")
        self.position = Position()
        self.resumed = False
        self.history = History()
        held = frozenset((*self.trainable, *model.origin.statistics))
        self.plans = Plans(model, self.loss, self.output, held, precision, _again(recompute))
        self._updates: dict[tuple[str, ...], Plan] = {}
        self._calls, self._gathered = 0, 0
        self._assigned = model.params.assigned
        self._recent: dict[int, tuple[Planned, list[Any]]] = {}
        self._held = 0

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer."""
        return self.recipe.optimizer

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that train."""
        return self.recipe.trainable

    @property
    def steps(self) -> int:
        """Optimizer steps taken so far."""
        return int(self.state[STEPS])

    @property
    def lr(self) -> float:
        """The learning rate of the next step (that of the first trainable parameter, if groups have several)."""
        return self.optimizer.schedule(self.trainable[0])(self.steps)

    def step(self, inputs: Any, targets: Any = None) -> Scalar:
        """One optimizer step (every `accumulate` calls) on a batch. Returns the loss, read only when it is looked at.

        inputs, targets: arrays by name; or one array, or a tuple of them in the model's order. A single target goes by the
        name "target", those of a tuple by "target0", "target1", …
        Raises NonFiniteLoss, naming the step and the first ONNX node at fault, where a loss or gradient was NaN or infinite;
        weights then are those before that step; ShapeError for class numbers and other indices out of range. On a GPU both may
        be noticed some steps late, the latter at the latest when the loss is looked at, which changes nothing else.
        """
        return self.train(Batch(arrays_of(inputs, declared(self.model)), arrays_of(targets, {}, "target")))

    @property
    def _seed(self) -> int | None:
        return self.seed if self.train_mode else None

    def train(self, batch: Batch) -> Scalar:
        """`step` on inputs and targets by name."""
        self._look()
        self._follow_model()

        def draft(task: Objective) -> tuple[Draft, list[Sequence[Value]]]:
            sketch, loss = step_draft(self.state, task, self.recipe)
            return sketch, [[loss]]

        planned, passed = self.plans.find(batch, STEP, self._seed, (), draft)
        ((loss,),) = planned.run(passed)
        self._recent[self._calls] = planned, passed
        self._held += sum(a.nbytes for a in passed)
        self._calls += 1
        self._gathered += 1
        if self.recipe.accumulate > 1 and self._gathered == self.recipe.accumulate:
            self._apply(planned.written)
        self.model.params.lend(self.weights)
        if not self.device.remote or len(self._recent) >= LOOK_EVERY or self._held > HELD_BYTES:
            self.check()
        return Scalar(loss, planned.plan.graph.outputs[0].dtype, self.device, self._look)

    def _look(self) -> None:
        """`check`, if it is known to raise ShapeError."""
        if self.device.faulty:
            self.check()

    def check(self) -> None:
        """Raise NonFiniteLoss if a loss or gradient since the last check was not finite, ShapeError if an index did not fit."""
        recent, self._recent, self._held = self._recent, {}, 0
        bad = int(self.state.arrays[BAD])
        if bad < 0:
            self.device.check()
            return
        self.state[CALLS] = bad
        try:
            # Where a GPU reads by an index out of range it finds NaN: then the index is what is wrong.
            self.device.check()
            planned, passed = recent[bad]
            step, fault = self.steps + 1, fault_of(planned.task, self.recipe, self.state, passed)
        finally:
            self._settle()
        raise NonFiniteLoss(
            f"step {step}: {fault}. Parameters are those from before that step; a smaller learning rate, clip_norm, or a look "
            "at the batch may help"
        )

    def _settle(self) -> None:
        """After state was loaded or a step failed: books as the state has them, and nothing gathered of a failed step."""
        self._calls = int(self.state[CALLS])
        if int(self.state[BAD]) >= 0:
            self.state[BAD] = -1
            self._gathered = 0
            for name in self.trainable if self.recipe.accumulate > 1 else ():
                self.state.arrays[gathered(name)][...] = 0

    def _apply(self, written: Sequence[str]) -> None:
        """The update by what has been gathered for the parameters whose sums were `written`."""
        reached = tuple([n for n in self.trainable if gathered(n) in written])
        if reached not in self._updates:
            self._updates[reached] = update_draft(self.state, self.recipe, reached).plan(self.model, (), ())
        self._updates[reached]()
        self._gathered = 0

    def _follow_model(self) -> None:
        """Take over parameters that somebody has assigned to the model since."""
        if self.model.params.assigned != self._assigned:
            for name in (*self.trainable, *self.model.origin.statistics):
                self.state[name] = self.model.params[name].astype(self.state.types[name].dtype)
            self._assigned = self.model.params.assigned

    def weights(self, averaged: bool = False) -> dict[str, np.ndarray]:
        """Current parameters and running statistics by name, in the model's types. averaged: moving averages where kept.

        Those that are as they were in the model are its own arrays, so that a file which is saved keeps how it stores them.
        """
        params = self.model.origin.weights
        names = (*self.trainable, *sorted(self.model.origin.statistics))
        held = {n: average(n) if averaged and average(n) in self.state else n for n in names}
        found = {n: self.state[key].astype(params[n].dtype) for n, key in held.items()}
        return {n: params[n] if _same_bits(params[n], array) else array for n, array in found.items()}

    def fit(
        self,
        batches: Iterable[Any],
        *,
        epochs: int = 1,
        validation: Iterable[Any] | None = None,
        metrics: Sequence[Any] = (),
        callbacks: Sequence[Any] = (),
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = True,
        log_dir: str | os.PathLike[str] | None = None,
        progress: bool = True,
        batch_size: int | None = None,
        save_steps: int | None = None,
        save_seconds: float | None = 600.0,
    ) -> History:
        """Train on all batches `epochs` times; see `flamert.training.fit.Fit` for the parameters."""
        from flamert.training.fit import Fit

        return Fit(
            self,
            Source(batches, self.model, batch_size),
            epochs,
            None if validation is None else Source(validation, self.model, batch_size),
            metrics_of(metrics),
            callbacks,
            checkpoint,
            save_steps,
            save_seconds,
        ).run(resume, log_dir, progress)

    def evaluate(
        self, batches: Iterable[Any], metrics: Sequence[Any] = (), *, batch_size: int | None = None
    ) -> dict[str, float]:
        """Means over all batches: "loss", and each metric by its name. The model is in the form that its file has.

        batches: as for `fit`. metrics: names or objects of `fr.metrics`, or functions of outputs and targets by name, both
        NumPy arrays. With `ema`, averaged weights are judged. Raises InputError where there are no batches.
        """
        from flamert.training.evaluation import evaluate

        return evaluate(self, Source(batches, self.model, batch_size), metrics_of(metrics))

    def books(self) -> tuple[dict[str, Any], np.ndarray]:
        """What a checkpoint notes besides arrays, and the losses so far."""
        notes = {
            "optimizer": type(self.optimizer).__name__,
            "seed": self.seed,
            "gathered": self._gathered,
            "position": list(self.position),
            "epochs": self.history.epochs,
            "adaptations": self.model.adaptations,
        }
        return notes, np.array(self.history.losses)

    def take_books(self, notes: Mapping[str, Any], losses: np.ndarray) -> None:
        """Go on from these. Raises CheckpointError, and changes nothing, where they are another optimizer's."""
        own = type(self.optimizer).__name__
        if notes["optimizer"] != own:
            raise CheckpointError(f"the checkpoint is one of {notes['optimizer']}, this trainer's optimizer is {own}")
        if notes["seed"] != self.seed:
            self.seed = notes["seed"]
            self.plans.clear()
        self._gathered = notes["gathered"]
        self.position, self.resumed = Position(*notes["position"]), True
        self.history = History(losses.tolist(), notes["epochs"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint: all that is needed to go on bit for bit. Raises CheckpointError; then the file is as it was.

        Raises NonFiniteLoss instead of saving a state that training has broken.
        """
        from flamert.checkpoint import save

        self.check()
        save(self, path)

    def restore(self, path: str | os.PathLike[str], *, weights_only: bool = False) -> None:
        """Go back to what `save` wrote, and let the next `fit` go on from there.

        weights_only: take parameters, running statistics and moving averages alone; optimizer, steps and history stay.
        Raises CheckpointError, and changes nothing, for a file that is damaged or does not fit.
        """
        from flamert.checkpoint import restore, restore_weights

        if weights_only:
            self.check()
            restore_weights(self, path)
            self.model.params.lend(self.weights)
            return
        restore(self, path)
        self._recent, self._held = {}, 0
        self._settle()
        self.model.params.lend(self.weights)

    def export(self, path: str | os.PathLike[str], *, averaged: bool = True, external_data: str | bool = "auto") -> None:
        """Write the trained model as inference ONNX; see `Model.save`. averaged: with `ema`, moving averages of the weights."""
        self.check()
        model = self.model
        model.params.settle()
        weights = model.origin.weights
        before = {n: weights[n] for n in self.weights()}
        try:
            weights.update(self.weights(averaged))
            model.origin.save(path, external_data)
        finally:
            weights.update(before)

    def export_training_graph(self, path: str | os.PathLike[str], **example: Any) -> None:
        """Write one training step, forward, loss, backward and update, as a standard ONNX model that other runtimes can run.

        example: inputs and targets by name, for their types. The model takes them and all state by the names that a checkpoint
        has for it, and gives "loss" and the new state, with ".new" behind each name. Accumulation is left out.
        Raises UnsupportedOp for what ONNX cannot express.
        """
        from flamert.exporters.graph import export_graph

        batch = batch_of(example, declared(self.model))
        checks = {n: checked(self.model.spec(n), x, self.device) for n, x in batch.inputs.items()}
        task = self.plans.objective(Batch(checks, batch.targets), self._seed)
        sketch, loss = step_draft(self.state, task, self.recipe._replace(accumulate=1))
        graph = sketch.graph([*task.feeds.values(), *task.targets.values()], [loss])
        export_graph(graph, path, outputs=["loss", *[f"{name}.new" for name in sketch.written]], name="training")


def _again(recompute: bool | int | str | None) -> bool | int:
    """What `Draft.plan` makes again."""
    if recompute is None or isinstance(recompute, bool):
        return bool(recompute)
    try:
        nbytes = bytes_of(recompute)
    except (TypeError, ValueError):
        nbytes = 0
    if nbytes < 1:
        raise InputError(f"recompute={recompute!r}: True, or the size that a step may take, such as '2GB' or a number of bytes")
    return nbytes


def _judged(model: Model) -> str:
    """The first output that a loss can be about; whatever there is if there is none."""
    floating = [o.name for o in model.outputs if o.kind == "tensor" and o.dtype in dtypes.STANDARD_FLOAT]
    return (floating or [model.outputs[0].name])[0]


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(np.ravel(a).view(np.uint8), np.ravel(b).view(np.uint8))
