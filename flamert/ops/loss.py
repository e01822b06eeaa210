"""Losses: how far predictions are from targets, reduced to one number or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import dtypes
from flamert.errors import ShapeError, UnsupportedOp
from flamert.graph import TensorType
from flamert.ops.normalize import log_softmax
from flamert.ops.op import composite, kernel, op
from flamert.ops.rules import require

REDUCTIONS = ("none", "sum", "mean")


@op
def nll_loss(
    x: TensorType,
    target: TensorType,
    weight: TensorType | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int | None = None,
) -> TensorType:
    """−x[n, target[n, …], …] · weight[target[n, …]], 0 where the target is `ignore_index`; x holds log-probabilities.

    x: floating [N, C, …]. target: integer [N, …], in [0, C) or `ignore_index`. weight: [C] of x's type. reduction: "none",
    "sum", or "mean", which divides the sum by the weights of the targets that count. Returns [N, …] or a scalar of x's
    type; half types accumulate in float32. Raises IndexError on the CPU for a target out of range.
    Source: ONNX NegativeLogLikelihoodLoss-22.
    """
    require(x, dtypes.STANDARD_FLOAT, "floating")
    require(target, dtypes.INTEGER, "integer")
    if reduction not in REDUCTIONS:
        raise UnsupportedOp(f"reduction {reduction!r} is none of {', '.join(REDUCTIONS)}")
    if x.rank < 2 or target.shape != (x.shape[0], *x.shape[2:]):
        raise ShapeError(f"targets {target} do not fit predictions {x}")
    if weight is not None and weight != (x.shape[1:2], x.dtype):
        raise ShapeError(f"weights {weight} are not one {x.dtype.name} for each of {x.shape[1]} classes")
    return TensorType(target.shape if reduction == "none" else (), x.dtype)


@kernel(nll_loss)
def _(xp: Any, out: Any, x: Any, target: Any, weight: Any = None, *, reduction: str, ignore_index: int | None) -> None:
    acc = dtypes.accumulator(x.dtype)
    counts = None if ignore_index is None else target != ignore_index
    classes = target if counts is None else xp.where(counts, target, 0)
    if xp is np and classes.size and not 0 <= classes.min() <= classes.max() < x.shape[1]:
        raise IndexError(f"a target lies outside the {x.shape[1]} classes")
    loss = -xp.take_along_axis(x, xp.expand_dims(classes, 1), axis=1)[:, 0].astype(acc)
    weights = None if weight is None else weight[classes].astype(acc)
    if counts is not None:
        weights = counts.astype(acc) if weights is None else xp.where(counts, weights, 0)
        # What is ignored must not count even where it is infinite.
        loss = xp.where(counts, loss, 0)
    if weights is not None:
        loss = loss * weights
    if reduction == "none":
        out[...] = loss
    elif reduction == "sum":
        out[...] = xp.sum(loss)
    else:
        out[...] = xp.sum(loss) / (target.size if weights is None else xp.sum(weights))


@composite
def softmax_cross_entropy(
    scores: Any, labels: Any, weight: Any = None, *, reduction: str = "mean", ignore_index: int | None = None
) -> Any:
    """−log softmax(scores)[n, labels[n, …], …], weighted, masked and reduced as in nll_loss.

    scores: floating [N, C, …]. labels: integer [N, …]. weight: [C]. Source: ONNX SoftmaxCrossEntropyLoss-13.
    """
    return nll_loss(log_softmax(scores, axis=1), labels, weight, reduction=reduction, ignore_index=ignore_index)
