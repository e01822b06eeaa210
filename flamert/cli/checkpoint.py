"""`flamert checkpoint`: what a checkpoint holds, and whether it is whole."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import typer

from flamert.cli.console import Json, emit
from flamert.cli.inputs import describe
from flamert.summary import human, listing, table

COLUMNS = ("parameter", "type", "mean", "spread", "optimizer and averages")

EPOCH = ("epoch", "step", "loss", "lr", "examples_per_s")
"""Columns of an epoch that come first."""


def command(
    file: Annotated[str, typer.Argument(help="What `finetune --checkpoint` or `Trainer.save` wrote.", show_default=False)],
    rows: Annotated[int, typer.Option("--rows", help="Parameters to list; 0 lists all.", min=0)] = 40,
    json: Json = False,
) -> None:
    """Verify a checkpoint and show it: how far training was, by what, and every array.

    Example: flamert checkpoint run.ckpt
    """
    from flamert.checkpoint import read

    arrays, notes = read(file)
    known = facts(file, arrays, notes)
    found = parameters(arrays)
    shown = found[: rows or None]
    cells = [(r["name"], r["type"], f"{r['mean']:.4g}", f"{r['spread']:.4g}", ", ".join(r["state"])) for r in shown]
    lines: list[Any] = [listing(_shown(known))]
    if known["epochs"]:
        lines.append(epoch_table(known["epochs"]))
    lines.append(table(COLUMNS, cells, right=COLUMNS[2:4]))
    if len(shown) < len(found):
        lines.append(f"{len(found) - len(shown)} more; --rows 0 lists all")
    emit({**known, "parameters": found}, lines, json)


def facts(file: str, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the training."""
    from flamert.checkpoint import LOSSES
    from flamert.training.step import CALLS, STEPS

    epoch, batch = notes["position"]
    losses = arrays[LOSSES]
    gathers = notes["gathered"] and any(key.startswith("flamert/gradient/") for key in arrays)
    return {
        "file": file,
        "size": human(os.path.getsize(file)),
        "checksum": "SHA-256 verified",
        "written by": f"flamert {notes['version']}",
        "optimizer": notes["optimizer"],
        "updates": int(arrays[STEPS]),
        "batches": int(arrays[CALLS]),
        "position": f"{epoch} epochs, {batch} batches of the next",
        "gathered": f"{notes['gathered']} batches for the next update" if gathers else "",
        "last loss": float(losses[-1]) if len(losses) else None,
        "seed": notes["seed"],
        "epochs": notes["epochs"],
        "adaptations": notes.get("adaptations", []),
    }


def parameters(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """One row for each parameter or running statistic: its numbers, and what is kept beside it."""
    kept: dict[str, list[str]] = {}
    for key in arrays:
        what, _, rest = key.removeprefix("flamert/").partition("/")
        if key.startswith("flamert/") and rest:
            slot, _, name = rest.partition("/") if what == "optimizer" else (what, "", rest)
            kept.setdefault(name, []).append(slot)
    rows = []
    for name in sorted([key for key in arrays if not key.startswith("flamert/")]):
        array = arrays[name].astype(np.float64)
        mean, spread = (float(array.mean()), float(array.std())) if array.size else (0.0, 0.0)
        rows.append(
            {"name": name, "type": describe(arrays[name]), "mean": mean, "spread": spread, "state": sorted(kept.get(name, []))}
        )
    return rows


def epoch_table(rows: Sequence[Mapping[str, float]]) -> Any:
    """A table of the epochs that were finished."""
    first = [c for c in EPOCH if any(c in row for row in rows)]
    columns = [*dict.fromkeys([*first, *(name for row in rows for name in row)])]
    return table(columns, [[f"{row[c]:.6g}" if c in row else "" for c in columns] for row in rows], right=columns)


def _shown(known: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as lines; what was done to the model's structure as one of them."""
    calls = [", ".join(f"{k} {v}" for k, v in a.items() if k != "call") for a in known["adaptations"]]
    changes = "; ".join(f"{a['call']}: {text}" for a, text in zip(known["adaptations"], calls, strict=True))
    lines = {k: v for k, v in known.items() if k not in ("epochs", "adaptations") and v is not None}
    return {**lines, "changes": changes}
