"""Data files beside a model: which tensor lies where, as the original has it or laid out anew."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from flamert.importers.external import Folder, described
from flamert.importers.wire import Piece

PAGE = 4096
"""Bytes; large tensors start on a multiple of it, so that they can be mapped."""

LINE = 64
"""Bytes; small tensors start on a multiple of this."""


class Part(NamedTuple):
    """A tensor's place in a data file. `data`: new bytes, or None where the original's stay."""

    offset: int
    nbytes: int
    tensor: TensorProto
    data: np.ndarray | None


class Layout:
    """The data files of a model that is being saved.

    model: the model's file name. keep: leave tensors in the files where the original has them; otherwise all go to
    `<model>.data`, one after the other.
    """

    def __init__(self, model: str, keep: bool) -> None:
        self.model = model
        self.location = f"{model}.data"
        self.keep = keep
        self._originals: dict[str, np.ndarray] = {}
        self._parts: dict[str, list[Part]] = {}
        self._appended: list[tuple[int, np.ndarray]] = []
        self._end = 0
        self._shared: dict[tuple[str, int, int], int] = {}

    def put(self, t: TensorProto, data: np.ndarray, changed: bool, folder: Folder | None) -> None:
        """Place a tensor with these bytes. folder: where its bytes were until now, if in a data file."""
        if folder is None or t.data_location != TensorProto.EXTERNAL:
            _refer(t, self.location, self._append(data), data.nbytes)
            return
        location, offset, _ = described(t.external_data)
        location = os.path.normpath(location)
        if self.keep and location != self.model:
            self._originals[location] = folder.contents(location)
            self._parts.setdefault(location, []).append(Part(offset, data.nbytes, t, data if changed else None))
            return
        shared = (location, offset, data.nbytes)
        at = None if changed else self._shared.get(shared)
        if at is None:
            at = self._append(data)
        if not changed:
            self._shared[shared] = at
        _refer(t, self.location, at, data.nbytes)

    def _append(self, data: np.ndarray) -> int:
        start = _aligned(self._end, data.nbytes)
        self._appended.append((start, data))
        self._end = start + data.nbytes
        return start

    def files(self) -> Mapping[str, list[Piece]]:
        """Location → contents, in pieces. Settles where tensors lie: call it before the proto is serialised."""
        files = {location: list(self._patched(location)) for location in self._originals}
        if self._appended:
            files[self.location] = list(_sequence(self._appended))
        return files

    def _patched(self, location: str) -> Iterator[Piece]:
        """An original data file with changed tensors in their places; at the end, where others share the place."""
        original = self._originals[location]
        parts = sorted(self._parts[location], key=lambda p: (p.offset, p.nbytes))
        if any(part.data is not None for part in parts):
            for part in parts:
                _forget_checksum(part.tensor)
        at, end, moved = 0, original.size, []
        for i, part in enumerate(parts):
            if part.data is None or part.nbytes == 0:
                continue
            before = max([p.offset + p.nbytes for p in parts[:i]], default=0)
            if before > part.offset or (i + 1 < len(parts) and parts[i + 1].offset < part.offset + part.nbytes):
                start = _aligned(end, part.nbytes)
                moved.append((start - original.size, part.data))
                end = start + part.nbytes
                _refer(part.tensor, location, start, part.nbytes)
                continue
            _refer(part.tensor, location, part.offset, part.nbytes)
            yield original[at : part.offset].data
            yield part.data.data
            at = part.offset + part.nbytes
        yield original[at:].data
        yield from _sequence(moved)


def _sequence(parts: list[tuple[int, np.ndarray]]) -> Iterator[Piece]:
    """Buffers at rising offsets, with zeros in between."""
    at = 0
    for start, data in parts:
        yield bytes(start - at)
        yield data.data
        at = start + data.nbytes


def _aligned(at: int, nbytes: int) -> int:
    unit = PAGE if nbytes >= PAGE else LINE
    return -(-at // unit) * unit


def _refer(t: TensorProto, location: str, offset: int, nbytes: int) -> None:
    """Make a TensorProto point to its bytes in a data file. Other keys stay."""
    for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "raw_data"):
        t.ClearField(field)
    _forget_checksum(t)
    others = [(e.key, e.value) for e in t.external_data if e.key not in ("location", "offset", "length")]
    t.ClearField("external_data")
    for key, value in [("location", location), ("offset", str(offset)), ("length", str(nbytes)), *others]:
        t.external_data.add(key=key, value=value)
    t.data_location = TensorProto.EXTERNAL


def _forget_checksum(t: TensorProto) -> None:
    """Drop the checksum of a file that is no longer what it was."""
    for i in reversed(range(len(t.external_data))):
        if t.external_data[i].key == "checksum":
            del t.external_data[i]
