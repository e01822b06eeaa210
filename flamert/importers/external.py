"""External data: which files next to a model may be read, and their bytes, mapped read-only. Nothing else is ever opened."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterable
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np
from onnx import StringStringEntryProto, TensorProto

from flamert.errors import InvalidModel, UnsafeModel

NUMBERS = ("offset", "length")


class Folder:
    """The folder that a model's external data must lie in, and the files of it that are mapped.

    model: the model's path; None where only the folder is known. A data file must lie, symbolic links resolved, in the
    model's folder or in the folder that the model file itself resolves to: download caches keep both as links to one place.
    """

    def __init__(self, model: str | None, directory: str | None = None) -> None:
        self.directory = directory if directory is not None else os.path.dirname(os.path.abspath(model or ""))
        roots = [os.path.realpath(self.directory)]
        if model is not None:
            roots.append(os.path.dirname(os.path.realpath(model)))
        self.roots = tuple(dict.fromkeys(roots))
        self.model = os.stat(model) if model is not None else None
        self._maps: dict[str, np.ndarray] = {}

    def read(self, proto: TensorProto, nbytes: int) -> np.ndarray:
        """The `nbytes` bytes of an external tensor, as a read-only view of its file.

        Raises UnsafeModel for a location outside the folder or no regular file, InvalidModel where the file or the declared
        range does not hold that many bytes.
        """
        try:
            location, offset, length = described(proto.external_data)
            if length is not None and length != nbytes:
                raise InvalidModel(f"needs {nbytes} bytes, its external data has {length}")
            data = self.contents(location)
            if offset + nbytes > data.size:
                raise InvalidModel(f"needs bytes {offset} to {offset + nbytes} of {location!r}, which has {data.size}")
        except (InvalidModel, UnsafeModel) as error:
            raise type(error)(f"tensor {proto.name!r}: {error}") from error
        return data[offset : offset + nbytes]

    def contents(self, location: str) -> np.ndarray:
        """All bytes of a data file, mapped. Raises UnsafeModel, InvalidModel."""
        if location not in self._maps:
            self._maps[location] = self._open(location)
        return self._maps[location]

    def _open(self, location: str) -> np.ndarray:
        try:
            handle = self.resolve(location)
        except OSError as error:
            raise InvalidModel(f"cannot read external data {location!r}: {error.strerror or error}") from error
        try:
            self._require_regular(os.fstat(handle), location)
            if os.fstat(handle).st_size == 0:
                return np.empty(0, np.uint8)
            return np.frombuffer(mmap.mmap(handle, 0, access=mmap.ACCESS_READ), np.uint8)
        finally:
            os.close(handle)

    def resolve(self, location: str) -> int:
        """An open file descriptor for a location, links resolved, inside the allowed folders. Raises UnsafeModel, OSError."""
        resolved = os.path.realpath(os.path.join(self.directory, relative(location)), strict=True)
        for root in self.roots:
            if os.path.commonpath([root, resolved]) == root and resolved != root:
                return open_below(root, os.path.relpath(resolved, root))
        raise UnsafeModel(f"external data {location!r} leads outside the model's folder, to {resolved!r}")

    def _require_regular(self, status: os.stat_result, location: str) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeModel(f"external data {location!r} is no regular file")
        if status.st_nlink == 1:
            return
        # A second hard link may be anybody's file under another name. Caches link a model and its data alike, and that is
        # what tells them apart: a data file shared more widely, or with another owner, than the model file is refused.
        mine = (status.st_dev, status.st_uid, status.st_nlink)
        if self.model is None or mine != (self.model.st_dev, self.model.st_uid, self.model.st_nlink):
            raise UnsafeModel(
                f"external data {location!r} has {status.st_nlink} hard links: another file in disguise? Copy it to load it"
            )


def described(entries: Iterable[StringStringEntryProto]) -> tuple[str, int, int | None]:
    """Location, offset and length from a tensor's external_data. Other keys are not looked at."""
    found: dict[str, str] = {}
    for entry in entries:
        if entry.key in found:
            raise InvalidModel(f"external data gives {entry.key!r} twice")
        if entry.key.startswith("_"):
            raise UnsafeModel(f"external data has the key {entry.key!r}")
        found[entry.key] = entry.value
    for key in NUMBERS:
        text = found.get(key, "0")
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise InvalidModel(f"external data has the {key} {text[:40]!r}")
    length = int(found["length"]) if "length" in found else None
    return found.get("location", ""), int(found.get("offset", "0")), length


def relative(location: str) -> str:
    """The location, if it is a relative path that does not climb, on any system. Raises UnsafeModel otherwise."""
    windows, posix = PureWindowsPath(location), PurePosixPath(location)
    if not location or "\0" in location or windows.drive or windows.root or posix.is_absolute() or ".." in windows.parts:
        raise UnsafeModel(f"external data has the location {location!r}; only paths below the model's folder are read")
    return location


def open_below(root: str, path: str) -> int:
    """Open a file for reading, following no link on the way down from `root`: what was checked is what is opened."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    if os.open not in os.supports_dir_fd:
        return os.open(os.path.join(root, path), flags | getattr(os, "O_BINARY", 0))
    *folders, name = path.split(os.sep)
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = below
        return os.open(name, flags, dir_fd=at)
    finally:
        os.close(at)
