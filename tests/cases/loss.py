"""Rows for ops/loss.py."""

import math

import numpy as np

from flamert.testing import Case
from tests.cases.elementwise import FLOATS, f32, rng


def nll(x, target, weight=None, reduction="mean", ignore_index=None):
    """The definition, one target at a time."""
    losses, weights = np.zeros(target.shape), np.zeros(target.shape)
    for at in np.ndindex(target.shape):
        c = target[at]
        if c != ignore_index:
            weights[at] = 1 if weight is None else weight[c]
            losses[at] = -x[(at[0], c, *at[1:])] * weights[at]
    if reduction == "none":
        return losses
    return losses.sum() / weights.sum() if reduction == "mean" else losses.sum()


def cross_entropy(scores, labels, *rest, **attrs):
    e = np.exp(scores)
    return nll(np.log(e / e.sum(1, keepdims=True)), labels, *rest, **attrs)


def labels(*shape, classes=5, dtype=np.int64):
    return rng.integers(0, classes, shape).astype(dtype)


t = labels(4, 3)
t[1, 2] = t[0, 0] = 2
ignored = np.where(t == 2, -100, t)
infinite = np.array([[-math.log(2), -1, -np.inf], [0, -1, -np.inf]], np.float32)

CASES = [
    *[
        Case(op, inputs, {"reduction": reduction}, oracle, FLOATS if reduction == "mean" else FLOATS[1:2])
        for op, oracle in (("nll_loss", nll), ("softmax_cross_entropy", cross_entropy))
        for reduction in ("none", "sum", "mean")
        for inputs in (
            [f32(4, 5), labels(4)],
            [f32(4, 5), labels(4, dtype=np.int32), f32(5, low=0.1)],
            [f32(4, 5, 3), t, f32(5, low=0.1)],
            [f32(2, 5, 3, 2), labels(2, 3, 2)],
        )
    ],
    *[
        Case(op, [f32(4, 5, 3), target, *weight], {"reduction": reduction, "ignore_index": index}, oracle)
        for op, oracle in (("nll_loss", nll), ("softmax_cross_entropy", cross_entropy))
        for reduction in ("none", "sum", "mean")
        for target, index in ((t, 2), (ignored, -100))
        for weight in ([], [f32(5, low=0.1)])
    ],
    Case(
        "nll_loss",
        [infinite, np.array([0, 2])],
        {"ignore_index": 2},
        np.float32(math.log(2)),
        gradient=False,
        name="infinite but ignored",
    ),
]
