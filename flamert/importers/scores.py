"""What classifiers and regressors do with raw scores: post-transforms, a second column for binary ones, labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import InvalidModel, ShapeError
from flamert.graph import Value
from flamert.importers.registry import Context
from flamert.importers.text import string_array

TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
"""Post-transforms, in the order in which TreeEnsemble-5 numbers them."""


def rows(x: Value, dtype: np.dtype = dtypes.float32) -> Value:
    """`x` as [N, F] of a floating type; [F] counts as one row."""
    if x.rank not in (1, 2):
        raise ShapeError(f"[N, F] or [F] is needed, got {list(x.shape)}")
    x = x if x.dtype == dtype else ops.cast(x, to=dtype)
    return x if x.rank == 2 else ops.reshape(x, shape=(1, *x.shape))


def transformed(scores: Value, transform: str) -> Value:
    """A post-transform of scores [N, K]. SOFTMAX_ZERO leaves scores of zero out of the softmax, and zero."""
    if transform == "NONE":
        return scores
    if transform == "LOGISTIC":
        return ops.sigmoid(scores)
    if transform == "SOFTMAX":
        return ops.softmax(scores, axis=-1)
    if transform == "SOFTMAX_ZERO":
        top = ops.reduce_max(scores, axes=(1,), keepdims=True)
        zero = ops.abs(scores) <= 1e-7
        e = ops.exp(scores - top)
        total = ops.reduce_sum(ops.where(zero, 0, e), axes=(1,), keepdims=True)
        return ops.where(zero, scores * ops.exp(-top), e) / total
    if transform == "PROBIT":
        return _probit(scores)
    raise InvalidModel(f"unknown post_transform {transform!r}")


def _probit(p: Value) -> Value:
    """Φ⁻¹(p) = √2 erf⁻¹(2p − 1), in Winitzki's approximation, with onnxruntime's constants."""
    x = p * 2 - 1
    log = ops.log((1 - x) * (1 + x))
    v = log * 0.5 + 2 / (3.14159 * 0.147)
    root = ops.sqrt(ops.sqrt(v * v - log / 0.147) - v)
    return ops.where(x < 0, -root, root) * 2**0.5


def single(score: Value, transform: str) -> Value:
    """The post-transform of a lone score [N, 1]: as in onnxruntime, only PROBIT changes it."""
    return transformed(score, transform if transform == "PROBIT" else "NONE")


def both(score: Value, transform: str, *, signed: bool) -> Value:
    """Scores [N, 2] of a binary classifier that has one score [N, 1], the second class's: [−s, s] if signed, else [1 − s, s].

    LOGISTIC applies to [−s, s] either way. onnxruntime leaves PROBIT's second column undefined; here it mirrors the first.
    """
    if transform == "LOGISTIC":
        return ops.sigmoid(ops.concat(-score, score, axis=1))
    if transform == "PROBIT":
        p = transformed(score, transform)
        return ops.concat(p, -p, axis=1)
    return ops.concat(-score if signed else 1 - score, score, axis=1)


def labelled(ctx: Context, index: Value, scores: Value, labels: Sequence[Any]) -> Any:
    """A classifier's two outputs: the label of each row, by number [N] of a class, and the scores in float32."""
    if scores.dtype != dtypes.float32:
        scores = ops.cast(scores, to=dtypes.float32)
    if not ctx.wants(0):
        return None, scores
    if not isinstance(labels[0], str):
        return ops.gather(g.constant(np.array(labels, np.int64)), index, axis=0), scores
    return ctx.host(lambda index, scores: [string_array([labels[i] for i in index], index.shape), scores], index, scores)


def class_labels(ints: Sequence[int], strings: Sequence[str]) -> Sequence[Any]:
    """The labels, whichever kind is given."""
    if bool(ints) == bool(strings):
        raise InvalidModel("a classifier needs integer labels or string labels, and not both")
    return ints or strings
