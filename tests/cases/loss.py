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


drawn = np.random.default_rng(13)


def own(*shape):
    """Numbers that leave those of all other rows as they are."""
    return drawn.standard_normal(shape).astype(np.float32)


def classes(*shape, count, dtype=np.int64):
    return drawn.integers(0, count, shape).astype(dtype)


def loss_and_sums(x, t):
    at = np.expand_dims(t % x.shape[1], 1)
    most = x.max(1, keepdims=True)
    sums = np.log(np.exp(x - most).sum(1, keepdims=True)) + most
    return (sums - np.take_along_axis(x, at, 1))[:, 0], sums[:, 0]


def loss_gradient(x, t, sums, dlosses, dsums=None, zeros=0):
    p = np.exp(x - np.expand_dims(loss_and_sums(x, t)[1], 1))
    onehot = np.arange(x.shape[1]).reshape(-1, *[1] * (x.ndim - 2)) == np.expand_dims(t % x.shape[1], 1)
    dx = p * np.expand_dims(dlosses + (0 if dsums is None else dsums), 1) - onehot * np.expand_dims(dlosses, 1)
    return np.pad(dx, [(0, zeros if axis == 1 else 0) for axis in range(x.ndim)])


def scored(*shape, count, dtype=np.int64):
    """Scores, far from zero in places, and classes, some of them counted from the end."""
    x, t = own(shape[0], count, *shape[1:]) * 3, classes(*shape, count=count, dtype=dtype)
    x[0] += 40
    x[-1] -= 40
    t[-1] -= count
    return [x, t]


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
    *[
        Case("cross_entropy", scored(*shape, count=c, dtype=d), {}, loss_and_sums, kinds, tolerance=(1e-5, 1e-5))
        for shape, c, d, kinds in (
            ((5,), 7, np.int64, FLOATS),
            ((3,), 1003, np.int32, FLOATS),
            ((2, 3, 2), 6, np.int64, FLOATS),
            ((4,), 1, np.int64, FLOATS[1:2]),
            ((3,), 5, np.int16, FLOATS[1:2]),
        )
    ],
    Case("cross_entropy", [own(0, 3), classes(0, count=3)], {}, (np.zeros(0), np.zeros(0))),
    *[
        Case(
            "cross_entropy_gradient",
            [x, t, loss_and_sums(x, t)[1].astype(np.float32), own(*t.shape), own(*t.shape) if more else None],
            {"zeros": zeros},
            loss_gradient,
            name=f"{x.shape[1]}-{more}-{zeros}",
        )
        for x, t, more, zeros in (
            (*scored(5, count=7), False, 0),
            (*scored(3, count=1003, dtype=np.int32), True, 0),
            (*scored(2, 3, 2, count=6), True, 0),
            (*scored(5, count=7), False, 1),
            (*scored(2, 3, 2, count=6), True, 2),
        )
    ],
]
