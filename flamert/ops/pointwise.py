"""Chains of elementwise ops as one op: what the passes fuse, with the ops themselves as its body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from flamert.graph import OPERATORS
from flamert.ops.op import composite


class Instruction(NamedTuple):
    """One elementwise op of a chain. operands: numbers of the chain's inputs, or of inputs + earlier instructions."""

    op: str
    operands: tuple[int, ...]
    attrs: tuple[tuple[str, Any], ...] = ()


MAX_INPUTS = 16
"""Operands that a chain may have."""


@composite(inplace=tuple(range(MAX_INPUTS)))
def pointwise(*inputs: Any, program: tuple[Instruction, ...]) -> Any:
    """The result of the last instruction of `program`, an elementwise chain over operands that broadcast to one shape."""
    return _values(inputs, program)[-1]


@composite(inplace=tuple(range(MAX_INPUTS)))
def pointwise_many(*inputs: Any, program: tuple[Instruction, ...], results: tuple[int, ...]) -> Any:
    """A tuple of results of a chain as in `pointwise`: those of the instructions with these numbers, all of one shape."""
    values = _values(inputs, program)
    return tuple([values[len(inputs) + k] for k in results])


def _values(inputs: Sequence[Any], program: Sequence[Instruction]) -> list[Any]:
    values = list(inputs)
    for step in program:
        values.append(OPERATORS[step.op](*[values[i] for i in step.operands], **dict(step.attrs)))
    return values
