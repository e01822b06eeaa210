"""How long, and with how much memory, one training step takes on the CPU: here and in PyTorch, in turns.

    python -m benchmarks.training_cpu [--threads 2] [--only NAME] [--seconds 10] [--json FILE]

Four networks, written in PyTorch below and exported to ONNX, start from the same weights in both and see the same random
batches with the same optimizer. A step is the forward pass, the loss and reading it, the backward pass and the update.
Everything is measured in fresh processes. Three questions, one table: a step once warm (medians, both in turns in one
process; of time passed, and of processors' time, which tells more where a machine is busy and each side has one thread); how
far the losses of the first steps are apart; memory (the most that was resident in a process that only trains, and how much
of it came after the imports).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIDES = ("flamert", "torch")
BATCHES = 4
"""Random batches that steps go through in turn."""
COMPARED = 8
"""First steps whose losses are compared, and after which memory is looked at."""

Step = Callable[[np.ndarray, np.ndarray], float]


def networks() -> dict[str, Callable[[], Any]]:
    """name → a function that makes the network."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Residual(nn.Module):
        """Two convolutions and the way around them."""

        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.norm1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
            self.conv2, self.norm2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
            self.around: Any = nn.Identity()
            if stride != 1 or before != after:
                self.around = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

        def forward(self, x: Any) -> Any:
            y = F.relu(self.norm1(self.conv1(x)))
            return F.relu(self.norm2(self.conv2(y)) + self.around(x))

    def resnet18() -> Any:
        stem = (nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        widths = (64, 64, 128, 256, 512)
        body = [Residual(widths[i + j], widths[i + 1], 1 if i == 0 or j else 2) for i in range(4) for j in (0, 1)]
        return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))

    class Layer(nn.Module):
        """A layer of BERT without dropout."""

        def __init__(self, size: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))
            self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
            self.up, self.down = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

        def forward(self, x: Any) -> Any:
            b, n, d = x.shape
            q, k, v = (p(x).view(b, n, self.heads, d // self.heads).transpose(1, 2) for p in (self.query, self.key, self.value))
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
            x = self.norm1(x + self.out(y))
            return self.norm2(x + self.down(F.gelu(self.up(x))))

    class Bert(nn.Module):
        """Words and their places, layers, and classes from the first word."""

        def __init__(self, words: int = 30522, longest: int = 512, size: int = 256, heads: int = 4, layers: int = 4) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(words, size), nn.Embedding(longest, size)
            self.norm = nn.LayerNorm(size)
            self.layers = nn.ModuleList(Layer(size, heads) for _ in range(layers))
            self.pool, self.head = nn.Linear(size, size), nn.Linear(size, 4)

        def forward(self, ids: Any) -> Any:
            x = self.norm(self.words(ids) + self.places.weight[: ids.shape[1]])
            for layer in self.layers:
                x = layer(x)
            return self.head(torch.tanh(self.pool(x[:, 0])))

    class Recurrent(nn.Module):
        """Words, two layers of LSTM, and classes from the mean over time."""

        def __init__(self, words: int = 10000, size: int = 128, hidden: int = 256) -> None:
            super().__init__()
            self.words, self.lstm = nn.Embedding(words, size), nn.LSTM(size, hidden, num_layers=2, batch_first=True)
            self.head = nn.Linear(hidden, 4)

        def forward(self, ids: Any) -> Any:
            return self.head(self.lstm(self.words(ids))[0].mean(1))

    def mlp() -> Any:
        return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))

    return {"MLP": mlp, "ResNet-18": resnet18, "BERT-mini": Bert, "LSTM": Recurrent}


SHAPES = {"MLP": (128, 784), "ResNet-18": (8, 3, 224, 224), "BERT-mini": (8, 128), "LSTM": (16, 64)}
VOCABULARY = {"BERT-mini": 30522, "LSTM": 10000}
CLASSES = {"MLP": 10, "ResNet-18": 1000, "BERT-mini": 4, "LSTM": 4}
OPTIMIZERS: dict[str, tuple[str, dict[str, float]]] = {
    "MLP": ("AdamW", {"lr": 1e-3}),
    "ResNet-18": ("SGD", {"lr": 0.01, "momentum": 0.9}),
    "BERT-mini": ("AdamW", {"lr": 1e-4}),
    "LSTM": ("AdamW", {"lr": 1e-3}),
}


def batches(name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The random batches of a network."""
    rng = np.random.default_rng(0)
    shape = SHAPES[name]

    def inputs() -> np.ndarray:
        return rng.integers(0, VOCABULARY[name], shape) if name in VOCABULARY else rng.standard_normal(shape, np.float32)

    return [(inputs(), rng.integers(0, CLASSES[name], shape[0])) for _ in range(BATCHES)]


def made(name: str) -> Any:
    """The network with the weights that both sides start from."""
    import torch

    torch.manual_seed(0)
    return networks()[name]()


def export(name: str, path: str) -> None:
    """Write the network as ONNX with its weights as they are, and its BatchNormalization nodes in the form of inference."""
    import onnx
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            made(name),
            (torch.from_numpy(batches(name)[0][0]),),
            path,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
        )
    proto = onnx.load(path)
    for node in proto.graph.node:
        if node.op_type == "BatchNormalization":
            kept = [a for a in node.attribute if a.name != "training_mode"]
            del node.attribute[:], node.output[1:]
            node.attribute.extend(kept)
    onnx.save(proto, path)


def _open_flamert(name: str, path: str, threads: int) -> Step:
    import flamert

    flamert.set_threads(threads)
    kind, options = OPTIMIZERS[name]
    model = flamert.load(path, device="cpu")
    trainer = flamert.Trainer(model, "cross_entropy", getattr(flamert.optim, kind)(**options))
    return lambda x, target: float(trainer.step(x, target))


def _open_torch(name: str, path: str, threads: int) -> Step:
    import torch

    torch.set_num_threads(threads)
    kind, options = OPTIMIZERS[name]
    network = made(name).train()
    optimizer = getattr(torch.optim, kind)(network.parameters(), **options)

    def step(x: np.ndarray, target: np.ndarray) -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(torch.from_numpy(x)), torch.from_numpy(target))
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _import_flamert() -> None:
    import flamert

    assert flamert.Trainer is not None


def _import_torch() -> None:
    import torch

    assert torch.optim


IMPORTS: dict[str, Callable[[], None]] = {"flamert": _import_flamert, "torch": _import_torch}
OPENERS: dict[str, Callable[[str, str, int], Step]] = {"flamert": _open_flamert, "torch": _open_torch}


def _turns(options: argparse.Namespace) -> dict[str, float]:
    """Medians of warm steps, both sides in turns, and how far the losses of the first ones are apart."""
    name, data = options.only[0], batches(options.only[0])
    steps = {side: OPENERS[side](name, options.path, options.threads) for side in SIDES}
    apart = 0.0
    for i in range(COMPARED):
        ours, theirs = (step(*data[i % BATCHES]) for step in steps.values())
        apart = max(apart, abs(ours - theirs) / abs(theirs))
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    processor: dict[str, list[float]] = {side: [] for side in SIDES}
    end = time.perf_counter() + options.seconds
    while time.perf_counter() < end or len(times["flamert"]) < 7:
        batch = data[len(times["flamert"]) % BATCHES]
        for side, step in steps.items():
            start, used = time.perf_counter(), time.process_time()
            step(*batch)
            processor[side].append(time.process_time() - used)
            times[side].append(time.perf_counter() - start)
    row: dict[str, float] = {"steps": len(times["torch"]), "apart": apart}
    for side in SIDES:
        row |= {f"{side}_ms": statistics.median(times[side]) * 1e3, f"{side}_best_ms": min(times[side]) * 1e3}
        row[f"{side}_processor_ms"] = statistics.median(processor[side]) * 1e3
    row["processor_ratio"] = row["flamert_processor_ms"] / row["torch_processor_ms"]
    return {**row, "ratio": row["flamert_ms"] / row["torch_ms"]}


def _memory(options: argparse.Namespace) -> dict[str, float]:
    """The most memory of one side's own process after its first steps, and how much of it the imports did not take."""
    name, data = options.only[0], batches(options.only[0])
    IMPORTS[options.side]()
    base = resident("VmRSS")
    step = OPENERS[options.side](name, options.path, options.threads)
    for i in range(COMPARED):
        step(*data[i % BATCHES])
    peak = resident("VmHWM")
    return {"peak_mb": peak, "growth_mb": peak - base}


def resident(field: str) -> float:
    """Megabytes of this process in memory, now (VmRSS) or at most (VmHWM); NaN where the system does not say."""
    status = Path("/proc/self/status")
    found = re.search(rf"^{field}:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(found[1]) / 1024 if found else math.nan


CHILDREN: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {"turns": _turns, "memory": _memory}


def main() -> None:
    options = _arguments().parse_args()
    if options.child:
        print(json.dumps(CHILDREN[options.child](options)))
        return
    rows = []
    for row in _rows(options):
        rows.append(row)
        print(f"{row['model']}: {row['ratio']:.2f}", file=sys.stderr, flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps(rows, indent=1))
    show(rows)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="for each side; default 2")
    parser.add_argument("--only", action="append", choices=list(SHAPES), help="a network by name; repeatable; default all")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each comparison of warm steps")
    parser.add_argument("--json", help="file for the rows")
    for hidden in ("--child", "--side", "--path"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser


def _rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each network."""
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only or SHAPES:
            path = str(Path(folder) / f"{name}.onnx")
            export(name, path)
            row = {"model": name, "shape": "×".join(map(str, SHAPES[name])), "threads": options.threads}
            row |= _child("turns", name, path, options)
            for side in SIDES:
                row |= {f"{side}_{key}": value for key, value in _child("memory", name, path, options, side).items()}
            yield row


def _child(kind: str, name: str, path: str, options: argparse.Namespace, side: str = "") -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.training_cpu", "--child", kind, "--only", name, "--path", path]
    command += ["--threads", str(options.threads), "--side", side, "--seconds", str(options.seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{kind} of {name} {side} failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def show(rows: list[dict[str, Any]]) -> None:
    """The rows as a table, and what they come to."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 150)
    table = Table("network", "batch", "threads", title="flamert / PyTorch")
    for column in ("step ms", "ratio", "processor ratio", "losses apart", "peak MB", "ratio", "after import MB", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        cells = [f"{row['flamert_ms']:.3g} / {row['torch_ms']:.3g}", f"{row['ratio']:.2f}", f"{row['processor_ratio']:.2f}"]
        cells.append(f"{row['apart']:.1e}")
        for key in ("peak_mb", "growth_mb"):
            ours, theirs = (row[f"{side}_{key}"] for side in SIDES)
            cells += [f"{ours:.0f} / {theirs:.0f}", f"{ours / theirs:.2f}"]
        table.add_row(row["model"], row["shape"], str(row["threads"]), *cells)
    console.print(table)
    lines = [f"step {_summary([row['ratio'] for row in rows])}"]
    lines.append(f"processor time {_summary([row['processor_ratio'] for row in rows])}")
    for label, key in (("peak memory", "peak_mb"), ("memory after import", "growth_mb")):
        lines.append(f"{label} {_summary([row[f'flamert_{key}'] / row[f'torch_{key}'] for row in rows])}")
    console.print(f"geometric mean (worst) of the ratios: {'; '.join(lines)}")


def _summary(ratios: list[float]) -> str:
    return f"{statistics.geometric_mean(ratios):.2f} ({max(ratios):.2f})"


if __name__ == "__main__":
    main()
