"""What kinds of files lie here? Magika's byte classifier (Google, Apache-2.0) on real files of this machine.

`python -m models.magika.run [PATH …]`: by default this checkout and the standard library of the Python that runs it.
Features and decision follow the magika 1.0.3 package: 1,024 bytes from either end, whitespace stripped, padded with 256;
a prediction below its type's threshold falls back to "txt" or "unknown".
"""

from __future__ import annotations

import argparse
import json
import os
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

import flamert as fr
from models.fetch import fetch

BATCH = 64
LEFT_OUT = {".git", "site-packages"}
"""Folders not to look into: other people's files, and a great many of them."""


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


def files_under(roots: list[Path], limit: int) -> list[Path]:
    """Up to `limit` files, spread evenly over what the folders hold."""

    def walk() -> Iterator[Path]:
        for root in roots:
            yield from [root] if root.is_file() else sorted(p for p in root.rglob("*") if not left_out(p.relative_to(root)))

    def left_out(path: Path) -> bool:
        return not LEFT_OUT.isdisjoint(path.parts)

    found = [path for path in walk() if path.is_file()]
    step = max(1, -(-len(found) // limit))
    return found[::step]


def show(verdicts: list[Verdict], seconds: float, device: str, console: Console) -> None:
    """A table of types, one of surprises, and one line with the totals."""
    kinds = Counter(v.label for v in verdicts)
    table = Table("type", "files", "mean score", "agree with extension", "for example")
    for label, count in kinds.most_common():
        group = [v for v in verdicts if v.label == label]
        judged = [v.agrees for v in group if v.agrees is not None]
        agree = f"{sum(judged)} of {len(judged)}" if judged else "no known extension"
        example = max(group, key=lambda v: v.score).path.name
        table.add_row(label, str(count), f"{np.mean([v.score for v in group]):.3f}", agree, Text(example))
    console.print(table)
    odd = sorted((v for v in verdicts if v.agrees is False), key=lambda v: -v.score)[:10]
    if odd:
        table = Table("found to be", "score", "although it is called", title="surprises", title_justify="left")
        for v in odd:
            table.add_row(v.label, f"{v.score:.3f}", Text(v.path.name))
        console.print(table)
    judged = [v.agrees for v in verdicts if v.agrees is not None]
    rate = f"{sum(judged) / len(judged):.1%} of {len(judged)} known extensions agree; " if judged else ""
    each = f"{1e3 * seconds / max(len(verdicts), 1):.2f} ms each"
    console.print(f"{len(verdicts)} files, {len(kinds)} types; {rate}{seconds:.1f} s on {device}, {each}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, help="files and folders to look at")
    parser.add_argument("--limit", type=int, default=512, help="at most this many files (default 512)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N")
    parser.add_argument("--json", action="store_true", help="one JSON object a file instead of tables")
    args = parser.parse_args()
    classifier = Classifier(args.device)
    checkout = Path(__file__).resolve().parents[2]
    paths = files_under(args.paths or [checkout, Path(sysconfig.get_paths()["stdlib"])], args.limit)
    batches = [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]
    console = Console()
    start = time.perf_counter()
    verdicts = [
        verdict
        for batch in track(batches, "looking at files", disable=not console.is_terminal, transient=True)
        for verdict in classifier.classify(batch)
    ]
    if args.json:
        for v in verdicts:
            print(json.dumps({"path": str(v.path), "type": v.label, "score": v.score, "extension_agrees": v.agrees}))
    else:
        show(verdicts, time.perf_counter() - start, classifier.model.device.name, console)


if __name__ == "__main__":
    main()
