"""Elementwise ops and reductions over the last axes as one op: what a pass fuses, with the ops themselves as its body."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from flamert.graph import OPERATORS
from flamert.ops.op import composite
from flamert.ops.pointwise import Instruction
from flamert.ops.reduce import reduce_sum

REDUCTIONS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min")
"""Ops that make one number of each row; in a program they keep their axes."""


class Geometry(NamedTuple):
    """The shape of a program's full values, and how many axes at its end are a row."""

    shape: tuple[int, ...]
    axes: int

    def has(self, shape: tuple[int, ...]) -> bool:
        """Whether a value of this shape is full, or one number for each row."""
        return shape in (self.shape, self.shape[: len(self.shape) - self.axes] + (1,) * self.axes)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether an operand of this shape is constant along rows, or has a whole row wherever it has one."""
        full = (1,) * (len(self.shape) - len(shape)) + shape
        if len(full) > len(self.shape):
            return False
        row, own = self.shape[len(self.shape) - self.axes :], full[len(full) - self.axes :]
        return own == row or math.prod(own) == 1


@composite
def rows(
    *inputs: Any, program: tuple[Instruction, ...], results: tuple[int, ...], axes: int, sums: tuple[int, ...] = ()
) -> Any:
    """A tuple of results of a program: those of the instructions with these numbers, and behind them sums over all rows.

    axes: how many axes at the end make up a row. Instructions are elementwise, with results of the full shape or of length 1
    along a row, or reductions of whole rows. Operands broadcast against the full shape, over rows or within them, as a whole.
    sums: which values, of the full shape, are added up over rows; operands count first, then instructions. Needs one axis of C
    elements; returns [C] for each of them.
    """
    values = list(inputs)
    for step in program:
        op: Any = OPERATORS[step.op]
        values.append(op(*[values[i] for i in step.operands], **dict(step.attrs)))
    totals = [reduce_sum(values[i], axes=tuple(range(values[i].rank - 1))) for i in sums]
    return (*[values[len(inputs) + k] for k in results], *totals)
