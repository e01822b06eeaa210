"""Learning rates as functions of the step, in ops, so that they run where the step runs. They go where a float lr goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.errors import InputError
from flamert.graph import Value
from flamert.ops.evaluate import evaluate


class Schedule:
    """A learning rate by step. `schedule(step)` gives a float, `schedule.value(step)` graph; the first step is 0."""

    def __init__(self, rate: Callable[[Value], Value], description: str) -> None:
        self._rate = rate
        self._description = description

    def value(self, step: Value) -> Value:
        """The learning rate as a float32 scalar, from the step as one."""
        return self._rate(step)

    def __call__(self, step: float) -> float:
        """The learning rate at a step, as a number."""
        return float(evaluate([self.value(g.constant(np.float32(step)))])[0])

    def __repr__(self) -> str:
        return self._description


def as_schedule(lr: Any) -> Schedule:
    """A float or a Schedule as a Schedule."""
    return lr if isinstance(lr, Schedule) else constant(float(lr))


def _number(x: float) -> Value:
    return g.constant(np.float32(x))


def _progress(step: Value, steps: int) -> Value:
    """How far the step is on its way to `steps`, in [0, 1]."""
    if steps < 1:
        raise InputError(f"a schedule needs at least one step, got {steps}")
    return ops.minimum(step * (1.0 / steps), 1.0)


def constant(lr: float) -> Schedule:
    """lr at every step."""
    return Schedule(lambda step: _number(lr), f"constant({lr})")


def linear(lr: float, steps: int, end: float = 0.0) -> Schedule:
    """From lr to `end` in a straight line over `steps` steps, then `end`."""
    return Schedule(lambda step: _progress(step, steps) * (end - lr) + lr, f"linear({lr}, {steps}, {end})")


def cosine(lr: float, steps: int, end: float = 0.0) -> Schedule:
    """end + (lr − end) · (1 + cos(π t / steps)) / 2, then `end`. Source: Loshchilov & Hutter 2016."""

    def rate(step: Value) -> Value:
        return (ops.cos(_progress(step, steps) * math.pi) + 1.0) * (0.5 * (lr - end)) + end

    return Schedule(rate, f"cosine({lr}, {steps}, {end})")


def step(lr: float, step_size: int, gamma: float = 0.1) -> Schedule:
    """lr · gamma^⌊t / step_size⌋."""
    return Schedule(
        lambda t: ops.exp(ops.floor((t + 0.5) * (1.0 / step_size)) * math.log(gamma)) * lr, f"step({lr}, {step_size}, {gamma})"
    )


def exponential(lr: float, gamma: float) -> Schedule:
    """lr · gammaᵗ."""
    return Schedule(lambda t: ops.exp(t * math.log(gamma)) * lr, f"exponential({lr}, {gamma})")


def polynomial(lr: float, steps: int, power: float = 1.0, end: float = 0.0) -> Schedule:
    """end + (lr − end) · (1 − t / steps)^power, then `end`."""

    def rate(t: Value) -> Value:
        return ops.pow(1.0 - _progress(t, steps), _number(power)) * (lr - end) + end

    return Schedule(rate, f"polynomial({lr}, {steps}, {power}, {end})")


def warmup_cosine(lr: float, warmup: int, steps: int, end: float = 0.0) -> Schedule:
    """0 to lr in a straight line over `warmup` steps, then `cosine` over the rest of `steps`."""

    def rate(t: Value) -> Value:
        falling = cosine(lr, max(steps - warmup, 1), end).value(ops.maximum(t - float(warmup), 0.0))
        return ops.where(t < float(warmup), t * (lr / max(warmup, 1)), falling)

    return Schedule(rate, f"warmup_cosine({lr}, {warmup}, {steps}, {end})")


def one_cycle(
    max_lr: float, steps: int, pct_start: float = 0.3, div_factor: float = 25.0, final_div_factor: float = 1e4
) -> Schedule:
    """Up from max_lr / div_factor, down to max_lr / div_factor / final_div_factor, both along cosines. Source: Smith 2018."""
    first = max_lr / div_factor
    last = first / final_div_factor
    peak = float(pct_start * steps) - 1

    def between(a: float, b: float, t: Value) -> Value:
        return (ops.cos(ops.clip(t, 0.0, 1.0) * math.pi) + 1.0) * (0.5 * (a - b)) + b

    def rate(t: Value) -> Value:
        up = between(first, max_lr, t * (1.0 / max(peak, 1e-6)))
        down = between(max_lr, last, (t - peak) * (1.0 / max(steps - 1 - peak, 1e-6)))
        return ops.where(t <= peak, up, down)

    return Schedule(rate, f"one_cycle({max_lr}, {steps})")
