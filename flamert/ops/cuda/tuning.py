"""What was found out about this GPU by measuring: remembered on disk, so that the next process need not measure again."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert.about import VERSION
from flamert.kept import folder
from flamert.ops.cuda.launch import compiled

REPEATS = 5
"""Turns in which those that came close are timed again."""

AHEAD = 200_000
"""Cycles of the GPU, 0.1 ms of an H200, that launches are given to line up in: of kernels that take a few microseconds, times
would be the host's part in them."""

WAIT = """extern "C" __global__ void wait_for(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {}
}
"""
"""What keeps the GPU busy meanwhile."""

BASES = 4
"""Engines that the others are compared with, one after another, until half of them agree."""

APART = 0.02
"""How far from each other, relative to their size, results of engines may lie that round as they please."""

CLOSE, FINALISTS = 1.3, 6
"""How many times the shortest time still counts as close, and how many of these are timed again."""


class Choices:
    """Choices by what they were made for, a line of a file each. A line is added as soon as its choice is made: processes that
    are killed lose nothing, and those that share a file add to it. Lines that cannot be read do not count.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.made: dict[str, str] = {}
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    self._take(line)
        except OSError:
            self.made = {}

    def _take(self, line: str) -> None:
        try:
            found = json.loads(line)
        except ValueError:
            return
        if isinstance(found, list) and len(found) == 2:
            self.made[str(found[0])] = str(found[1])

    def find(self, key: str, make: Callable[[], str]) -> str:
        """What was chosen for this key, or `make()`."""
        if key not in self.made:
            self.made[key] = make()
            self._add(key)
        return self.made[key]

    def _add(self, key: str) -> None:
        """Write one choice down. A folder that cannot be written costs the next process time, and nothing else."""
        line = json.dumps([key, self.made[key]])
        try:
            os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f"\n{line}\n")  # a line that somebody was killed over is not continued
        except OSError:
            return


@functools.cache
def choices(library: str, version: int, device: int) -> Choices:
    """Those for one library on one device. They hold for that version, driver and kind of GPU alone."""
    return Choices(os.path.join(folder(), f"{library}-{version}-{machine(device)}-{VERSION}.jsonl"))


@functools.cache
def machine(device: int) -> str:
    """A device's kind and its driver."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(device)
    return f"{properties['name'].decode().replace(' ', '-')}-{cupy.cuda.runtime.driverGetVersion()}"


def sound(candidates: Sequence[Callable[[], Any]], result: Callable[[], Any], xp: Any) -> list[int]:
    """Numbers of the launches that most of them agree with: some libraries' engines are wrong, or raise.

    result: what the last launch made, as floats of its own. Raises what the last of them raised where all do.
    """
    whole: list[int] = []
    tried: list[int] = []
    fault: Exception | None = None
    for i, launch in enumerate(candidates):
        try:
            launch()
            tried.append(i)
            if bool(xp.isfinite(result()).all()):
                whole.append(i)
        except Exception as error:  # of whichever library it is
            fault = error
    if not tried and fault is not None:
        raise fault
    best: list[int] = []
    for base in whole[:BASES]:
        candidates[base]()
        wanted = result()
        bound = APART * float(xp.sqrt((wanted * wanted).mean()))
        agreeing = []
        for i in whole:
            candidates[i]()
            apart = result()
            apart -= wanted
            if float(xp.sqrt((apart * apart).mean())) <= bound:
                agreeing.append(i)
        if len(agreeing) > len(best):
            best = agreeing
        if 2 * len(best) >= len(whole):
            break
    return best or tried


def fastest(candidates: Sequence[Callable[[], Any]]) -> int:
    """The number of the fastest of these launches; one that raises is out of the race.

    All are timed once, and by the shortest of a few turns those that came close to the first: what else the GPU has to do makes
    times longer, and nothing makes them shorter. Raises what the last of them raised where all do.
    """
    import cupy

    once: dict[int, float] = {}
    fault: Exception | None = None
    for i, launch in enumerate(candidates):
        try:
            launch()
            once[i] = _timed(cupy, launch)
        except Exception as error:  # of whichever library it is
            fault = error
    if not once:
        if fault is not None:
            raise fault
        return -1
    bound = CLOSE * min(once.values())
    close = sorted((i for i in once if once[i] <= bound), key=once.__getitem__)[:FINALISTS]
    if len(close) == 1:
        return close[0]
    best = dict.fromkeys(close, math.inf)
    for _ in range(REPEATS):
        for i in close:
            best[i] = min(best[i], _timed(cupy, candidates[i]))
    return min(close, key=best.__getitem__)


def _timed(cupy: Any, launch: Callable[[], Any]) -> float:
    """Milliseconds of two launches, one after the other, that the GPU finds lined up."""
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    compiled(WAIT, "wait_for")((1,), (1,), (np.int64(AHEAD),))
    start.record()
    launch()
    launch()
    end.record()
    end.synchronize()
    elapsed: float = cupy.cuda.get_elapsed_time(start, end)
    return elapsed
