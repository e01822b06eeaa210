"""Gradients of losses."""

from __future__ import annotations

from typing import Any

from flamert import ops
from flamert.grad.elementwise import widened
from flamert.grad.registry import gradient
from flamert.grad.shape import filled, zeros_like
from flamert.graph import Value


class Targets:
    """What a loss reads of its targets, with the axis of classes kept at length 1.

    at: the class of each, 0 where it is ignored; `classes`: the same, without that axis. counts: whether it is not (None: all
    count). weights: what each counts. total: what "mean" divides by, None for other reductions. dy: the loss's cotangent,
    made to fit.
    """

    def __init__(self, dy: Value, x: Value, target: Value, weight: Value | None, reduction: str, ignored: int | None) -> None:
        shape = (x.shape[0], 1, *x.shape[2:])
        self.classes, self.counts = target, None
        if ignored is not None:
            counts = ops.not_equal(target, ignored)
            self.classes, self.counts = ops.where(counts, target, 0), ops.reshape(counts, shape=shape)
        self.at = ops.reshape(self.classes, shape=shape)
        self.weights = filled(1, shape, x.dtype) if weight is None else ops.gather(weight, self.at, axis=0)
        self.weights = self.counted(self.weights)
        self.total = ops.reduce_sum(self.weights, axes=tuple(range(x.rank))) if reduction == "mean" else None
        self.dy = dy if self.total is None else dy / self.total
        if reduction == "none":
            self.dy = ops.reshape(dy, shape=shape)

    def counted(self, v: Value) -> Value:
        """v, but 0 for what is ignored."""
        return v if self.counts is None else ops.where(self.counts, v, 0)

    def to_weight(self, y: Value, weight: Value, logs: Value) -> Value:
        """dweight[c] = −Σ dy · logs over the targets c; for "mean", whose divisor moves too, −Σ dy · (logs + y) / total."""
        logs = ops.gather_elements(logs, self.at, axis=1)
        terms = self.counted(-(logs if self.total is None else logs + y) * self.dy)
        size = (self.at.type.size,)
        at, terms = ops.reshape(self.at, shape=size), ops.reshape(terms, shape=size)
        return ops.scatter_elements(zeros_like(weight), at, terms, axis=0, reduction="add")


@gradient(ops.nll_loss)
@widened
def _(dy: Any, y: Any, x: Any, target: Any, weight: Any = None, *, reduction: str, ignore_index: int | None) -> Any:
    """dx = −dy · weight, for "mean" over the total weight, at the targets; 0 elsewhere"""
    t = Targets(dy, x, target, weight, reduction, ignore_index)
    dx = ops.scatter_elements(zeros_like(x), t.at, -(t.weights * t.dy), axis=1, reduction="add")
    return dx, None, None if weight is None else t.to_weight(y, weight, x)


@gradient(ops.softmax_cross_entropy)
@widened
def _(dy: Any, y: Any, scores: Any, labels: Any, weight: Any = None, *, reduction: str, ignore_index: int | None) -> Any:
    """dscores = dy · weight · (softmax − 1 at the label); a rule of its own, since it needs no logarithms"""
    t = Targets(dy, scores, labels, weight, reduction, ignore_index)
    factor = ops.reshape(t.weights * t.dy, shape=labels.shape)
    dscores = ops.cross_entropy_gradient(scores, t.classes, ops.cross_entropy(scores, t.classes)[1], factor)
    return dscores, None, None if weight is None else t.to_weight(y, weight, ops.log_softmax(scores, axis=1))


@gradient(ops.cross_entropy)
def _(dy: Any, y: Any, x: Any, t: Any) -> Any:
    """dx = (dlosses + dsums) · softmax − dlosses at the classes t"""
    losses, sums = dy
    losses = zeros_like(sums) if losses is None else losses
    return ops.cross_entropy_gradient(x, t, y[1], losses, sums)
