"""Converters of losses."""

from __future__ import annotations

from collections.abc import Sequence

from flamert import ops
from flamert.graph import Value
from flamert.importers.registry import Context, converter


@converter("NegativeLogLikelihoodLoss", 12)
def _(
    ctx: Context,
    x: Value,
    target: Value,
    weight: Value | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int | None = None,
) -> Value:
    return ops.nll_loss(x, target, weight, reduction=reduction, ignore_index=ignore_index)


@converter("SoftmaxCrossEntropyLoss", 12)
def _(
    ctx: Context,
    scores: Value,
    labels: Value,
    weight: Value | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int | None = None,
) -> Sequence[Value]:
    options = {"reduction": reduction, "ignore_index": ignore_index}
    if not ctx.wants(1):
        return [ops.softmax_cross_entropy(scores, labels, weight, **options)]
    log_prob = ops.log_softmax(scores, axis=1)
    return [ops.nll_loss(log_prob, labels, weight, **options), log_prob]
