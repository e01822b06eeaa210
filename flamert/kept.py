"""What can be made again, on disk for the next process: by key, whole or not at all, and not without end."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os

from flamert.errors import UnsafeModel
from flamert.files import write_files

log = logging.getLogger("flamert")

MOST, ROOM = 256, 256 << 20
"""Files of one kind, and their bytes; the ones that were not asked for the longest make room for new ones."""


def folder() -> str:
    """Where flamert keeps what it can make again: $FLAMERT_CACHE, or flamert in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.environ.get("FLAMERT_CACHE") or os.path.join(base, "flamert")


class Kept:
    """Contents by key, a file each, in a folder of their own. Files that are cut off or damaged do not count. A folder that
    cannot be read or written costs the next process time, and nothing else."""

    def __init__(self, kind: str) -> None:
        self.path = os.path.join(folder(), kind)

    def find(self, key: str) -> bytes | None:
        """What was kept for this key."""
        path = self._file(key)
        try:
            with open(path, "rb") as file:
                digest, contents = file.read(hashlib.sha256().digest_size), file.read()
            os.utime(path)
        except OSError:
            return None
        return contents if hashlib.sha256(contents).digest() == digest else None

    def add(self, key: str, contents: bytes) -> None:
        """Keep this; a reader sees all of it or what was there before."""
        try:
            os.makedirs(self.path, exist_ok=True)
            write_files(self.path, {os.path.basename(self._file(key)): (hashlib.sha256(contents).digest(), contents)})
            self._make_room()
        except (OSError, UnsafeModel) as error:
            log.info("nothing is kept for the next process: %s", error)

    def _file(self, key: str) -> str:
        return os.path.join(self.path, hashlib.sha256(key.encode()).hexdigest())

    def _make_room(self) -> None:
        """Remove the oldest files, and what killed writers left."""
        with os.scandir(self.path) as found:
            files = [(entry.stat(), entry.path) for entry in found if entry.is_file()]
        files.sort(key=lambda file: file[0].st_mtime_ns, reverse=True)
        taken = itertools.accumulate(about.st_size for about, _ in files)
        for i, (nbytes, (_, path)) in enumerate(zip(taken, files, strict=True)):
            if i >= MOST or nbytes > ROOM:
                with contextlib.suppress(OSError):  # another process was faster
                    os.remove(path)
