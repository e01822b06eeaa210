"""Where a number stopped being finite: the first node at fault, found by going through a graph once more, slowly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flamert.dtypes import FLOAT
from flamert.graph import CONSTANT, INPUT, Node, Value, topological
from flamert.ops.evaluate import apply
from flamert.training.state import State
from flamert.training.step import CALLS, SCALE, Objective, Recipe, gradients


def fault_of(task: Objective, recipe: Recipe, state: State, passed: Sequence[Any]) -> str:
    """What went wrong in the call on these feeds and targets, whose state this still is, and where."""
    given = (*task.feeds.values(), *task.targets.values())
    known = {v: state.device.download(x, v.dtype) for v, x in zip(given, passed, strict=True)}
    known.update({v: state[n].astype(v.dtype) for n, v in task.weights.items()})
    if task.counter is not None:
        known[task.counter] = state[CALLS].astype(task.counter.dtype)
    if task.scale is not None:
        known[task.scale] = state[SCALE]
    assert task.loss is not None
    found = first_fault([task.loss], known)
    if found is not None:
        return f"the loss is not finite: {found}"
    found = first_fault(list(gradients(task, recipe).values()), known)
    return f"the gradient is not finite: {found or 'only where it is computed, not when the CPU does it again'}"


def first_fault(outputs: Sequence[Value], feeds: Mapping[Value, np.ndarray]) -> str | None:
    """What the first result that is not finite, of those that make an output so, belongs to; None if all outputs are finite.

    Infinities that come out of infinite constants or inputs alone are there on purpose, as in masks, and blame nobody.
    """
    order = topological(outputs)
    known = {v: x for v, x in feeds.items() if not _finite(x)}
    state = _Findings(known)
    state.run(order, outputs, feeds)
    suspects = [v for v in outputs if v in state.bad]
    reached: set[Node] = set()
    while suspects:
        node = suspects.pop().node
        if node not in reached:
            reached.add(node)
            suspects += [v for v in node.inputs if v is not None and v in state.bad]
    culprit = next((node for node in order if node in reached), None)
    return None if culprit is None else _name(culprit, state.bad)


def _name(node: Node, bad: Mapping[Value, str]) -> str:
    kind = next(bad[v] for v in node.outputs if v in bad)
    if node.op is INPUT:
        return f"{node.attrs['name']!r} holds {kind}"
    return f"{node.source or 'the loss or a gradient'} ({node.op.name}) gives {kind}"


class _Findings:
    """Which Values are not finite, `bad`: in what way; those excused are infinite on purpose."""

    def __init__(self, known: Mapping[Value, np.ndarray]) -> None:
        self.bad: dict[Value, str] = {}
        self.excused: set[Value] = set()
        for value, array in known.items():
            self._judge(value, array, True)

    def run(self, order: Sequence[Node], outputs: Sequence[Value], feeds: Mapping[Value, Any]) -> None:
        """Evaluate node by node; arrays that nobody reads any more are dropped."""
        readers: dict[Value, int] = {}
        for node in order:
            for v in node.inputs:
                if v is not None:
                    readers[v] = readers.get(v, 0) + 1
        arrays: dict[Value, Any] = dict(feeds)
        with np.errstate(all="ignore"):
            for node in order:
                if node.op is CONSTANT:
                    arrays[node.outputs[0]] = node.attrs["value"]
                    self._judge(node.outputs[0], node.attrs["value"], True)
                elif node.op is not INPUT:
                    results = apply(node, [None if v is None else arrays[v] for v in node.inputs])
                    excuse = any(v in self.excused for v in node.inputs) and not any(v in self.bad for v in node.inputs)
                    for value, array in zip(node.outputs, results, strict=True):
                        arrays[value] = array
                        self._judge(value, array, excuse)
                for v in node.inputs:
                    if v is not None:
                        readers[v] -= 1
                        if not readers[v]:
                            del arrays[v]

    def _judge(self, value: Value, array: Any, excuse: bool) -> None:
        if not _finite(array):
            if np.isnan(array).any():
                self.bad[value] = "NaN"
            elif excuse:
                self.excused.add(value)
            else:
                self.bad[value] = "an infinity"


def _finite(array: Any) -> bool:
    array = np.asarray(array)
    return array.dtype not in FLOAT or bool(np.isfinite(array).all())
