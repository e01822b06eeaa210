"""What a caller passes in, as arrays of the types that a model declares. Whatever does not fit is an InputError saying why."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from flamert.errors import InputError
from flamert.runtime.device import Device


class TensorSpec(NamedTuple):
    """A model input or output. A symbolic dimension is its name, an unnamed one None.

    dtype: NumPy (or ml_dtypes) element type; strings are `object`. For sequences, optionals and maps it is that of the
    elements, and `kind` says so ("tensor", "sequence", "optional", "map"). shape is None where the rank is unknown.
    """

    name: str
    dtype: np.dtype | None
    shape: tuple[int | str | None, ...] | None
    kind: str = "tensor"

    def __str__(self) -> str:
        shape = " of any shape" if self.shape is None else f"[{', '.join('?' if d is None else str(d) for d in self.shape)}]"
        dtype = "string" if self.dtype is not None and self.dtype.hasobject else self.dtype and self.dtype.name
        return f"{dtype or self.kind}{shape}" if self.kind == "tensor" else f"{self.kind} of {dtype or 'anything'}"


def checked(spec: TensorSpec, x: Any, device: Device) -> Any:
    """An input as an array (or list, or dict) of the declared type. Raises InputError where it does not fit."""
    if spec.kind in ("sequence", "map", "optional") and not (spec.kind == "optional" and hasattr(x, "dtype")):
        return _structured(spec, x)
    array = _array(spec, x, device)
    if spec.dtype is not None and array.dtype != spec.dtype:
        array = _converted(spec, array, x)
    if spec.shape is not None and spec.kind == "tensor":
        array = _fitted(spec, array)
    return array


def on_gpu(x: Any) -> bool:
    """Whether an object is an array in GPU memory: CuPy's, or any other that speaks DLPack."""
    if isinstance(x, np.ndarray | np.generic) or not hasattr(x, "__dlpack_device__"):
        return False
    kind, _ = x.__dlpack_device__()
    return int(kind) in (2, 13)  # kDLCUDA, kDLCUDAManaged


def _array(spec: TensorSpec, x: Any, device: Device) -> Any:
    if isinstance(x, np.ndarray):
        return x
    if on_gpu(x):
        return device.adopt(x)
    try:
        return np.asarray(x)
    except Exception as error:  # a foreign tensor's own refusal: on another device, part of a tape, of an unknown type
        raise InputError(f"input {spec.name!r} ({spec}) cannot be made of a {type(x).__name__}: {error}") from error


def _structured(spec: TensorSpec, x: Any) -> Any:
    """A sequence, optional or map input."""
    if isinstance(x, list | tuple):
        return [_structured(spec, e) for e in x]
    if isinstance(x, dict):
        if spec.dtype is None or spec.dtype.hasobject:
            return x
        return {key: spec.dtype.type(value) for key, value in x.items()}
    if spec.kind == "sequence" and np.ndim(x) == 0 and not hasattr(x, "dtype"):
        raise InputError(f"input {spec.name!r} is a {spec}, got {x!r}")
    array = np.asarray(x)
    return array.astype(object) if array.dtype.kind in "UST" else array


def _converted(spec: TensorSpec, array: Any, given: Any) -> Any:
    """Python numbers take the declared type, and strings any form NumPy has; arrays of another type are an error."""
    assert spec.dtype is not None
    if spec.dtype.hasobject and array.dtype.kind in "OUST":
        return array.astype(object)
    if not hasattr(given, "dtype") and array.dtype.kind in _PYTHON_KINDS.get(spec.dtype.kind, "biufc"):
        try:
            return np.asarray(given, spec.dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"input {spec.name!r} is {spec}: {error}") from error
    raise InputError(
        f"unexpected data type for input {spec.name!r}: got {array.dtype.name}, expected {spec}; "
        f"convert it with .astype({spec.dtype.name!r})"
    )


_PYTHON_KINDS = {"b": "b", "i": "bi", "u": "biu", "f": "biuf"}
"""Kinds of Python numbers that each kind of element type takes without losing their nature."""


def _fitted(spec: TensorSpec, array: Any) -> Any:
    """The array, checked against the declared dimensions. One element passes for a scalar, as in onnxruntime."""
    assert spec.shape is not None
    if len(spec.shape) != array.ndim:
        if not spec.shape and array.size == 1:
            return array.reshape(())
        raise InputError(
            f"invalid rank for input {spec.name!r}: got {array.ndim} {list(array.shape)}, expected {len(spec.shape)} ({spec})"
        )
    for i, (want, got) in enumerate(zip(spec.shape, array.shape, strict=True)):
        if want.__class__ is int and want != got:
            raise InputError(f"invalid dimensions for input {spec.name!r}: index {i} is {got}, expected {want} ({spec})")
    return array
