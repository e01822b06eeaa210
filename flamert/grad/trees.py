"""Gradients of classical machine learning: with respect to the values that leaves and keys stand for, not to the way there."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.grad.registry import flat, gradient
from flamert.ops.shape import narrow

flat(ops.tree_leaves)


@gradient(ops.lookup)
def _(dy: Any, y: Any, x: Any, keys: Any, values: Any, default: Any) -> Any:
    """dvalues[i] = Σ dy where x equals keys[i], ddefault = Σ dy where it equals none"""
    count = keys.shape[0]
    found = ops.lookup(x, keys, g.constant(np.arange(count)), g.constant(np.array(count)))
    where = ops.reshape(found, shape=(x.type.size, 1))
    none = g.constant(np.zeros(count + 1, dy.dtype))
    sums = ops.scatter_nd(none, where, ops.reshape(dy, shape=(x.type.size,)), reduction="add")
    dvalues = narrow(sums, 0, 0, count)
    ddefault = ops.reshape(narrow(sums, 0, count, 1), shape=default.shape)
    return None, None, dvalues, ddefault
