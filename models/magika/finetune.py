"""Teach Magika's byte classifier (Google, Apache-2.0) other kinds of files: those of your own Python installation.

`python -m models.magika.finetune [-o tuned.onnx] [--plot curve.svg] [--device cuda]`: sources and tests, stubs, headers,
bytecode, licences and whatever else lies there in number. The model gets a new last layer, which trains together with the
normalization in front of it; everything below stays as Google trained it. Files are held out by directory. The tuned model
is exported, and ONNX's reference evaluator must compute what it computes here.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from rich.console import Console
from rich.progress import track
from rich.table import Table

import flamert as fr
from models.fetch import Unavailable
from models.magika.classifier import Classifier
from models.magika.corpus import Corpus, TooFew, collect

OUTPUT = "target_label"
NORM = "*/LayerNorm_1/Reshape_[23]:0"
"""Scale and shift of the last normalization."""

BATCH = 32
RATE = 3e-3
MAPPED = 12
"""Files of each kind that show what Magika's own labels stand for here."""

TOLERANCE = 0.1
"""Of a score. Where a file is one byte over and over, the model divides by a variance of next to nothing: there scores differ
by hundredths between any two runtimes, elsewhere by 1e-4."""


class GlobalMaxPool(OpRun):
    """The operator for any number of axes; the one that the reference evaluator has takes images only."""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


def best(model: fr.Model, rows: np.ndarray, what: str, console: Console) -> np.ndarray:
    """For each file the class of the highest score."""
    parts = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    shown = track(parts, what, console=console, disable=not console.is_terminal, transient=True)
    return np.concatenate([model(part).argmax(1) for part in shown])


def by_labels(model: fr.Model, corpus: Corpus, console: Console) -> np.ndarray:
    """The kind of each file held out by Magika's own labels, each taken for the kind that it most often means."""
    kinds = corpus.train.kinds
    some = np.concatenate([np.flatnonzero(kinds == k)[:MAPPED] for k in range(len(corpus.names))])
    given = best(model, corpus.train.rows[some], "what the labels mean here", console)
    means = {label: Counter(kinds[some][given == label]).most_common(1)[0][0] for label in set(given)}
    return np.array([means.get(label, -1) for label in best(model, corpus.held_out.rows, "before", console)])


def export(trainer: fr.Trainer, path: str, names: Sequence[str]) -> None:
    """Write the tuned model, with the names of its classes."""
    trainer.export(path)
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, {**{p.key: p.value for p in proto.metadata_props}, "kinds": json.dumps(names)})
    onnx.save(proto, path)


def confirm(path: str, model: fr.Model, rows: np.ndarray) -> str:
    """What ONNX's reference evaluator makes of the exported file. Ends the program where it computes something else."""
    onnx.checker.check_model(path, full_check=True)
    [expected] = ReferenceEvaluator(path, new_ops=[GlobalMaxPool]).run(None, {"bytes": rows})
    found = model(rows)
    apart = np.abs(found - expected).max(1)
    if not apart.max() < TOLERANCE:
        raise SystemExit(f"{path}: ONNX's reference evaluator computes other scores; they differ by {apart.max():.1e}")
    same = (found.argmax(1) == expected.argmax(1)).sum()
    differ = f"scores differ by {np.median(apart):.0e} (median file) and {apart.max():.0e} (worst)"
    return f"ONNX's reference evaluator finds the same kind for {same} of {len(rows)} files; {differ}"


def table(corpus: Corpus, before: np.ndarray, after: np.ndarray) -> Table:
    """How many files of each kind were recognised, by the old labels and by the new head."""
    found = Table("kind", "learnt from", "held out", "labels", "tuned", "taken for")
    kinds = corpus.held_out.kinds
    for k, name in enumerate(corpus.names):
        own = kinds == k
        wrong = Counter(corpus.names[j] for j in after[own] if j != k).most_common(2)
        counts = [(corpus.train.kinds == k).sum(), own.sum(), (before[own] == k).sum(), (after[own] == k).sum()]
        found.add_row(name, *map(str, counts), ", ".join(f"{other} {n}" for other, n in wrong))
    return found


def tune(trainer: fr.Trainer, corpus: Corpus, epochs: int, console: Console) -> fr.History:
    """Train, with a line for each epoch."""

    def line(trainer: fr.Trainer, row: dict[str, Any]) -> None:
        numbers = f"loss {row['loss']:.3f}, held out {row['val_loss']:.3f}, accuracy {row['val_accuracy']:.1%}"
        console.print(f"epoch {row['epoch']} of {epochs}: {numbers}, {row['examples_per_s']:.0f} files/s")

    (rows, kinds), held_out = corpus.train, corpus.held_out
    batches = fr.Batches({"bytes": rows}, kinds, BATCH)
    validation = fr.Batches({"bytes": held_out.rows}, held_out.kinds, BATCH, shuffle=False)
    return trainer.fit(batches, epochs=epochs, validation=validation, metrics=["accuracy"], callbacks=[line])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", default="tuned.onnx", help="where to write the tuned model (default tuned.onnx)")
    parser.add_argument("--plot", help="where to draw the losses, as .svg")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--files", type=int, default=40, help="files of each kind to learn from, at most (default 40)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N")
    return parser.parse_args()


def main() -> None:
    args, start = arguments(), time.perf_counter()
    console = Console(highlight=False, soft_wrap=True)
    try:
        classifier = Classifier(args.device)
        with console.status("reading files"):
            corpus = collect(classifier.features, args.files)
    except (Unavailable, TooFew) as error:
        raise SystemExit(f"nothing to fine-tune: {error}") from error
    rows, held_out, model = corpus.train.rows, corpus.held_out, classifier.model
    console.print(
        f"{len(corpus.names)} kinds of files in this Python {platform.python_version()}: {len(rows)} to learn from, "
        f"{len(held_out.rows)} from other directories held out ({corpus.alike} near-duplicates left out)"
    )
    before = by_labels(model, corpus, console)
    model.replace_head(OUTPUT, len(corpus.names), name="head")
    untrained = best(model, held_out.rows, "untrained", console)
    for what, guess in ((f"Magika's {len(classifier.labels)} labels", before), ("a new head, untrained", untrained)):
        console.print(f"{what}: accuracy {(guess == held_out.kinds).mean():.1%}")

    steps = args.epochs * -(-len(rows) // BATCH)
    optimizer = fr.optim.AdamW(fr.optim.one_cycle(RATE, steps))
    trainer = fr.Trainer(model, "cross_entropy", optimizer, trainable=["head.*", NORM])
    history = tune(trainer, corpus, args.epochs, console)
    if args.plot:
        history.plot(args.plot, "Magika's byte classifier with a new head")
    after = best(model, held_out.rows, "after", console)
    console.print(table(corpus, before, after))
    export(trainer, args.output, corpus.names)
    checked = confirm(args.output, model, held_out.rows[:: max(1, len(held_out.rows) // 12)])
    accuracy, seconds = (after == held_out.kinds).mean(), time.perf_counter() - start
    console.print(f"tuned: accuracy {accuracy:.1%}, in {seconds:.0f} s on {model.device.name}")
    console.print(f"{args.output}: {checked}")


if __name__ == "__main__":
    main()
