"""Converters of ai.onnx.ml's support-vector machines: kernels, pairwise decisions, votes and calibrated probabilities."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import InvalidModel
from flamert.graph import Value
from flamert.importers.registry import Context, converter
from flamert.importers.scores import both, class_labels, labelled, rows, transformed
from flamert.importers.tabular import ML, coefficient_matrix


def kernel_values(x: Value, vectors: np.ndarray, kind: str, parameters: Sequence[float]) -> Value:
    """k(x, v) of each row of x [N, F] with each of `vectors` [V, F]: [N, V]. parameters: gamma, coef0, degree."""
    gamma, coef0, degree = [*parameters, 0.0, 0.0, 0.0][:3]
    if kind == "LINEAR":
        return x @ g.constant(vectors.T)
    if kind in ("POLY", "SIGMOID"):
        product = x @ g.constant(np.float32(gamma) * vectors.T) + coef0
        return ops.pow(product, degree) if kind == "POLY" else ops.tanh(product)
    if kind != "RBF":
        raise InvalidModel(f"unknown kernel_type {kind!r}")
    # |x − v|² = |x|² − 2 x·v + |v|² cancels badly far from the origin, so both are seen from the vectors' mean.
    mean = vectors.mean(0)
    x, vectors = x - mean, vectors - mean
    squares = ops.reduce_sum(x * x, axes=(1,), keepdims=True) + (vectors * vectors).sum(1)
    return ops.exp(ops.maximum(squares - x @ g.constant(2 * vectors.T), 0) * -gamma)


@converter("SVMRegressor", domain=ML)
def _(
    ctx: Context,
    x: Value,
    *,
    coefficients: Sequence[float] = (),
    kernel_params: Sequence[float] = (),
    kernel_type: str = "LINEAR",
    n_supports: int = 0,
    one_class: int = 0,
    post_transform: str = "NONE",
    rho: Sequence[float] = (0.0,),
    support_vectors: Sequence[float] = (),
) -> Value:
    # As in onnxruntime, post_transform has no effect.
    x = rows(x)
    if n_supports > 0:
        vectors = coefficient_matrix(support_vectors, x.shape[1], n_supports)
        weights = coefficient_matrix(coefficients, n_supports, 1)
        y = kernel_values(x, vectors, kernel_type, kernel_params) @ g.constant(weights.T)
    else:
        y = x @ g.constant(coefficient_matrix(coefficients, x.shape[1], 1).T)
    y = y + rho[0]
    return ops.where(y > 0, 1, g.constant(np.full((), -1, np.float32))) if one_class else y


@converter("SVMClassifier", domain=ML)
def _(
    ctx: Context,
    x: Value,
    *,
    classlabels_ints: Sequence[int] = (),
    classlabels_strings: Sequence[str] = (),
    coefficients: Sequence[float] = (),
    kernel_params: Sequence[float] = (),
    kernel_type: str = "LINEAR",
    post_transform: str = "NONE",
    prob_a: Sequence[float] = (),
    prob_b: Sequence[float] = (),
    rho: Sequence[float] = (0.0,),
    support_vectors: Sequence[float] = (),
    vectors_per_class: Sequence[int] = (),
) -> Any:
    labels = class_labels(classlabels_ints, classlabels_strings)
    x = rows(x)
    if not sum(vectors_per_class):
        matrix = coefficient_matrix(coefficients, x.shape[1], len(labels))
        return _linear(ctx, x @ g.constant(matrix.T) + rho[0], bool((matrix >= 0).all()), post_transform, labels)
    pairs = list(itertools.combinations(range(len(labels)), 2))
    if len(vectors_per_class) != len(labels) or len(rho) < len(pairs) or len(prob_a) != len(prob_b):
        raise InvalidModel(f"vectors_per_class, rho, prob_a or prob_b do not fit {len(labels)} classes")
    vectors = coefficient_matrix(support_vectors, x.shape[1], sum(vectors_per_class))
    weights = _pair_weights(coefficients, vectors_per_class, pairs)
    decisions = kernel_values(x, vectors, kernel_type, kernel_params) @ g.constant(weights)
    decisions = decisions + np.array(rho[: len(pairs)], np.float32)
    winner = ops.argmax(_votes(decisions, pairs, len(labels)), axis=1)
    if prob_a:
        probabilities = ops.couple_pairs(_pair_probabilities(decisions, pairs, len(labels), prob_a, prob_b))
        return labelled(ctx, winner, transformed(probabilities, post_transform), labels)
    if len(labels) == 2:
        return labelled(ctx, winner, both(decisions, post_transform, signed=post_transform == "NONE"), labels)
    return labelled(ctx, winner, transformed(decisions, post_transform), labels)


def _linear(ctx: Context, scores: Value, unsigned: bool, transform: str, labels: Sequence[Any]) -> Any:
    """One score for each class. Of two classes, onnxruntime takes the second if the greater score is positive.

    (If no coefficient is negative (unsigned), if it is at least 0.5.)
    """
    best = ops.argmax(scores, axis=1)
    if len(labels) == 2:
        top = ops.reduce_max(scores, axes=(1,))
        best = ops.where(top >= 0.5 if unsigned else top > 0, 1, best)
    return labelled(ctx, best, transformed(scores, transform), labels)


def _pair_weights(coefficients: Sequence[float], counts: Sequence[int], pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """The weight of each vector in the decision between each pair of classes, [V, pairs].

    coefficients: [classes − 1, V], where a vector of class i has its weight against class j in row j − (j > i).
    """
    starts = np.concatenate([[0], np.cumsum(counts)])
    table = coefficient_matrix(coefficients, int(starts[-1]), len(counts) - 1)
    weights = np.zeros((starts[-1], len(pairs)), np.float32)
    for p, (i, j) in enumerate(pairs):
        of_i, of_j = slice(starts[i], starts[i + 1]), slice(starts[j], starts[j + 1])
        weights[of_i, p] = table[j - 1, of_i]
        weights[of_j, p] = table[i, of_j]
    return weights


def _votes(decisions: Value, pairs: Sequence[tuple[int, int]], n_classes: int) -> Value:
    """How many pairs each class wins: the first of a pair where the decision is positive, else the second."""
    turn = np.zeros((len(pairs), n_classes), np.float32)
    base = np.zeros(n_classes, np.float32)
    for p, (i, j) in enumerate(pairs):
        turn[p, i], turn[p, j] = 1, -1
        base[j] += 1
    return ops.cast(decisions > 0, to=dtypes.float32) @ g.constant(turn) + base


def _pair_probabilities(
    decisions: Value, pairs: Sequence[tuple[int, int]], n_classes: int, a: Sequence[float], b: Sequence[float]
) -> Value:
    """r[:, i, j], the probability of i where it is i or j, by Platt's sigmoid of the decision: [N, K, K]."""
    count = len(pairs)
    if len(a) < count:
        raise InvalidModel(f"{len(a)} values of prob_a for {count} pairs of classes")
    margin = decisions * np.array(a[:count], np.float32) + np.array(b[:count], np.float32)
    p = ops.clip(ops.sigmoid(-margin), g.constant(np.float32(1e-7)), g.constant(np.float32(1 - 1e-7)))
    # The columns of [p, 1 − p, 0] that make up the square, row by row.
    place = np.full((n_classes, n_classes), 2 * count)
    for n, (i, j) in enumerate(pairs):
        place[i, j], place[j, i] = n, count + n
    columns = ops.concat(p, 1 - p, g.constant(np.zeros((decisions.shape[0], 1), np.float32)), axis=1)
    return ops.gather(columns, g.constant(place), axis=1)
