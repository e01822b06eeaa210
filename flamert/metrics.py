"""Metrics: what predictions are worth, as sums over batches, computed where the model runs, and numbers made of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import InputError, ShapeError
from flamert.graph import Value
from flamert.losses import CrossEntropy, like, single

Sums = Callable[[Value, Value], Sequence[Value]]
Result = Callable[..., float]


class Metric:
    """sums: (prediction, target) → Values that add up over batches. result: their totals, as arrays → the number."""

    def __init__(self, name: str, sums: Sums, result: Result) -> None:
        self.name, self.sums, self.result = name, sums, result

    def __repr__(self) -> str:
        return f"<metric {self.name}>"


class Function:
    """A user's metric: (outputs by name, targets by name), NumPy arrays → a number; averaged over examples."""

    def __init__(self, run: Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], float]) -> None:
        self.name, self.run = getattr(run, "__name__", type(run).__name__), run


def _ratio(total: np.ndarray, count: np.ndarray) -> float:
    return float(total) / float(count) if count else math.nan


def _all(x: Value) -> Value:
    """Σ x in float64: counts stay exact and long sums lose nothing."""
    return ops.reduce_sum(ops.cast(x, to=dtypes.float64), axes=tuple(range(x.rank)))


def _count(x: Value) -> Value:
    return g.constant(np.float64(x.type.size))


def _classes(prediction: Value, target: Value) -> tuple[Value, Value]:
    """The class that is predicted for each target, and the one that is right, as int64 of the same shape.

    Two classes are predicted by logits of the target's shape (or with an axis 1 of length 1); more by logits [N, C, …], whose
    targets are class numbers [N, …] or probabilities of the logits' shape.
    """
    int64 = dtypes.int64
    if prediction.rank > 1 and prediction.shape[1] == 1 and target.rank == prediction.rank - 1:
        prediction = ops.reshape(prediction, shape=target.shape)
    soft = target.shape == prediction.shape and prediction.rank > 1 and prediction.shape[1] > 1 and target.dtype in dtypes.FLOAT
    if target.shape == prediction.shape and not soft:
        return ops.cast(prediction > 0, to=int64), ops.cast(target > 0, to=int64)
    if soft:
        target = ops.argmax(target, axis=1, keepdims=False)
    if target.shape != (prediction.shape[0], *prediction.shape[2:]):
        raise ShapeError(f"the target is {target.type}, the prediction {prediction.type}: classes go on axis 1")
    return ops.argmax(prediction, axis=1, keepdims=False), ops.cast(target, to=int64)


def accuracy(ignore_index: int = -100) -> Metric:
    """The share of targets whose class has the largest logit; of two classes, whose logit has the right sign."""

    def sums(prediction: Value, target: Value) -> Sequence[Value]:
        guess, right = _classes(prediction, target)
        counts = ops.not_equal(right, ignore_index)
        return _all(ops.equal(guess, right) & counts), _all(counts)

    return Metric("accuracy", sums, _ratio)


def top_k(k: int = 5, ignore_index: int = -100) -> Metric:
    """The share of targets whose class is among those of the k largest logits. prediction: [N, C, …], target: [N, …]."""

    def sums(prediction: Value, target: Value) -> Sequence[Value]:
        _, found = ops.top_k(prediction, k=min(k, prediction.shape[1]), axis=1)
        right = ops.reshape(ops.cast(target, to=dtypes.int64), shape=(target.shape[0], 1, *target.shape[1:]))
        hits = ops.reduce_max(ops.equal(found, right), axes=(1,), keepdims=True)
        counts = ops.not_equal(right, ignore_index)
        return _all(hits & counts), _all(counts)

    return Metric(f"top_{k}", sums, _ratio)


def f1(average: str = "macro", ignore_index: int = -100) -> Metric:
    """2 · precision · recall / (precision + recall) of classes: their mean ("macro"), that of all decisions together
    ("micro"), or that of class 1 ("binary"). A class that is neither predicted nor right counts as 0."""
    if average not in ("macro", "micro", "binary"):
        raise InputError(f"average is 'macro', 'micro' or 'binary', not {average!r}")

    def sums(prediction: Value, target: Value) -> Sequence[Value]:
        guess, right = _classes(prediction, target)
        several = prediction.rank > 1 and prediction.shape[1] > 1 and prediction.shape != guess.shape
        classes = g.constant(np.arange(prediction.shape[1] if several else 2).reshape(-1, *[1] * guess.rank))
        counts = ops.not_equal(right, ignore_index)
        guessed, wanted = (ops.equal(v, classes) & counts for v in (guess, right))
        axes = tuple(range(1, guess.rank + 1))
        wide = [ops.cast(v, to=dtypes.float64) for v in (guessed & wanted, guessed, wanted)]
        return [ops.reduce_sum(v, axes=axes) for v in wide]

    def result(hits: np.ndarray, guessed: np.ndarray, wanted: np.ndarray) -> float:
        if average == "micro":
            hits, guessed, wanted = (np.atleast_1d(v.sum()) for v in (hits, guessed, wanted))
        score = 2 * hits / np.maximum(guessed + wanted, 1)
        return float(score[1] if average == "binary" else score.mean())

    return Metric("f1", sums, result)


def perplexity(ignore_index: int = -100) -> Metric:
    """exp of the mean cross-entropy over all targets. prediction: logits [N, C, …], target: [N, …]."""

    def sums(prediction: Value, target: Value) -> Sequence[Value]:
        total = CrossEntropy(ignore_index=ignore_index, reduction="sum")(prediction, target)
        return _all(total), _all(ops.not_equal(target, ignore_index))

    return Metric("perplexity", sums, lambda total, count: math.exp(min(_ratio(total, count), 700.0)))


def _difference(prediction: Value, target: Value) -> Value:
    x = single(prediction)
    return x - like(target, x)


def mse() -> Metric:
    """The mean of (prediction − target)² over all elements."""

    def sums(prediction: Value, target: Value) -> Sequence[Value]:
        d = _difference(prediction, target)
        return _all(d * d), _count(d)

    return Metric("mse", sums, _ratio)


def mae() -> Metric:
    """The mean of |prediction − target| over all elements."""

    def sums(prediction: Value, target: Value) -> Sequence[Value]:
        d = _difference(prediction, target)
        return _all(abs(d)), _count(d)

    return Metric("mae", sums, _ratio)


METRICS: dict[str, Callable[[], Metric]] = {
    "accuracy": accuracy,
    "top_k": top_k,
    "f1": f1,
    "perplexity": perplexity,
    "mse": mse,
    "mae": mae,
}
"""By the name that Trainer takes."""


def metric(given: Any) -> Metric | Function:
    """A name, a Metric, one of this module's functions, or a user's function as a metric."""
    if isinstance(given, Metric | Function):
        return given
    if isinstance(given, str):
        if given not in METRICS:
            raise InputError(f"there is no metric {given!r}; there are {', '.join(METRICS)}")
        return _with_defaults(METRICS[given])
    if given in METRICS.values():
        return _with_defaults(given)
    if not callable(given):
        raise InputError(f"a metric is a name, an object of fr.metrics or a function, not {given!r}")
    return Function(given)


def metrics_of(given: Any) -> list[Metric | Function]:
    """`metric` of each of several, or of one alone. Raises InputError where two have the same name."""
    found = [metric(m) for m in (given if isinstance(given, list | tuple) else [given])]
    names = [m.name for m in found]
    if twice := [n for n in names if names.count(n) > 1]:
        raise InputError(f"there are several metrics of the name {twice[0]!r}; give a function another __name__")
    return found


@functools.cache
def _with_defaults(make: Callable[[], Metric]) -> Metric:
    """One object for each, so that plans made with it are found again."""
    return make()
