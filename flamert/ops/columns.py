"""Elementwise ops and sums over all axes but the last as one op: what a pass fuses, with the ops themselves as its body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flamert.graph import OPERATORS
from flamert.ops.op import composite
from flamert.ops.pointwise import Instruction
from flamert.ops.reduce import reduce_mean, reduce_sum


@composite
def columns(
    *inputs: Any,
    program: tuple[Instruction, ...],
    results: tuple[int, ...],
    means: tuple[bool, ...],
    kept: tuple[int, ...] = (),
    given: int = 0,
    finish: tuple[Instruction, ...] = (),
    wanted: tuple[int, ...] = (),
) -> Any:
    """A tuple of sums, or of means, for each entry of the last axis: of the values with the numbers `results`.

    Values are the operands and, after them, what the instructions make; those that are summed up are floating, and all of one
    shape [..., C]. Operands broadcast to it: whole, one number for each of C, one for each row, or a single one. means: which
    of the results are divided by the number of rows. The sums are [C] each, of the summed values' types.

    finish: instructions on the sums and, after them, the last `given` operands, [C] or a single number each, which are no
    operands of `program`. wanted: which of these values are returned, all sums where there are none. kept: values of
    `program` of the shape [..., C] that are returned behind them.
    """
    first = len(inputs) - given
    values = carried_out(inputs[:first], program)
    folds = [reduce_mean if mean else reduce_sum for mean in means]
    sums = [fold(values[k], axes=tuple(range(values[k].rank - 1))) for fold, k in zip(folds, results, strict=True)]
    made = carried_out([*sums, *inputs[first:]], finish)
    return tuple([made[k] for k in wanted or range(len(sums))] + [values[k] for k in kept])


def carried_out(inputs: Sequence[Any], program: Sequence[Instruction]) -> list[Any]:
    """Operands and, after them, what the instructions make of them."""
    values = list(inputs)
    for step in program:
        op: Any = OPERATORS[step.op]
        values.append(op(*[values[i] for i in step.operands], **dict(step.attrs)))
    return values
