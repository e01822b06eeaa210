"""What `fit` shows on a terminal: a bar with loss, speed and time left. Nothing is drawn elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from flamert.training.scalar import Scalar

EVERY = 0.25
"""Seconds between looks at the loss."""


class Silent:
    """Shows nothing."""

    def epoch(self, title: str, batches: int, done: int) -> None:
        """A new epoch of so many batches (0: unknown), of which some are done."""

    def step(self, loss: Scalar, examples: int) -> None:
        """One more batch."""


class Bar(Silent):
    """A line on the terminal."""

    def __init__(self, display: Any) -> None:
        self._display, self._task = display, None
        self._examples, self._since, self._shown = 0, time.perf_counter(), 0.0

    def epoch(self, title: str, batches: int, done: int) -> None:
        if self._task is not None:
            self._display.remove_task(self._task)
        self._task = self._display.add_task(title, total=batches or None, completed=done, loss="", speed="")
        self._examples, self._since, self._shown = 0, time.perf_counter(), 0.0

    def step(self, loss: Scalar, examples: int) -> None:
        self._examples += examples
        now = time.perf_counter()
        fields = {}
        if now - self._shown > EVERY:
            self._shown = now
            fields = {"loss": f"loss {loss:.4f}", "speed": f"{self._examples / max(now - self._since, 1e-9):.0f} examples/s"}
        self._display.update(self._task, advance=1, **fields)


@contextlib.contextmanager
def shown(wanted: bool) -> Iterator[Silent]:
    """A Bar if it is wanted and there is a terminal, or a notebook, to draw it on."""
    if not wanted:
        yield Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield Silent()
        return
    fields = [TextColumn("{task.fields[loss]}"), TextColumn("{task.fields[speed]}"), TimeRemainingColumn()]
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *fields, console=console) as display:
        yield Bar(display)
