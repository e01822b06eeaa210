"""How commands speak: tables or JSON on stdout, progress on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from flamert.summary import WIDTH, show

PATIENCE = 2.0
"""Seconds that may pass without a word."""

ModelPath = Annotated[str, typer.Argument(help="The ONNX file.", show_default=False)]
DeviceName = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N; by default a GPU if there is one.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def emit(data: Any, renderables: Sequence[Any], as_json: bool) -> None:
    """Print a result: the data as JSON, or the tables."""
    if as_json:
        print(json.dumps(data, indent=2, ensure_ascii=False, default=str))
        return
    show(renderables, Console() if sys.stdout.isatty() else Console(width=WIDTH))


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner while something takes its time whose length nobody knows; elsewhere a line once it took long (on stderr)."""
    if sys.stderr.isatty():
        with Console(stderr=True).status(what):
            yield
        return
    start = time.monotonic()
    yield
    if (spent := time.monotonic() - start) > PATIENCE:
        print(f"{what}: {spent:.1f} s", file=sys.stderr)


@contextlib.contextmanager
def progress(what: str, total: float) -> Iterator[Callable[[float], None]]:
    """`advance(done)` shows how far a long task is: a bar on a terminal, now and then a line elsewhere (both on stderr)."""
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    last = time.monotonic()

    def advance(done: float) -> None:
        nonlocal last
        if time.monotonic() - last > PATIENCE and done < total:
            last = time.monotonic()
            print(f"{what}: {done / total:.0%}", file=sys.stderr)

    yield advance
