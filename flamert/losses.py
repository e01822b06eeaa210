"""Losses: predictions and targets → one number, in ops. Names, defaults and formulas are PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import InputError, ShapeError
from flamert.graph import Value

Reduction = str
"""mean, sum or none."""


def reduced(loss: Value, reduction: Reduction) -> Value:
    """The mean or the sum of all elements, or the elements themselves."""
    if reduction == "none":
        return loss
    if reduction not in ("mean", "sum"):
        raise InputError(f"reduction is 'mean', 'sum' or 'none', not {reduction!r}")
    combine = ops.reduce_mean if reduction == "mean" else ops.reduce_sum
    return combine(loss, axes=tuple(range(loss.rank)))


def single(x: Value) -> Value:
    """Half types widened to float32, where losses are computed."""
    return ops.cast(x, to=dtypes.float32) if x.dtype in dtypes.HALF else x


def like(target: Value, prediction: Value) -> Value:
    """The target in the prediction's element type, of exactly its shape."""
    if target.shape != prediction.shape:
        raise ShapeError(f"the target is {target.type}, the prediction {prediction.type}")
    return target if target.dtype == prediction.dtype else ops.cast(target, to=prediction.dtype)


def class_numbers(target: Value) -> Value:
    """Targets that number classes, in a type that has room for ignore_index. Raises InputError for other targets."""
    if target.dtype not in dtypes.INTEGER:
        raise InputError(f"the target is {target.type}; it must be class numbers, which are integers")
    return target if target.dtype in (dtypes.int32, dtypes.int64) else ops.cast(target, to=dtypes.int64)


def _picked(log: Value, target: Value) -> Value:
    """What stands at the targets, [N, …], of [N, C, …]."""
    index = ops.reshape(target, shape=(target.shape[0], 1, *target.shape[1:]))
    return ops.reshape(ops.gather_elements(log, index, axis=1), shape=target.shape)


class Loss:
    """Base of all losses: `loss(prediction, target)` on Values → a scalar Value."""

    def __call__(self, prediction: Value, target: Value) -> Value:
        raise NotImplementedError


class CrossEntropy(Loss):
    """−log softmax(prediction)[target], the mean over all targets that are not `ignore_index`.

    prediction: floating [N, C, …], logits. target: integers [N, …], or probabilities of prediction's shape. weight: [C], one
    factor per class. Source: torch.nn.CrossEntropyLoss.
    """

    def __init__(
        self, weight: Any = None, ignore_index: int = -100, reduction: Reduction = "mean", label_smoothing: float = 0.0
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise InputError(f"label_smoothing is in [0, 1), got {label_smoothing}")
        self.weight = None if weight is None else np.asarray(weight, np.float32)
        self.ignore_index, self.reduction, self.label_smoothing = ignore_index, reduction, label_smoothing

    def __call__(self, prediction: Value, target: Value) -> Value:
        if target.rank == prediction.rank:
            return self._soft(single(prediction), like(target, single(prediction)))
        if target.shape != (prediction.shape[0], *prediction.shape[2:]):
            raise ShapeError(f"the target is {target.type}, the prediction {prediction.type}: classes go on axis 1")
        target = class_numbers(target)
        kept = ops.not_equal(target, self.ignore_index)
        target = ops.where(kept, target, 0)
        log = ops.log_softmax(single(prediction), axis=1) if self.label_smoothing else None
        losses = ops.cross_entropy(prediction, target)[0] if log is None else -_picked(log, target)
        weight = counts = ops.cast(kept, to=losses.dtype)
        per_class = None if self.weight is None else g.constant(self.weight.astype(losses.dtype))
        if per_class is not None:
            weight = weight * ops.gather(per_class, target, axis=0)
        loss = losses * weight
        if log is not None:
            factors = 1.0 if per_class is None else ops.reshape(per_class, shape=(log.shape[1], *[1] * (log.rank - 2)))
            spread = -ops.reduce_sum(log * factors, axes=(1,)) * counts
            loss = loss * (1 - self.label_smoothing) + spread * (self.label_smoothing / log.shape[1])
        if self.reduction != "mean":
            return reduced(loss, self.reduction)
        return reduced(loss, "sum") / reduced(weight, "sum")

    def _soft(self, logits: Value, target: Value) -> Value:
        classes = logits.shape[1]
        target = target * (1 - self.label_smoothing) + self.label_smoothing / classes if self.label_smoothing else target
        terms = ops.log_softmax(logits, axis=1) * target
        if self.weight is not None:
            terms = terms * g.constant(self.weight.astype(logits.dtype).reshape(-1, *[1] * (logits.rank - 2)))
        return reduced(-ops.reduce_sum(terms, axes=(1,)), self.reduction)


class NLL(Loss):
    """−prediction[target] for log-probabilities [N, C, …] and integer targets [N, …]. Source: torch.nn.NLLLoss."""

    def __init__(self, ignore_index: int = -100, reduction: Reduction = "mean") -> None:
        self.ignore_index, self.reduction = ignore_index, reduction

    def __call__(self, prediction: Value, target: Value) -> Value:
        log, target = single(prediction), class_numbers(target)
        index = ops.reshape(target, shape=(target.shape[0], 1, *target.shape[1:]))
        kept = ops.not_equal(index, self.ignore_index)
        picked = ops.gather_elements(log, ops.where(kept, index, 0), axis=1)
        weight = ops.cast(kept, to=log.dtype)
        loss = -picked * weight
        if self.reduction == "mean":
            return reduced(loss, "sum") / reduced(weight, "sum")
        return reduced(ops.reshape(loss, shape=target.shape), self.reduction)


class MSE(Loss):
    """(prediction − target)². Source: torch.nn.MSELoss."""

    def __init__(self, reduction: Reduction = "mean") -> None:
        self.reduction = reduction

    def __call__(self, prediction: Value, target: Value) -> Value:
        difference = single(prediction) - like(target, single(prediction))
        return reduced(difference * difference, self.reduction)


class L1(Loss):
    """|prediction − target|. Source: torch.nn.L1Loss."""

    def __init__(self, reduction: Reduction = "mean") -> None:
        self.reduction = reduction

    def __call__(self, prediction: Value, target: Value) -> Value:
        return reduced(abs(single(prediction) - like(target, single(prediction))), self.reduction)


class Huber(Loss):
    """½ d² where d = |prediction − target| ≤ delta, delta (d − ½ delta) beyond. Source: torch.nn.HuberLoss."""

    def __init__(self, delta: float = 1.0, reduction: Reduction = "mean") -> None:
        self.delta, self.reduction = delta, reduction

    def __call__(self, prediction: Value, target: Value) -> Value:
        d = abs(single(prediction) - like(target, single(prediction)))
        near = ops.minimum(d, self.delta)
        return reduced(near * (d - near * 0.5), self.reduction)


class BCEWithLogits(Loss):
    """−t log σ(x) − (1 − t) log(1 − σ(x)), overflow-safe; pos_weight multiplies the first term.

    Source: torch.nn.BCEWithLogitsLoss.
    """

    def __init__(self, pos_weight: Any = None, reduction: Reduction = "mean") -> None:
        self.pos_weight = None if pos_weight is None else np.asarray(pos_weight, np.float32)
        self.reduction = reduction

    def __call__(self, prediction: Value, target: Value) -> Value:
        x = single(prediction)
        t = like(target, x)
        if self.pos_weight is None:
            return reduced(ops.softplus(x) - x * t, self.reduction)
        weight = t * g.constant((self.pos_weight - 1).astype(x.dtype)) + 1.0
        return reduced(x * (1.0 - t) + weight * ops.softplus(-x), self.reduction)


class KLDiv(Loss):
    """target · (log target − prediction) for log-probabilities `prediction`; "batchmean" divides the sum by N.

    log_target: the targets are logarithms too. Source: torch.nn.KLDivLoss.
    """

    def __init__(self, reduction: Reduction = "batchmean", log_target: bool = False) -> None:
        self.reduction, self.log_target = reduction, log_target

    def __call__(self, prediction: Value, target: Value) -> Value:
        x = single(prediction)
        t = like(target, x)
        if self.log_target:
            terms = ops.exp(t) * (t - x)
        else:
            terms = t * (ops.where(t > 0.0, ops.log(ops.maximum(t, 1e-38)), 0.0) - x)
        if self.reduction == "batchmean":
            return reduced(terms, "sum") / float(x.shape[0])
        return reduced(terms, self.reduction)


class Cosine(Loss):
    """1 − cos(prediction, target) over the last axis. Source: torch.nn.CosineEmbeddingLoss with targets of 1."""

    def __init__(self, reduction: Reduction = "mean", eps: float = 1e-8) -> None:
        self.reduction, self.eps = reduction, eps

    def __call__(self, prediction: Value, target: Value) -> Value:
        x = single(prediction)
        t = like(target, x)
        dot, xx, tt = (ops.reduce_sum(a * b, axes=(x.rank - 1,)) for a, b in ((x, t), (x, x), (t, t)))
        return reduced(1.0 - dot / ops.sqrt(ops.maximum(xx * tt, self.eps * self.eps)), self.reduction)


class InfoNCE(Loss):
    """Cross-entropy of cos(predictionᵢ, targetⱼ) / temperature with the diagonal as the right answer.

    prediction, target: [N, D], row i of one belonging to row i of the other. Source: van den Oord et al. 2018.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        self.temperature = temperature

    def __call__(self, prediction: Value, target: Value) -> Value:
        x, t = (_unit(single(v)) for v in (prediction, like(target, prediction)))
        logits = ops.matmul(x, ops.transpose(t, perm=(1, 0))) * (1 / self.temperature)
        return CrossEntropy()(logits, g.constant(np.arange(logits.shape[0])))


def _unit(x: Value) -> Value:
    return x / ops.sqrt(ops.maximum(ops.reduce_sum(x * x, axes=(x.rank - 1,), keepdims=True), 1e-24))


class CTC(Loss):
    """−log p(labels | prediction), summed over all alignments with blanks, divided by the labels' length, mean over the batch.

    prediction: log-probabilities [N, T, C]. target: integers [N, S], padded with −1 behind each sequence. blank: its class.
    Frames all count. Source: torch.nn.CTCLoss, Graves et al. 2006.
    """

    def __init__(self, blank: int = 0, reduction: Reduction = "mean") -> None:
        self.blank, self.reduction = blank, reduction

    def __call__(self, prediction: Value, target: Value) -> Value:
        log = single(prediction)
        n, frames, _ = log.shape
        s = target.shape[1]
        present = target >= 0
        labels = ops.where(present, target, self.blank)
        blanks = ops.expand(g.constant(np.asarray(self.blank, target.dtype)), shape=(n, s, 1))
        woven = ops.reshape(ops.concat(blanks, ops.reshape(labels, shape=(n, s, 1)), axis=2), shape=(n, 2 * s))
        closing = ops.expand(g.constant(np.asarray(self.blank, target.dtype)), shape=(n, 1))
        states = ops.concat(woven, closing, axis=1)
        return self._forward(log, states, present, n, frames, s)

    def _forward(self, log: Value, states: Value, present: Value, n: int, frames: int, s: int) -> Value:
        width = 2 * s + 1
        never = -1e30
        index = ops.expand(ops.reshape(states, shape=(n, 1, width)), shape=(n, frames, width))
        emitted = ops.gather_elements(log, index, axis=2)
        two_back = _shifted(states, 2, -1)
        skips = ops.logical_and(ops.not_equal(states, self.blank), ops.not_equal(states, two_back))
        skips = ops.logical_and(skips, g.constant((np.arange(width) >= 2)[None]))
        first = ops.slice(emitted, starts=(0, 0, 0), sizes=(n, 1, width), steps=(1, 1, 1))
        alpha = ops.where(g.constant((np.arange(width) < 2)[None]), ops.reshape(first, shape=(n, width)), never)
        for t in range(1, frames):
            one, two = (_shifted(alpha, k, never) for k in (1, 2))
            two = ops.where(skips, two, never)
            here = ops.reshape(ops.slice(emitted, starts=(0, t, 0), sizes=(n, 1, width), steps=(1, 1, 1)), shape=(n, width))
            alpha = _log_add(_log_add(alpha, one), two) + here
        lengths = ops.reduce_sum(ops.cast(present, to=np.dtype(np.int64)), axes=(1,), keepdims=True)
        last = ops.gather_elements(alpha, lengths * 2, axis=1)
        previous = ops.where(lengths > 0, ops.gather_elements(alpha, ops.maximum(lengths * 2 - 1, 0), axis=1), never)
        loss = ops.reshape(-_log_add(last, previous), shape=(n,))
        if self.reduction != "mean":
            return reduced(loss, self.reduction)
        return reduced(loss / ops.cast(ops.maximum(ops.reshape(lengths, shape=(n,)), 1), to=loss.dtype), "mean")


def _shifted(x: Value, k: int, filling: float) -> Value:
    """x with k fillings in front of each row, as wide as before."""
    n, width = x.shape
    front = ops.expand(g.constant(np.asarray(filling, x.dtype)), shape=(n, k))
    return ops.slice(ops.concat(front, x, axis=1), starts=(0, 0), sizes=(n, width), steps=(1, 1))


def _log_add(a: Value, b: Value) -> Value:
    """log(eᵃ + eᵇ)."""
    top = ops.maximum(a, b)
    return top + ops.log1p(ops.exp(ops.minimum(a, b) - top))


LOSSES: dict[str, Callable[[], Loss]] = {
    "cross_entropy": CrossEntropy,
    "mse": MSE,
    "l1": L1,
    "huber": Huber,
    "bce_with_logits": BCEWithLogits,
    "nll": NLL,
    "kl_div": KLDiv,
    "ctc": CTC,
    "cosine": Cosine,
    "info_nce": InfoNCE,
}
"""By the name that Trainer takes."""


def by_name(name: str) -> Loss:
    """The loss of this name with its defaults."""
    if name not in LOSSES:
        raise InputError(f"there is no loss {name!r}; there are {', '.join(LOSSES)}")
    return LOSSES[name]()
