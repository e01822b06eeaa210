"""Magika's byte classifier (Google, Apache-2.0): what it looks at in a file, and what it decides.

Features and decision follow the magika 1.0.3 package: 1,024 bytes from either end, whitespace stripped, padded with 256;
a prediction below its type's threshold falls back to "txt" or "unknown".
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

import flamert as fr
from models.fetch import fetch


class Verdict(NamedTuple):
    """One file: the type it was found to be, how surely, and whether its extension says the same (None: it says nothing)."""

    path: Path
    label: str
    score: float
    agrees: bool | None


class Classifier:
    """The model with its configuration."""

    def __init__(self, device: str | None = None) -> None:
        files = fetch("magika_v3_3")
        self.model = fr.load(files["model"], device=device)
        self.config = json.loads(files["config"].read_text())
        self.types = json.loads(files["content_types_kb"].read_text())
        self.labels: list[str] = self.config["target_labels_space"]
        self.extensions = {e for label in self.labels for e in self.types[label]["extensions"]}

    def features(self, path: Path) -> np.ndarray | None:
        """The file's first and last bytes as the model wants them; None where there are too few to tell."""
        block, begin, end = self.config["block_size"], self.config["beg_size"], self.config["end_size"]
        with open(path, "rb") as file:
            head = file.read(block)
            size = file.seek(0, 2)
            file.seek(max(size - block, 0))
            tail = file.read(block)
        head, tail = head.lstrip()[:begin], tail.rstrip()[-end:]
        if size < self.config["min_file_size_for_dl"] or len(head) < self.config["min_file_size_for_dl"]:
            return None
        row = np.full(begin + end, self.config["padding_token"], np.int32)
        row[: len(head)] = np.frombuffer(head, np.uint8)
        row[len(row) - len(tail) :] = np.frombuffer(tail, np.uint8)
        return row

    def classify(self, paths: list[Path]) -> list[Verdict]:
        """All files in one run of the model; those that cannot be read or hold too few bytes are left out."""
        rows = [(path, row) for path in paths if os.access(path, os.R_OK) and (row := self.features(path)) is not None]
        if not rows:
            return []
        scores = self.model(np.stack([row for _, row in rows]))
        return [self.verdict(path, s) for (path, _), s in zip(rows, scores, strict=True)]

    def verdict(self, path: Path, scores: np.ndarray) -> Verdict:
        """The likeliest type if it is likely enough, else just text or not; and what the extension says."""
        best = int(scores.argmax())
        raw, score = self.labels[best], float(scores[best])
        label = self.config["overwrite_map"].get(raw, raw)
        if score < self.config["thresholds"].get(raw, self.config["medium_confidence_threshold"]):
            label = "txt" if self.types[label]["is_text"] else "unknown"
        extension = path.suffix.lstrip(".").lower()
        return Verdict(
            path, label, score, extension in self.types[label]["extensions"] if extension in self.extensions else None
        )
