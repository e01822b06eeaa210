"""Training steps as graphs: the model and its loss, their gradients, and what an optimizer makes of them, over state."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import InputError, NoGradient, ShapeError
from flamert.grad.transform import grad
from flamert.graph import Graph, TensorType, Value
from flamert.losses import Loss
from flamert.model import Model
from flamert.optim.clip import global_norm
from flamert.optim.optimizer import Optimizer
from flamert.passes.pipeline import lower
from flamert.rewrite import Template, inline
from flamert.training.state import Draft, State

STEPS, CALLS, BAD = "flamert/steps", "flamert/calls", "flamert/bad"
"""State: optimizer steps taken; calls of `step`; the first call whose loss or gradient was not finite, or −1."""

SCALE, CALM = "flamert/scale", "flamert/calm"
"""State of float16: what losses are multiplied with; calls since gradients last were too large for it."""

FIRST_SCALE, PATIENCE = 65536.0, 2000
"""The first scale, and the calls after which it is doubled. Source: torch.amp.GradScaler."""

PRECISIONS = {"fp32": None, "bf16": dtypes.bfloat16, "fp16": dtypes.float16}
"""What products are computed in, by name; None: as the file has it."""

LossFunction = Callable[[dict[str, Value], dict[str, Value]], Value]
Trainable = str | Sequence[str] | Callable[[str], bool] | None


def slot(name: str, parameter: str) -> str:
    """The state array of an optimizer for one parameter."""
    return f"flamert/optimizer/{name}/{parameter}"


def average(parameter: str) -> str:
    """The state array with a parameter's moving average."""
    return f"flamert/average/{parameter}"


def gathered(parameter: str) -> str:
    """The state array that gradients of several batches are added up in."""
    return f"flamert/gradient/{parameter}"


def selected(model: Model, trainable: Trainable) -> tuple[str, ...]:
    """Names of the parameters that train. Raises InputError for a pattern that no floating parameter fits.

    None selects all but what exporters merely store like weights: scalars of rank 0 (an exponent, an epsilon), what
    PyTorch names "…/Constant_…" (a first state of zeros), and the scales of weights that are stored as integers, which train
    as the floating weights they stand for; of a model with low-rank terms these and new heads alone. A pattern or a predicate
    may select the others too.
    """
    still = model.origin.statistics
    floating = [n for n, a in model.params.items() if a.dtype in dtypes.STANDARD_FLOAT and n not in still]
    if trainable is None:
        scales = model.origin.stored.within
        names = [n for n in floating if model.params[n].ndim and "/Constant_" not in n and n not in scales]
        names = [n for n in names if n in model.adapted] if model.adapted else names
    elif callable(trainable):
        names = [n for n in floating if trainable(n)]
    else:
        patterns = [trainable] if isinstance(trainable, str) else list(trainable)
        for p in patterns:
            if not fnmatch.filter(floating, p):
                raise InputError(f"no floating parameter fits {p!r}; there are {', '.join(floating[:20]) or 'none'}")
        names = [n for n in floating if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
    if not names:
        raise InputError("no parameter trains: the model has none that is floating and selected")
    model.params.thaw(names)
    return tuple(names)


def initial_state(
    model: Model, names: Sequence[str], optimizer: Optimizer, averaged: bool, gathers: bool, scales: bool = False
) -> State:
    """State before the first step. Parameters of half types are kept, and updated, in float32. scales: losses, for float16."""
    state = State(model.device)
    for name in (*names, *sorted(model.origin.statistics)):
        array = model.params[name]
        state.add(name, np.asarray(array, dtypes.accumulator(array.dtype)))
    for name in names:
        held = state.types[name]
        for key, array in optimizer.init(held, optimizer.options(name)).items():
            state.add(slot(key, name), array)
        if averaged:
            state.add(average(name), state[name])
        if gathers:
            state.add(gathered(name), np.zeros(held.shape, held.dtype))
    for key, start in ((STEPS, 0), (CALLS, 0), (BAD, -1)):
        state.add(key, np.int64(start))
    if scales:
        state.add(SCALE, np.float32(FIRST_SCALE))
        state.add(CALM, np.int64(0))
    return state


class Objective(NamedTuple):
    """A model and a loss as one graph, for inputs of one signature. Inputs of the graph: feeds, targets, weights, counter, and

    for float16 what the loss is multiplied with before it is differentiated.
    """

    feeds: Mapping[str, Value]
    targets: Mapping[str, Value]
    weights: Mapping[str, Value]
    counter: Value | None
    outputs: dict[str, Value]
    loss: Value | None
    moved: Mapping[str, Value]
    static: Mapping[str, np.ndarray]
    """Inputs whose contents are part of the graph."""
    scale: Value | None = None


def objective(
    model: Model,
    feeds: Mapping[str, np.ndarray],
    targets: Mapping[str, np.ndarray],
    loss: Loss | LossFunction | None,
    output: str,
    names: Sequence[str],
    *,
    weights: frozenset[str],
    seed: int | None,
    scored: bool = True,
    precision: str = "fp32",
) -> Objective:
    """The model for these feeds, with its loss on these targets if it is `scored`.

    names: the outputs that are there. output: the one that a Loss is given. weights: names of those that are inputs of the
    graph. seed: in training form; None: in the file's. precision: of matrix products; see `flamert.passes.autocast`.
    """
    traced = model.trace(feeds, tuple(dict.fromkeys(names)), weights, lasting=True, seed=seed)
    leaves = {n: traced.inputs[n] for n in feeds if n not in traced.static}
    held = {n: v for n, v in traced.inputs.items() if n in weights and n not in traced.static and n not in feeds}
    outputs = {n: traced.values[n] for n in names}
    for name, value in {**leaves, **outputs}.items():
        if not isinstance(value, Value):
            raise InputError(f"{name!r} is no tensor, and cannot take part in training")
    labels = {n: g.input(TensorType(t.shape, t.dtype), n) for n, t in targets.items()}
    static = {n: np.array(feeds[n]) for n in feeds if n in traced.static}
    half = PRECISIONS[precision]
    inputs = [*leaves.values(), *held.values(), *([] if traced.counter is None else [traced.counter])]
    made = lower(Graph(inputs, [*outputs.values(), *traced.moved.values()]), half, model.device, model.derived).outputs
    outputs, moved = dict(zip(outputs, made, strict=False)), dict(zip(traced.moved, made[len(outputs) :], strict=True))
    value = _loss(loss, outputs, output, labels) if scored else None
    scale = g.input(TensorType((), dtypes.float32), "scale") if half == dtypes.float16 else None
    return Objective(leaves, labels, held, traced.counter, outputs, value, moved, static, scale)


def _loss(loss: Loss | LossFunction | None, outputs: dict[str, Value], output: str, targets: dict[str, Value]) -> Value:
    if isinstance(loss, Loss):
        value = loss(outputs[output], target_of(targets, output))
    elif loss is None:
        value = outputs[output]
    else:
        value = loss(dict(outputs), dict(targets))
    if not isinstance(value, Value) or value.type.size != 1 or value.dtype not in dtypes.STANDARD_FLOAT:
        raise ShapeError(f"a loss is one floating number, got {value.type if isinstance(value, Value) else value!r}")
    return ops.reshape(value, shape=())


def target_of(targets: Mapping[str, Any], output: str) -> Any:
    """The target that belongs to an output: the only one, or the one of its name, or the one that a usual name gives away."""
    if len(targets) == 1:
        return next(iter(targets.values()))
    found = [targets[n] for n in (output, "labels", "label", "targets", "target") if n in targets]
    if not found:
        raise InputError(f"which target belongs to output {output!r}? There are {', '.join(map(repr, targets)) or 'none'}")
    return found[0]


class Recipe(NamedTuple):
    """How gradients become updates."""

    optimizer: Optimizer
    trainable: tuple[str, ...]
    clip_norm: float | None
    accumulate: int
    ema: float | None


def place(draft: Draft, task: Objective, values: Sequence[Value], averaged: bool = False) -> tuple[Value, ...]:
    """`values` of an objective, with weights and counter taken from state. averaged: weights are their moving averages."""
    arguments: list[Value] = [*task.feeds.values(), *task.targets.values()]
    graph_inputs = [*arguments, *task.weights.values()]
    for name, weight in task.weights.items():
        held = draft.read(average(name) if averaged and average(name) in draft.state else name)
        arguments.append(held if held.dtype == weight.dtype else ops.cast(held, to=weight.dtype))
    if task.counter is not None:
        graph_inputs.append(task.counter)
        arguments.append(ops.cast(draft.read(CALLS), to=dtypes.uint64))
    if task.scale is not None:
        graph_inputs.append(task.scale)
        arguments.append(draft.read(SCALE))
    return inline(Graph(graph_inputs, values), arguments)


def step_draft(state: State, task: Objective, recipe: Recipe) -> tuple[Draft, Value]:
    """One call: loss and gradients of a batch, and the update, or with accumulation what is gathered for it. And the loss.

    From the first loss or gradient on that is not finite nothing changes any more, so that the state stays good.
    """
    assert task.loss is not None
    flows = gradients(task, recipe)
    draft = Draft(state)
    loss, *rest = place(draft, task, [task.loss, *flows.values(), *task.moved.values()])
    grads = {n: _as(v, state.types[n].dtype) for n, v in zip(flows, rest, strict=False)}
    calls, bad = draft.read(CALLS), draft.read(BAD)
    whole = bad < 0
    # Asked from the last layer to the first, as gradients come to be, so that little has to wait for its turn.
    good = whole & ops.all_finite(loss, *reversed(grads.values()))
    fault = whole & ~good
    if task.scale is not None:
        scale = draft.read(SCALE)
        fault = fault & (~ops.all_finite(loss) | (scale <= 1.0))
        grads = {n: v * _as(ops.reciprocal(scale), v.dtype) for n, v in grads.items()}
        _rescale(draft, scale, whole, good)
    draft.write(CALLS, calls + 1)
    draft.write(BAD, ops.where(fault, calls, bad))
    for name, value in zip(task.moved, rest[len(flows) :], strict=True):
        held = draft.read(name)
        draft.write(name, ops.where(good, _as(value, held.dtype), held))
    if recipe.accumulate == 1:
        _update(draft, grads, recipe, good)
    else:
        for name, grad_ in grads.items():
            held = draft.read(gathered(name))
            draft.write(gathered(name), ops.where(good, held + grad_ * (1 / recipe.accumulate), held))
    return draft, loss


def _rescale(draft: Draft, scale: Value, whole: Value, good: Value) -> None:
    """Halve the scale of losses where gradients were too large for float16, double it after a long time without."""
    calm = draft.read(CALM) + 1
    due = calm >= PATIENCE
    grown = ops.where(good, ops.where(due, scale * 2.0, scale), scale * 0.5)
    draft.write(SCALE, ops.where(whole, grown, scale))
    draft.write(CALM, ops.where(good & ~due, calm, calm * 0))


def update_draft(state: State, recipe: Recipe, reached: Sequence[str]) -> Draft:
    """The update by what was gathered for the parameters that were `reached`, which starts from zero again."""
    draft = Draft(state)
    grads = {n: draft.read(gathered(n)) for n in reached}
    _update(draft, grads, recipe, draft.read(BAD) < 0)
    for name, grad_ in grads.items():
        draft.write(gathered(name), grad_ * 0.0)
    return draft


def gradients(task: Objective, recipe: Recipe) -> dict[str, Value]:
    """The loss's gradient with respect to each trainable parameter that it depends on."""
    assert task.loss is not None
    names = [n for n in recipe.trainable if n in task.weights]
    loss = task.loss if task.scale is None else task.loss * _as(task.scale, task.loss.dtype)
    flows = {n: f for n, f in zip(names, grad(loss, [task.weights[n] for n in names]), strict=True) if f is not None}
    if not flows:
        raise NoGradient("the loss depends on no parameter that trains")
    return flows


def _update(draft: Draft, grads: Mapping[str, Value], recipe: Recipe, good: Value) -> None:
    """Write the optimizer's update of every parameter that has a gradient, its state and its moving average."""
    steps = draft.read(STEPS)
    before = ops.cast(steps, to=dtypes.float32)
    common = {"step": before + 1.0, "good": good}
    if recipe.clip_norm is not None:
        # PyTorch's formula, small summand included.
        common["scale"] = ops.minimum(recipe.clip_norm / (global_norm(list(grads.values())) + 1e-6), 1.0)
    rates: dict[Any, Value] = {}
    written: dict[Any, Template] = {}
    for name, gradient in grads.items():
        options = recipe.optimizer.options(name)
        if options["lr"] not in rates:
            rates[options["lr"]] = recipe.optimizer.schedule(name).value(before)
        lr = rates[options["lr"]]
        held = draft.read(name)
        names = [name, *[slot(key, name) for key in recipe.optimizer.init(held.type, options)]]
        names += [] if recipe.ema is None else [average(name)]
        alike = (held.type, gradient.type, lr, *[(key, repr(value)) for key, value in options.items() if key != "lr"])
        if alike not in written:
            written[alike] = _update_of(held.type, gradient.type, options, recipe, {"lr": lr, **common})
        moved = written[alike](gradient, *map(draft.read, names))
        for each, value in zip(names, moved, strict=True):
            draft.write(each, value)
    draft.write(STEPS, ops.where(good, steps + 1, steps))


def _update_of(
    held: TensorType, flow: TensorType, options: Mapping[str, Any], recipe: Recipe, common: Mapping[str, Value]
) -> Template:
    """The update of parameters of one type and the same options: (gradient, parameter, the optimizer's state, average if there
    is one) → what these become, but for the gradient. common: the rate, the step's number, whether it counts, what gradients
    are scaled by.
    """
    shared = {name: g.input(value.type, name) for name, value in common.items()}
    gradient, param = g.input(flow), g.input(held)
    slots = {key: g.input(TensorType(x.shape, x.dtype)) for key, x in recipe.optimizer.init(held, options).items()}
    scaled = gradient * _as(shared["scale"], flow.dtype) if "scale" in shared else gradient
    new, moved = recipe.optimizer.update(param, scaled, slots, shared["lr"], shared["step"], options)
    olds, news = [param, *slots.values()], [new, *[moved[key] for key in slots]]
    if recipe.ema is not None:
        olds.append(kept := g.input(held))
        news.append(kept * recipe.ema + new * (1 - recipe.ema))
    counted = [ops.where(shared["good"], after, before) for after, before in zip(news, olds, strict=True)]
    same = {v: common[name] for name, v in shared.items()}
    return Template(Graph([gradient, *olds, *shared.values()], counted), same)


def _as(value: Value, dtype: np.dtype) -> Value:
    return value if value.dtype == dtype else ops.cast(value, to=dtype)
