"""Rows for ops/rows.py: groups of elementwise ops and row reductions, as a pass makes them."""

import numpy as np

from flamert.ops.pointwise import Instruction
from flamert.testing import Case

rng = np.random.default_rng(0)


def f32(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def program(*steps, results, axes, sums=()):
    made = tuple(Instruction(name, operands, tuple(dict(attrs).items())) for name, operands, *attrs in steps)
    return {"program": made, "results": results, "axes": axes, "sums": sums}


def reduced(name, operand, *axes):
    return (name, (operand,), ("axes", axes), ("keepdims", True))


def softmax(x, scale, **attrs):
    powers = np.exp(x * scale - (x * scale).max(-1, keepdims=True))
    return x * scale, powers / powers.sum(-1, keepdims=True)


def normalised(x, gain, **attrs):
    centred = x - x.mean((1, 2), keepdims=True)
    variance = (centred * centred).mean((1, 2), keepdims=True)
    return variance, centred / np.sqrt(variance) * gain


def normalised_backward(dy, x, mean, gain, **attrs):
    """With sums over rows for the gradients of gain and bias, and of the result."""
    normal = x - mean
    d = dy * gain
    dx = d - normal * (d * normal).mean(-1, keepdims=True)
    return dx, *[v.reshape(-1, v.shape[-1]).sum(0) for v in (dy * normal, dy, dx)]


BACKWARD = program(
    ("sub", (1, 2)),
    ("mul", (0, 3)),
    ("mul", (5, 4)),
    reduced("reduce_mean", 6, 2),
    ("mul", (4, 7)),
    ("sub", (5, 8)),
    ("mul", (0, 4)),
    results=(5,),
    axes=1,
    sums=(10, 0, 9),
)

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
    Case(
        "rows",
        [f32(3, 50, 24), f32(3, 50, 24), f32(3, 50, 1), f32(24)],
        BACKWARD,
        normalised_backward,
        tolerance=(1e-4, 1e-3),
        name="sums",
    ),
    Case(
        "rows",
        [f32(2, 1300, 40), f32(2, 1300, 40), f32(2, 1300, 1), f32(40)],
        BACKWARD,
        normalised_backward,
        tolerance=(1e-4, 1e-2),
        name="sums-of-many",
    ),
]
