"""`flamert profile`: which ops and which ONNX nodes take the time of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from flamert.cli import inputs as given
from flamert.cli.console import DeviceName, Json, ModelPath, emit, working


def command(
    model: ModelPath,
    input: given.Inputs = None,
    dim: given.Dims = None,
    seed: given.Seed = 0,
    trace: Annotated[str | None, typer.Option("--trace", help="Write a Chrome trace (ui.perfetto.dev) to this file.")] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="Runs, of which the fastest is shown.")] = 10,
    rows: Annotated[int, typer.Option("--rows", help="Lines of each table.")] = 20,
    device: DeviceName = None,
    json: Json = False,
) -> None:
    """Time every kernel call, by op and by ONNX node.

    Inputs that are not given are random. Example: flamert profile model.onnx --trace trace.json
    """
    from flamert.importers.load import load

    with working(f"running {model}"):
        loaded = load(model, device=device)
        found = loaded.profile(given.feeds(loaded, input, dim, seed, fill=True), repeats)
    if trace is not None:
        found.save_trace(trace)
    data = {
        "device": found.device,
        "ms": found.seconds * 1e3,
        "ops": [{"op": name, "calls": calls, "ms": s * 1e3} for name, calls, s in found.by_op()],
        "nodes": [{"node": name, "calls": calls, "ms": s * 1e3} for name, calls, s in found.by_node()],
    }
    emit(data, found.tables(rows), json)
