"""Elementwise ops and sums over all axes but the last as one op: what a pass fuses, with the ops themselves as its body."""

from __future__ import annotations

from typing import Any

from flamert.graph import OPERATORS
from flamert.ops.op import composite
from flamert.ops.pointwise import Instruction
from flamert.ops.reduce import reduce_mean, reduce_sum


@composite
def columns(*inputs: Any, program: tuple[Instruction, ...], results: tuple[int, ...], means: tuple[bool, ...]) -> Any:
    """A tuple of sums, or of means, for each entry of the last axis: of the values with the numbers `results`.

    Values are the operands and, after them, what the instructions make; those that are summed up are floating, and all of one
    shape [..., C]. Operands broadcast to it: whole, one number for each of C, one for each row, or a single one. means: which
    of the results are divided by the number of rows. Returns [C] each, of the summed values' types.
    """
    values = list(inputs)
    for step in program:
        op: Any = OPERATORS[step.op]
        values.append(op(*[values[i] for i in step.operands], **dict(step.attrs)))
    folds = [reduce_mean if mean else reduce_sum for mean in means]
    return tuple([fold(values[k], axes=tuple(range(values[k].rank - 1))) for fold, k in zip(folds, results, strict=True)])
