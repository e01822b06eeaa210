"""What kinds of files lie here? Magika's byte classifier (Google, Apache-2.0) on real files of this machine.

`python -m models.magika.run [PATH …]`: by default this checkout and the standard library of the Python that runs it.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from models.fetch import Unavailable
from models.magika.classifier import Classifier, Verdict

BATCH = 64
LEFT_OUT = {".git", "site-packages"}
"""Folders not to look into: other people's files, and a great many of them."""


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
    try:
        classifier = Classifier(args.device)
    except Unavailable as error:
        raise SystemExit(str(error)) from error
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
