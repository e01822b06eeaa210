"""Converters of ai.onnx.ml's linear models, and of what prepares their features: scaling, imputing, joining and so on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import InvalidModel, ShapeError
from flamert.graph import Value
from flamert.importers.registry import Context, converter
from flamert.importers.scores import both, class_labels, labelled, rows, single, transformed

ML = "ai.onnx.ml"


def per_feature(values: Sequence[Any], x: Value, dtype: np.dtype, what: str) -> Value:
    """An attribute with one value, or one for each feature, shaped to broadcast over x: [F] or [N, F, …]."""
    n_features = x.shape[min(x.rank - 1, 1)] if x.rank else 1
    array = np.array(values, dtype)
    if array.size == 1:
        return g.constant(array.reshape(()))
    if array.size != n_features:
        raise ShapeError(f"{what} has {array.size} values for {n_features} features")
    return g.constant(array.reshape(-1, *[1] * (x.rank - 2)))


def coefficient_matrix(coefficients: Sequence[float], n_features: int, n_rows: int | None = None) -> np.ndarray:
    """Coefficients as [rows, F]. Raises ShapeError where they do not fit."""
    array = np.array(coefficients, np.float32)
    if not n_features or not array.size or array.size % n_features or n_rows not in (None, array.size // n_features):
        raise ShapeError(f"{array.size} coefficients for {n_features} features")
    return array.reshape(-1, n_features)


@converter("Scaler", domain=ML)
def _(ctx: Context, x: Value, *, offset: Sequence[float] = (), scale: Sequence[float] = ()) -> Value:
    # Of the element types it takes, only double is wider than the float32 of the result.
    wide = x if x.dtype == dtypes.float64 else ops.cast(x, to=dtypes.float32)
    y = wide
    if offset:
        y = y - per_feature(offset, x, wide.dtype, "offset")
    if scale:
        y = y * per_feature(scale, x, wide.dtype, "scale")
    return ops.cast(y, to=dtypes.float32)


@converter("Normalizer", domain=ML)
def _(ctx: Context, x: Value, *, norm: str = "MAX") -> Value:
    if x.rank not in (1, 2):
        raise ShapeError(f"Normalizer takes [N, F] or [F], not {list(x.shape)}")
    x = ops.cast(x, to=dtypes.float32)
    axes = (x.rank - 1,)
    if norm == "MAX":
        size = ops.reduce_max(x, axes=axes, keepdims=True)
    elif norm in ("L1", "L2"):
        size = (ops.reduce_l1 if norm == "L1" else ops.reduce_l2)(x, axes=axes, keepdims=True)
    else:
        raise InvalidModel(f"norm is {norm!r}, not MAX, L1 or L2")
    return x / ops.where(ops.equal(size, 0), 1, size)


@converter("Binarizer", domain=ML)
def _(ctx: Context, x: Value, *, threshold: float = 0.0) -> Value:
    above = x > threshold if x.dtype in dtypes.FLOAT else ops.cast(x, to=dtypes.float64) > threshold
    return ops.cast(above, to=x.dtype)


@converter("Imputer", domain=ML)
def _(
    ctx: Context,
    x: Value,
    *,
    imputed_value_floats: Sequence[float] = (),
    imputed_value_int64s: Sequence[int] = (),
    replaced_value_float: float = 0.0,
    replaced_value_int64: int = 0,
) -> Value:
    floating = x.dtype in dtypes.FLOAT
    imputed: Sequence[Any] = imputed_value_floats if floating else imputed_value_int64s
    if not imputed:
        raise InvalidModel(f"Imputer has no values to impute for {x.type}")
    n_features = x.shape[min(x.rank - 1, 1)] if x.rank else 1
    # With neither one value nor one for each feature, onnxruntime takes the first for all.
    fill = per_feature(imputed if len(imputed) == n_features else imputed[:1], x, x.dtype, "imputed_value")
    if floating and np.isnan(replaced_value_float):
        return ops.where(ops.isnan(x), fill, x)
    return ops.where(ops.equal(x, replaced_value_float if floating else replaced_value_int64), fill, x)


@converter("FeatureVectorizer", domain=ML)
def _(ctx: Context, *xs: Value, inputdimensions: Sequence[int] = ()) -> Value:
    widths = inputdimensions or [x.type.size // (x.shape[0] if x.rank > 1 else 1) for x in xs]
    if len(widths) != len(xs):
        raise InvalidModel(f"{len(widths)} inputdimensions for {len(xs)} inputs")
    parts = []
    for x, width in zip(xs, widths, strict=True):
        n = x.shape[0] if x.rank > 1 else 1
        part = ops.reshape(ops.cast(x, to=dtypes.float32), shape=(n, x.type.size // max(n, 1)))
        if part.shape[1] > width:
            part = ops.slice(part, starts=(0, 0), sizes=(n, width), steps=(1, 1))
        elif part.shape[1] < width:
            part = ops.concat(part, g.constant(np.zeros((n, width - part.shape[1]), np.float32)), axis=1)
        parts.append(part)
    return ops.concat(*parts, axis=1) if len(parts) > 1 else parts[0]


@converter("ArrayFeatureExtractor", domain=ML)
def _(ctx: Context, x: Value, y: Value) -> Value:
    if not x.rank:
        raise ShapeError("ArrayFeatureExtractor takes no scalars")
    x = x if x.rank > 1 else ops.reshape(x, shape=(1, *x.shape))
    return ops.gather(x, ops.reshape(y, shape=(y.type.size,)), axis=x.rank - 1)


@converter("LinearRegressor", domain=ML)
def _(
    ctx: Context,
    x: Value,
    *,
    coefficients: Sequence[float] = (),
    intercepts: Sequence[float] = (),
    post_transform: str = "NONE",
    targets: int = 1,
) -> Value:
    x = rows(x)
    y = x @ g.constant(coefficient_matrix(coefficients, x.shape[1], targets).T)
    if len(intercepts) == targets:
        y = y + np.array(intercepts, np.float32)
    return transformed(y, post_transform) if targets > 1 else single(y, post_transform)


@converter("LinearClassifier", domain=ML)
def _(
    ctx: Context,
    x: Value,
    *,
    classlabels_ints: Sequence[int] = (),
    classlabels_strings: Sequence[str] = (),
    coefficients: Sequence[float],
    intercepts: Sequence[float] = (),
    multi_class: int = 0,
    post_transform: str = "NONE",
) -> Any:
    labels = class_labels(classlabels_ints, classlabels_strings)
    x = rows(x)
    matrix = coefficient_matrix(coefficients, x.shape[1], len(intercepts) or None)
    scores = x @ g.constant(matrix.T)
    if intercepts:
        scores = scores + np.array(intercepts, np.float32)
    if len(matrix) > 1:
        if len(labels) < len(matrix):
            raise InvalidModel(f"{len(labels)} labels for {len(matrix)} classes")
        return labelled(ctx, ops.argmax(scores, axis=1), transformed(scores, post_transform), labels)
    if len(labels) != 2:
        raise InvalidModel(f"one score decides between two labels, not {len(labels)}")
    positive = ops.cast(ops.reshape(scores > 0, shape=scores.shape[:1]), to=dtypes.int64)
    return labelled(ctx, positive, both(scores, post_transform, signed=False), labels)
