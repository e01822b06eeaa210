"""Converters of ai.onnx.ml's tree ensembles. What the trees are is in forest.py, post-transforms and labels in scores.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import InvalidModel, UnsupportedType
from flamert.graph import Value
from flamert.importers.forest import Forest, by_node_id, by_position, column
from flamert.importers.registry import Context, converter
from flamert.importers.scores import TRANSFORMS, both, class_labels, labelled, rows, single, transformed
from flamert.importers.tabular import ML

AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
"""In the order in which TreeEnsemble-5 numbers them."""

Floats = Sequence[float]
Ints = Sequence[int]


def _working_type(x: Value) -> np.dtype:
    """The type that trees compare and sum in: as exact as the input, and at least float32."""
    if x.dtype not in (dtypes.float16, dtypes.float32, dtypes.float64, dtypes.int32, dtypes.int64):
        raise UnsupportedType(f"tree ensembles take floats, int32 and int64, not {x.dtype.name}")
    return dtypes.float64 if x.dtype == dtypes.float64 else dtypes.float32


def _numbers(floats: Floats, tensor: np.ndarray | None, dtype: np.dtype) -> np.ndarray:
    """An attribute that is given as floats or, to allow doubles, as a tensor."""
    if tensor is not None and tensor.size:
        return tensor.reshape(-1).astype(dtype)
    return np.array(floats, np.float32).astype(dtype)


@converter("TreeEnsemble", 5, domain=ML)
def _(
    ctx: Context,
    x: Value,
    *,
    aggregate_function: int = 1,
    leaf_targetids: Ints,
    leaf_weights: np.ndarray,
    membership_values: np.ndarray | None = None,
    n_targets: int | None = None,
    nodes_falseleafs: Ints,
    nodes_falsenodeids: Ints,
    nodes_featureids: Ints,
    nodes_hitrates: np.ndarray | None = None,
    nodes_missing_value_tracks_true: Ints = (),
    nodes_modes: np.ndarray,
    nodes_splits: np.ndarray,
    nodes_trueleafs: Ints,
    nodes_truenodeids: Ints,
    post_transform: int = 0,
    tree_roots: Ints,
) -> Value:
    if not 0 <= aggregate_function < len(AGGREGATES) or not 0 <= post_transform < len(TRANSFORMS):
        raise InvalidModel(f"unknown aggregate_function {aggregate_function} or post_transform {post_transform}")
    dtype = _working_type(x)
    forest = by_position(
        modes=nodes_modes.reshape(-1).astype(np.int64),
        features=np.array(nodes_featureids, np.int64),
        splits=nodes_splits.reshape(-1).astype(dtype),
        true=(np.array(nodes_truenodeids, np.int64), np.array(nodes_trueleafs, np.bool_)),
        false=(np.array(nodes_falsenodeids, np.int64), np.array(nodes_falseleafs, np.bool_)),
        roots=np.array(tree_roots, np.int64),
        targets=np.array(leaf_targetids, np.int64),
        weights=leaf_weights.reshape(-1).astype(dtype),
        n_targets=n_targets if n_targets is not None else max(leaf_targetids, default=0) + 1,
        missing=np.array(nodes_missing_value_tracks_true, np.bool_) if nodes_missing_value_tracks_true else None,
        membership=np.zeros(0, dtype) if membership_values is None else membership_values.reshape(-1).astype(dtype),
    )
    scores = _regressed(rows(x, dtype), forest, AGGREGATES[aggregate_function], TRANSFORMS[post_transform], None)
    return scores if scores.dtype == x.dtype else ops.cast(scores, to=x.dtype)


def _regressed(x: Value, forest: Forest, aggregate: str, transform: str, base: np.ndarray | None) -> Value:
    """Scores of a regressor, [N, n_targets]. As in onnxruntime, a target that no leaf has an entry for stays 0, base or not."""
    scores, reached = forest.scores(x, aggregate)
    if base is not None and len(base):
        if len(base) != forest.n_targets:
            raise InvalidModel(f"{len(base)} base_values for {forest.n_targets} targets")
        scores = scores + base
        if forest.n_targets > 1:
            scores = only_reached(scores, reached, 0)
    return transformed(scores, transform) if forest.n_targets > 1 else single(scores, transform)


def only_reached(scores: Value, reached: Sequence[bool | Value], otherwise: float) -> Value:
    """The scores [N, K] where the target was reached, `otherwise` elsewhere."""
    if all(r is True for r in reached):
        return scores
    n = scores.shape[0]
    columns = [g.constant(np.full((n, 1), r)) if isinstance(r, bool) else r for r in reached]
    return ops.where(ops.concat(*columns, axis=1), scores, otherwise)


def either(condition: bool | Value, a: Value, b: Value) -> Value:
    """`a` where the condition holds, else `b`; the condition may be known for all rows."""
    return (a if condition else b) if isinstance(condition, bool) else ops.where(condition, a, b)


@converter("TreeEnsembleRegressor", domain=ML)
def _(
    ctx: Context,
    x: Value,
    *,
    aggregate_function: str = "SUM",
    base_values: Floats = (),
    base_values_as_tensor: np.ndarray | None = None,
    n_targets: int | None = None,
    nodes_falsenodeids: Ints = (),
    nodes_featureids: Ints = (),
    nodes_hitrates: Floats = (),
    nodes_hitrates_as_tensor: np.ndarray | None = None,
    nodes_missing_value_tracks_true: Ints = (),
    nodes_modes: Sequence[str] = (),
    nodes_nodeids: Ints = (),
    nodes_treeids: Ints = (),
    nodes_truenodeids: Ints = (),
    nodes_values: Floats = (),
    nodes_values_as_tensor: np.ndarray | None = None,
    post_transform: str = "NONE",
    target_ids: Ints = (),
    target_nodeids: Ints = (),
    target_treeids: Ints = (),
    target_weights: Floats = (),
    target_weights_as_tensor: np.ndarray | None = None,
) -> Value:
    dtype = _working_type(x)
    forest = by_node_id(
        {
            "treeids": nodes_treeids,
            "nodeids": nodes_nodeids,
            "featureids": nodes_featureids,
            "modes": nodes_modes,
            "truenodeids": nodes_truenodeids,
            "falsenodeids": nodes_falsenodeids,
            "missing_value_tracks_true": nodes_missing_value_tracks_true,
        },
        _numbers(nodes_values, nodes_values_as_tensor, dtype),
        {"treeids": target_treeids, "nodeids": target_nodeids, "ids": target_ids},
        _numbers(target_weights, target_weights_as_tensor, dtype),
        n_targets if n_targets is not None else max(target_ids, default=0) + 1,
    )
    base = _numbers(base_values, base_values_as_tensor, dtype)
    return ops.cast(_regressed(rows(x, dtype), forest, aggregate_function, post_transform, base), to=dtypes.float32)


@converter("TreeEnsembleClassifier", domain=ML)
def _(
    ctx: Context,
    x: Value,
    *,
    base_values: Floats = (),
    base_values_as_tensor: np.ndarray | None = None,
    class_ids: Ints = (),
    class_nodeids: Ints = (),
    class_treeids: Ints = (),
    class_weights: Floats = (),
    class_weights_as_tensor: np.ndarray | None = None,
    classlabels_int64s: Ints = (),
    classlabels_strings: Sequence[str] = (),
    nodes_falsenodeids: Ints = (),
    nodes_featureids: Ints = (),
    nodes_hitrates: Floats = (),
    nodes_hitrates_as_tensor: np.ndarray | None = None,
    nodes_missing_value_tracks_true: Ints = (),
    nodes_modes: Sequence[str] = (),
    nodes_nodeids: Ints = (),
    nodes_treeids: Ints = (),
    nodes_truenodeids: Ints = (),
    nodes_values: Floats = (),
    nodes_values_as_tensor: np.ndarray | None = None,
    post_transform: str = "NONE",
) -> Any:
    labels = class_labels(classlabels_int64s, classlabels_strings)
    dtype = _working_type(x)
    weights = _numbers(class_weights, class_weights_as_tensor, dtype)
    forest = by_node_id(
        {
            "treeids": nodes_treeids,
            "nodeids": nodes_nodeids,
            "featureids": nodes_featureids,
            "modes": nodes_modes,
            "truenodeids": nodes_truenodeids,
            "falsenodeids": nodes_falsenodeids,
            "missing_value_tracks_true": nodes_missing_value_tracks_true,
        },
        _numbers(nodes_values, nodes_values_as_tensor, dtype),
        {"treeids": class_treeids, "nodeids": class_nodeids, "ids": class_ids},
        weights,
        len(labels),
    )
    base = _numbers(base_values, base_values_as_tensor, dtype)
    x = rows(x, dtype)
    scores, reached = forest.scores(x, "SUM")
    if len(labels) > 2:
        return _many(ctx, scores, reached, base, post_transform, labels)
    if len(labels) == 1:
        return _one(ctx, scores, base, post_transform, labels)
    lone = len(set(class_ids)) == 1
    return _two(ctx, scores, reached, base, post_transform, labels, lone, bool((weights >= 0).all()))


def _many(
    ctx: Context, scores: Value, reached: Sequence[bool | Value], base: np.ndarray, transform: str, labels: Sequence[Any]
) -> Any:
    """Three classes or more: the greatest score wins, among those that some leaf has an entry for."""
    best = only_reached(scores, reached, -np.inf)
    if len(base):
        if len(base) != len(labels):
            raise InvalidModel(f"{len(base)} base_values for {len(labels)} classes")
        best = scores = scores + base
    return labelled(ctx, ops.argmax(best, axis=1), transformed(scores, transform), labels)


def _one(ctx: Context, scores: Value, base: np.ndarray, transform: str, labels: Sequence[Any]) -> Any:
    """One class: whether the score is positive, as 1 or 0."""
    if len(base) > 1:
        raise InvalidModel(f"{len(base)} base_values for one class")
    scores = scores + base if len(base) else scores
    numbers = [0, 1] if not isinstance(labels[0], str) else ["0", labels[0]]
    return labelled(ctx, _positive(scores > 0), single(scores, transform), numbers)


def _positive(holds: Value) -> Value:
    return ops.cast(ops.reshape(holds, shape=holds.shape[:1]), to=dtypes.int64)


def _two(
    ctx: Context,
    scores: Value,
    reached: Sequence[bool | Value],
    base: np.ndarray,
    transform: str,
    labels: Sequence[Any],
    lone: bool,
    unsigned: bool,
) -> Any:
    """Two classes, by onnxruntime's rules, which tell rows by whether a leaf with an entry for the second class was reached.

    lone: entries are for one class only; its score then decides, against 0.5 if no weight is negative (unsigned), else
    against 0. With entries for both, the second class wins where its own score is positive, and integer labels are 1 and 0.
    """
    first, second = column(scores, 0), column(scores, 1)
    has_first, has_second = reached
    zero = g.constant(np.zeros(first.shape, scores.dtype))
    if len(base) == 2:
        shifted = first + base[1:]
        first = either(has_second, -shifted, first + base[:1])
        second = either(has_second, shifted, second)
    elif len(base) == 1:
        first = first + base
    elif len(base):
        raise InvalidModel(f"{len(base)} base_values for two classes")
    first = either(has_first, first, zero)
    weight = either(has_second, second, first)
    pair = transformed(ops.concat(first, second, axis=1), transform)
    if len(base) < 2:
        # A row without the second class has one score, from which the other follows.
        pair = either(has_second, pair, both(first, transform, signed=not (lone and unsigned)))
    numbers = labels if lone or isinstance(labels[0], str) else [0, 1]
    return labelled(ctx, _positive(weight > (0.5 if lone and unsigned else 0)), pair, numbers)
