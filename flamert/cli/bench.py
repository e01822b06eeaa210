"""`flamert bench`: how long a run takes, beside another runtime in the same process, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import typer

from flamert.cli import inputs as given
from flamert.cli.console import DeviceName, Json, ModelPath, emit, progress, working
from flamert.cli.peers import peer
from flamert.summary import table


def command(
    model: ModelPath,
    against: Annotated[str | None, typer.Option("--against", help="onnxruntime or reference.")] = None,
    input: given.Inputs = None,
    dim: given.Dims = None,
    seed: given.Seed = 0,
    seconds: Annotated[float, typer.Option("--seconds", help="To spend on measuring.")] = 3.0,
    threads: Annotated[int, typer.Option("--threads", help="Threads for each runtime; 0 leaves them as they are.")] = 0,
    device: DeviceName = None,
    json: Json = False,
) -> None:
    """Measure the median time of a run, with another runtime in turns so that both meet the same machine.

    Inputs that are not given are random. Example: flamert bench model.onnx --against onnxruntime
    """
    from flamert.importers.load import load
    from flamert.threads import set_threads

    if threads:
        set_threads(threads)
    loaded = load(model, device=device)
    feeds = given.feeds(loaded, input, dim, seed, fill=True)
    with working(f"compiling {model}"):
        loaded.compile(**feeds)
    runners: dict[str, Callable[[], Any]] = {"flamert": lambda: loaded.run(feeds)}
    if against is not None:
        other = peer(against, model, loaded.device.name, threads)
        runners[against] = lambda: other(feeds)
    times = measure(runners, seconds)
    rows = [{"runtime": name, **_statistics(t)} for name, t in times.items()]
    columns = ("runtime", "median ms", "p10", "p90", "runs")
    cells = [(r["runtime"], *[f"{r[k]:.3f}" for k in ("median_ms", "p10_ms", "p90_ms")], r["runs"]) for r in rows]
    title = f"{model} on {loaded.device.name}: {given.shown(feeds)}"
    data: dict[str, Any] = {"device": loaded.device.name, "inputs": given.shown(feeds), "runtimes": rows}
    lines: list[Any] = [title, table(columns, cells, right=columns[1:])]
    if against is not None:
        data["ratio"] = rows[0]["median_ms"] / rows[1]["median_ms"]
        lines.append(f"flamert takes {data['ratio']:.2f} × the time of {against}")
    emit(data, lines, json)


def measure(runners: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Run everybody in turns, at least five times each, and on until the time is up; three runs come first to warm up."""
    for _ in range(3):
        for run in runners.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in runners}
    start = time.perf_counter()
    with progress("measuring", seconds) as advance:
        while (spent := time.perf_counter() - start) < seconds or len(times["flamert"]) < 5:
            advance(min(spent, seconds))
            for name, run in runners.items():
                t = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - t)
    return times


def _statistics(times: list[float]) -> dict[str, Any]:
    median, low, high = (float(np.percentile(times, p)) * 1e3 for p in (50, 10, 90))
    return {"median_ms": median, "p10_ms": low, "p90_ms": high, "runs": len(times)}
