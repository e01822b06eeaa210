"""Files of the Python that runs this, by kind: some directories to learn from, others to be judged on."""

from __future__ import annotations

import os
import random
import re
import sysconfig
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

SUFFIXES = {
    **dict.fromkeys((".h", ".hpp"), "C header"),
    **dict.fromkeys((".c", ".cc", ".cpp"), "C source"),
    **dict.fromkeys((".css", ".html", ".js"), "web page"),
    **dict.fromkeys((".dll", ".dylib", ".pyd", ".so"), "native library"),
    **dict.fromkeys((".f", ".f90"), "Fortran"),
    **dict.fromkeys((".gif", ".jpg", ".png"), "image"),
    **dict.fromkeys((".md", ".rst", ".txt"), "text"),
    **dict.fromkeys((".pxd", ".pyx"), "Cython"),
    **{".csv": "CSV", ".exe": "Windows program", ".json": "JSON", ".npy": "array", ".onnx": "ONNX model", ".pb": "tensor"},
    **{".pem": "certificate", ".proto": "protobuf schema", ".pyc": "bytecode", ".pyi": "stub", ".toml": "TOML", ".xml": "XML"},
}
"""Kinds of files by how their names end."""

RECORDS = {"METADATA": "metadata", "PKG-INFO": "metadata", "RECORD": "record"}
"""Kinds of files in a package's .dist-info."""

LICENCE = re.compile(r"(licen[cs]e|copying|notice)", re.I)

HELD_OUT = 4
"""One directory in so many is held out."""

FEWEST = (12, 4)
"""Files to learn from, and held out, that a kind needs to take part."""

SHINGLE, HASHES, ALIKE = 8, 64, 0.5
"""Two files are near-duplicates if they share this part of their runs of 8 bytes, as 64 hashes estimate it (MinHash)."""

Features = Callable[[Path], np.ndarray | None]


class TooFew(RuntimeError):
    """There are not two kinds of files to tell apart."""


class Part(NamedTuple):
    """Rows of features, and which kind each file is of."""

    rows: np.ndarray
    kinds: np.ndarray


class Corpus(NamedTuple):
    """Kinds by name, what to learn from and what is held out; and how many near-duplicates were held out no longer."""

    names: tuple[str, ...]
    train: Part
    held_out: Part
    alike: int


def kind_of(path: PurePath) -> str | None:
    """What a file is by its name and place; None where they do not say."""
    if LICENCE.match(path.name) and path.suffix in ("", ".md", ".rst", ".txt"):
        return "licence"
    if any(part.endswith((".dist-info", ".egg-info")) for part in path.parts):
        return RECORDS.get(path.name)
    if path.suffix == ".py":
        test = path.name.startswith("test_") or not {"test", "tests"}.isdisjoint(path.parts[:-1])
        return "test" if test else "source"
    return SUFFIXES.get(path.suffix)


def installed() -> dict[str, dict[str, list[Path]]]:
    """Files by kind and directory: of the standard library, the packages beside it and C headers."""
    places = sysconfig.get_paths()
    roots = {os.path.realpath(places[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib", "include")}
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for root in sorted(roots):
        for folder, inner, files in os.walk(root):
            others = {"site-packages", "dist-packages"} | {os.path.basename(r) for r in roots if os.path.dirname(r) == folder}
            inner[:] = sorted(set(inner) - others)
            below = PurePath(os.path.relpath(folder, root))
            for name in sorted(files):
                if kind := kind_of(below / name):
                    found[kind][directory(below)].append(Path(folder, name))
    return found


def directory(below: PurePath) -> str:
    """A directory's name wherever it lies: copies inside other packages, versions and caches of bytecode are the same."""
    parts = [re.split(r"-\d", part)[0] for part in below.parts if part != "__pycache__"]
    vendored = len(parts) - parts[::-1].index("_vendor") if "_vendor" in parts else 0
    return "/".join(parts[vendored:])


def collect(features: Features, train: int = 48, held_out: int = 20) -> Corpus:
    """At most so many files of each kind, from as many directories as there are; the same ones every time.

    A directory is held out with all its files or not at all, and what is held out resembles nothing there is to learn from.
    Raises TooFew where there are fewer than two kinds.
    """
    learnt: dict[str, list[np.ndarray]] = {}
    judged: dict[str, list[np.ndarray]] = {}
    for kind, folders in sorted(installed().items(), key=lambda item: item[0].lower()):
        away = {name for name in folders if zlib.crc32(name.encode()) % HELD_OUT == 0}
        for rows, names, most in ((learnt, folders.keys() - away, train), (judged, away, 2 * held_out)):
            rows[kind] = sample({name: folders[name] for name in names}, features, most, kind)
    known = signatures([row for rows in learnt.values() for row in rows])
    alike = 0
    for kind, rows in judged.items():
        fresh = [row for row, mark in zip(rows, signatures(rows), strict=True) if (known == mark).mean(1).max() < ALIKE]
        alike += len(rows) - len(fresh)
        judged[kind] = fresh[:held_out]
    names = tuple(k for k in learnt if len(learnt[k]) >= FEWEST[0] and len(judged[k]) >= FEWEST[1])
    if len(names) < 2:
        raise TooFew(f"this Python has {len(names)} kinds of files in number; it takes two to tell them apart")
    return Corpus(names, _part(names, learnt), _part(names, judged), alike)


def _part(names: Sequence[str], rows: Mapping[str, Sequence[np.ndarray]]) -> Part:
    kinds = np.repeat(np.arange(len(names)), [len(rows[name]) for name in names])
    return Part(np.stack([row for name in names for row in rows[name]]), kinds)


def sample(folders: Mapping[str, Sequence[Path]], features: Features, most: int, seed: str) -> list[np.ndarray]:
    """Features of up to `most` files, one from each directory in turn."""
    rng = random.Random(seed)
    order = sorted(folders)
    rng.shuffle(order)
    waiting = [rng.sample(folders[name], len(folders[name])) for name in order]
    found: list[np.ndarray] = []
    while any(waiting):
        for files in waiting:
            row = _readable(features, files.pop()) if files else None
            if row is not None:
                found.append(row)
            if len(found) == most:
                return found
    return found


def _readable(features: Features, path: Path) -> np.ndarray | None:
    try:
        return features(path)
    except OSError:
        return None


def signatures(rows: Sequence[np.ndarray]) -> np.ndarray:
    """For each row the least values of 64 hashes over its runs of 8 bytes; equal ones are as frequent as runs are shared."""
    rng = np.random.default_rng(0)
    mix = rng.integers(1 << 63, size=SHINGLE, dtype=np.uint64) * 2 + 1
    factors, summands = rng.integers(1 << 63, size=(2, HASHES), dtype=np.uint64) * 2 + 1
    found = np.empty((len(rows), HASHES), np.uint64)
    for i, row in enumerate(rows):
        runs = np.lib.stride_tricks.sliding_window_view(row, SHINGLE)
        runs = runs[(runs != runs[:, :1]).any(1)]  # padding, blanks and zeros are nothing to recognise a file by
        hashes = np.unique((runs.astype(np.uint64) * mix).sum(1))
        found[i] = (hashes[:, None] * factors + summands).min(0, initial=np.iinfo(np.uint64).max)
    return found
