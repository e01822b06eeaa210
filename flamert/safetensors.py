"""Safetensors files: arrays by name and a few strings, by way of the format's own library."""

from __future__ import annotations

import os
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from flamert.errors import CheckpointError

TYPES: dict[str, np.dtype] = {
    **{"BOOL": np.dtype(np.bool_), "BF16": np.dtype(ml_dtypes.bfloat16)},
    **{"F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2)},
    **{f"F{8 * n}": np.dtype(f"f{n}") for n in (2, 4, 8)},
    **{f"{sign}{8 * n}": np.dtype(f"{kind}{n}") for sign, kind in (("I", "i"), ("U", "u")) for n in (1, 2, 4, 8)},
}
"""Element types by the format's names for them."""


def contents(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """A file that holds these. Raises CheckpointError for an element type that the format has no name for."""
    for name, array in arrays.items():
        if array.dtype not in TYPES.values():
            raise CheckpointError(f"{name!r} is {array.dtype.name}, which safetensors has no name for")
    # `ascontiguousarray` makes a vector of a scalar.
    whole = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    return safetensors.numpy.save(whole, dict(metadata))


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """A file's tensors and metadata. Raises CheckpointError for what is no such file, cut short, or contradicts itself."""
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            held = file.read()
        with safetensors.safe_open(path, framework="np") as header:
            metadata = header.metadata() or {}
        arrays = {
            name: np.frombuffer(entry["data"], TYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in safetensors.deserialize(held)
        }
    except OSError as error:
        raise CheckpointError(f"cannot read {path!r}: {error.strerror or error}") from error
    except KeyError as error:
        raise CheckpointError(f"there are tensors of type {error}, which NumPy lacks").at(path) from error
    except Exception as error:  # whatever the library, and NumPy after it, find wrong with a damaged header
        raise CheckpointError(f"not a safetensors file, or damaged: {error}").at(path) from error
    return arrays, metadata
