"""Converters of ai.onnx.ml's encoders: labels, categories, and maps (Python dicts) to and from tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import InvalidModel, ShapeError, UnsupportedType
from flamert.graph import Value
from flamert.importers.registry import Context, converter
from flamert.importers.tabular import ML
from flamert.importers.text import string_array


def encoded(ctx: Context, x: Value, keys: Sequence[Any], values: np.ndarray, default: Any) -> Any:
    """values[i] where x is keys[i], else `default`: an op where only numbers are involved, else on the host."""
    if len(keys) != len(values):
        raise InvalidModel(f"{len(keys)} keys for {len(values)} values")
    if x.dtype.hasobject or values.dtype.hasobject:
        table = dict(zip(map(_key, keys), values, strict=True))

        def encode(x: np.ndarray) -> list[np.ndarray]:
            found = np.empty(x.size, values.dtype)
            found[:] = [table.get(_key(item), default) for item in x.reshape(-1).tolist()]
            return [found.reshape(x.shape)]

        return ctx.host(encode, x)
    # Of equal keys the last counts: np.unique, which keeps the first, sees them in reverse.
    ordered, first = np.unique(np.array(keys, x.dtype)[::-1], return_index=True)
    return ops.lookup(x, g.constant(ordered), g.constant(values[::-1][first]), g.constant(default, values.dtype))


def _key(item: Any) -> Any:
    """The item as a dict's key; all NaNs are one key."""
    return None if item != item else item


@converter("LabelEncoder", domain=ML, strings=True)
def _(
    ctx: Context, x: Value, *, classes_strings: Sequence[str] = (), default_int64: int = -1, default_string: str = "_Unused"
) -> Any:
    return _between(ctx, x, classes_strings, range(len(classes_strings)), default_string, default_int64)


@converter("CategoryMapper", domain=ML, strings=True)
def _(
    ctx: Context,
    x: Value,
    *,
    cats_int64s: Sequence[int] = (),
    cats_strings: Sequence[str] = (),
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> Any:
    return _between(ctx, x, cats_strings, cats_int64s, default_string, default_int64)


def _between(ctx: Context, x: Value, names: Sequence[str], numbers: Sequence[int], no_name: str, no_number: int) -> Any:
    """Strings to numbers, or numbers to strings, whichever x holds."""
    if x.dtype == dtypes.string:
        return encoded(ctx, x, names, np.array(numbers, np.int64), no_number)
    if x.dtype != dtypes.int64:
        raise UnsupportedType(f"strings or int64 are needed, got {x.type}")
    return encoded(ctx, x, numbers, string_array(names, (len(names),)), no_name)


@converter("LabelEncoder", 2, domain=ML, strings=True)
def _(
    ctx: Context,
    x: Value,
    *,
    default_float: float = -0.0,
    default_int64: int = -1,
    default_string: str = "_Unused",
    default_tensor: np.ndarray | None = None,
    keys_floats: Sequence[float] = (),
    keys_int64s: Sequence[int] = (),
    keys_strings: Sequence[str] = (),
    keys_tensor: np.ndarray | None = None,
    values_floats: Sequence[float] = (),
    values_int64s: Sequence[int] = (),
    values_strings: Sequence[str] = (),
    values_tensor: np.ndarray | None = None,
) -> Any:
    keys: Sequence[Any] = keys_tensor.reshape(-1).tolist() if keys_tensor is not None else ()
    keys = keys or keys_floats or keys_int64s or keys_strings
    default: Any = default_float
    if values_tensor is not None:
        values = values_tensor.reshape(-1)
        default = "_Unused" if values.dtype.hasobject else -0.0 if values.dtype in dtypes.FLOAT else -1
    elif values_strings:
        values, default = string_array(values_strings, (len(values_strings),)), default_string
    elif values_int64s:
        values, default = np.array(values_int64s, np.int64), default_int64
    else:
        values = np.array(values_floats, np.float32)
    if default_tensor is not None and default_tensor.size:
        default = default_tensor.reshape(-1)[0]
    if keys and isinstance(keys[0], str) != (x.dtype == dtypes.string):
        raise UnsupportedType(f"keys and input differ in type: {keys[0]!r}, {x.type}")
    if x.dtype in (dtypes.float16, dtypes.float32):
        keys = np.array(keys, x.dtype).tolist()
    return encoded(ctx, x, keys, values, default)


@converter("OneHotEncoder", domain=ML, strings=True)
def _(ctx: Context, x: Value, *, cats_int64s: Sequence[int] = (), cats_strings: Sequence[str] = (), zeros: int = 1) -> Any:
    if x.dtype != dtypes.string and not zeros:
        return ctx.host(lambda x: [_one_hot(x.astype(np.int64), cats_int64s, False)], x)
    if x.dtype == dtypes.string:
        return ctx.host(lambda x: [_one_hot(x, cats_strings, bool(zeros))], x)
    if not cats_int64s:
        raise InvalidModel(f"OneHotEncoder has no categories for {x.type}")
    number = ops.reshape(ops.cast(x, to=dtypes.int64), shape=(*x.shape, 1))
    return ops.cast(ops.equal(number, np.array(cats_int64s, np.int64)), to=dtypes.float32)


def _one_hot(x: np.ndarray, categories: Sequence[Any], zeros: bool) -> np.ndarray:
    column = {category: i for i, category in enumerate(categories)}
    result = np.zeros((x.size, len(categories)), np.float32)
    for i, item in enumerate(x.reshape(-1).tolist()):
        if item in column:
            result[i, column[item]] = 1
        elif not zeros:
            raise ShapeError(f"OneHotEncoder meets the unknown category {item!r}, and zeros=0 forbids that")
    return result.reshape(*x.shape, len(categories))


@converter("DictVectorizer", domain=ML, strings=True)
def _(ctx: Context, x: Any, *, int64_vocabulary: Sequence[int] = (), string_vocabulary: Sequence[str] = ()) -> Any:
    vocabulary: Sequence[Any] = string_vocabulary or int64_vocabulary

    def vectorize(x: Mapping[Any, Any]) -> list[np.ndarray]:
        dtype = _dtype_of(x)
        absent = "" if dtype.hasobject else 0
        row = np.empty((1, len(vocabulary)), dtype)
        row[0, :] = [x.get(word, absent) for word in vocabulary]
        return [row]

    return ctx.host(vectorize, x)


def _dtype_of(mapping: Mapping[Any, Any]) -> np.dtype:
    """The element type of a map's values. Python does not say whether a float is a double: ONNX mostly means float."""
    for value in mapping.values():
        if isinstance(value, str):
            return dtypes.string
        if isinstance(value, np.generic):
            return value.dtype
        if isinstance(value, int):
            return dtypes.int64
    return dtypes.float32


@converter("CastMap", domain=ML, strings=True)
def _(ctx: Context, x: Any, *, cast_to: str = "TO_FLOAT", map_form: str = "DENSE", max_map: int = 1) -> Any:
    if cast_to not in ("TO_FLOAT", "TO_INT64", "TO_STRING") or map_form not in ("DENSE", "SPARSE"):
        raise InvalidModel(f"CastMap has cast_to {cast_to!r} and map_form {map_form!r}")
    if map_form == "SPARSE" and not 0 <= max_map <= 1 << 30:
        raise InvalidModel(f"max_map is {max_map}")

    def cast(x: Mapping[int, Any]) -> list[np.ndarray]:
        # A string's padding is "0.f" because onnxruntime's is.
        empty = {"TO_FLOAT": np.float32(0), "TO_INT64": 0, "TO_STRING": "0.f"}[cast_to]
        dtype = {"TO_FLOAT": dtypes.float32, "TO_INT64": dtypes.int64, "TO_STRING": dtypes.string}[cast_to]
        items = {int(k): _cast_item(v, cast_to) for k, v in sorted(x.items())}
        if map_form == "SPARSE":
            if any(k < 0 for k in items):
                raise ShapeError("CastMap: a sparse map has a negative key")
            row = [items.get(k, empty) for k in range(max_map)]
        else:
            row = list(items.values())
        result = np.empty((1, len(row)), dtype)
        result[0, :] = row
        return [result]

    return ctx.host(cast, x)


def _cast_item(item: Any, cast_to: str) -> Any:
    if cast_to == "TO_STRING":
        return item if isinstance(item, str) else f"{item:f}"
    return float(item) if cast_to == "TO_FLOAT" else int(item)


@converter("ZipMap", domain=ML)
def _(ctx: Context, x: Value, *, classlabels_int64s: Sequence[int] = (), classlabels_strings: Sequence[str] = ()) -> Any:
    labels: Sequence[Any] = classlabels_strings or classlabels_int64s
    if x.rank not in (1, 2) or x.shape[-1] != len(labels):
        raise ShapeError(f"ZipMap takes [N, {len(labels)}] or [{len(labels)}], not {list(x.shape)}")

    def zipped(x: np.ndarray) -> list[list[dict[Any, float]]]:
        return [[dict(zip(labels, row, strict=True)) for row in x.reshape(-1, len(labels)).tolist()]]

    return ctx.host(zipped, x)
