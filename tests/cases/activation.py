"""Rows for ops/activation.py."""

import numpy as np

from flamert.testing import Case
from tests.cases.elementwise import FLOATS, f32, ints, math_erf

FAR = np.array([-1e4, -200.0, -100.0, -30.0, 30.0, 100.0, 200.0, 1e4], np.float32)


def sigmoid(x):
    return np.where(x < 0, np.exp(np.minimum(x, 0)), 1) / (1 + np.exp(-np.abs(x)))


def softplus(x):
    return np.logaddexp(x, 0)


def elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def hard_sigmoid(x, alpha=0.2, beta=0.5):
    return np.clip(alpha * x + beta, 0, 1)


UNARY = [
    ("relu", {}, lambda x: x * (x > 0)),
    ("leaky_relu", {}, lambda x, alpha=0.01: np.where(x > 0, x, x * alpha)),
    ("leaky_relu", {"alpha": 0.3}, lambda x, alpha: np.where(x > 0, x, x * alpha)),
    ("leaky_relu", {"alpha": 1.5}, lambda x, alpha: np.where(x > 0, x, x * alpha)),
    ("leaky_relu", {"alpha": -0.5}, lambda x, alpha: np.where(x > 0, x, x * alpha)),
    ("thresholded_relu", {"alpha": 0.5}, lambda x, alpha: x * (x > alpha)),
    ("shrink", {"lambd": 0.75, "bias": 0.25}, lambda x, lambd, bias: (x - np.sign(x) * bias) * (np.abs(x) > lambd)),
    ("elu", {}, elu),
    ("elu", {"alpha": 0.7}, elu),
    ("celu", {"alpha": 0.7}, lambda x, alpha: alpha * elu(x / alpha)),
    ("selu", {}, lambda x: 1.0507010 * elu(x, 1.6732632)),
    ("selu", {"alpha": 1.5, "gamma": 2.0}, lambda x, alpha, gamma: gamma * elu(x, alpha)),
    ("sigmoid", {}, sigmoid),
    ("swish", {}, lambda x: x * sigmoid(x)),
    ("swish", {"alpha": 1.702}, lambda x, alpha: x * sigmoid(alpha * x)),
    ("hard_sigmoid", {}, hard_sigmoid),
    ("hard_sigmoid", {"alpha": 0.5, "beta": 0.25}, hard_sigmoid),
    ("hard_swish", {}, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    ("softplus", {}, softplus),
    ("softsign", {}, lambda x: x / (1 + np.abs(x))),
    ("mish", {}, lambda x: x * np.tanh(softplus(x))),
    ("gelu", {}, lambda x: 0.5 * x * (1 + math_erf(x / np.sqrt(2)))),
    ("gelu_tanh", {}, gelu_tanh),
]

CASES = [
    *[Case(name, [f32(*s, low=-4, high=4)], attrs, f, FLOATS) for name, attrs, f in UNARY for s in ((3, 5), (), (2, 0))],
    *[Case(name, [FAR], attrs, f, FLOATS[:2], name="far") for name, attrs, f in UNARY],
    # Of so many elements, some lie at elu's kink.
    *[
        Case(name, [f32(3, 30000)], attrs, f, name="blocks", gradient=name != "elu")
        for name, attrs, f in UNARY
        if name in ("sigmoid", "gelu", "elu")
    ],
    Case("relu", [ints(np.int32, 3, 4)], {}, lambda x: x * (x > 0)),
    *[
        Case("prelu", [f32(2, 3, 4), f32(*slope)], {}, lambda x, slope: np.where(x > 0, x, x * slope), FLOATS)
        for slope in ((4,), (3, 1), (1,), (2, 3, 4))
    ],
    Case("prelu", [ints(np.int64, 3, 4), ints(np.int64, 4)], {}, lambda x, slope: np.where(x > 0, x, x * slope)),
    Case(
        "shrink", [ints(np.int8, 30)], {"lambd": 9, "bias": 3}, lambda x, lambd, bias: (x - np.sign(x) * bias) * (np.abs(x) > 9)
    ),
    Case("swiglu", [f32(2, 3), f32(2, 3)], {"alpha": 1.5}, lambda a, b, alpha: a * sigmoid(a * alpha) * b, FLOATS),
]
