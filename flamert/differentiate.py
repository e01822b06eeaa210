"""Gradients of a whole model: vector-Jacobian products, and a loss with its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flamert import graph as g
from flamert.errors import InputError, NoGradient, ShapeError
from flamert.feeds import checked
from flamert.grad.transform import DIFFERENTIABLE, grad
from flamert.graph import Graph, TensorType, Value
from flamert.model import Model
from flamert.origin import Traced
from flamert.runtime.plan import Plan

MAX_PLANS = 16
"""Gradient plans kept per model; the oldest go first."""

Loss = Callable[[dict[str, Value], dict[str, Value]], Value]


def vjp(
    model: Model, inputs: Mapping[str, Any], cotangents: Mapping[str, Any], wrt: Sequence[str] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Outputs, and Σ over outputs of cotangent · ∂output/∂w for each name w.

    inputs: name → array. cotangents: output (or intermediate value) name → array of its shape; outputs left out count as
    zero. wrt: names of inputs, parameters or intermediate values; None for all floating inputs and parameters. Returns two
    dicts, by output name and by name in `wrt`; what the outputs do not depend on has gradient zero.
    Raises NoGradient, naming the ONNX node, where there is none; InputError for names the model does not have.
    """
    feeds = {n: np.asarray(checked(model.spec(n), x, model.device)) for n, x in inputs.items() if x is not None}
    results = tuple(dict.fromkeys([*[o.name for o in model.outputs], *cotangents]))
    names = tuple(wrt) if wrt is not None else _all_floating(model, feeds)
    variable = frozenset(n for n in names if n in model.params)
    traced = model.trace(feeds, (*results, *[n for n in names if n not in variable]), variable)
    outputs = [_tensor(traced, n) for n in results]
    seeds = [g.input(v.type) if n in cotangents else None for n, v in zip(results, outputs, strict=True)]
    targets = [_tensor(traced, n) for n in names]
    for name, target in zip(names, targets, strict=True):
        if target.dtype not in DIFFERENTIABLE:
            raise NoGradient(f"{name!r} is {target.dtype.name}: there are no gradients with respect to integers")
        if wrt is not None and name in traced.static:
            raise NoGradient(f"the shapes in the model depend on what {name!r} holds: it has no gradient")
    given = [(v, s) for v, s in zip(outputs, seeds, strict=True) if s is not None]
    flows = grad([v for v, _ in given], targets, [s for _, s in given])
    leaves = [(n, e) for n, e in traced.inputs.items() if isinstance(e, Value) and n not in traced.static]
    returned = [*outputs, *[f for f in flows if f is not None]]
    graph = Graph([*[v for _, v in leaves], *[s for _, s in given]], returned)
    arrays = [feeds[n] if n in feeds else model.params[n] for n, _ in leaves]
    weights = [_cotangent(cotangents[n], v.type, n) for n, v in zip(results, outputs, strict=True) if n in cotangents]
    values = iter(_run(model, graph, [*arrays, *weights]))
    forward = {n: next(values) for n in results}
    return forward, _gradients(names, targets, flows, values)


def value_and_grad(
    model: Model, loss: Loss, wrt: Sequence[str] | None = None
) -> Callable[..., tuple[float, dict[str, np.ndarray]]]:
    """A function (inputs, targets) → (loss value, gradients by name).

    loss: (outputs by name, targets by name), both Values → a scalar Value. wrt: as in `Model.vjp`.
    """

    def evaluate(inputs: Mapping[str, Any], labels: Mapping[str, Any]) -> tuple[float, dict[str, np.ndarray]]:
        feeds = {n: np.asarray(checked(model.spec(n), x, model.device)) for n, x in inputs.items()}
        wanted = {n: np.asarray(t) for n, t in labels.items()}
        names = tuple(wrt) if wrt is not None else _all_floating(model, feeds)
        variable = frozenset(n for n in names if n in model.params)
        results = tuple(o.name for o in model.outputs)
        traced = model.trace(feeds, (*results, *[n for n in names if n not in variable]), variable)
        given = {n: g.input(TensorType(t.shape, t.dtype), n) for n, t in wanted.items()}
        value = loss({n: _tensor(traced, n) for n in results}, given)
        if value.type.size != 1:
            raise ShapeError(f"a loss is one number, got {value.type}")
        targets = [_tensor(traced, n) for n in names]
        flows = grad(value, targets)
        leaves = [(n, e) for n, e in traced.inputs.items() if isinstance(e, Value) and n not in traced.static]
        graph = Graph([*[v for _, v in leaves], *given.values()], [value, *[f for f in flows if f is not None]])
        arrays = [feeds[n] if n in feeds else model.params[n] for n, _ in leaves]
        values = iter(_run(model, graph, [*arrays, *wanted.values()]))
        number = float(next(values).reshape(()))
        return number, _gradients(names, targets, flows, values)

    return evaluate


def _gradients(
    names: Sequence[str], targets: Sequence[Value], flows: Sequence[Value | None], values: Iterator[np.ndarray]
) -> dict[str, np.ndarray]:
    """The next of `values` for each flow that there is, zeros where nothing flows."""
    return {n: np.zeros(t.shape, t.dtype) if f is None else next(values) for n, t, f in zip(names, targets, flows, strict=True)}


def _all_floating(model: Model, feeds: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    floating = [n for n, x in feeds.items() if x.dtype in DIFFERENTIABLE]
    return (*floating, *[n for n, a in model.params.items() if a.dtype in DIFFERENTIABLE and n not in feeds])


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


def _run(model: Model, graph: Graph, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    device = model.device
    plan = Plan(model.prepared(graph), device, cache=model.derived)
    return [device.download(r, v.dtype) for r, v in zip(plan(*map(device.upload, arrays)), graph.outputs, strict=True)]
