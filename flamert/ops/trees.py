"""Ops of classical machine learning: decision trees, values looked up by key, probabilities coupled from pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from flamert import dtypes
from flamert import graph as g
from flamert.errors import ShapeError, UnsupportedType
from flamert.graph import TensorType
from flamert.ops.index import gather
from flamert.ops.linear import inverse
from flamert.ops.logic import equal, where
from flamert.ops.op import composite, kernel, op
from flamert.ops.reduce import reduce_max, reduce_min, reduce_sum
from flamert.ops.rules import require, same_dtype
from flamert.ops.shape import reshape, transpose

COMPARISONS = ("less_equal", "less", "greater_equal", "greater", "equal", "not_equal", "in")
"""How a tree's node may compare its feature with its split; the first six are ufuncs' names."""

BLOCK = 1 << 20
"""Elements that a kernel's temporaries may have: rows are taken in blocks."""


@op
def tree_leaves(
    x: TensorType,
    features: TensorType,
    splits: TensorType,
    children: TensorType,
    roots: TensorType,
    modes: TensorType | None = None,
    missing: TensorType | None = None,
    members: TensorType | None = None,
    sets: TensorType | None = None,
    *,
    depth: int,
    comparisons: tuple[str, ...] = ("less_equal",),
) -> TensorType:
    """The node that each row of `x` comes to in each tree, after `depth` steps from the tree's root.

    A step from node n compares x[:, features[n]] with splits[n] and goes to children[n, 1] where that holds, else to
    children[n, 0]; leaves have themselves for children. comparisons: the kinds that occur, of COMPARISONS; modes[n] is the
    index of node n's own (absent: all have the first). "in" asks whether the feature is in set number splits[n]: members is
    the sorted union of the sets, sets[s, i] says whether members[i] is in set s. missing[n]: NaN goes to children[n, 1].
    x: floating [N, F]; splits, members: of x's type; features, roots: int32 [n], [T]; children: int32 [n, 2]; modes: uint8;
    missing, sets: bool. Returns int32 [N, T]. Every index must lie within its array; the importer sees to that.
    Source: ONNX-ML TreeEnsemble-5.
    """
    require(x, dtypes.STANDARD_FLOAT, "floating")
    same_dtype(x, splits)
    n = features.size
    if x.rank != 2 or splits.shape != (n,) or children.shape != (n, 2) or roots.rank != 1:
        raise ShapeError(f"{x}, {splits}, {children} and {roots} make no trees of {n} nodes")
    if not set(comparisons) <= set(COMPARISONS) or (modes is None and len(comparisons) != 1):
        raise UnsupportedType(f"comparisons {list(comparisons)} without modes, or not among {list(COMPARISONS)}")
    if "in" in comparisons and (members is None or sets is None or sets.shape[1:] != members.shape):
        raise ShapeError('"in" needs the sets and their members')
    return TensorType((x.shape[0], roots.size), dtypes.int32)


def _blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of the rows, such that a temporary of this many elements a row stays small."""
    step = max(1, BLOCK // max(width, 1))
    return (slice(at, at + step) for at in range(0, rows, step))


@kernel(tree_leaves)
def _(
    xp: Any,
    out: Any,
    x: Any,
    features: Any,
    splits: Any,
    children: Any,
    roots: Any,
    modes: Any = None,
    missing: Any = None,
    members: Any = None,
    sets: Any = None,
    *,
    depth: int,
    comparisons: tuple[str, ...],
) -> None:
    children = children.reshape(-1)
    for rows in _blocks(len(x), len(roots)):
        block = x[rows]
        at = xp.broadcast_to(roots, (len(block), len(roots)))
        for _step in range(depth):
            value = xp.take_along_axis(block, features[at], axis=1)
            split = splits[at]
            holds = _compare(xp, comparisons[0], value, split, members, sets)
            for i, comparison in enumerate(comparisons[1:], 1):
                holds = xp.where(modes[at] == i, _compare(xp, comparison, value, split, members, sets), holds)
            if missing is not None:
                holds |= xp.isnan(value) & missing[at]
            at = children[2 * at + holds]
        out[rows] = at


def _compare(xp: Any, comparison: str, value: Any, split: Any, members: Any, sets: Any) -> Any:
    if comparison != "in":
        return getattr(xp, comparison)(value, split)
    if not len(members):
        return xp.zeros(value.shape, bool)
    place = xp.minimum(xp.searchsorted(members, value), len(members) - 1)
    # Nodes that compare otherwise have splits that number no set; what they get here is not used.
    number = xp.clip(xp.nan_to_num(split), 0, len(sets) - 1).astype(xp.int64)
    return (members[place] == value) & sets[number, place]


@composite
def leaf_scores(leaves: Any, targets: Any, weights: Any, *, n_targets: int, aggregate: str = "sum") -> Any:
    """What the leaves reached in all trees give each target: Σ, min or max over t, e of weights[l, e], l = leaves[n, t].

    targets[l, e] says which target the e-th entry of node l is for; −1 marks no entry. A target that no entry is for gets 0.
    leaves: integer [N, T]; targets: int32 [n, E]; weights: floating [n, E]. Returns [N, n_targets] of weights' type; float32
    and narrower sum in float64, which CuPy too does in no fixed order. Source: ONNX-ML TreeEnsemble-5, TreeEnsembleRegressor-3.
    """
    require(weights.type, dtypes.STANDARD_FLOAT, "floating")
    if leaves.rank != 2 or targets.rank != 2 or targets.shape != weights.shape or n_targets < 0:
        raise ShapeError(f"{leaves.type}, {targets.type} and {weights.type} do not fit together")
    if aggregate not in ("sum", "min", "max"):
        raise UnsupportedType(f"aggregate {aggregate!r} is not sum, min or max")
    n, entries = weights.shape
    own = equal(reshape(targets, shape=(n, entries, 1)), g.constant(np.arange(n_targets), targets.dtype))
    given = reshape(weights, shape=(n, entries, 1))
    if aggregate == "sum":
        scores = reduce_sum(where(own, given, 0), axes=(1,))
        return reduce_sum(gather(scores, leaves, axis=0), axes=(1,))
    reduce, neutral = (reduce_min, np.inf) if aggregate == "min" else (reduce_max, -np.inf)
    best = reduce(gather(reduce(where(own, given, neutral), axes=(1,)), leaves, axis=0), axes=(1,))
    reached = reduce_max(gather(reduce_max(own, axes=(1,)), leaves, axis=0), axes=(1,))
    return where(reached, best, 0)


@kernel(leaf_scores)
def _(xp: Any, out: Any, leaves: Any, targets: Any, weights: Any, *, n_targets: int, aggregate: str) -> None:
    weights = weights.astype(xp.float64)
    columns = n_targets + 1  # the last one takes what is for no target
    targets = xp.where(targets < 0, n_targets, targets).astype(xp.int64)
    for rows in _blocks(len(leaves), leaves.shape[1] * targets.shape[1]):
        block = leaves[rows]
        n = len(block)
        cell = (targets[block] + columns * xp.arange(n)[:, None, None]).reshape(-1)
        weight = weights[block].reshape(-1)
        if aggregate == "sum":
            score = xp.bincount(cell, weight, minlength=n * columns)
        else:
            least = aggregate == "min"
            score = xp.full(n * columns, xp.inf if least else -xp.inf)
            (xp.minimum if least else xp.maximum).at(score, cell, weight)
            reached = xp.bincount(cell, minlength=n * columns) > 0
            score = xp.where(reached, score, 0)
        out[rows] = score.reshape(n, columns)[:, :n_targets]


@composite
def tree_ensemble(
    x: Any,
    features: Any,
    splits: Any,
    children: Any,
    roots: Any,
    targets: Any,
    weights: Any,
    modes: Any = None,
    missing: Any = None,
    members: Any = None,
    sets: Any = None,
    *,
    depth: int,
    n_targets: int,
    comparisons: tuple[str, ...] = ("less_equal",),
    aggregate: str = "sum",
) -> Any:
    """Scores of a decision-tree ensemble: leaf_scores of tree_leaves, which see for operands and attributes.

    x: floating [N, F]. Returns [N, n_targets] of weights' type. Source: ONNX-ML TreeEnsemble-5.
    """
    walk = (x, features, splits, children, roots, modes, missing, members, sets)
    leaves = tree_leaves(*walk, depth=depth, comparisons=comparisons)
    return leaf_scores(leaves, targets, weights, n_targets=n_targets, aggregate=aggregate)


@op
def lookup(x: TensorType, keys: TensorType, values: TensorType, default: TensorType) -> TensorType:
    """values[i] where x equals keys[i], `default` where it equals none; NaN counts as equal to NaN.

    x: any real type; keys: of x's type, [K], sorted (NaN last), no two equal; values: [K], default: [], of one type.
    Returns x's shape in values' type. Source: ONNX-ML LabelEncoder-4.
    """
    same_dtype(x, keys)
    dtype = same_dtype(values, default)
    if keys.rank != 1 or keys.shape != values.shape or default.size != 1:
        raise ShapeError(f"{keys}, {values} and {default} make no table")
    return TensorType(x.shape, dtype)


@kernel(lookup)
def _(xp: Any, out: Any, x: Any, keys: Any, values: Any, default: Any) -> None:
    if not len(keys):
        out[...] = default.reshape(())
        return
    place = xp.minimum(xp.searchsorted(keys, x), len(keys) - 1)
    found = keys[place]
    same = (found == x) | ((found != found) & (x != x))
    out[...] = xp.where(same, values[place], default.reshape(()))


@composite
def couple_pairs(r: Any) -> Any:
    """Class probabilities p from those of class pairs: p minimises Σᵢ Σⱼ (rⱼᵢ pᵢ − rᵢⱼ pⱼ)², with Σ p = 1 and p ≥ 0.

    r: floating [N, K, K]; r[:, i, j] is the probability of class i where it must be i or j; the diagonal is not read.
    Returns [N, K]. By cyclic descent to a residual of 0.005/K, a hundred sweeps at most, as libsvm does; its gradient is that
    of the exact minimiser. Source: Wu, Lin, Weng 2004, algorithm 2; ONNX-ML SVMClassifier-1.
    """
    require(r.type, dtypes.STANDARD_FLOAT - dtypes.HALF, "floating")
    if r.rank != 3 or r.shape[1] != r.shape[2]:
        raise ShapeError(f"{r.type} is not [N, K, K]")
    # Half the sum is pᵀQp, least where Qp is the same in every entry; adding 1 to all of Q keeps that p, up to a factor.
    diagonal = g.constant(np.eye(r.shape[1], dtype=np.bool_))
    r = where(diagonal, 0, r)
    against = transpose(r, perm=(0, 2, 1))
    squares = reduce_sum(against * against, axes=(2,), keepdims=True)
    p = reduce_sum(inverse(where(diagonal, squares, -against * r) + 1), axes=(2,))
    return p / reduce_sum(p, axes=(1,), keepdims=True)


@kernel(couple_pairs)
def _(xp: Any, out: Any, r: Any) -> None:
    n, k = out.shape
    if not out.size:
        return
    off = 1 - xp.eye(k, dtype=r.dtype)
    against = r.transpose(0, 2, 1) * off  # [n, i, j]: the probability of j in the pair i, j
    q = -against * r
    diagonal = (against**2).sum(2)
    q[:, xp.arange(k), xp.arange(k)] = diagonal
    p = xp.full((n, k), 1 / k, r.dtype)
    running = xp.ones(n, bool)
    for _sweep in range(100):
        qp = (q @ p[..., None])[..., 0]
        pqp = (p * qp).sum(1)
        running &= xp.abs(qp - pqp[:, None]).max(1) >= 0.005 / k
        if not running.any():
            break
        for i in range(k):
            step = xp.where(running, (pqp - qp[:, i]) / diagonal[:, i], 0)
            p[:, i] += step
            pqp = (pqp + step * (step * diagonal[:, i] + 2 * qp[:, i])) / (1 + step) ** 2
            qp = (qp + step[:, None] * q[:, i]) / (1 + step[:, None])
            p /= 1 + step[:, None]
    out[...] = p
