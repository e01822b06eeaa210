"""Writing files so that nothing is lost: whole or not at all, never through a link, never outside the folder that was named."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from typing import Any

from flamert.errors import CheckpointError, UnsafeModel

Pieces = Iterable[Any]
"""A file's contents as buffers, one after the other."""

RANDOM = 8
"""Random bytes in a temporary name."""


def write_files(folder: str, files: Mapping[str, Pieces]) -> None:
    """Write several files (relative path → contents) below `folder`: all are complete on disk before the first is renamed
    to its name, in the order given.

    Raises UnsafeModel for a path that leads outside the folder or is a link, CheckpointError where the system refuses: a
    full disk, a read-only folder. Then every file is as it was before.
    """
    with contextlib.ExitStack() as undo:
        try:
            ready = [(_written(folder, name, pieces, undo), name) for name, pieces in files.items()]
            for temporary, name in ready:
                os.replace(temporary, os.path.join(folder, name))
            for directory in {os.path.dirname(temporary) for temporary, _ in ready}:
                _sync_directory(directory)
        except OSError as error:
            where = error.filename or folder
            raise CheckpointError(f"cannot write {where!r}: {error.strerror or error}. Nothing was changed") from error


def make_ready(path: str) -> None:
    """See that a file can be written to `path`, before there is much to lose. What killed writers of it left is removed.

    Raises CheckpointError where the system refuses, UnsafeModel where something other than a file is there.
    """
    folder, name = os.path.split(os.path.abspath(path))
    start = _start(name)
    with contextlib.ExitStack() as undo:
        try:
            for other in os.listdir(folder):
                if other.startswith(start) and re.fullmatch(f"[0-9a-f]{{{2 * RANDOM}}}", other.removeprefix(start)):
                    _remove(os.path.join(folder, other))
            _written(folder, name, (), undo)
        except OSError as error:
            raise CheckpointError(f"cannot write {path!r}: {error.strerror or error}") from error


def _written(folder: str, name: str, pieces: Pieces, undo: contextlib.ExitStack) -> str:
    """A complete, synchronised file under a temporary name beside its destination."""
    target = os.path.join(folder, name)
    beside = os.path.dirname(target)
    root = os.path.realpath(folder)
    if os.path.commonpath([root, os.path.realpath(beside)]) != root:
        raise UnsafeModel(f"{name!r} leads outside {folder!r}, to {os.path.realpath(beside)!r}")
    if beside != folder:
        os.makedirs(beside, exist_ok=True)
    mode = _mode_of(target)
    temporary = os.path.join(beside, _start(name) + secrets.token_hex(RANDOM))
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    undo.callback(_remove, temporary)
    with open(handle, "wb") as file:
        if mode is not None and hasattr(os, "fchmod"):
            os.fchmod(handle, mode)
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(handle)
    return temporary


def _start(name: str) -> str:
    """How the temporary names of a file begin."""
    return f".{os.path.basename(name)[:80]}."


def _mode_of(target: str) -> int | None:
    """Permissions of the file that will be replaced; None where there is none. Raises UnsafeModel for anything but a file."""
    try:
        status = os.lstat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(status.st_mode):
        raise UnsafeModel(f"{target!r} is a symbolic link; give the path that it leads to, or remove it")
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeModel(f"{target!r} is there already, and is no regular file")
    return stat.S_IMODE(status.st_mode)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.remove(path)


def _sync_directory(path: str) -> None:
    """Make the renames last; systems that cannot open directories do it on their own."""
    with contextlib.suppress(OSError):
        handle = os.open(path or ".", os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
