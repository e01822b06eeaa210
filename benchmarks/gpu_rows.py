"""One row of `gpu`: a network, batch and precision, the runtimes that run it, their times, errors and memory, and the floor."""

from __future__ import annotations

import functools
import gc
import statistics
from collections.abc import Callable, Sequence
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


Ready = Callable[[], Contender]
"""What a runtime has to do before its first step, once all is imported and the network and its data are there."""


def _ours(task: Task, module: Any, example: tuple[Any, ...], labels: Any) -> Ready:
    """Of the network as an ONNX file in memory."""
    file = exported(module, example, task.train)
    return functools.partial(_loaded, task, file, tuple(x.numpy() for x in example), labels.numpy())


def _loaded(task: Task, file: Any, example: tuple[np.ndarray, ...], labels: np.ndarray) -> Contender:
    import cupy

    import flamert as fr

    network = task.network
    xs, t = tuple(map(cupy.asarray, example)), cupy.asarray(labels)

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


def _torchs(task: Task, compiled: str | None, module: Any, example: tuple[Any, ...], labels: Any) -> Contender:
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


def entered(task: Task, runtime: str) -> Ready:
    """A runtime that is imported, and what it is to run."""
    import torch

    torch._dynamo.reset()
    if runtime != "flamert":
        return functools.partial(_torchs, task, COMPILED.get(runtime), *task.drawn())
    import flamert.trainer  # noqa: F401

    return _ours(task, *task.drawn())


def allocated(runtime: str) -> int:
    """Bytes that this runtime's allocator holds of the device's memory; PyTorch's runtimes share one."""
    import cupy
    import torch

    if runtime == "flamert":
        return int(cupy.get_default_memory_pool().total_bytes())
    return int(torch.cuda.memory_reserved())


def trim() -> None:
    """Give back what allocators hold for nobody."""
    import cupy
    import torch

    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    torch.cuda.empty_cache()


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


def errors(task: Task, runtime: str, contender: Contender, where: str) -> dict[str, Any]:
    """Relative errors of a runtime's first result, and of gradients here and in PyTorch as it is. Takes one step."""
    wanted, slopes = _reference(task.name, task.mode, task.batch, where)
    row: dict[str, Any] = {f"{runtime}_error": _apart(_array(contender.step()), wanted)}
    if slopes and runtime in ("flamert", "eager"):
        found = contender.gradients(list(slopes))
        row[f"{runtime}_gradients"] = {n: _apart(found[n], want) for n, want in slopes.items()}
    return row


def worst(row: dict[str, Any]) -> float | None:
    """How many times PyTorch's error ours is, of the weight where that is most."""
    ours, torchs = (row.get(f"{name}_gradients", {}) for name in ("flamert", "eager"))
    return max((ours[n] / max(torchs[n], 1e-12) for n in ours if n in torchs), default=None)


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


def measured(task: Task, runtimes: Sequence[str], reference: str | None, ready: Callable[[], None]) -> dict[str, Any]:
    """Times, and errors of the first result, of all runtimes in one process. ready: called before the times are taken.

    Memory is what the runtime's allocator has taken after its first steps: the process's own share is the same for all.
    """
    found: dict[str, Contender] = {}
    row: dict[str, Any] = {}
    for runtime in runtimes:
        before = allocated(runtime)
        found[runtime] = entered(task, runtime)()
        if reference:
            row |= errors(task, runtime, found[runtime], reference)
        trim()
        for _ in range(WARM):
            found[runtime].step()
        row[f"{runtime}_pool_mib"] = (allocated(runtime) - before) >> 20
    if reference and task.train:
        row["gradient_ratio"] = worst(row)
    ready()
    for contender in found.values():
        contender.step()
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(ROUNDS):
        for name, contender in found.items():
            times[name].append(_timed(contender.step, RUNS))
    row |= {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    row["ratio"] = min(row[f"{name}_ms"] for name in found if name != "flamert") / row["flamert_ms"]
    row["floor_ms"] = _floor(task)
    row["fraction"] = row["floor_ms"] / row["flamert_ms"]
    return row
