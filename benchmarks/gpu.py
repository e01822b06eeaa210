"""Inference and training on an NVIDIA GPU: here, under PyTorch as it is, and under torch.compile, in turns.

    python -m benchmarks.gpu [--only NAME] [--mode infer --mode train] [--precision fp32 …] [--no-compile] [--json FILE]

Every row is one network, batch and precision. All runtimes get the same weights and the same random data in one process and
take turns; times are medians by CUDA events. float32 means TF32 products for all. Errors are relative to PyTorch in float64
on the CPU. Peak memory, and the time that the first call takes, come from a process of each runtime's own.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROUNDS, RUNS, WARM = 10, 5, 8
"""Turns of each runtime, steps in a turn, and steps before the first."""

PRECISIONS = {"infer": ("fp32", "fp16", "bf16"), "train": ("fp32", "bf16")}
RUNTIMES = ("flamert", "eager", "compile")


class Network(NamedTuple):
    """make: a torch module. draw: (torch, batch) → its input. batches: for inference; batch: for training."""

    make: Callable[[], Any]
    draw: Callable[[Any, int], Any]
    batches: tuple[int, int]
    batch: int
    classes: int
    adaptive: bool
    per_token: bool = False


def _images(torch: Any, batch: int) -> Any:
    return torch.randn(batch, 3, 224, 224)


def _tokens(length: int, vocabulary: int) -> Callable[[Any, int], Any]:
    return lambda torch, batch: torch.randint(0, vocabulary, (batch, length))


def _vision(name: str) -> Callable[[], Any]:
    def make() -> Any:
        import torchvision

        return getattr(torchvision.models, name)(weights=None)

    return make


def _logits(kind: str, config: str, **options: Any) -> Callable[[], Any]:
    """A model of transformers that takes token ids and gives logits, without dropout."""

    def make() -> Any:
        import torch
        import transformers

        settings = getattr(transformers, config)(**options)
        for name in vars(settings):
            if "drop" in name or name.endswith("_pdrop"):
                setattr(settings, name, 0.0)

        class Logits(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = getattr(transformers, kind)(settings)

            def forward(self, ids: Any) -> Any:
                return self.inner(ids).logits

        return Logits()

    return make


def _lstm() -> Any:
    import torch

    class Tagger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(10000, 256)
            self.lstm = torch.nn.LSTM(256, 512, num_layers=2, batch_first=True)
            self.head = torch.nn.Linear(512, 100)

        def forward(self, ids: Any) -> Any:
            return self.head(self.lstm(self.embedding(ids))[0][:, -1])

    return Tagger()


NETWORKS = {
    "resnet50": Network(_vision("resnet50"), _images, (1, 64), 64, 1000, False),
    "vit-b/16": Network(_vision("vit_b_16"), _images, (1, 64), 64, 1000, True),
    "bert-base s128": Network(
        _logits("BertForSequenceClassification", "BertConfig", num_labels=2), _tokens(128, 30000), (1, 32), 32, 2, True
    ),
    "gpt2 s512": Network(
        _logits("GPT2LMHeadModel", "GPT2Config", use_cache=False), _tokens(512, 50000), (1, 8), 8, 50000, True, True
    ),
    "lstm s64": Network(_lstm, _tokens(64, 10000), (1, 64), 64, 100, True),
}


def main() -> None:
    options = _arguments().parse_args()
    warnings.filterwarnings("ignore")
    if options.child:
        print(json.dumps(_alone(options)))
        return
    rows = []
    for row in _rows(options):
        rows.append(row)
        shown = ", ".join(f"{k} {v:.3f}" for k, v in row.items() if k.endswith("_ms"))
        print(f"{row['network']} {row['mode']} {row['precision']} b{row['batch']}: {shown}", file=sys.stderr, flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps(rows, indent=1))
    if rows:
        show(rows)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(NETWORKS), help="repeatable; default all")
    parser.add_argument("--mode", action="append", choices=("infer", "train"), help="repeatable; default both")
    parser.add_argument("--precision", action="append", choices=("fp32", "fp16", "bf16"), help="repeatable; default all")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-memory", action="store_true", help="leave out what needs processes of their own")
    parser.add_argument("--large", action="store_true", help="the larger batch only")
    parser.add_argument("--json", help="file for the rows")
    for hidden in ("--child", "--network", "--batch", "--kind", "--in"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser


def _rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name in options.only or NETWORKS:
        network = NETWORKS[name]
        for mode in options.mode or PRECISIONS:
            batches = (network.batch,) if mode == "train" else network.batches[options.large :]
            for precision in options.precision or PRECISIONS[mode]:
                if precision not in PRECISIONS[mode]:
                    continue
                for batch in batches:
                    row = {"network": name, "mode": mode, "precision": precision, "batch": batch}
                    row |= _measured(network, mode, precision, batch, RUNTIMES[: 2 if options.no_compile else 3])
                    if not options.no_memory:
                        row |= _memory(name, mode, precision, batch, RUNTIMES[: 2 if options.no_compile else 3])
                    yield row


def _module(network: Network, train: bool) -> Any:
    import torch

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    return network.make().train(train)


def exported(module: Any, example: Any, train: bool) -> bytes:
    """The module as ONNX, with what it trains left apart."""
    import torch

    file = io.BytesIO()
    form = torch.onnx.TrainingMode.TRAINING if train else torch.onnx.TrainingMode.EVAL
    options = {"opset_version": 18, "dynamo": False, "training": form, "do_constant_folding": not train}
    torch.onnx.export(module, (example,), file, input_names=["x"], output_names=["y"], **options)
    return file.getvalue()


def _labels(torch: Any, network: Network, example: Any) -> Any:
    return torch.randint(0, network.classes, (example.shape if network.per_token else example.shape[:1]))


Step = Callable[[], Any]


def _ours(network: Network, module: Any, example: Any, labels: Any, mode: str, precision: str) -> Step:
    import cupy

    import flamert as fr
    from flamert import losses, ops

    model = fr.load(
        exported(module, example, mode == "train"),
        device="cuda",
        allow_tf32=True,
        precision=None if mode == "train" or precision == "fp32" else precision,
    )
    x = cupy.asarray(example.numpy())
    if mode == "infer":
        return lambda: model(x)

    def tokens(outputs: Any, targets: Any) -> Any:
        n, length, classes = outputs["y"].shape
        flat = ops.reshape(outputs["y"], shape=(n * length, classes))
        return losses.by_name("cross_entropy")(flat, ops.reshape(targets["target"], shape=(n * length,)))

    optimizer = fr.optim.AdamW(1e-4) if network.adaptive else fr.optim.SGD(0.01, momentum=0.9)
    trainer = fr.Trainer(model, tokens if network.per_token else "cross_entropy", optimizer, precision=precision)
    t = cupy.asarray(labels.numpy())
    return lambda: trainer.step(x, t)


def _torchs(network: Network, module: Any, example: Any, labels: Any, mode: str, precision: str, compiled: bool) -> Step:
    import torch

    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    module, x, t = module.cuda(), example.cuda(), labels.cuda()
    if mode == "infer":
        if half is not None:
            module, x = module.to(half), x.to(half) if x.is_floating_point() else x
        run = torch.compile(module, mode="reduce-overhead") if compiled else module

        def infer() -> Any:
            with torch.inference_mode():
                return run(x)

        return infer
    run = torch.compile(module, mode="reduce-overhead") if compiled else module
    if network.adaptive:
        optimizer: Any = torch.optim.AdamW(module.parameters(), 1e-4, fused=True)
    else:
        optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9, fused=True)

    def step() -> Any:
        with torch.autocast("cuda", half or torch.bfloat16, enabled=half is not None):
            y = run(x)
            loss = torch.nn.functional.cross_entropy(y.reshape(-1, y.shape[-1]).float(), t.reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    return step


def _steps(network: Network, mode: str, precision: str, batch: int, runtimes: tuple[str, ...]) -> dict[str, Step]:
    import torch

    steps = {}
    for runtime in runtimes:
        module = _module(network, mode == "train")
        example = network.draw(torch, batch)
        labels = _labels(torch, network, example)
        if runtime == "flamert":
            steps[runtime] = _ours(network, module, example, labels, mode, precision)
        else:
            torch._dynamo.reset()
            steps[runtime] = _torchs(network, module, example, labels, mode, precision, runtime == "compile")
    return steps


def _array(result: Any) -> np.ndarray:
    """A result on the host, in float64."""
    if hasattr(result, "detach"):
        return result.detach().float().cpu().numpy().astype(np.float64)
    return (result.get() if hasattr(result, "get") else np.asarray(float(result))).astype(np.float64)


def _timed(step: Step, runs: int) -> float:
    import torch

    start, end = torch.cuda.Event(True), torch.cuda.Event(True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(runs):
        step()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / runs


def _measured(network: Network, mode: str, precision: str, batch: int, runtimes: tuple[str, ...]) -> dict[str, Any]:
    """Times, and errors of the first result, of all runtimes in one process."""
    import torch

    row: dict[str, Any] = {}
    steps = _steps(network, mode, precision, batch, runtimes)
    module = _module(network, mode == "train").double()
    example = network.draw(torch, batch)
    with torch.no_grad():
        want = module(example.double() if example.is_floating_point() else example)
        if mode == "train":
            labels = _labels(torch, network, example)
            want = torch.nn.functional.cross_entropy(want.reshape(-1, want.shape[-1]), labels.reshape(-1))
    for name, step in steps.items():
        error = np.linalg.norm(_array(step()) - want.numpy()) / np.linalg.norm(want.numpy())
        row[f"{name}_error"] = float(error)
        for _ in range(WARM):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            times[name].append(_timed(step, RUNS))
    for name, found in times.items():
        row[f"{name}_ms"] = statistics.median(found)
    best = min(row[f"{name}_ms"] for name in steps if name != "flamert")
    row["ratio"] = best / row["flamert_ms"]
    return row


def _memory(name: str, mode: str, precision: str, batch: int, runtimes: tuple[str, ...]) -> dict[str, Any]:
    """Peak memory and the time of the first call, of each runtime alone."""
    row: dict[str, Any] = {}
    for runtime in runtimes:
        given = ["--child", runtime, "--network", name, "--batch", str(batch), "--kind", mode, "--in", precision]
        done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", *given], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        row |= {f"{runtime}_{key}": value for key, value in json.loads(done.stdout.strip().splitlines()[-1]).items()}
    return row


def _alone(options: argparse.Namespace) -> dict[str, float]:
    import torch

    network, runtime = NETWORKS[options.network], options.child
    torch.zeros(1).cuda()
    free = torch.cuda.mem_get_info()[0]
    started = time.perf_counter()
    [step] = _steps(network, options.kind, getattr(options, "in"), int(options.batch), (runtime,)).values()
    step()
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    for _ in range(WARM):
        step()
    torch.cuda.synchronize()
    return {"mib": (free - torch.cuda.mem_get_info()[0]) >> 20, "first_s": first}


def show(rows: list[dict[str, Any]]) -> None:
    """The table, and for each mode the geometric mean of the fastest peer's time over ours."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*("network", "mode", "precision", "batch", *RUNTIMES, "ratio", "errors", "MiB", "first call, s"))
    for row in rows:

        def over(key: str, form: str, row: dict[str, Any] = row) -> str:
            return " · ".join(format(row[f"{r}_{key}"], form) for r in RUNTIMES if f"{r}_{key}" in row)

        times = [format(row[f"{r}_ms"], ".3f") if f"{r}_ms" in row else "" for r in RUNTIMES]
        table.add_row(
            *(row["network"], row["mode"], row["precision"], str(row["batch"]), *times, f"{row['ratio']:.2f}"),
            *(over("error", ".1e"), over("mib", "d"), over("first_s", ".1f")),
        )
    Console(width=170).print(table)
    for mode in dict.fromkeys(row["mode"] for row in rows):
        ratios = [row["ratio"] for row in rows if row["mode"] == mode]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"{mode}: fastest peer's time over ours, geometric mean {mean:.2f}, least {min(ratios):.2f}")


if __name__ == "__main__":
    main()
