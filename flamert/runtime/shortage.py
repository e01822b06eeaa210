"""What a plan wants its memory for: told to those who have too little of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flamert.graph import INPUT, TensorType
from flamert.limits import readable
from flamert.runtime.faults import named

if TYPE_CHECKING:
    from flamert.runtime.plan import Plan

SHOWN = 5
"""Buffers that are named."""


class TooLarge(Exception):
    """A plan that would take more memory than it is allowed: `nbytes`, for `buffers` above all."""

    def __init__(self, nbytes: int, buffers: str) -> None:
        super().__init__(nbytes, buffers)
        self.nbytes, self.buffers = nbytes, buffers


def largest(plan: Plan) -> str:
    """The largest buffers of a plan's arena: bytes, type, and the node that each is for."""
    found: dict[Any, tuple[TensorType, str]] = {}
    for v in plan.graph.inputs:
        if v.node.op is INPUT:
            found[plan._places[v].storage] = v.type, f"input {v.node.attrs['name']!r}"
    for step in plan.steps:
        for kind, slots in (("", step.outputs), ("scratch of ", step.work)):
            for type, at in slots:
                found.setdefault(at.storage, (type, f"{kind}{named(step.node)}"))
    buffers = [item for storage, item in found.items() if storage.array is None]
    buffers.sort(key=lambda item: -item[0].nbytes)
    return "; ".join(f"{readable(type.nbytes)}, {type}, {whose}" for type, whose in buffers[:SHOWN])
