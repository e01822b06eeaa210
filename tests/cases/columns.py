"""Rows for ops/columns.py: sums over rows with elementwise ops in front of them, as a pass makes them."""

import numpy as np

from flamert.ops.pointwise import Instruction
from flamert.testing import Case

rng = np.random.default_rng(0)


def f32(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def program(*steps, results, means, finish=(), **attrs):
    made, finish = (tuple(Instruction(name, operands, attrs) for name, operands, attrs in s) for s in (steps, finish))
    return {"program": made, "results": results, "means": means, "finish": finish, **attrs}


def moments(dy, x, mean, r, **attrs):
    normal = (x - mean) * r
    return (dy * normal).reshape(-1, dy.shape[-1]).sum(0), dy.reshape(-1, dy.shape[-1]).sum(0)


def gated(dy, y, x, zero, **attrs):
    flow = np.where(y > 0, dy, 0)
    return flow.sum(0), (flow * x).mean(0)


def standardised(x, first, scale, **attrs):
    d = x - first
    mean, square = d.mean((0, 1)), np.square(d).mean((0, 1))
    return scale / np.sqrt(square - mean * mean + 1), mean, d


def written(dy, y, zero, **attrs):
    flow = np.where(y > 0, dy, 0)
    return flow.sum(0), flow


STEPS = [("sub", (1, 2), ()), ("mul", (4, 3), ()), ("mul", (0, 5), ())]
GATE = [("greater", (1, 3), ()), ("where", (4, 0, 3), ()), ("mul", (5, 2), ())]

SPREAD = [("sub", (0, 1), ()), ("mul", (2, 2), ())]
DEVIATION = [("mul", (0, 0), ()), ("sub", (1, 4), ()), ("add", (5, 3), ()), ("sqrt", (6,), ()), ("div", (2, 7), ())]

BY_ROW = [f32(5, 9, 7), f32(5, 9, 7), f32(5, 9, 1), f32(5, 9, 1)]

CASES = [
    Case(
        "columns",
        [f32(3, 11, 4, 24), f32(3, 11, 4, 24), f32(1, 1, 1, 24), f32(24)],
        program(*STEPS, results=(6, 0), means=(False, False)),
        moments,
        tolerance=(1e-4, 1e-4),
        name="by-column",
    ),
    Case(
        "columns", BY_ROW, program(*STEPS, results=(6, 0), means=(False, False)), moments, tolerance=(1e-4, 1e-4), name="by-row"
    ),
    Case(
        "columns",
        [x.astype(np.float16) for x in BY_ROW],
        program(*STEPS, results=(6, 0), means=(False, False)),
        moments,
        # Programs that passes make widen halves first; here they are rounded at every step.
        tolerance=(1e-2, 5e-2),
        name="by-row-halves",
    ),
    Case(
        "columns",
        [f32(4099, 8), f32(4099, 8), f32(4099, 8), np.zeros((), np.float32)],
        program(*GATE, results=(5, 6), means=(False, True)),
        gated,
        tolerance=(1e-4, 1e-3),
        constants=(3,),
        name="gated",
    ),
    Case(
        "columns",
        [f32(70000, 3)],
        program(("mul", (0, 0), ()), results=(1,), means=(True,)),
        lambda x, **attrs: (np.square(x).mean(0),),
        tolerance=(1e-4, 1e-5),
        name="long",
    ),
    Case(
        "columns",
        [f32(5, 411, 16), f32(1, 1, 16), f32(16), np.ones((), np.float32)],
        program(*SPREAD, results=(2, 3), means=(True, True), finish=DEVIATION, given=2, wanted=(8, 0), kept=(2,)),
        lambda x, first, scale, one, **attrs: standardised(x, first, scale),
        tolerance=(1e-4, 1e-4),
        constants=(3,),
        name="finished",
    ),
    Case(
        "columns",
        # No gate is so near zero that differences would cross it.
        [f32(900, 12).astype(np.float16), np.sign(f32(900, 12)).astype(np.float16), np.zeros((), np.float16)],
        program(("greater", (1, 2), ()), ("where", (3, 0, 2), ()), results=(4,), means=(False,), kept=(4,)),
        written,
        tolerance=(2e-3, 1e-2),
        constants=(2,),
        name="kept",
    ),
]
