"""Inference and training on an NVIDIA GPU: here, under PyTorch as it is, and under torch.compile, in turns.

    python -m benchmarks.gpu [--only NAME] [--mode infer --mode train] [--precision fp32 …] [--json FILE] [--together N]
                             [--no-compile] [--default] [--max-autotune] [--no-memory] [--large] [--reference cuda]

Every row is one network, batch and precision, in a process of its own. All runtimes get the same weights and the same random
data there and take turns; times are medians by CUDA events. With --together several rows are prepared at a time, which takes
processors minutes, and timed one after another, while the others wait. float32 means TF32 products for all. The floor is
arithmetic at 790 TFLOP/s (TF32: half of that), and for training what an optimizer must move at 4.3 TB/s on top; for inference
it is no less than the time to read the weights once. Errors are relative to PyTorch in float64: of outputs or losses, for many
inputs where each gives few numbers, and of the gradients of a few weights. Peak memory and the time of the first call come from
processes of each runtime's own, with caches of their own: one that finds them empty, and one that finds what the first has
left there. That time begins with the network in host memory, a module or a file, and the runtime imported, and ends with the
first result. With --no-memory the table has what each runtime's allocator holds, in the row's process. With --only-memory
nothing else is found out, by each runtime in a process of its own, and with --only-errors nothing but errors, of ours and of
PyTorch as it is; --together of these processes run at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.gpu_networks import NETWORKS
from benchmarks.gpu_rows import COMPILED, PRECISIONS, RUNTIMES, WARM, Task, allocated, compared, entered, measured, trim

FLAGS = ("--no-compile", "--default", "--max-autotune", "--no-memory", "--no-errors")
"""What a row's own process is told as well."""

CACHES = ("FLAMERT_CACHE", "CUPY_CACHE_DIR", "CUDA_CACHE_PATH", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def main() -> None:
    options = _arguments().parse_args()
    warnings.filterwarnings("ignore")
    if options.child:
        print(json.dumps(_alone(options)))
        return
    if options.signals:
        print(json.dumps(_row(options)))
        return
    rows, failed = [], False
    find = _held if options.only_memory else _judged if options.only_errors else _measured
    for task, row in find(list(_tasks(options)), options):
        label = f"{task.name} {task.mode} {task.precision} b{task.batch}"
        if isinstance(row, str):  # the other rows are worth having all the same
            print(f"{label}: {row}", file=sys.stderr, flush=True)
            failed = True
            continue
        rows.append(row)
        shown = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k.endswith(("_ms", "_mib", "_ratio")))
        print(f"{label}: {shown}", file=sys.stderr, flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps(rows, indent=1))
    if rows and not options.only_memory:
        (show_errors if options.only_errors else show)(rows)
    sys.exit(failed)


def _measured(tasks: list[Task], options: argparse.Namespace) -> Iterator[tuple[Task, dict[str, Any] | str]]:
    """Each task's row, or what went wrong."""
    for first in range(0, len(tasks), options.together):
        group = tasks[first : first + options.together]
        with tempfile.TemporaryDirectory(prefix="rows") as folder:
            children = [_Child(task, Path(folder) / str(i), options) for i, task in enumerate(group)]
            for child in children:
                child.wait()
            for task, child in zip(group, children, strict=True):
                yield task, child.finish()


def _held(tasks: list[Task], options: argparse.Namespace) -> Iterator[tuple[Task, dict[str, Any] | str]]:
    """What each runtime's allocator holds after a few steps, for each task, or what went wrong."""

    def one(task: Task, runtime: str) -> int | str:
        found = _found("--child", runtime, *_spelled(task))
        return found if isinstance(found, str) else int(found["pool_mib"])

    with ThreadPoolExecutor(options.together) as pool:
        running = [(task, {r: pool.submit(one, task, r) for r in _runtimes(options, task.mode)}) for task in tasks]
        for task, parts in running:
            found = {f"{runtime}_pool_mib": part.result() for runtime, part in parts.items()}
            wrong = next((said for said in found.values() if isinstance(said, str)), None)
            yield task, wrong or {**_described(task), **found}


def _judged(tasks: list[Task], options: argparse.Namespace) -> Iterator[tuple[Task, dict[str, Any] | str]]:
    """Each task's errors, or what went wrong, as soon as they are known."""
    with ThreadPoolExecutor(options.together) as pool:
        how = ("--child", "errors", "--reference", options.reference)
        running = {pool.submit(_found, *how, *_spelled(task)): task for task in tasks}
        for done in as_completed(running):
            yield running[done], done.result()


def _found(*arguments: str, env: dict[str, str] | None = None) -> dict[str, Any] | str:
    """What a process of this program's finds out, or what it complained about."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", *arguments], capture_output=True, text=True, env=env)
    if done.returncode:
        return "".join(done.stderr.strip().splitlines()[-1:]) or f"ended with {done.returncode}"
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


class _Child:
    """A process that prepares a row, says so, and times it when it is told to. signals: the file that says so."""

    def __init__(self, task: Task, signals: Path, options: argparse.Namespace) -> None:
        self.ready, self.go, self.errors = (signals.with_suffix(s) for s in (".ready", ".go", ".errors"))
        command = [sys.executable, "-m", "benchmarks.gpu", *_spelled(task), "--signals", str(signals)]
        command += [name for name in FLAGS if getattr(options, name.strip("-").replace("-", "_"))]
        command += ["--reference", options.reference]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors.open("w"), text=True)

    def wait(self) -> None:
        """Until it is ready, or has failed."""
        while not self.ready.exists() and self.process.poll() is None:
            time.sleep(0.05)

    def finish(self) -> dict[str, Any] | str:
        """Its row, or what it complained about."""
        self.go.touch()
        printed, _ = self.process.communicate()
        if self.process.returncode:
            return "".join(self.errors.read_text().strip().splitlines()[-1:]) or f"ended with {self.process.returncode}"
        row: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
        return row


def _row(options: argparse.Namespace) -> dict[str, Any]:
    """What a process of a row's own does."""
    task, signals = _task(options), Path(options.signals)
    runtimes = _runtimes(options, task.mode)

    def ready() -> None:
        import torch

        torch.cuda.synchronize()
        signals.with_suffix(".ready").touch()
        while not signals.with_suffix(".go").exists():
            time.sleep(0.02)

    row = _described(task) | measured(task, runtimes, None if options.no_errors else options.reference, ready)
    return row if options.no_memory else row | _memory(task, runtimes)


def _described(task: Task) -> dict[str, Any]:
    return {"network": task.name, "mode": task.mode, "precision": task.precision, "batch": task.batch}


def _spelled(task: Task) -> list[str]:
    return ["--network", task.name, "--batch", str(task.batch), "--kind", task.mode, "--in", task.precision]


def _task(options: argparse.Namespace) -> Task:
    return Task(options.network, options.kind, getattr(options, "in"), int(options.batch))


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(NETWORKS), help="repeatable; default all")
    parser.add_argument("--mode", action="append", choices=("infer", "train"), help="repeatable; default both")
    parser.add_argument("--precision", action="append", choices=("fp32", "fp16", "bf16"), help="repeatable; default all")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--default", action="store_true", help="torch.compile without CUDA graphs as well, for training")
    parser.add_argument("--max-autotune", action="store_true", help="torch.compile's slowest mode as well: minutes a row")
    parser.add_argument("--no-memory", action="store_true", help="leave out what needs processes of their own")
    parser.add_argument("--only-memory", action="store_true", help="find out nothing but what allocators hold")
    parser.add_argument("--no-errors", action="store_true", help="leave out the comparison with float64")
    parser.add_argument("--only-errors", action="store_true", help="find out nothing but errors")
    parser.add_argument("--reference", choices=("cpu", "cuda"), default="cpu", help="where float64 is computed")
    parser.add_argument("--large", action="store_true", help="the larger batch only")
    parser.add_argument("--together", type=int, default=1, metavar="N", help="rows that are prepared at a time")
    parser.add_argument("--json", help="file for the rows")
    for hidden in ("--child", "--signals", "--network", "--batch", "--kind", "--in"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser


def _runtimes(options: argparse.Namespace, mode: str) -> tuple[str, ...]:
    left_out = {
        *(() if options.default and mode == "train" else ("default",)),
        *(() if options.max_autotune else ("max-autotune",)),
        *(COMPILED if options.no_compile else ()),
    }
    return tuple([r for r in RUNTIMES if r not in left_out])


def _tasks(options: argparse.Namespace) -> Iterator[Task]:
    for name in options.only or NETWORKS:
        for mode in options.mode or PRECISIONS:
            batches = (NETWORKS[name].batch,) if mode == "train" else NETWORKS[name].batches[options.large :]
            for precision in options.precision or PRECISIONS[mode]:
                for batch in batches if precision in PRECISIONS[mode] else ():
                    yield Task(name, mode, precision, batch)


def _memory(task: Task, runtimes: Sequence[str]) -> dict[str, Any]:
    """Peak memory, and the time of the first call with empty caches and with full ones, of each runtime alone."""
    row: dict[str, Any] = {}
    for runtime in runtimes:
        with tempfile.TemporaryDirectory(prefix="caches") as folder:
            places = {name: os.path.join(folder, name) for name in CACHES}
            for key in ("first_s", "warm_s"):
                found = _found("--child", runtime, *_spelled(task), env={**os.environ, **places})
                if isinstance(found, str):
                    raise RuntimeError(f"{runtime}: {found}")
                row[f"{runtime}_{key}"], row[f"{runtime}_mib"] = found["first_s"], found["mib"]
    return row


def _alone(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    if options.child == "errors":
        task = _task(options)
        return _described(task) | compared(task, ("flamert", "eager"), options.reference)
    ready = entered(_task(options), options.child)
    torch.zeros(1).cuda()
    free = torch.cuda.mem_get_info()[0]
    started = time.perf_counter()
    contender = ready()
    contender.step()
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    trim()
    for _ in range(WARM):
        contender.step()
    torch.cuda.synchronize()
    held = (free - torch.cuda.mem_get_info()[0]) >> 20
    return {"mib": held, "pool_mib": allocated(options.child) >> 20, "first_s": first}


def show_errors(rows: list[dict[str, Any]]) -> None:
    """A table of errors, and of how many times PyTorch's ours are."""
    from rich.console import Console
    from rich.table import Table

    table = Table("row", "flamert", "eager", "ratio", "of gradients, at most")
    for row in sorted(rows, key=lambda row: (row["mode"], row["network"], row["precision"], row["batch"])):
        label = f"{row['network']} {row['mode']} {row['precision']} b{row['batch']}"
        slopes = f"{row['gradient_ratio']:.2f}" if "gradient_ratio" in row else ""
        table.add_row(label, f"{row['flamert_error']:.1e}", f"{row['eager_error']:.1e}", f"{row['error_ratio']:.2f}", slopes)
    Console(width=200).print(table)


def show(rows: list[dict[str, Any]]) -> None:
    """The table, and for each mode the geometric mean of the fastest peer's time over ours."""
    from rich.console import Console
    from rich.table import Table

    there = [r for r in RUNTIMES if any(f"{r}_ms" in row for row in rows)]
    table = Table("row", *there, "ratio", "of floor", "errors", "gradients", "MiB", "first call, s: cold", "warm")
    for row in rows:

        def over(key: str, form: str, row: dict[str, Any] = row) -> str:
            return " · ".join(format(row[f"{r}_{key}"], form) for r in there if f"{r}_{key}" in row)

        times = [format(row[f"{r}_ms"], ".3f") if f"{r}_ms" in row else "" for r in there]
        slopes = [f"{max(row[k].values()):.0e}" for r in there if (k := f"{r}_gradients") in row]
        table.add_row(
            *(f"{row['network']} {row['mode']} {row['precision']} b{row['batch']}", *times),
            *(f"{row['ratio']:.2f}", f"{row['fraction']:.2f}", over("error", ".0e"), " · ".join(slopes)),
            *(over("mib" if "flamert_mib" in row else "pool_mib", "d"), over("first_s", ".1f"), over("warm_s", ".1f")),
        )
    Console(width=200).print(table)
    print(f"several numbers in a cell: {' · '.join(there)}")
    for mode in dict.fromkeys(row["mode"] for row in rows):
        ratios = [row["ratio"] for row in rows if row["mode"] == mode]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"{mode}: fastest peer's time over ours, geometric mean {mean:.2f}, least {min(ratios):.2f}")


if __name__ == "__main__":
    main()
