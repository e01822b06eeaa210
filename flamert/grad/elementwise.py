"""Gradients of arithmetic, and what rules of all elementwise families share: half types are widened to float32."""

from __future__ import annotations

import functools
import math
from typing import Any

from flamert import dtypes, ops
from flamert.grad.registry import Rule, flat, gradient
from flamert.graph import Value

flat(ops.sign, ops.floor, ops.ceil, ops.round, ops.trunc)


def wide(x: Any) -> Any:
    """x, in float32 if its type is a half one."""
    return ops.cast(x, to=dtypes.float32) if isinstance(x, Value) and x.dtype in dtypes.HALF else x


def widened(rule: Rule) -> Rule:
    """A rule of several steps, given half types as float32; the sweep rounds what it returns, once."""

    @functools.wraps(rule)
    def wider(*values: Any, **attrs: Any) -> Any:
        return rule(*map(wide, values), **attrs)

    return wider


@gradient(ops.add)
def _(dy: Any, y: Any, a: Any, b: Any) -> Any:
    """da = dy, db = dy"""
    return dy, dy


@gradient(ops.sub)
def _(dy: Any, y: Any, a: Any, b: Any) -> Any:
    """da = dy, db = −dy"""
    return dy, -dy


@gradient(ops.mul)
def _(dy: Any, y: Any, a: Any, b: Any) -> Any:
    """da = dy · b, db = dy · a"""
    return dy * b, dy * a


@gradient(ops.div)
@widened
def _(dy: Any, y: Any, a: Any, b: Any) -> Any:
    """da = dy / b, db = −dy · a / b²"""
    da = dy / b
    return da, -da * y


@gradient(ops.mod)
@widened
def _(dy: Any, y: Any, a: Any, b: Any) -> Any:
    """da = dy, db = −dy · ⌊a/b⌋"""
    return dy, -dy * _where_finite(ops.floor(a / b))


@gradient(ops.fmod)
@widened
def _(dy: Any, y: Any, a: Any, b: Any) -> Any:
    """da = dy, db = −dy · trunc(a/b)"""
    return dy, -dy * _where_finite(ops.trunc(a / b))


def _where_finite(quotient: Value) -> Value:
    """The quotient, or 0 where a = ±∞ or b = 0, so that there is no remainder to differentiate."""
    return ops.where(abs(quotient) < math.inf, quotient, 0)


@gradient(ops.pow)
@widened
def _(dy: Any, y: Any, a: Any, b: Any) -> Any:
    """da = dy · b · a^(b−1), db = dy · y · log a; both 0 where they would be 0 · ∞: for a = 0 with b = 0, or with b ≥ 0"""
    exponent = b
    if b.constant is None or not b.constant.all():
        exponent = ops.where(ops.equal(a, 0) & ops.equal(b, 0), 1, b)
    log = ops.log(ops.where(ops.equal(a, 0) & (b >= 0), 1, a))
    return dy * b * a ** (exponent - 1), dy * y * log


@gradient(ops.neg)
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = −dy"""
    return -dy


@gradient(ops.abs)
def _(dy: Any, y: Any, x: Any) -> Any:
    """dx = dy · sign(x): 0 at 0"""
    return dy * ops.sign(x)


@gradient(ops.minimum)
def _(dy: Any, y: Any, a: Any, b: Any) -> Any:
    """dy to the smaller one, in halves to both where they are equal"""
    return _to_winner(dy, a > b, a, b), _to_winner(dy, b > a, a, b)


@gradient(ops.maximum)
def _(dy: Any, y: Any, a: Any, b: Any) -> Any:
    """dy to the greater one, in halves to both where they are equal"""
    return _to_winner(dy, a < b, a, b), _to_winner(dy, b < a, a, b)


def _to_winner(dy: Value, lost: Value, a: Value, b: Value) -> Value:
    return ops.where(lost, 0, ops.where(ops.equal(a, b), dy * 0.5, dy))


@gradient(ops.clip)
def _(dy: Any, y: Any, x: Any, low: Any = None, high: Any = None) -> Any:
    """dx = dy from `low` to `high`, both included; elsewhere dy goes to the bound that holds"""
    if low is None and high is None:
        return dy
    if high is None:
        return ops.where(x < low, 0, dy), ops.where(x < low, dy, 0)
    if low is None:
        return ops.where(x > high, 0, dy), None, ops.where(x > high, dy, 0)
    capped = (x > high) | (low > high)
    raised = (x < low) & (low < high)
    return ops.where((x < low) | capped, 0, dy), ops.where(raised, dy, 0), ops.where(capped, dy, 0)
