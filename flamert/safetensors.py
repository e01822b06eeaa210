"""Safetensors files: arrays by name and a few strings, read with nothing taken on trust.

A file is the length of its header (8 bytes, little-endian), the header as JSON (type, shape and place of every tensor, and
metadata), and the tensors' bytes. Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from flamert.errors import CheckpointError

MAX_HEADER = 100_000_000
"""Bytes; the reference implementation's own limit."""

NAMES: dict[str, np.dtype] = {
    **{"BOOL": np.dtype(np.bool_), "BF16": np.dtype(ml_dtypes.bfloat16)},
    **{"F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2)},
    **{f"F{8 * n}": np.dtype(f"f{n}") for n in (2, 4, 8)},
    **{f"{sign}{8 * n}": np.dtype(f"{kind}{n}") for sign, kind in (("I", "i"), ("U", "u")) for n in (1, 2, 4, 8)},
}
"""The format's names of element types."""

_OF_TYPE = {dtype: name for name, dtype in NAMES.items()}


def entries_of(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """What a header says of these tensors, laid out one after the other, widest element types first so that all are aligned."""
    entries = {}
    at = 0
    for name in sorted(arrays, key=lambda n: -arrays[n].dtype.itemsize):
        array = arrays[name]
        if array.dtype not in _OF_TYPE:
            raise CheckpointError(f"{name!r} is {array.dtype.name}, which safetensors has no name for")
        entries[name] = {"dtype": _OF_TYPE[array.dtype], "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    return entries


def pieces(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Iterator[Any]:
    """A file's contents, as buffers."""
    entries = entries_of(arrays)
    header = json.dumps({"__metadata__": dict(metadata), **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little")
    yield header
    for name in entries:
        yield data(arrays[name])


def data(array: np.ndarray) -> memoryview:
    """An array's bytes."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """A file's tensors and metadata. Raises CheckpointError for what is no such file, cut short, or contradicts itself."""
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            contents = np.frombuffer(file.read(), np.uint8)
    except OSError as error:
        raise CheckpointError(f"cannot read {path!r}: {error.strerror or error}") from error
    try:
        return _parsed(contents)
    except CheckpointError as error:
        error.at(path)
        raise
    except Exception as error:  # whatever a damaged header trips over
        raise CheckpointError(f"not a safetensors file, or damaged: {error}").at(path) from error


def _parsed(contents: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    length = int.from_bytes(contents[:8].tobytes(), "little")
    if len(contents) < 8 or length > min(MAX_HEADER, len(contents) - 8):
        raise CheckpointError("the file is cut short, or no safetensors file")
    header = json.loads(contents[8 : 8 + length].tobytes())
    metadata = header.pop("__metadata__", {})
    body = contents[8 + length :]
    arrays, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (start, stop) = NAMES[entry["dtype"]], tuple(map(int, entry["shape"])), entry["data_offsets"]
        if start != end or stop - start != math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
            raise CheckpointError(f"the header contradicts itself about {name!r}")
        if stop > len(body):
            raise CheckpointError(f"the file is cut short: {name!r} ends {stop - len(body)} bytes behind its end")
        arrays[name] = body[start:stop].view(dtype).reshape(shape)
        end = stop
    if end != len(body):
        raise CheckpointError(f"{len(body) - end} bytes belong to no tensor")
    return arrays, {str(k): str(v) for k, v in metadata.items()}
