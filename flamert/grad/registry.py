"""Which op has which gradient: rules by op, ops that are flat, ops declared to have none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flamert.graph import Value
from flamert.ops.op import Op

Rule = Callable[..., Any]
"""(dy, y, *inputs, **attrs) → for each input a Value, None (nothing flows there) or Missing. With one input, or one that
matters, a single Value will do: it belongs to the first input. For ops with several results dy and y are tuples, and dy
holds None for results that nobody read."""

RULES: dict[str, Rule] = {}
NONE: dict[str, str] = {}
"""Ops declared to have no gradient, and why."""


class Missing:
    """A rule's answer for an input that has a gradient in principle, which is not written: an error only if it is asked for."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def gradient(op: Op) -> Callable[[Rule], Rule]:
    """Register the gradient rule of `op`. It sees Values and emits ops; the sweep undoes broadcasting."""

    def register(rule: Rule) -> Rule:
        if op.name in RULES:
            raise ValueError(f"op {op.name!r} has a gradient already")
        RULES[op.name] = rule
        op.differentiable = True
        return rule

    return register


def flat(*ops: Op) -> None:
    """Declare ops whose derivative is zero wherever it exists (rounding, comparisons, what returns integers): nothing flows."""
    for op in ops:
        gradient(op)(_nothing)


def _nothing(dy: Any, y: Any, *inputs: Any, **attrs: Any) -> Sequence[Value | None]:
    return [None] * len(inputs)


def no_gradient(reason: str, *ops: Op) -> None:
    """Declare ops that cannot be differentiated; asking for a gradient through one raises NoGradient with the reason."""
    for op in ops:
        NONE[op.name] = reason
        op.differentiable = False
