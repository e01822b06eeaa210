"""Gradients of resampling: the same weights lead back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.grad.registry import gradient
from flamert.graph import Value
from flamert.ops.evaluate import value_of
from flamert.ops.resize import transposed


@gradient(ops.resample)
def _(dy: Any, y: Any, x: Any, *taps: Any, axes: Any) -> Any:
    """dx[…, i, …] = Σ weight[o, t] · dy[…, o, …] over all o, t with index[o, t] = i, along each of `axes`;
    dweight[o, t] = Σ dy[…, o, …] · x[…, index[o, t], …], the other axes of x resampled.
    """
    axes = [a % x.rank for a in axes]
    pairs = list(zip(taps[::2], taps[1::2], strict=True))
    back = [_back(index, weight, x.shape[a]) for a, (index, weight) in zip(axes, pairs, strict=True)]
    flows: list[Value | None] = [ops.resample(dy, *[v for pair in back for v in pair], axes=axes)]
    for i, (index, weight) in enumerate(pairs):
        others = [j for j in range(len(axes)) if j != i]
        rest = ops.resample(x, *[v for j in others for v in pairs[j]], axes=[axes[j] for j in others]) if others else x
        flows += [None, None if weight.node.known else _weights(dy, rest, index, weight, axes[i])]
    return flows


def _back(index: Value, weight: Value, size: int) -> Sequence[Value]:
    """The taps of the adjoint along one axis of `size` elements."""
    if index.node.known:
        at = value_of(index)
        back, slots = transposed(at, np.arange(1, at.size + 1).reshape(at.shape), size)
        factors = ops.concat(g.constant(np.zeros(1, weight.dtype)), ops.reshape(weight, shape=(at.size,)), axis=0)
        return g.constant(back), ops.gather(factors, g.constant(slots), axis=0)
    # Where the taps lie is computed, so every result may be made of every element.
    new, count = index.shape
    hit = ops.equal(ops.reshape(index, shape=(new, count, 1)), g.constant(np.arange(size)))
    spread = ops.where(hit, ops.reshape(weight, shape=(new, count, 1)), g.constant(np.zeros((), weight.dtype)))
    dense = ops.transpose(ops.reduce_sum(spread, axes=(1,)), perm=(1, 0))
    return g.constant(np.repeat(np.arange(new)[None], size, 0)), dense


def _weights(dy: Value, x: Value, index: Value, weight: Value, axis: int) -> Value:
    seen = ops.cast(ops.gather(x, index, axis=axis), to=weight.dtype)
    upstream = ops.reshape(ops.cast(dy, to=weight.dtype), shape=(*dy.shape[: axis + 1], 1, *dy.shape[axis + 1 :]))
    return ops.reduce_sum(seen * upstream, axes=[i for i in range(seen.rank) if i not in (axis, axis + 1)])
