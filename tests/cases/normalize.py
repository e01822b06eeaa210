"""Rows for ops/normalize.py."""

import numpy as np

from flamert.testing import Case
from tests.cases.elementwise import FLOATS, f32

AXES = [((3, 4), -1), ((3, 4), 0), ((2, 3, 4), 1), ((0, 3), 1), ((3, 0), 1), ((5,), 0)]


def softmax(x, axis=-1):
    if not x.size:
        return x
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def layer_norm(x, scale=None, bias=None, *, axis=-1, epsilon=1e-5):
    axes = tuple(range(axis % x.ndim, x.ndim))
    y = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)
    return y * (1 if scale is None else scale) + (0 if bias is None else bias)


def rms_norm(x, scale=None, *, axis=-1, epsilon=1e-5):
    axes = tuple(range(axis % x.ndim, x.ndim))
    return x / np.sqrt((x * x).mean(axes, keepdims=True) + epsilon) * (1 if scale is None else scale)


def channels(p, x):
    return p.reshape(-1, *[1] * (x.ndim - 2))


def batch_norm(x, scale, bias, mean, var, epsilon=1e-5):
    return (x - channels(mean, x)) / np.sqrt(channels(var, x) + epsilon) * channels(scale, x) + channels(bias, x)


def statistics(c):
    return [f32(c), f32(c), f32(c), f32(c, low=0.5)]


def batch_norm_training(x, scale, bias, mean, var, epsilon=1e-5, momentum=0.9):
    axes = tuple(i for i in range(x.ndim) if i != 1)
    m, v = x.mean(axes), x.var(axes)
    y = batch_norm(x, scale, bias, m, v, epsilon)
    return y, mean * momentum + m * (1 - momentum), var * momentum + v * (1 - momentum), m, v


def batch_norm_gradient(dy, x, scale, mean, var, axis=1, epsilon=1e-5):
    others = tuple(i for i in range(x.ndim) if i != axis)
    scale, mean, var = (np.moveaxis(p.reshape(-1, *[1] * (x.ndim - 1)), 0, axis) for p in (scale, mean, var))
    r = 1 / np.sqrt(var + epsilon)
    n = (x - mean) * r
    dx = scale * r * (dy - dy.mean(others, keepdims=True) - n * (dy * n).mean(others, keepdims=True))
    return dx, (dy * n).sum(others), dy.sum(others)


def group_norm(x, scale, bias, groups=None, epsilon=1e-5):
    rows = x.reshape(x.shape[0], groups or x.shape[1], -1)
    y = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + epsilon)
    return y.reshape(x.shape) * channels(scale, x) + channels(bias, x)


def by_group(x, groups, axis):
    return np.moveaxis(x, axis, 1).reshape(x.shape[0], groups, -1)


def group_moments(x, groups, axis=1):
    rows = by_group(x, groups, axis)
    return rows.mean(-1), rows.var(-1)


def group_sums(dy, x, mean, groups, axis=1):
    shape = (x.shape[0], x.shape[axis], -1)
    seen = (by_group(x, groups, axis) - mean[:, :, None]).reshape(shape)
    flow = by_group(dy, groups, axis).reshape(shape)
    return flow.sum(-1), (flow * seen).sum(-1)


def lp_normalize(x, axis=-1, p=2):
    norm = (np.abs(x) ** p).sum(axis, keepdims=True) ** (1 / p)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm != 0)


def mean_variance(x, axes):
    return (x - x.mean(axes, keepdims=True)) / (x.std(axes, keepdims=True) + 1e-9)


def local_response(x, size, alpha=1e-4, beta=0.75, bias=1.0):
    total = np.zeros_like(x)
    for c in range(x.shape[1]):
        low, high = max(0, c - (size - 1) // 2), c + size // 2 + 1
        total[:, c] = (x[:, low:high] ** 2).sum(1)
    return x / (bias + alpha / size * total) ** beta


RESPONSE = {"alpha": 0.5, "beta": 0.6, "bias": 2.0}
with_zeros = f32(2, 3, 4)
with_zeros[0] = 0
large = np.array([[1e4, 1e4 + 2, -1e4], [-1e30, 0, 1]], np.float32)

CASES = [
    *[Case("softmax", [f32(*s)], {"axis": a}, softmax, FLOATS) for s, a in AXES],
    Case("softmax", [large], {}, softmax, gradient=False, name="large"),
    Case("softmax", [np.array([-60000, 60000], np.float16)], {}, np.array([0, 1]), name="half range"),
    *[Case("log_softmax", [f32(*s)], {"axis": a}, lambda x, axis: np.log(softmax(x, axis)), FLOATS) for s, a in AXES],
    Case("log_softmax", [np.array([0, 200], np.float32)], {}, np.array([-200, 0]), name="underflow"),
    Case("layer_norm", [f32(3, 8), f32(8), f32(8)], {}, layer_norm, FLOATS),
    Case("layer_norm", [f32(2, 3, 4), f32(3, 4)], {"axis": 1, "epsilon": 0.1}, layer_norm, FLOATS),
    Case("layer_norm", [f32(2, 3, 4), None, f32(1)], {"axis": 0}, layer_norm, FLOATS),
    Case("layer_norm", [f32(0, 4), f32(4)], {}, lambda x, scale: x),
    Case("layer_norm", [f32(2, 64) + 1000], {}, layer_norm, tolerance=(1e-3, 1e-3), gradient=False, name="far from zero"),
    Case("rms_norm", [f32(3, 8), f32(8)], {}, rms_norm, FLOATS),
    Case("rms_norm", [f32(2, 3, 4), f32(3, 4)], {"axis": -2, "epsilon": 0.1}, rms_norm, FLOATS),
    Case("rms_norm", [f32(2, 3, 4)], {"axis": 0}, rms_norm, FLOATS),
    Case("batch_norm", [f32(2, 3, 4, 5), *statistics(3)], {}, batch_norm, FLOATS),
    Case("batch_norm", [f32(4, 3), *statistics(3)], {"epsilon": 0.1}, batch_norm, FLOATS),
    Case("batch_norm", [f32(0, 3, 2), *statistics(3)], {}, batch_norm, FLOATS),
    *[Case("batch_norm_training", [f32(*s), *statistics(3)], {}, batch_norm_training, FLOATS[:2]) for s in ((4, 3, 5), (8, 3))],
    Case("batch_norm_training", [f32(4, 3, 5), *statistics(3)], {"momentum": 0.5, "epsilon": 0.1}, batch_norm_training),
    *[
        Case(
            "batch_norm_gradient",
            [f32(*s), f32(*s), *statistics(s[axis])[1:]],
            {"axis": axis, "epsilon": e},
            batch_norm_gradient,
            t,
            tolerance=(1e-4, 1e-4) if s[0] == 3 else None,  # hundreds of numbers of either sign
        )
        for s, axis, e, t in (
            ((4, 3, 5), 1, 1e-5, FLOATS[:2]),
            ((2, 3, 4, 5), 3, 0.1, FLOATS[:2]),
            ((70, 5), 1, 1e-5, FLOATS[1:2]),
            ((3, 20, 11, 37), 3, 1e-5, FLOATS[1:2]),
            ((2, 3, 4, 5), 2, 1e-5, FLOATS[1:2]),
        )
    ],
    Case("group_norm", [f32(2, 6, 4, 3), f32(6), f32(6)], {"groups": 3}, group_norm, FLOATS),
    Case("group_norm", [f32(2, 6), f32(6), f32(6)], {"groups": 2, "epsilon": 0.1}, group_norm, FLOATS),
    Case("group_norm", [f32(0, 6, 2), f32(6), f32(6)], {"groups": 2}, lambda x, *_, **__: x),
    *[
        Case("group_moments", [f32(*shape) + 3], {"groups": groups, "axis": axis}, group_moments, FLOATS)
        for shape, groups, axis in (((2, 6, 4, 3), 3, 1), ((2, 6), 2, 1), ((2, 4, 3, 6), 2, -1), ((3, 5, 8), 2, 2))
    ],
    *[
        Case("group_sums", [f32(*shape), f32(*shape), f32(shape[0], groups)], {"groups": groups, "axis": axis}, group_sums)
        for shape, groups, axis in (((2, 6, 4, 3), 3, 1), ((2, 6), 2, 1), ((2, 4, 3, 6), 2, -1), ((3, 5, 8), 2, 2))
    ],
    Case("instance_norm", [f32(2, 3, 4, 5), f32(3), f32(3)], {}, group_norm, FLOATS),
    *[
        Case("lp_normalize", [x], {"axis": a, "p": p}, lp_normalize, FLOATS, gradient=x is not with_zeros, name=name)
        for x, name in ((f32(2, 3, 4), ""), (with_zeros, "zeros"))
        for a in (0, -1)
        for p in (1, 2)
    ],
    *[Case("mean_variance_normalize", [f32(2, 3, 4, 5)], {"axes": a}, mean_variance, FLOATS) for a in ((0, 2, 3), (1,))],
    *[
        Case(
            "local_response_norm",
            [f32(2, 5, 3, 2)],
            {"size": n, **RESPONSE},
            local_response,
            FLOATS,
        )
        for n in (1, 2, 3, 4, 11)
    ],
    Case("local_response_norm", [f32(2, 5, 3)], {"size": 3}, local_response),
]
