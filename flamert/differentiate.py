"""Gradients of a whole model: vector-Jacobian products, and a loss with its gradients; planned once for each signature."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flamert import graph as g
from flamert.errors import InputError, NoGradient, ShapeError
from flamert.feeds import checked
from flamert.grad.transform import DIFFERENTIABLE, grad
from flamert.graph import Graph, TensorType, Value
from flamert.origin import Traced
from flamert.runtime.program import Program, Return, Slot, Stage

if TYPE_CHECKING:
    from flamert.model import Model

MAX_GRADIENTS = 16
"""Signatures that a model keeps gradients ready for; the least recently used go first."""

Loss = Callable[[dict[str, Value], dict[str, Value]], Value]


class Ready(NamedTuple):
    """Gradients planned for one signature.

    passed: names of the inputs and parameters that the program takes, before the cotangents or targets. held: contents of
    inputs that it was made for. weights: the arrays of the others, which are part of it. types: of what the gradients are
    by, None for what the program returns none for. seeds: of the cotangents.
    """

    key: Hashable
    program: Program
    passed: tuple[str, ...]
    held: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray]
    names: tuple[str, ...]
    zeros: Mapping[str, TensorType]
    seeds: Mapping[str, TensorType]

    def current(self, weights: Mapping[str, np.ndarray]) -> bool:
        """Whether the weights that are part of the program are still the model's."""
        left = len(self.weights)
        for name, array in weights.items():
            if name in self.weights:
                if self.weights[name] is not array:
                    return False
                left -= 1
            elif name not in self.passed:
                return False
        return left == 0

    def fits(self, feeds: Mapping[str, np.ndarray]) -> bool:
        """Whether the inputs hold what the program was made for."""
        return all([np.array_equal(feeds[name], array) for name, array in self.held.items()])

    def run(self, model: Model, feeds: Mapping[str, np.ndarray], others: Iterable[np.ndarray]) -> list[np.ndarray]:
        """What the program returns, on the host. others: cotangents or targets."""
        arrays = [feeds[n] if n in feeds else model.params[n] for n in self.passed]
        return self.program([model.device.upload(x) for x in (*arrays, *others)], host=True)

    def gradients(self, values: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
        """By name: the next of `values`, or zeros where nothing flows."""
        found, zeros = iter(values), self.zeros
        return {n: np.zeros(*zeros[n]) if n in zeros else next(found) for n in self.names}


class Gradients:
    """What a model has ready, most recently used first. Several threads may ask at once."""

    def __init__(self) -> None:
        self._ready: list[Ready] = []
        self._making = threading.Lock()

    def __len__(self) -> int:
        return len(self._ready)

    def clear(self) -> None:
        """Forget all."""
        self._ready = []

    def find(
        self, key: Hashable, feeds: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray], make: Callable[[], Ready]
    ) -> Ready:
        """The gradients for this key, for inputs that hold this and a model that has these weights; made if they are new."""
        with self._making:
            found = next((r for r in self._ready if r.key == key and r.current(weights) and r.fits(feeds)), None)
            rest = [r for r in self._ready if r is not found]
            if found is None:
                found = make()
                rest = [r for r in rest if r.current(weights)]
            self._ready = [found, *rest[: MAX_GRADIENTS - 1]]
        return found


def vjp(
    model: Model, inputs: Mapping[str, Any], cotangents: Mapping[str, Any], wrt: Sequence[str] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Outputs, and Σ over outputs of cotangent · ∂output/∂w for each name w.

    inputs: name → array. cotangents: output (or intermediate value) name → array of its shape; outputs left out count as
    zero. wrt: names of inputs, parameters or intermediate values; None for all floating inputs and parameters. Returns two
    dicts, by output name and by name in `wrt`; what the outputs do not depend on has gradient zero. The first call for
    inputs of some types plans, later ones run; replacing parameters that are in `wrt` keeps the plan.
    Raises NoGradient, naming the ONNX node, where there is none; InputError for names the model does not have.
    """
    feeds = {n: np.asarray(checked(model.spec(n), x, model.device)) for n, x in inputs.items() if x is not None}
    results = tuple(dict.fromkeys([*[o.name for o in model.outputs], *cotangents]))
    chosen = None if wrt is None else tuple(wrt)

    def make() -> Ready:
        traced, names = _traced(model, feeds, results, chosen)
        outputs = {n: _tensor(traced, n) for n in results}
        seeds = {n: g.input(outputs[n].type) for n in cotangents}
        flows = _flows(traced, names, [outputs[n] for n in seeds], list(seeds.values()), chosen)
        return _ready(model, key, traced, feeds, list(outputs.values()), flows, seeds)

    key = ("vjp", results, tuple(cotangents), chosen, _signature(feeds))
    model.params.settle()
    ready = model.gradients.find(key, feeds, model.origin.weights, make)
    weights = [_cotangent(cotangents[n], type, n) for n, type in ready.seeds.items()]
    values = ready.run(model, feeds, weights)
    return dict(zip(results, values, strict=False)), ready.gradients(values[len(results) :])


def value_and_grad(
    model: Model, loss: Loss, wrt: Sequence[str] | None = None
) -> Callable[..., tuple[float, dict[str, np.ndarray]]]:
    """A function (inputs, targets) → (loss value, gradients by name).

    loss: (outputs by name, targets by name), both Values → a scalar Value. It is called once for each signature of inputs
    and targets: what it takes from elsewhere (a coefficient that changes) stays as it was then; give that as a target.
    wrt: as in `Model.vjp`.
    """
    chosen = None if wrt is None else tuple(wrt)

    def evaluate(inputs: Mapping[str, Any], labels: Mapping[str, Any]) -> tuple[float, dict[str, np.ndarray]]:
        feeds = {n: np.asarray(checked(model.spec(n), x, model.device)) for n, x in inputs.items() if x is not None}
        wanted = {n: np.asarray(t) for n, t in labels.items()}
        results = tuple([o.name for o in model.outputs])

        def make() -> Ready:
            traced, names = _traced(model, feeds, results, chosen)
            given = {n: g.input(TensorType(t.shape, t.dtype), n) for n, t in wanted.items()}
            value = loss({n: _tensor(traced, n) for n in results}, dict(given))
            if value.type.size != 1:
                raise ShapeError(f"a loss is one number, got {value.type}")
            flows = _flows(traced, names, [value], None, chosen)
            return _ready(model, key, traced, feeds, [value], flows, given)

        key = ("loss", loss, chosen, _signature(feeds), _signature(wanted))
        model.params.settle()
        ready = model.gradients.find(key, feeds, model.origin.weights, make)
        number, *values = ready.run(model, feeds, wanted.values())
        return float(number.reshape(())), ready.gradients(values)

    return evaluate


def _signature(arrays: Mapping[str, np.ndarray]) -> tuple[Hashable, ...]:
    return tuple([(n, x.shape, x.dtype) for n, x in arrays.items()])


def _traced(
    model: Model, feeds: Mapping[str, np.ndarray], results: Sequence[str], wrt: tuple[str, ...] | None
) -> tuple[Traced, tuple[str, ...]]:
    """The model with the parameters among `wrt` as inputs; and all the names that gradients are by."""
    names = _all_floating(model, feeds) if wrt is None else wrt
    variable = frozenset(n for n in names if n in model.params)
    return model.trace(feeds, (*results, *[n for n in names if n not in variable]), variable), names


def _flows(
    traced: Traced,
    names: Sequence[str],
    outputs: Sequence[Value],
    seeds: Sequence[Value] | None,
    wrt: tuple[str, ...] | None,
) -> dict[str, tuple[TensorType, Value | None]]:
    """The gradient by each name, None where nothing flows, and the type it has."""
    targets = [_tensor(traced, n) for n in names]
    for name, target in zip(names, targets, strict=True):
        if target.dtype not in DIFFERENTIABLE:
            raise NoGradient(f"{name!r} is {target.dtype.name}: there are no gradients with respect to integers")
        if wrt is not None and name in traced.static:
            raise NoGradient(f"the shapes in the model depend on what {name!r} holds: it has no gradient")
    flows = grad(outputs, targets, seeds)
    return {n: (t.type, f) for n, t, f in zip(names, targets, flows, strict=True)}


def _ready(
    model: Model,
    key: Hashable,
    traced: Traced,
    feeds: Mapping[str, np.ndarray],
    outputs: Sequence[Value],
    flows: Mapping[str, tuple[TensorType, Value | None]],
    others: Mapping[str, Value],
) -> Ready:
    """The program that takes what varies and `others`, and returns `outputs` and what flows."""
    leaves = {n: e for n, e in traced.inputs.items() if isinstance(e, Value) and n not in traced.static}
    returned = [*outputs, *[f for _, f in flows.values() if f is not None]]
    graph = model.prepared(Graph([*leaves.values(), *others.values()], returned))
    slots = [Slot(i, v.dtype) for i, v in enumerate((*graph.inputs, *graph.outputs))]
    taken, given = slots[: len(graph.inputs)], slots[len(graph.inputs) :]
    stage = Stage(graph, taken, given, Return(tuple(given)))
    bound = traced.static | traced.consulted
    weights = {n: a for n, a in model.origin.weights.items() if n not in leaves or n in bound}
    return Ready(
        key,
        Program(stage, taken, model.device, lambda graph, hot: graph, model.derived),
        tuple(leaves),
        {n: np.array(feeds[n]) for n in feeds if n in bound},
        weights,
        tuple(flows),
        {n: type for n, (type, f) in flows.items() if f is None},
        {n: v.type for n, v in others.items()},
    )


def _all_floating(model: Model, feeds: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Inputs and parameters; of weights that are stored as integers the floating ones, not their scales."""
    floating = [n for n, x in feeds.items() if x.dtype in DIFFERENTIABLE]
    scales = model.origin.stored.within
    params = [n for n, a in model.params.items() if a.dtype in DIFFERENTIABLE and n not in scales]
    return (*floating, *[n for n in params if n not in feeds])


def _tensor(traced: Traced, name: str) -> Value:
    entry = traced.values.get(name)
    if not isinstance(entry, Value):
        raise InputError(f"the model has no tensor {name!r}" if entry is None else f"{name!r} is no tensor")
    return entry


def _cotangent(array: Any, type: TensorType, name: str) -> np.ndarray:
    array = np.asarray(array, type.dtype)
    if array.shape != type.shape:
        raise ShapeError(f"the cotangent of {name!r} has shape {list(array.shape)}, the value {type}")
    return array
