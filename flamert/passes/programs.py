"""Programs of fused nodes: each operand and each instruction only once, however often passes have repeated them for readers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from flamert import ops
from flamert.graph import Value
from flamert.ops.pointwise import Instruction


def alike(v: Value) -> Hashable:
    """The same for equal applications of an op to the same operands."""
    return v if v.node.op.random or not v.node.inputs else (v.node.op.name, v.node.inputs, tuple(v.node.attrs.items()), v.index)


def bare(v: Value) -> Value:
    """What broadcasts like v, without the views that only put axes of length 1 in front."""
    found = v
    while v.node.op is ops.reshape and v.node.inputs[0] is not None:
        v = v.node.inputs[0]
        if found.shape == (1,) * (found.rank - v.rank) + v.shape:
            found = v
    return found


def shortened(operands: Sequence[Value], program: Sequence[Instruction]) -> tuple[list[Value], list[Instruction], list[int]]:
    """(operands, a program, the numbers that values now have), with what is alike only once."""
    kept: dict[Hashable, Value] = {}
    for v in operands:
        kept.setdefault(alike(v), v)
    places = list(kept)
    at = [places.index(alike(v)) for v in operands]
    steps: dict[Instruction, int] = {}
    for step in program:
        step = step._replace(operands=tuple([at[i] for i in step.operands]))
        at.append(steps.setdefault(step, len(kept) + len(steps)))
    return list(kept.values()), list(steps), at
