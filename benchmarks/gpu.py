"""Inference and training on an NVIDIA GPU: here, under PyTorch as it is, and under torch.compile, in turns.

    python -m benchmarks.gpu [--only NAME] [--mode infer --mode train] [--precision fp32 …] [--json FILE]
                             [--no-compile] [--default] [--max-autotune] [--no-memory] [--large] [--reference cuda]

Every row is one network, batch and precision. All runtimes get the same weights and the same random data in one process and
take turns; times are medians by CUDA events. float32 means TF32 products for all. The floor is arithmetic at 790 TFLOP/s
(TF32: half of that), and for training what an optimizer must move at 4.3 TB/s on top; for inference it is no less than the
time to read the weights once. Errors are relative to PyTorch in float64: of outputs, or of the loss and of the gradients of a
few weights. Peak memory and the time of the first call come from processes of each runtime's own, with caches of their own: one
that finds them empty, and one that finds what the first has left there.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu_networks import NETWORKS, Network, exported, our_loss, torch_loss

ROUNDS, RUNS, WARM = 10, 5, 8
"""Turns of each runtime, steps in a turn, and steps before the first."""

PRECISIONS = {"infer": ("fp32", "fp16", "bf16"), "train": ("fp32", "bf16")}
RUNTIMES = ("flamert", "eager", "compile", "default", "max-autotune")
COMPILED = {"compile": "reduce-overhead", "default": "default", "max-autotune": "max-autotune"}

FLOPS = {"fp32": 395e12, "fp16": 790e12, "bf16": 790e12}
BANDWIDTH = 4.3e12
"""What large products and copies reach on an H200, a second."""

ADAM_BYTES, MOMENTUM_BYTES = 28, 20
"""What an update moves for each weight: weight, gradient and moments read, weight and moments written, all float32."""

RATE = 2.0**10
"""Learning rate of the step that gradients are read off: so large that the difference of the weights has their digits."""

CACHES = ("FLAMERT_CACHE", "CUPY_CACHE_DIR", "CUDA_CACHE_PATH", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


class Task(NamedTuple):
    """One row's work."""

    name: str
    mode: str
    precision: str
    batch: int

    @property
    def network(self) -> Network:
        return NETWORKS[self.name]

    @property
    def train(self) -> bool:
        return self.mode == "train"

    def drawn(self) -> tuple[Any, tuple[Any, ...], Any]:
        """The module, its inputs and the targets: the same ones each time."""
        import torch

        torch.manual_seed(0)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
        module = self.network.make().train(self.train)
        example = self.network.draw(torch, self.batch)
        return module, example, self.network.labels(torch, example)


class Contender(NamedTuple):
    """A runtime that is ready: one step, and gradients by name, before the first step or right after it."""

    step: Callable[[], Any]
    gradients: Callable[[Sequence[str]], dict[str, np.ndarray]]


def main() -> None:
    options = _arguments().parse_args()
    warnings.filterwarnings("ignore")
    if options.child:
        print(json.dumps(_alone(options)))
        return
    rows, failed = [], False
    for task in _tasks(options):
        label = f"{task.name} {task.mode} {task.precision} b{task.batch}"
        try:
            rows.append(_row(task, options))
        except Exception as error:  # the other rows are worth having all the same
            print(f"{label}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        shown = ", ".join(f"{k} {v:.3f}" for k, v in rows[-1].items() if k.endswith("_ms"))
        print(f"{label}: {shown}", file=sys.stderr, flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps(rows, indent=1))
    if rows:
        show(rows)
    sys.exit(failed)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(NETWORKS), help="repeatable; default all")
    parser.add_argument("--mode", action="append", choices=("infer", "train"), help="repeatable; default both")
    parser.add_argument("--precision", action="append", choices=("fp32", "fp16", "bf16"), help="repeatable; default all")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--default", action="store_true", help="torch.compile without CUDA graphs as well, for training")
    parser.add_argument("--max-autotune", action="store_true", help="torch.compile's slowest mode as well: minutes a row")
    parser.add_argument("--no-memory", action="store_true", help="leave out what needs processes of their own")
    parser.add_argument("--no-errors", action="store_true", help="leave out the comparison with float64")
    parser.add_argument("--reference", choices=("cpu", "cuda"), default="cpu", help="where float64 is computed")
    parser.add_argument("--large", action="store_true", help="the larger batch only")
    parser.add_argument("--json", help="file for the rows")
    for hidden in ("--child", "--network", "--batch", "--kind", "--in"):
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


def _row(task: Task, options: argparse.Namespace) -> dict[str, Any]:
    runtimes = _runtimes(options, task.mode)
    row = {"network": task.name, "mode": task.mode, "precision": task.precision, "batch": task.batch}
    row |= _measured(task, runtimes, None if options.no_errors else options.reference)
    return row if options.no_memory else row | _memory(task, runtimes)


def _ours(task: Task, module: Any, example: tuple[Any, ...], labels: Any) -> Contender:
    import cupy

    import flamert as fr

    network, file = task.network, exported(module, example, task.train)
    xs = tuple(cupy.asarray(x.numpy()) for x in example)
    t = cupy.asarray(labels.numpy())

    def load() -> Any:
        half = None if task.train or task.precision == "fp32" else task.precision
        return fr.load(file, device="cuda", allow_tf32=True, precision=half)

    def gradients(names: Sequence[str]) -> dict[str, np.ndarray]:
        taught = load()
        before = {name: taught.params[name].astype(np.float64) for name in names}
        once = fr.Trainer(taught, our_loss(network), fr.optim.SGD(RATE), precision=task.precision)
        once.step(xs, t)
        return {name: (before[name] - taught.params[name]) / RATE for name in names}

    model = load()
    if not task.train:
        return Contender(lambda: model(*xs), gradients)
    optimizer = fr.optim.AdamW(1e-4) if network.adaptive else fr.optim.SGD(0.01, momentum=0.9)
    trainer = fr.Trainer(model, our_loss(network), optimizer, precision=task.precision)
    return Contender(lambda: trainer.step(xs, t), gradients)


def _torchs(task: Task, module: Any, example: tuple[Any, ...], labels: Any, compiled: str | None) -> Contender:
    import torch

    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(task.precision)
    module, xs, t = module.cuda(), tuple(x.cuda() for x in example), labels.cuda()
    if not task.train and half is not None:
        module, xs = module.to(half), tuple(x.to(half) if x.is_floating_point() else x for x in xs)
    run = torch.compile(module, mode=compiled) if compiled else module
    settings = {"params": module.parameters(), "fused": True}
    if task.network.adaptive:
        optimizer: Any = torch.optim.AdamW(**settings, lr=1e-4)
    else:
        optimizer = torch.optim.SGD(**settings, lr=0.01, momentum=0.9)

    def infer() -> Any:
        with torch.inference_mode():
            return run(*xs)

    def step() -> Any:
        with torch.autocast("cuda", half or torch.bfloat16, enabled=half is not None):
            loss = torch_loss(task.network, run(*xs), t)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    def gradients(names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: _array(module.get_parameter(name).grad) for name in names}

    return Contender(step if task.train else infer, gradients)


def _contenders(task: Task, runtimes: Sequence[str]) -> dict[str, Contender]:
    import torch

    torch._dynamo.reset()
    found = {}
    for runtime in runtimes:
        drawn = task.drawn()
        found[runtime] = _ours(task, *drawn) if runtime == "flamert" else _torchs(task, *drawn, COMPILED.get(runtime))
    return found


def _array(result: Any) -> np.ndarray:
    """A result on the host, in float64."""
    if hasattr(result, "detach"):
        return result.detach().double().cpu().numpy()
    result = result.get() if hasattr(result, "get") else result
    return np.asarray(result if isinstance(result, np.ndarray) else float(result), np.float64)


@functools.cache
def _reference(name: str, mode: str, batch: int, where: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What float64 gives: the output; or the loss, and the gradients of a few weights from the first layer to the last."""
    import torch

    task = Task(name, mode, "fp32", batch)
    module, example, labels = task.drawn()
    module = module.double().to(where)
    example = tuple(x.double().to(where) if x.is_floating_point() else x.to(where) for x in example)
    with torch.set_grad_enabled(task.train):
        y = module(*example)
        if not task.train:
            return _array(y), {}
        loss = torch_loss(task.network, y, labels.to(where))
        loss.backward()
    named = [n for n, p in module.named_parameters() if p.ndim > 1 and "lstm" not in n]  # exporters turn those of an LSTM
    chosen = dict.fromkeys(named[round(i * (len(named) - 1) / 3)] for i in range(4))
    return _array(loss), {n: _array(module.get_parameter(n).grad) for n in chosen}


def _apart(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def _errors(task: Task, contenders: dict[str, Contender], where: str) -> dict[str, Any]:
    """Relative errors of every runtime's first result, and of gradients here and in PyTorch as it is. Takes each one step."""
    wanted, slopes = _reference(task.name, task.mode, task.batch, where)
    row: dict[str, Any] = {}
    for name, contender in contenders.items():
        row[f"{name}_error"] = _apart(_array(contender.step()), wanted)
        if slopes and name in ("flamert", "eager"):
            found = contender.gradients(list(slopes))
            row[f"{name}_gradients"] = {n: _apart(found[n], want) for n, want in slopes.items()}
    if slopes:
        ours, torchs = (row.get(f"{name}_gradients", {}) for name in ("flamert", "eager"))
        row["gradient_ratio"] = max((ours[n] / max(torchs[n], 1e-12) for n in ours if n in torchs), default=None)
    return row


def _floor(task: Task) -> float:
    """Milliseconds that a row takes at least."""
    count, weights = _work(task.name, task.mode)
    arithmetic = count * task.batch / FLOPS[task.precision]
    if task.train:
        return 1e3 * (arithmetic + weights * (ADAM_BYTES if task.network.adaptive else MOMENTUM_BYTES) / BANDWIDTH)
    return 1e3 * max(arithmetic, weights * (4 if task.precision == "fp32" else 2) / BANDWIDTH)


@functools.cache
def _work(name: str, mode: str) -> tuple[float, int]:
    """Floating-point operations of all products for one sample, forward and for training backward; and how many weights."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    module, example, labels = Task(name, mode, "fp32", 1).drawn()
    counter = FlopCounterMode(display=False)  # which knows recurrent layers and attention by the products they are made of
    with counter, sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False):
        loss = torch_loss(NETWORKS[name], module(*example), labels)
        if mode == "train":
            loss.backward()
    masked = NETWORKS[name].masked * (3 if mode == "train" else 1)
    return float(counter.get_total_flops()) - masked, sum(p.numel() for p in module.parameters())


def _timed(step: Callable[[], Any], runs: int) -> float:
    import torch

    start, end = torch.cuda.Event(True), torch.cuda.Event(True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(runs):
        step()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / runs


def _measured(task: Task, runtimes: Sequence[str], reference: str | None) -> dict[str, Any]:
    """Times, and errors of the first result, of all runtimes in one process."""
    contenders = _contenders(task, runtimes)
    row = _errors(task, contenders, reference) if reference else {}
    for contender in contenders.values():
        for _ in range(WARM):
            contender.step()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, contender in contenders.items():
            times[name].append(_timed(contender.step, RUNS))
    row |= {f"{name}_ms": statistics.median(found) for name, found in times.items()}
    row["ratio"] = min(row[f"{name}_ms"] for name in contenders if name != "flamert") / row["flamert_ms"]
    row["floor_ms"] = _floor(task)
    row["fraction"] = row["floor_ms"] / row["flamert_ms"]
    return row


def _memory(task: Task, runtimes: Sequence[str]) -> dict[str, Any]:
    """Peak memory, and the time of the first call with empty caches and with full ones, of each runtime alone."""
    row: dict[str, Any] = {}
    given = ["--network", task.name, "--batch", str(task.batch), "--kind", task.mode, "--in", task.precision]
    for runtime in runtimes:
        with tempfile.TemporaryDirectory(prefix="caches") as folder:
            places = {name: os.path.join(folder, name) for name in CACHES}
            for key in ("first_s", "warm_s"):
                command = [sys.executable, "-m", "benchmarks.gpu", "--child", runtime, *given]
                done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **places})
                if done.returncode:
                    raise RuntimeError(done.stderr[-2000:])
                found = json.loads(done.stdout.strip().splitlines()[-1])
                row[f"{runtime}_{key}"], row[f"{runtime}_mib"] = found["first_s"], found["mib"]
    return row


def _alone(options: argparse.Namespace) -> dict[str, float]:
    import torch

    task = Task(options.network, options.kind, getattr(options, "in"), int(options.batch))
    torch.zeros(1).cuda()
    free = torch.cuda.mem_get_info()[0]
    started = time.perf_counter()
    [contender] = _contenders(task, (options.child,)).values()
    contender.step()
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    for _ in range(WARM):
        contender.step()
    torch.cuda.synchronize()
    return {"mib": (free - torch.cuda.mem_get_info()[0]) >> 20, "first_s": first}


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
            *(over("mib", "d"), over("first_s", ".1f"), over("warm_s", ".1f")),
        )
    Console(width=200).print(table)
    print(f"several numbers in a cell: {' · '.join(there)}")
    for mode in dict.fromkeys(row["mode"] for row in rows):
        ratios = [row["ratio"] for row in rows if row["mode"] == mode]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"{mode}: fastest peer's time over ours, geometric mean {mean:.2f}, least {min(ratios):.2f}")


if __name__ == "__main__":
    main()
