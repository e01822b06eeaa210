"""`flamert verify`: the same inputs through another runtime, and the largest differences per output."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import typer

from flamert.cli import inputs as given
from flamert.cli.console import DeviceName, Json, ModelPath, emit, working
from flamert.cli.peers import peer
from flamert.summary import table


def command(
    model: ModelPath,
    against: Annotated[str, typer.Option("--against", help="onnxruntime or reference.")] = "onnxruntime",
    input: given.Inputs = None,
    dim: given.Dims = None,
    seed: given.Seed = 0,
    rtol: Annotated[float, typer.Option("--rtol", help="Relative difference that passes.")] = 1e-3,
    atol: Annotated[float, typer.Option("--atol", help="Absolute difference that passes.")] = 1e-4,
    device: DeviceName = None,
    json: Json = False,
) -> None:
    """Compare a model's outputs with another runtime's; exits with 1 where they differ beyond tolerance.

    Inputs that are not given are random. Example: flamert verify model.onnx --against onnxruntime --dim N=4
    """
    from flamert.importers.load import load

    loaded = load(model, device=device)
    feeds = given.feeds(loaded, input, dim, seed, fill=True)
    with working(f"running {model} in {against}"):
        expected = peer(against, model)(feeds)
    with working(f"running {model} in flamert"):
        found = loaded.run(feeds)
    rows = [compare(name, found[name], expected[name], rtol, atol) for name in found]
    title = f"{model} on {loaded.device.name} against {against}: {given.shown(feeds)}"
    columns = ("output", "type", "largest abs", "largest rel", "")
    cells = [(r["output"], r["type"], f"{r['abs']:.2e}", f"{r['rel']:.2e}", "ok" if r["ok"] else r["why"]) for r in rows]
    emit(
        {"device": loaded.device.name, "against": against, "outputs": rows},
        [title, table(columns, cells, right=columns[2:4])],
        json,
    )
    if not all(r["ok"] for r in rows):
        raise typer.Exit(1)


def compare(name: str, found: Any, expected: Any, rtol: float, atol: float) -> dict[str, Any]:
    """One output: the largest absolute and relative difference, and whether |found − expected| ≤ atol + rtol·|expected|."""
    row: dict[str, Any] = {"output": name, "type": given.describe(found), "abs": 0.0, "rel": 0.0, "ok": True, "why": ""}
    if isinstance(found, list) or isinstance(expected, list):
        same = isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected)
        parts = [compare(name, f, e, rtol, atol) for f, e in zip(found, expected, strict=True)] if same else []
        worst = {k: max((p[k] for p in parts), default=0.0) for k in ("abs", "rel")}
        failed = "lengths differ" if not same else next((p["why"] for p in parts if not p["ok"]), "")
        return row | worst | {"ok": not failed, "why": failed}
    if not isinstance(found, np.ndarray):
        return row | ({"ok": found == expected, "why": "" if found == expected else "values differ"})
    expected = np.asarray(expected)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return row | {"ok": False, "why": f"expected {given.describe(expected)}", "abs": np.inf, "rel": np.inf}
    if found.dtype.hasobject or found.dtype.kind == "b":
        differing = int((found != expected).sum())
        return row | {"abs": float(differing), "ok": not differing, "why": f"{differing} elements differ" if differing else ""}
    wide = np.complex128 if found.dtype.kind == "c" else np.float64
    f, e = found.astype(wide), expected.astype(wide)
    with np.errstate(all="ignore"):
        same = (f == e) | (np.isnan(f) & np.isnan(e))
        difference = np.where(same, 0.0, np.abs(f - e))
        relative = np.where(same, 0.0, difference / np.maximum(np.abs(e), np.finfo(np.float32).tiny))
    row |= {"abs": float(difference.max(initial=0)), "rel": float(relative.max(initial=0))}
    within = same | (difference <= atol + rtol * np.abs(e))
    return row if within.all() else row | {"ok": False, "why": f"{int((~within).sum())} elements beyond tolerance"}
