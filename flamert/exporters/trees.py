"""Exporters of classical machine learning, in ordinary ops: trees are walked by gathers, tables searched by comparing."""

from __future__ import annotations

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.exporters.registry import spelled
from flamert.graph import Value


@spelled(ops.tree_leaves)
def _(
    x: Value,
    features: Value,
    splits: Value,
    children: Value,
    roots: Value,
    modes: Value | None = None,
    missing: Value | None = None,
    members: Value | None = None,
    sets: Value | None = None,
    *,
    depth: int,
    comparisons: tuple[str, ...],
) -> Value:
    """All rows take one step in all trees at once."""
    n, trees = x.shape[0], roots.type.size
    both = ops.reshape(ops.cast(children, to=dtypes.int64), shape=(children.type.size,))
    at = ops.expand(ops.cast(roots, to=dtypes.int64), shape=(n, trees))
    for _step in range(depth):
        value = ops.gather_elements(x, ops.cast(ops.gather(features, at, axis=0), to=dtypes.int64), axis=1)
        split = ops.gather(splits, at, axis=0)
        holds = _compared(comparisons[0], value, split, members, sets)
        if modes is not None:
            mode = ops.cast(ops.gather(modes, at, axis=0), to=dtypes.int32)
            for i, comparison in enumerate(comparisons[1:], 1):
                holds = ops.where(ops.equal(mode, i), _compared(comparison, value, split, members, sets), holds)
        if missing is not None:
            holds = ops.logical_or(holds, ops.logical_and(ops.isnan(value), ops.gather(missing, at, axis=0)))
        at = ops.gather(both, at * 2 + ops.cast(holds, to=dtypes.int64), axis=0)
    return ops.cast(at, to=dtypes.int32)


def _compared(comparison: str, value: Value, split: Value, members: Value | None, sets: Value | None) -> Value:
    if comparison != "in":
        return ops.OPS[comparison](value, split)
    assert members is not None and sets is not None
    if not members.type.size:
        return ops.expand(g.constant(np.array(False)), shape=value.shape)
    found = ops.equal(ops.reshape(value, shape=(*value.shape, 1)), members)
    # Splits of other comparisons are no numbers of sets.
    number = ops.minimum(ops.maximum(split, 0), sets.shape[0] - 1)
    own = ops.gather(sets, ops.cast(ops.where(ops.equal(split, split), number, 0), to=dtypes.int64), axis=0)
    hits = ops.cast(ops.logical_and(found, own), to=dtypes.int32)
    return ops.reduce_max(hits, axes=(value.rank,)) > 0


@spelled(ops.lookup)
def _(x: Value, keys: Value, values: Value, default: Value) -> Value:
    """Every element beside every key."""
    one = ops.reshape(default, shape=())
    if not keys.type.size:
        return ops.expand(one, shape=x.shape)
    apart = ops.reshape(x, shape=(*x.shape, 1))
    same = ops.equal(apart, keys)
    if x.dtype in dtypes.STANDARD_FLOAT:
        same = ops.logical_or(same, ops.logical_and(ops.isnan(apart), ops.isnan(keys)))
    hits = ops.cast(same, to=dtypes.int32)
    found = ops.gather(values, ops.argmax(hits, axis=x.rank), axis=0)
    return ops.where(ops.reduce_max(hits, axes=(x.rank,)) > 0, found, one)
