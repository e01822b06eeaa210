"""Text that every machine has, to learn language from: the sources of Python's standard library, byte by byte."""

from __future__ import annotations

import argparse
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import flamert as fr
from flamert import ops
from flamert.graph import Value
from flamert.metrics import Metric
from models import command

PROMPT = "    def __init__(self, "
"""What decoders are asked to go on with when they have learnt."""

Batch = tuple[dict[str, np.ndarray], np.ndarray]


def raw(source: bytes) -> np.ndarray:
    """A text as what it is."""
    return np.frombuffer(source, np.uint8)


def sources(read: Callable[[bytes], np.ndarray] = raw) -> tuple[np.ndarray, np.ndarray]:
    """The library's top-level modules, byte by byte: nine in ten to learn from, the others to be judged by."""
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        parts[zlib.crc32(file.name.encode()) % 10 == 0].append(read(file.read_bytes()))
    learnt, held = map(np.concatenate, parts)
    return learnt, held


class Windows:
    """Batches of windows from random places of a text, other ones in every epoch, for a model to tell each next byte."""

    def __init__(self, text: np.ndarray, length: int, batch_size: int, batches: int, seed: int = 0) -> None:
        self.text, self.length, self.batch_size, self.batches = text, length, batch_size, batches
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Other windows from the next iteration on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        rng = np.random.default_rng((self.seed, self.epoch))
        for _ in range(self.batches):
            starts = rng.integers(len(self.text) - self.length, size=(self.batch_size, 1))
            yield self.example(self.text[starts + np.arange(self.length + 1)].astype(np.int64), rng)

    def example(self, windows: np.ndarray, rng: np.random.Generator) -> Batch:
        """Inputs by name and targets, of windows that are one byte longer than `length`."""
        return {"input_ids": windows[:, :-1]}, windows[:, 1:]


def rows(logits: Value, target: Value) -> tuple[Value, Value]:
    """Logits [batch, length, tokens] and targets [batch, length] without the distinction of batch and length."""
    count = target.type.size
    return ops.reshape(logits, shape=(count, logits.shape[-1])), ops.reshape(target, shape=(count,))


def cross_entropy(outputs: dict[str, Value], targets: dict[str, Value]) -> Value:
    """−log p(target), the mean over all targets that are not −100, in nats."""
    return fr.losses.CrossEntropy()(*rows(outputs["logits"], targets["target"]))


def by_token(metric: Metric) -> Metric:
    """A metric of classes, for logits [batch, length, tokens]."""
    return Metric(metric.name, lambda logits, target: metric.sums(*rows(logits, target)), metric.result)


def learn(
    model: fr.Model,
    args: argparse.Namespace,
    length: int,
    *,
    lr: float,
    title: str,
    windows: type[Windows] = Windows,
    read: Callable[[bytes], np.ndarray] = raw,
    metric: Metric | None = None,
) -> None:
    """Train on windows of this length: AdamW, with a warm-up of an epoch, which here is 100 batches."""
    learnt, held = sources(read)
    print(f"{len(learnt):,} bytes to learn from, {len(held):,} of other files to be judged by")
    batches, validation = windows(learnt, length, 16, 100, args.seed), windows(held, length, 16, 20)
    rate = fr.optim.warmup_cosine(lr, len(batches), args.epochs * len(batches), lr / 10)
    trainer = fr.Trainer(model, cross_entropy, fr.optim.AdamW(rate, weight_decay=0.01), clip_norm=1.0, seed=args.seed)
    command.train(trainer, batches, validation, args, title=title, metrics=[by_token(metric or fr.metrics.perplexity())])


def drawn(logits: np.ndarray, rng: np.random.Generator, temperature: float = 0.7) -> int:
    """A token at random, with probability softmax(logits / temperature)."""
    weights = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    return int(rng.choice(len(logits), p=weights / weights.sum()))


def continued(model: fr.Model, prompt: str, length: int, *, context: int, seed: int = 0) -> str:
    """The prompt and `length` more bytes that a causal decoder makes of it, seeing the last `context` of them.

    What lies behind the last byte is zeros, which no byte before them can see: so all calls have one shape, and one plan.
    """
    rng, tokens = np.random.default_rng(seed), list(prompt.encode())
    for _ in range(length):
        window = tokens[-context:]
        ids = np.array([window + [0] * (context - len(window))])
        tokens.append(drawn(model(ids)[0, len(window) - 1], rng))
    return bytes(tokens).decode(errors="replace")
