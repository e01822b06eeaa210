"""One row of `gpu`: a network, batch and precision, the runtimes that run it, their times, errors and memory, and the floor."""

from __future__ import annotations

import functools
import gc
import math
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

NUMBERS = 256
"""How many numbers errors are found over, if that takes no more draws than `DRAWS`: of a few alone they are luck."""

DRAWS = {"infer": 64, "train": 32}
"""How many inputs results are compared for, at most; of training each gives one number, the loss."""

Draw = tuple[tuple[Any, ...], Any]
"""Inputs and targets, on the host."""


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
        return self.network.make().train(self.train), *_draw(self.name, self.batch, 0)


@functools.cache
def _draw(name: str, batch: int, number: int) -> Draw:
    """Inputs and targets by number. Number 0 is what is timed."""
    import torch

    torch.manual_seed(1 + number)
    example = NETWORKS[name].draw(torch, batch)
    return example, NETWORKS[name].labels(torch, example)


class Contender(NamedTuple):
    """A runtime that is ready.

    step: what is timed. judge: (draws, names) → outputs or losses of the network as it was at first, of each draw, and the
    gradients of the first one's loss by those names. Before the first step.
    """

    step: Callable[[], Any]
    judge: Callable[[Sequence[Draw], Sequence[str]], tuple[list[np.ndarray], dict[str, np.ndarray]]]


Ready = Callable[[], Contender]
"""What a runtime has to do before its first step, once all is imported and the network and its data are there."""


def _ours(task: Task, module: Any, example: tuple[Any, ...], labels: Any) -> Ready:
    """Of the network as an ONNX file in memory."""
    file = exported(module, example, task.train)
    return functools.partial(_loaded, task, file, tuple(x.numpy() for x in example), labels.numpy())


def _loaded(task: Task, file: Any, example: tuple[np.ndarray, ...], labels: np.ndarray) -> Contender:
    import cupy

    import flamert as fr
    from flamert import ops

    network = task.network
    xs, t = tuple(map(cupy.asarray, example)), cupy.asarray(labels)

    def load() -> Any:
        half = None if task.train or task.precision == "fp32" else task.precision
        return fr.load(file, device="cuda", allow_tf32=True, precision=half)

    def outputs(draws: Sequence[Draw], names: Sequence[str]) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        return [_array(model(*(x.numpy() for x in given))) for given, _ in draws], {}

    def losses(draws: Sequence[Draw], names: Sequence[str]) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        """Of a network that stands still but for a last step, on the first draw, which gradients are read off."""
        taught = load()
        before = {name: taught.params[name].astype(np.float64) for name in names}
        rate = fr.optim.Schedule(lambda step: ops.relu(step - (len(draws) - 1.0)) * RATE, "0, then one step's")
        once = fr.Trainer(taught, our_loss(network), fr.optim.SGD(rate), precision=task.precision)
        given = [(tuple(x.numpy() for x in xs), t.numpy()) for xs, t in (*draws, draws[0])]
        found = [_array(once.step(*draw)) for draw in given][:-1]
        return found, {name: (before[name] - taught.params[name]) / RATE for name in names}

    model = load()
    if not task.train:
        return Contender(lambda: model(*xs), outputs)
    optimizer = fr.optim.AdamW(1e-4) if network.adaptive else fr.optim.SGD(0.01, momentum=0.9)
    trainer = fr.Trainer(model, our_loss(network), optimizer, precision=task.precision)
    return Contender(lambda: trainer.step(xs, t), losses)


def _torchs(task: Task, compiled: str | None, module: Any, example: tuple[Any, ...], labels: Any) -> Contender:
    import torch

    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(task.precision)
    module = module.cuda()
    if not task.train and half is not None:
        module = module.to(half)
    run = torch.compile(module, mode=compiled) if compiled else module
    settings = {"params": module.parameters(), "fused": True}
    if task.network.adaptive:
        optimizer: Any = torch.optim.AdamW(**settings, lr=1e-4)
    else:
        optimizer = torch.optim.SGD(**settings, lr=0.01, momentum=0.9)

    def there(xs: tuple[Any, ...], t: Any) -> Draw:
        cast = half is not None and not task.train
        return tuple(x.cuda().to(half) if cast and x.is_floating_point() else x.cuda() for x in xs), t.cuda()

    def infer(xs: tuple[Any, ...]) -> Any:
        with torch.inference_mode():
            return run(*xs)

    def slopes(xs: tuple[Any, ...], t: Any) -> Any:
        with torch.autocast("cuda", half or torch.bfloat16, enabled=half is not None):
            loss = torch_loss(task.network, run(*xs), t)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return loss

    def step() -> Any:
        loss = slopes(xs, t)
        optimizer.step()
        return loss

    def outputs(draws: Sequence[Draw], names: Sequence[str]) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        return [_array(infer(there(*draw)[0])) for draw in draws], {}

    def losses(draws: Sequence[Draw], names: Sequence[str]) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        found = [_array(slopes(*there(*draw))) for draw in reversed(draws)]
        return found[::-1], {name: _array(module.get_parameter(name).grad) for name in names}

    xs, t = there(example, labels)
    return Contender(step, losses) if task.train else Contender(lambda: infer(xs), outputs)


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


class Exact(NamedTuple):
    """What float64 gives: outputs or losses, and the gradients of a few weights from the first layer to the last."""

    draws: list[Draw]
    results: list[np.ndarray]
    gradients: dict[str, np.ndarray]


@functools.cache
def _reference(name: str, mode: str, batch: int, where: str) -> Exact:
    import torch

    task = Task(name, mode, "fp32", batch)
    module = task.drawn()[0].double().to(where)

    def made(number: int) -> Any:
        xs, t = _draw(name, batch, number)
        y = module(*(x.double().to(where) if x.is_floating_point() else x.to(where) for x in xs))
        return torch_loss(task.network, y, t.to(where)) if task.train else y

    with torch.set_grad_enabled(task.train):
        first = made(0)
    gradients: dict[str, np.ndarray] = {}
    if task.train:
        first.backward()
        named = [n for n, p in module.named_parameters() if p.ndim > 1 and "lstm" not in n]  # exporters turn those of an LSTM
        chosen = dict.fromkeys(named[round(i * (len(named) - 1) / 3)] for i in range(4))
        gradients = {n: _array(module.get_parameter(n).grad) for n in chosen}
    count = min(DRAWS[mode], -(-NUMBERS // first.numel()))
    with torch.no_grad():
        results = [_array(first), *(_array(made(i)) for i in range(1, count))]
    return Exact([_draw(name, batch, i) for i in range(count)], results, gradients)


def _apart(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    norms = (math.sqrt(sum(float(np.vdot(x, x)) for x in xs)) for xs in (map(np.subtract, found, wanted), wanted))
    return next(norms) / next(norms)


def errors(runtime: str, contender: Contender, exact: Exact) -> dict[str, Any]:
    """Relative errors of a runtime's results, and for training of its gradients."""
    results, gradients = contender.judge(exact.draws, list(exact.gradients))
    row: dict[str, Any] = {f"{runtime}_error": _apart(results, exact.results)}
    if gradients:
        row[f"{runtime}_gradients"] = {n: _apart([gradients[n]], [want]) for n, want in exact.gradients.items()}
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


def compared(task: Task, runtimes: Sequence[str], reference: str) -> dict[str, Any]:
    """Errors of the first result alone, and how many times those of PyTorch as it is ours are."""
    row: dict[str, Any] = {}
    for runtime in runtimes:
        row |= errors(runtime, entered(task, runtime)(), _reference(task.name, task.mode, task.batch, reference))
        trim()
    row["error_ratio"] = row["flamert_error"] / row["eager_error"]
    return row | ({"gradient_ratio": worst(row)} if task.train else {})


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
            row |= errors(runtime, found[runtime], _reference(task.name, task.mode, task.batch, reference))
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
