"""Elementwise ops and reductions over the last axes as one op: what a pass fuses, with the ops themselves as its body."""

from __future__ import annotations

from typing import Any

from flamert.graph import OPERATORS
from flamert.ops.op import composite
from flamert.ops.pointwise import Instruction
from flamert.ops.reduce import reduce_sum

REDUCTIONS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min")
"""Ops that make one number of each row; in a program they keep their axes."""


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
