"""Chains of elementwise ops as one op: what the passes fuse, with the ops themselves as its body."""

from __future__ import annotations

from typing import Any, NamedTuple

from flamert.graph import OPERATORS
from flamert.ops.op import composite


class Instruction(NamedTuple):
    """One elementwise op of a chain. operands: numbers of the chain's inputs, or of inputs + earlier instructions."""

    op: str
    operands: tuple[int, ...]
    attrs: tuple[tuple[str, Any], ...] = ()


@composite
def pointwise(*inputs: Any, program: tuple[Instruction, ...]) -> Any:
    """The result of the last instruction of `program`, an elementwise chain over operands that broadcast to one shape."""
    values = list(inputs)
    for step in program:
        values.append(OPERATORS[step.op](*[values[i] for i in step.operands], **dict(step.attrs)))
    return values[-1]
