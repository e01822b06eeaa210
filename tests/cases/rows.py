"""Rows for ops/rows.py: groups of elementwise ops and row reductions, as a pass makes them."""

import numpy as np

from flamert.ops.pointwise import Instruction
from flamert.testing import Case

rng = np.random.default_rng(0)


def f32(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def program(*steps, results, axes):
    made = tuple(Instruction(name, operands, tuple(dict(attrs).items())) for name, operands, *attrs in steps)
    return {"program": made, "results": results, "axes": axes}


def reduced(name, operand, *axes):
    return (name, (operand,), ("axes", axes), ("keepdims", True))


def softmax(x, scale, **attrs):
    powers = np.exp(x * scale - (x * scale).max(-1, keepdims=True))
    return x * scale, powers / powers.sum(-1, keepdims=True)


def normalised(x, gain, **attrs):
    centred = x - x.mean((1, 2), keepdims=True)
    variance = (centred * centred).mean((1, 2), keepdims=True)
    return variance, centred / np.sqrt(variance) * gain


CASES = [
    Case(
        "rows",
        [f32(2, 3, 40), f32(3, 1)],
        program(
            ("mul", (0, 1)),
            reduced("reduce_max", 2, 2),
            ("sub", (2, 3)),
            ("exp", (4,)),
            reduced("reduce_sum", 5, 2),
            ("div", (5, 6)),
            results=(0, 5),
            axes=1,
        ),
        softmax,
    ),
    Case(
        "rows",
        [f32(4, 6, 8), f32(6, 8)],
        program(
            reduced("reduce_mean", 0, 1, 2),
            ("sub", (0, 2)),
            ("mul", (3, 3)),
            reduced("reduce_mean", 4, 1, 2),
            ("sqrt", (5,)),
            ("reciprocal", (6,)),
            ("mul", (3, 7)),
            ("mul", (8, 1)),
            results=(3, 7),
            axes=2,
        ),
        normalised,
    ),
]
