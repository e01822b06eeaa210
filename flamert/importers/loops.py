"""Loop and Scan turn by turn on real arrays: what their host steps run when they are not unrolled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flamert import limits
from flamert.errors import ShapeError, UnsafeModel
from flamert.graph import TensorType
from flamert.importers.host import Body
from flamert.importers.onnx import OnnxGraph
from flamert.importers.registry import HostCall
from flamert.importers.sequence import Items, elements
from flamert.runtime.program import Program

MAX_TURNS = 10_000_000
"""Turns that one loop may make before the model counts as hostile."""


class Scanning(NamedTuple):
    """How a Scan goes: `n` states, `turns` turns; for each scanned input its axis and whether it is read from the end; for
    each scan output the axis along which its turns are laid, and whether from the end."""

    n: int
    turns: int
    axes: tuple[int, ...]
    reversed: tuple[bool, ...]
    output_axes: tuple[int, ...]
    output_reversed: tuple[bool, ...]


def deferred(run: Any, arguments: Sequence[Any]) -> HostCall:
    """A loop that waits for data, whatever is known already."""
    return HostCall(run, tuple(arguments), within=True)


class Collected:
    """What the turns of a loop put out: a list for each scan output. Grows only as far as there is memory."""

    def __init__(self, count: int) -> None:
        self.turns: list[list[np.ndarray]] = [[] for _ in range(count)]
        self._nbytes = 0
        self._checked = 1 << 20

    def add(self, results: Sequence[np.ndarray]) -> None:
        for turns, result in zip(self.turns, results, strict=True):
            turns.append(result)
            self._nbytes += result.nbytes
        if self._nbytes > self._checked:
            self._checked = 2 * self._nbytes
            limits.require_memory(self._checked, "what a loop puts out")


def loop(
    body: Body,
    n: int,
    endless: bool,
    program: Program | None,
    outer: list[Any],
    limit: np.ndarray | None,
    condition: np.ndarray | None,
    state: list[Any],
) -> list[Any]:
    """ONNX's Loop: turns while the condition holds, `limit` at most. endless: the body never ends it by itself."""
    graph = body.graph
    turns = None if limit is None else int(limit.item())
    true = shaped(True, np.bool_, graph, 1)
    go_on = condition is None or bool(condition.item())
    if endless and go_on and (turns is None or turns > MAX_TURNS):
        raise UnsafeModel(f"the Loop asks for {turns or 'endless'} turns and never stops by itself; {MAX_TURNS} are allowed")
    collected = Collected(len(graph.outputs) - 1 - n)
    i = 0
    while go_on and (turns is None or i < turns):
        if i == MAX_TURNS:
            raise UnsafeModel(f"the Loop has made {MAX_TURNS} turns and goes on")
        results = body(program, outer, [shaped(i, np.int64, graph, 0), true, *state])
        go_on = bool(results[0].item())
        state = [_kept(new, old) for new, old in zip(results[1 : 1 + n], state, strict=True)]
        collected.add(results[1 + n :])
        i += 1
    state = [elements(s) for s in state]
    if i:
        return [*state, *[stack(turns, 0) for turns in collected.turns]]
    first = [shaped(0, np.int64, graph, 0), true, *state]
    types = body.types(program, outer, first) if collected.turns else []
    return [*state, *[nothing(graph, 1 + n + k, types[1 + n + k], 0) for k in range(len(collected.turns))]]


def _kept(new: Any, old: Any) -> Any:
    """A state for the next turn. A sequence that changes its length is wrapped, or else each turn would be imported anew."""
    return Items(new) if isinstance(new, list) and isinstance(old, list) and len(new) != len(old) else new


def scan(
    body: Body, how: Scanning, program: Program | None, outer: list[Any], state: list[Any], xs: list[np.ndarray]
) -> list[Any]:
    """ONNX's Scan: one turn for each entry of the scanned inputs."""
    rows = [
        np.moveaxis(x, a, 0)[::-1] if back else np.moveaxis(x, a, 0)
        for x, a, back in zip(xs, how.axes, how.reversed, strict=True)
    ]
    collected = Collected(len(how.output_axes))
    if how.turns > MAX_TURNS:
        raise UnsafeModel(f"the Scan makes {how.turns} turns; {MAX_TURNS} are allowed")
    for i in range(how.turns):
        results = body(program, outer, [*state, *[row[i, ...] for row in rows]])
        state = results[: how.n]
        collected.add(results[how.n :])
    if not how.turns:
        firsts = [np.broadcast_to(np.zeros((), x.dtype), row.shape[1:]) for x, row in zip(xs, rows, strict=True)]
        types = body.types(program, outer, [*state, *firsts])
        return [*state, *[nothing(body.graph, how.n + k, types[how.n + k], a) for k, a in enumerate(how.output_axes)]]
    outputs = zip(collected.turns, how.output_axes, how.output_reversed, strict=True)
    return [*state, *[stack(turns[::-1] if back else turns, axis) for turns, axis, back in outputs]]


def scan_batch(
    body: Body,
    how: Scanning,
    batch: int,
    program: Program | None,
    outer: list[Any],
    lengths: np.ndarray | None,
    state: list[np.ndarray],
    xs: list[np.ndarray],
) -> list[Any]:
    """Scan as it was in opset 8: every batch entry is scanned by itself, up to its length; zeros fill up its outputs."""
    if not batch:
        raise ShapeError("Scan over a batch of nothing")
    entries = []
    for b in range(batch):
        turns = how.turns if lengths is None else int(lengths[b])
        if not 0 <= turns <= how.turns:
            raise ShapeError(f"a sequence length of {turns} is outside [0, {how.turns}]")
        part = how._replace(turns=turns)
        results = scan(body, part, program, outer, [s[b, ...] for s in state], [x[b, :turns] for x in xs])
        for k in range(how.n, len(results)):
            missing = [(0, how.turns - turns), *[(0, 0)] * (results[k].ndim - 1)]
            results[k] = np.pad(results[k], missing) if turns < how.turns else results[k]
        entries.append(results)
    return [stack(rows, 0) for rows in zip(*entries, strict=True)]


def stack(turns: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Arrays of one type side by side along a new axis."""
    if any(t.shape != turns[0].shape or t.dtype != turns[0].dtype for t in turns):
        shapes = sorted({t.shape for t in turns})
        raise ShapeError(f"the turns of a loop put out shapes {', '.join(map(str, shapes[:3]))}: they do not stack")
    return np.stack(turns, axis)


def shaped(value: Any, dtype: Any, body: OnnxGraph, index: int) -> np.ndarray:
    """A turn's number or condition: a scalar, or a vector of one where the body declares its input so."""
    declared = body.declared.get(body.inputs[index])
    vector = declared is not None and declared[1] is not None and len(declared[1]) == 1
    return np.array([value] if vector else value, dtype)


def nothing(body: OnnxGraph, index: int, type: TensorType | None, axis: int) -> np.ndarray:
    """A scan output after no turn: empty along `axis`; elsewhere as a turn would make it, or as far as the body declares it."""
    if type is None:
        dtype, dims = body.declared.get(body.outputs[index]) or (np.dtype(np.float32), None)
        type = TensorType(tuple(d or 0 for d in dims or ()), dtype)
    at = axis % (type.rank + 1)
    return np.empty((*type.shape[:at], 0, *type.shape[at:]), type.dtype)
