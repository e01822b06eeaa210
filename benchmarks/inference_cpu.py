"""How long, and with how much memory, ten trained models run on the CPU: here and under onnxruntime, in turns.

    python -m benchmarks.inference_cpu [--threads 1 --threads 2] [--only NAME] [--models DIR] [--json FILE]

Everything is measured in fresh processes. Three questions, three tables: a run once warm (medians, both runtimes in turns in
one process); the first call (load and run, imports apart, one process each); memory (the most that was resident in that
process, and how much of it came after the imports).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

RUNTIMES = ("flamert", "onnxruntime")
WARM_RUNS = 20
"""Runs after the first in the processes whose memory is looked at."""

Run = Callable[[dict[str, np.ndarray]], Any]


def main() -> None:
    options = _arguments().parse_args()
    if options.models:
        os.environ["FLAMERT_MODELS"] = options.models
    if options.child:
        print(json.dumps(CHILDREN[options.child](options)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in _rows(options, Path(folder)):
            rows.append(row)
            print(f"{row['model']} {row['shapes']}, {row['threads']} threads: {row['ratio']:.2f}", file=sys.stderr, flush=True)
            if options.json:
                Path(options.json).write_text(json.dumps(rows, indent=1))
    if rows:
        show(rows)


def _rows(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """One row for each model, set of inputs and number of threads; what cannot be measured is said on stderr."""
    from models.fetch import Unavailable, fetch
    from models.inputs import MODELS, make

    for name in options.only or MODELS:
        for i, feeds in enumerate(make(name)):
            data = folder / f"{name}{i}.npz"
            np.savez(data, **{f"in/{key}": array for key, array in feeds.items()})
            shapes = ", ".join("×".join(map(str, a.shape)) or "scalar" for a in feeds.values())
            for threads in options.threads or [1, 2]:
                try:
                    measured = _measured(str(fetch(name)["model"]), str(data), threads, options)
                except (Unavailable, RuntimeError) as error:
                    print(f"{name}: {error}", file=sys.stderr)
                else:
                    yield {"model": name, "shapes": shapes, "threads": threads, **measured}


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, action="append", help="for each runtime; repeatable; default 1 and 2")
    parser.add_argument("--only", action="append", help="a model by name; repeatable; default all")
    parser.add_argument("--models", help="folder of the ONNX files; default $FLAMERT_MODELS or a cache")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each comparison of warm runs")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each first call; their medians count")
    parser.add_argument("--json", help="file for the rows")
    for hidden in ("--child", "--runtime", "--path", "--data"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser


def _measured(path: str, data: str, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row: everything about one model, one set of inputs, one number of threads."""
    row = _child("turns", path, data, threads, options)
    firsts: dict[str, list[dict[str, float]]] = {runtime: [] for runtime in RUNTIMES}
    for _ in range(options.repeats):
        for runtime in RUNTIMES:
            firsts[runtime].append(_child("first", path, data, threads, options, runtime))
    for key in ("import_s", "first_s", "peak_mb", "growth_mb"):
        for runtime in RUNTIMES:
            row[f"{runtime}_{key}"] = statistics.median(f[key] for f in firsts[runtime])
    return row


def _child(kind: str, path: str, data: str, threads: int, options: argparse.Namespace, runtime: str = "") -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.inference_cpu", "--child", kind, "--path", path, "--data", data]
    command += ["--threads", str(threads), "--runtime", runtime, "--seconds", str(options.seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{kind} {runtime} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _turns(options: argparse.Namespace) -> dict[str, float]:
    """Medians of warm runs, both runtimes in turns."""
    feeds, threads = _feeds(options.data), options.threads[0]
    runs = {name: OPENERS[name](options.path, threads) for name in RUNTIMES}
    for run in runs.values():
        for _ in range(4):
            run(feeds)
    times: dict[str, list[float]] = {name: [] for name in RUNTIMES}
    end = time.perf_counter() + options.seconds
    while time.perf_counter() < end or len(times["flamert"]) < 7:
        for name, run in runs.items():
            start = time.perf_counter()
            run(feeds)
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(t) for name, t in times.items()}
    ratio = medians["flamert"] / medians["onnxruntime"]
    return {**{f"{name}_ms": t * 1e3 for name, t in medians.items()}, "ratio": ratio, "runs": len(times["flamert"])}


def _first(options: argparse.Namespace) -> dict[str, float]:
    """Import, load and first run of one runtime; then what memory it took."""
    feeds = _feeds(options.data)
    start = time.perf_counter()
    IMPORTS[options.runtime]()
    imported = time.perf_counter()
    base = resident("VmRSS")
    opened = time.perf_counter()
    run = OPENERS[options.runtime](options.path, options.threads[0])
    run(feeds)
    first = time.perf_counter() - opened
    for _ in range(WARM_RUNS):
        run(feeds)
    peak = resident("VmHWM")
    return {
        "import_s": imported - start,
        "first_s": first,
        "peak_mb": peak,
        "growth_mb": peak - base,
    }


def _feeds(path: str) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {key.removeprefix("in/"): arrays[key] for key in arrays.files}


def resident(field: str) -> float:
    """Megabytes of this process in memory, now (VmRSS) or at most (VmHWM); NaN where the system does not say."""
    status = Path("/proc/self/status")
    found = re.search(rf"^{field}:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(found[1]) / 1024 if found else math.nan


def _import_flamert() -> None:
    import flamert

    assert flamert.load


def _import_onnxruntime() -> None:
    import onnxruntime

    assert onnxruntime.InferenceSession


def _open_flamert(path: str, threads: int) -> Run:
    import flamert

    flamert.set_threads(threads)
    return flamert.load(path, device="cpu").run


def _open_onnxruntime(path: str, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


IMPORTS: dict[str, Callable[[], None]] = {"flamert": _import_flamert, "onnxruntime": _import_onnxruntime}
OPENERS: dict[str, Callable[[str, int], Run]] = {"flamert": _open_flamert, "onnxruntime": _open_onnxruntime}
CHILDREN: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {"turns": _turns, "first": _first}


def show(rows: list[dict[str, Any]]) -> None:
    """The rows as a table, and what they come to."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 150)
    table = Table("model", "inputs", "threads", title="flamert / onnxruntime")
    for column in ("warm ms", "ratio", "first call ms", "ratio", "peak MB", "ratio", "after import MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        cells = [f"{row['flamert_ms']:.3g} / {row['onnxruntime_ms']:.3g}", f"{row['ratio']:.2f}"]
        for key, unit in (("first_s", 1e3), ("peak_mb", 1.0)):
            ours, theirs = (row[f"{name}_{key}"] * unit for name in RUNTIMES)
            cells += [f"{ours:.0f} / {theirs:.0f}", f"{ours / theirs:.2f}"]
        cells.append(f"{row['flamert_growth_mb']:.0f} / {row['onnxruntime_growth_mb']:.0f}")
        table.add_row(row["model"], row["shapes"], str(row["threads"]), *cells)
    console.print(table)
    for threads in sorted({row["threads"] for row in rows}):
        of = [row for row in rows if row["threads"] == threads]
        lines = [f"warm {_summary([row['ratio'] for row in of])}"]
        for label, key in (("first call", "first_s"), ("peak memory", "peak_mb")):
            lines.append(f"{label} {_summary([row[f'flamert_{key}'] / row[f'onnxruntime_{key}'] for row in of])}")
        console.print(f"{threads} thread{'s' * (threads > 1)}, geometric mean (worst) of the ratios: {'; '.join(lines)}")
    imports = (f"{name} {statistics.median(row[f'{name}_import_s'] for row in rows):.2f} s" for name in RUNTIMES)
    console.print(f"imports once NumPy is there, with all that loading a model needs: {', '.join(imports)}")


def _summary(ratios: list[float]) -> str:
    return f"{statistics.geometric_mean(ratios):.2f} ({max(ratios):.2f})"


if __name__ == "__main__":
    main()
