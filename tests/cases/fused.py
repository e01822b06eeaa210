"""Rows for ops/fused.py and ops/pointwise.py: what passes make, with the kernels that only they reach."""

import math
from dataclasses import replace

import numpy as np

from flamert import dtypes
from flamert.ops.fused import ACTIVATIONS
from flamert.ops.pointwise import Instruction
from flamert.testing import Case
from tests.cases.elementwise import FLOATS, f32

CLOSE = (1e-5, 1e-5)
HALVES = (dtypes.float16, dtypes.bfloat16)

offsets = np.random.default_rng(2).uniform(-2, 2, 24).astype(np.float32)
factors = [np.random.default_rng(1).uniform(-2, 2, shape).astype(np.float32) for shape in ((3, 5, 16), (16, 24))]

halved = [x.astype(dtypes.float16) for x in factors]

erf = np.vectorize(math.erf, otypes=[np.float64])
FUNCTIONS = {
    "": lambda x, a, b: x,
    "relu": lambda x, a, b: np.maximum(x, 0),
    "clip": lambda x, a, b: np.clip(x, a, b),
    "leaky_relu": lambda x, a, b: np.where(x < 0, a * x, x),
    "hard_sigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "hard_swish": lambda x, a, b: x * np.clip(x / 6 + 0.5, 0, 1),
    "sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "tanh": lambda x, a, b: np.tanh(x),
    "swish": lambda x, a, b: x / (1 + np.exp(-x)),
    "gelu": lambda x, a, b: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x, a, b: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def linear(x, w, bias=None, residual=None, *, activation="", alpha=0.0, beta=0.0):
    y = x @ w
    y = y if bias is None else y + bias
    return FUNCTIONS[activation](y if residual is None else y + residual, alpha, beta)


def wide_matmul(a, b, bias, *, to, scale):
    return scale * (a @ b) + bias


def conv(x, w, bias=None, residual=None, *, strides, pads, dilations, group=1, activation="", alpha=0.0, beta=0.0):
    """By the definition, output pixel by output pixel; any number of spatial dimensions."""
    n = len(strides)
    x = np.pad(x, [(0, 0), *zip(pads[:n], pads[n:], strict=True), (0, 0)])
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    out = [(s - r) // t + 1 for s, r, t in zip(x.shape[1:-1], reach, strides, strict=True)]
    m, cg = w.shape[:2]
    y = np.zeros((x.shape[0], *out, m))
    for at in np.ndindex(*out):
        window = x[
            (slice(None), *[slice(i * t, i * t + r, d) for i, t, r, d in zip(at, strides, reach, dilations, strict=True)])
        ]
        for k in range(m):
            first = k // (m // group) * cg
            y[(slice(None), *at, k)] = (np.moveaxis(window[..., first : first + cg], -1, 1) * w[k]).reshape(len(x), -1).sum(1)
    y = y if bias is None else y + bias
    return FUNCTIONS[activation](y if residual is None else y + residual, alpha, beta)


def attrs(spatial=2, strides=1, pads=None, dilations=1, **more):
    return {"strides": (strides,) * spatial, "pads": pads or (1,) * 2 * spatial, "dilations": (dilations,) * spatial, **more}


def chain(*steps):
    return {"program": tuple(Instruction(op, operands, extra) for op, operands, *rest in steps for extra in [tuple(rest)])}


def windows(kernel, strides, pads, dilations=None):
    return {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations or (1,) * len(kernel)}


def pooled(x, filling, function, kernel, strides, pads, dilations):
    n = len(kernel)
    x = np.pad(x, [(0, 0), *zip(pads[:n], pads[n:], strict=True), (0, 0)], constant_values=filling)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    out = [(s - r) // t + 1 for s, r, t in zip(x.shape[1:-1], reach, strides, strict=True)]
    y = np.zeros((x.shape[0], *out, x.shape[-1]))
    for at in np.ndindex(*out):
        window = x[
            (slice(None), *[slice(i * t, i * t + r, d) for i, t, r, d in zip(at, strides, reach, dilations, strict=True)])
        ]
        y[(slice(None), *at)] = function(window.reshape(len(x), -1, x.shape[-1]))
    return y


def max_pool(x, *, kernel, strides, pads, dilations):
    return pooled(x, -np.inf, lambda w: w.max(1), kernel, strides, pads, dilations)


def average_pool(x, *, kernel, strides, pads, dilations, counted):
    mean = np.nanmean if not any(counted) else np.mean
    return pooled(x, 0 if any(counted) else np.nan, lambda w: mean(w, 1), kernel, strides, pads, dilations)


PARAMETERS = {"clip": (-0.5, 0.75), "leaky_relu": (0.1, 0.0), "hard_sigmoid": (0.3, 0.4)}

JUMPS = ("floor", "ceil", "round")

CASES = [
    *[
        Case("linear", [f32(m, k), f32(k, n), f32(n)], {}, linear, tolerance=(2e-5, 2e-5), constants=(1,))
        for m, k, n in [(1, 5, 3), (2, 40, 70), (7, 400, 33), (200, 9, 16), (3, 0, 4), (0, 4, 4)]
    ],
    *[
        Case(
            "linear",
            [f32(3, 5, 8), f32(8, 20), f32(20), f32(3, 5, 20)],
            {"activation": a, "alpha": p, "beta": q},
            linear,
            constants=(1,),
            name=a or "none",
        )
        for a in ACTIVATIONS
        for p, q in [PARAMETERS.get(a, (0.0, 0.0))]
    ],
    Case("linear", [f32(4, 5), f32(5, 6)], {}, linear),
    *[Case("wide_matmul", factors, {"to": np.dtype(t)}, lambda a, b, to: a @ b, HALVES) for t in (np.float32, np.float64)],
    Case("wide_matmul", [*halved, offsets], {"to": dtypes.float32, "scale": 0.25}, wide_matmul, tolerance=CLOSE),
    Case("linear", [f32(16, 8), f32(8, 24), f32(24)], {"activation": "gelu_tanh"}, linear, FLOATS, name="ended"),
    Case("conv_channels_last", [f32(2, 6, 7, 3), f32(8, 3, 3, 3), f32(8)], attrs(), conv, constants=(1,)),
    Case(
        "conv_channels_last",
        [f32(1, 9, 8, 16), f32(20, 16, 1, 1), None, f32(1, 9, 8, 20)],
        attrs(pads=(0,) * 4, activation="relu"),
        conv,
        constants=(1,),
    ),
    Case(
        "conv_channels_last",
        [f32(1, 9, 8, 4), f32(6, 4, 3, 2), f32(6)],
        attrs(strides=2, pads=(0, 1, 2, 1), dilations=2),
        conv,
        constants=(1,),
    ),
    Case(
        "conv_channels_last",
        [f32(2, 6, 7, 8), f32(12, 4, 3, 3), f32(12)],
        attrs(group=2, activation="tanh"),
        conv,
        constants=(1,),
    ),
    Case(
        "conv_channels_last",
        [f32(1, 6, 7, 43), f32(43, 1, 3, 3), f32(43)],
        attrs(group=43, activation="hard_swish"),
        conv,
        constants=(1,),
    ),
    Case(
        "conv_channels_last",
        [f32(1, 6, 7, 8), f32(8, 1, 5, 3), None, f32(1, 3, 4, 8)],
        attrs(strides=2, pads=(2, 1, 1, 1), group=8),
        conv,
        constants=(1,),
    ),
    Case(
        "conv_channels_last",
        [f32(2, 30, 5), f32(7, 5, 4), f32(7)],
        attrs(1, strides=3, pads=(2, 1), activation="gelu"),
        conv,
        constants=(1,),
    ),
    Case("conv_channels_last", [f32(1, 4, 5, 3), f32(2, 3, 3, 3)], attrs(), conv),
    Case(
        "pointwise",
        [f32(3, 700), f32(700), f32()],
        chain(("mul", (0, 1)), ("add", (3, 2)), ("tanh", (4,)), ("sub", (5, 0))),
        lambda x, y, z, program: np.tanh(x * y + z) - x,
    ),
    Case(
        "pointwise",
        [f32(2, 5, 6, 4), f32(2, 1, 1, 4), f32(5, 1, 1)],
        chain(("mul", (0, 1)), ("add", (3, 2)), ("relu", (4,))),
        lambda x, y, z, program: np.maximum(x * y + z, 0),
    ),
    Case(
        "pointwise",
        [f32(4, 600), f32(4, 1)],
        chain(("less", (0, 1)), ("where", (2, 0, 1)), ("gelu", (3,))),
        lambda x, y, program: FUNCTIONS["gelu"](np.where(x < y, x, y), 0, 0),
    ),
    Case(
        "pointwise",
        [f32(3000), f32(3000)],
        chain(("greater", (0, 1)), ("equal", (0, 0)), ("logical_and", (2, 3)), ("logical_not", (4,))),
        lambda x, y, program: ~(x > y),
    ),
    Case(
        "pointwise",
        [f32(5, 1100)],
        chain(("leaky_relu", (0,), ("alpha", 0.1)), ("swish", (1,), ("alpha", 1.5)), ("elu", (2,), ("alpha", 0.7))),
        lambda x, program: (lambda s: np.where(s < 0, 0.7 * np.expm1(s), s))(
            (lambda v: v / (1 + np.exp(-1.5 * v)))(np.where(x < 0, 0.1 * x, x))
        ),
    ),
    Case(
        "pointwise",
        [f32(2, 5, 30, 40), f32(5, 1, 1), f32(2, 1, 30, 1), f32(2, 5, 1, 1)],
        chain(("mul", (0, 1)), ("add", (4, 2)), ("sub", (5, 3))),
        lambda x, y, z, w, program: x * y + z - w,
        name="channels",
    ),
    Case(
        "pointwise_many",
        [f32(3, 900), f32(3, 900, low=0.5, high=2.0), f32()],
        {**chain(("mul", (0, 2)), ("add", (3, 1)), ("sqrt", (1,)), ("sub", (0, 5)), ("less", (3, 4))), "results": (1, 3, 4)},
        lambda x, y, z, program, results: (x * z + y, x - np.sqrt(y), x * z < x * z + y),
        name="several",
    ),
    *[
        # Of so many elements, some lie where roundings jump.
        Case("pointwise", [f32(2050, low=0.1, high=3.0)], chain((name, (0,))), function, name=name, gradient=name not in JUMPS)
        for name, function in {
            "exp": lambda x, program: np.exp(x),
            "log": lambda x, program: np.log(x),
            "sqrt": lambda x, program: np.sqrt(x),
            "erf": lambda x, program: erf(x),
            "sigmoid": lambda x, program: FUNCTIONS["sigmoid"](x, 0, 0),
            "softplus": lambda x, program: np.log1p(np.exp(x)),
            "reciprocal": lambda x, program: 1 / x,
            "floor": lambda x, program: np.floor(x),
            "ceil": lambda x, program: np.ceil(x),
            "round": lambda x, program: np.rint(x),
            "neg": lambda x, program: -x,
            "abs": lambda x, program: np.abs(x),
            "sin": lambda x, program: np.sin(x),
            "cos": lambda x, program: np.cos(x),
            "gelu_tanh": lambda x, program: FUNCTIONS["gelu_tanh"](x, 0, 0),
        }.items()
    ],
    *[
        Case(op, [f32(*shape)], attrs, pool, name=f"{op}-{'x'.join(map(str, shape))}-{i}")
        for op, pool in [("max_pool_channels_last", max_pool), ("average_pool_channels_last", average_pool)]
        for i, (shape, attrs) in enumerate(
            [
                ((2, 7, 6, 5), windows((3, 2), (2, 1), (1, 0, 1, 1))),
                ((1, 6, 8, 17), windows((2, 2), (2, 2), (0, 0, 0, 0), (2, 3))),
                ((2, 9, 3), windows((4,), (3,), (1, 2))),
            ]
        )
        for attrs in [attrs | ({"counted": (0,) * len(attrs["pads"])} if pool is average_pool else {})]
    ],
    Case(
        "average_pool_channels_last",
        [f32(1, 5, 6, 4)],
        windows((3, 3), (2, 2), (1, 1, 1, 1)) | {"counted": (1, 1, 1, 1)},
        average_pool,
    ),
]

# Weights that are being trained are no constants: they are arranged in every call.
CASES += [replace(c, constants=()) for c in CASES if c.op == "conv_channels_last" and c.constants]
