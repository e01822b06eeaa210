"""Budgets: how much memory, how many nodes and how deep a nesting a model may ask for before it counts as hostile."""

from __future__ import annotations

import functools
import operator
import os
import re
from pathlib import Path

from flamert.errors import OutOfMemory

MAX_NODES = 1_000_000
"""Nodes that one import may visit, functions and unrolled loops included, before the model counts as a bomb."""

MAX_NESTING = 200
"""Functions, branches and loop bodies inside one another."""

MAX_ELEMENTS = 1 << 62
"""Elements of a tensor, zero dimensions counted as one: what 64-bit sizes and strides can still address."""


@functools.cache
def physical_memory() -> int:
    """Bytes of memory of this machine, or of the container's share of it."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        total = 1 << 40
    try:
        share = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return min(total, int(share)) if share.isdigit() else total
    except OSError:
        return total


def available_memory() -> int:
    """Bytes that can be had without swapping, as far as the system tells."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return min(int(line.split()[1]) * 1024, physical_memory())
    except OSError:  # other systems do not tell so
        return physical_memory()
    return physical_memory()


def require_memory(nbytes: int, what: object, where: object = None) -> None:
    """Raise OutOfMemory unless the host has `nbytes` to spare: better now, with a name, than killed halfway."""
    if nbytes > physical_memory() // 16 and nbytes > (free := available_memory()):
        error = OutOfMemory(f"{what} takes {readable(nbytes)}; this machine has {readable(free)} to spare")
        raise error.at(str(where) if where is not None else None)


def bytes_of(size: int | str) -> int:
    """Bytes of a size as `readable` writes it, or with decimal units: "512MiB", "1.5 GB", 1 << 30.

    Raises ValueError or TypeError for what is none.
    """
    if not isinstance(size, str):
        return operator.index(size)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT]?)(i?)B|bytes)?\s*", size, re.IGNORECASE)
    if found is None:
        raise ValueError(f"{size!r} is no size")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index((prefix or " ").upper()))


def readable(nbytes: float) -> str:
    """A size for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} PiB"
