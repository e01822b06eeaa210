"""Passes on small graphs: what exporters took apart is recognised, nothing else is, and values stay what they were."""

import math
from collections import Counter

import numpy as np
import pytest

from flamert import dtypes, ops
from flamert import graph as g
from flamert.graph import Graph, TensorType
from flamert.ops.evaluate import evaluate
from flamert.ops.shape import narrow
from flamert.passes import pipeline
from flamert.passes.deduplicate import deduplicate
from flamert.passes.fold import fold
from flamert.passes.patterns import recognise
from flamert.passes.patterns.masks import Window
from flamert.passes.simplify import simplify
from flamert.rewrite import substitute
from flamert.runtime.device import device
from flamert.runtime.plan import Plan

F16, F32, F64 = dtypes.float16, dtypes.float32, dtypes.float64
SQRT_HALF, ROOT = math.sqrt(0.5), math.sqrt(2 / math.pi)
LOWEST = float(np.finfo(np.float32).min)


def tidy(graph):
    """What the recognisers are given."""
    graph = deduplicate(simplify(fold(graph, {})))
    return deduplicate(fold(graph, {}))


def graph_of(build, *operands):
    """build(*inputs) as a graph; operands: shapes (float32), TensorTypes or arrays. Also arrays to feed it with."""
    rng = np.random.default_rng(0)
    inputs, arrays = [], []
    for x in operands:
        if isinstance(x, np.ndarray):
            array = x
        else:
            shape, dtype = x if isinstance(x, TensorType) else (x, F32)
            array = rng.standard_normal(shape).astype(dtype)
        inputs.append(g.input(TensorType(array.shape, array.dtype)))
        arrays.append(array)
    outputs = build(*inputs)
    return Graph(inputs, outputs if isinstance(outputs, tuple) else (outputs,)), arrays


def count(graph):
    return Counter(node.op.name for node in graph.nodes)


def rewritten(build, *operands):
    """The graph after recognition, once its values are found to be the same."""
    graph, arrays = graph_of(build, *operands)
    after = tidy(recognise(tidy(graph)))
    for v, old, new in zip(
        graph.outputs,
        evaluate(graph.outputs, dict(zip(graph.inputs, arrays, strict=True))),
        evaluate(after.outputs, dict(zip(after.inputs, arrays, strict=True))),
        strict=True,
    ):
        assert old.dtype == new.dtype and old.shape == new.shape
        rtol, atol = (1e-2, 2e-3) if v.dtype in dtypes.HALF else (2e-5, 2e-6)
        np.testing.assert_allclose(new.astype(F64), old.astype(F64), rtol, atol)
    return after


def node_of(graph, op):
    (node,) = [node for node in graph.nodes if node.op.name == op]
    return node


# -- activations ------------------------------------------------------------------------------------------------------

X = (3, 5)


def erf_part(x):
    return ops.erf(x / math.sqrt(2))


def tanh_part(x):
    return ops.tanh((x + x**3.0 * 0.044715) * ROOT)


GELU = {
    "x·(1+erf)·½": lambda x: x * (erf_part(x) + 1) * 0.5,
    "(x·½)·(1+erf)": lambda x: (x * 0.5) * (1 + erf_part(x)),
    "½·x·(erf+1)": lambda x: 0.5 * x * (erf_part(x) + 1),
    "x·(½·(1+erf))": lambda x: x * (0.5 * (1 + erf_part(x))),
    "x·(½·erf+½)": lambda x: x * (erf_part(x) * 0.5 + 0.5),
    "x·(1+erf)/2": lambda x: x * (erf_part(x) + 1) / 2,
    "times √½": lambda x: x * (ops.erf(x * SQRT_HALF) + 1) * 0.5,
    "times 0.7071": lambda x: x * (ops.erf(0.7071 * x) + 1) * 0.5,
    "1−erf(−x)": lambda x: x * (1 - ops.erf(-x * SQRT_HALF)) * 0.5,
    "bias before": lambda x: GELU["½·x·(erf+1)"](x * 3 + 1),
}
GELU_TANH = {
    "x·½·(1+tanh)": lambda x: x * 0.5 * (tanh_part(x) + 1),
    "½·(x·(1+tanh))": lambda x: 0.5 * (x * (1 + tanh_part(x))),
    "x·x·x": lambda x: 0.5 * x * (1 + ops.tanh(ROOT * (x + 0.044715 * x * x * x))),
    "x·(1+…x²)": lambda x: x * (1 + ops.tanh(x * ROOT * (1 + 0.044715 * x * x))) * 0.5,
    "keras": lambda x: x * (0.5 * (1 + ops.tanh(ROOT * (x + x * (x * (0.044715 * x)))))),
}
SWISH = {
    "x·sigmoid(x)": lambda x: x * ops.sigmoid(x),
    "sigmoid(x)·x": lambda x: ops.sigmoid(x) * x,
    "1.702": lambda x: x * ops.sigmoid(1.702 * x),
}
MISH = {
    "softplus": lambda x: x * ops.tanh(ops.softplus(x)),
    "log(1+exp)": lambda x: ops.tanh(ops.log(1 + ops.exp(x))) * x,
    "log1p(exp)": lambda x: ops.tanh(ops.log1p(ops.exp(x))) * x,
}


def clip(x, low, high):
    return ops.minimum(ops.maximum(x, low), high)


HARD_SIGMOID = {
    "clip(a·x+b)": lambda x: clip(x * 0.2 + 0.5, 0, 1),
    "relu6(x+3)/6": lambda x: clip(x + 3, 0, 6) / 6,
    "relu6(3+x)·⅙": lambda x: (1 / 6) * ops.maximum(ops.minimum(3 + x, 6), 0),
    "other slope times x": lambda x: x * clip(x * 0.2 + 0.5, 0, 1),
}
HARD_SWISH = {
    "x·(relu6(x+3)/6)": lambda x: x * (clip(x + 3, 0, 6) / 6),
    "x·relu6(x+3)/6": lambda x: x * clip(x + 3, 0, 6) / 6,
    "(x/6)·relu6(x+3)": lambda x: x / 6 * clip(x + 3, 0, 6),
    "x·clip(x/6+½)": lambda x: x * clip(x / 6 + 0.5, 0, 1),
    "x·hard_sigmoid": lambda x: x * ops.hard_sigmoid(x, alpha=1 / 6, beta=0.5),
}
FORMS = {
    "gelu": GELU,
    "gelu_tanh": GELU_TANH,
    "swish": SWISH,
    "mish": MISH,
    "hard_sigmoid": HARD_SIGMOID,
    "hard_swish": HARD_SWISH,
}


@pytest.mark.parametrize("dtype", [F32, F16, F64], ids=str)
@pytest.mark.parametrize(("op", "form"), [(op, form) for op, forms in FORMS.items() for form in forms])
def test_activations(op, form, dtype):
    after = rewritten(FORMS[op][form], TensorType(X, dtype))
    assert count(after)[op] == 1, after
    assert not count(after).keys() & {"erf", "tanh", "sigmoid", "softplus", "minimum", "maximum"}


ALMOST = {
    "gelu of another value": ("gelu", lambda x, y: x * (erf_part(y) + 1) * 0.5),
    "gelu with another root": ("gelu", lambda x, y: x * (ops.erf(x * 0.7) + 1) * 0.5),
    "gelu without the half": ("gelu", lambda x, y: x * (erf_part(x) + 1)),
    "gelu with another one": ("gelu", lambda x, y: x * (erf_part(x) + 2) * 0.5),
    "gelu whose erf is read": ("gelu", lambda x, y: (GELU["x·(1+erf)·½"](x), erf_part(x))),
    "gelu whose product is read": ("gelu", lambda x, y: (GELU["x·(1+erf)·½"](x), x * (erf_part(x) + 1))),
    "gelu of x/√2 read": ("gelu", lambda x, y: (GELU["x·(1+erf)·½"](x), x / math.sqrt(2))),
    "gelu times a row": ("gelu", lambda x, y: x * (ops.erf(x * g.constant(np.full((2, 1, 1), SQRT_HALF, F32))) + 1) * 0.5),
    "tanh with another cubic": ("gelu_tanh", lambda x, y: x * 0.5 * (1 + ops.tanh((x + x * x * x * 0.05) * ROOT))),
    "tanh with a square": ("gelu_tanh", lambda x, y: x * 0.5 * (1 + ops.tanh((x + x * x * 0.044715) * ROOT))),
    "gate of another value": ("swish", lambda x, y: x * ops.sigmoid(y)),
    "gate with an offset": ("swish", lambda x, y: x * ops.sigmoid(x + 1)),
    "gate that is read": ("swish", lambda x, y: (x * ops.sigmoid(x), ops.sigmoid(x) + 1)),
    "gate that is returned": ("swish", lambda x, y: (x * ops.sigmoid(x), ops.sigmoid(x))),
    "mish of another value": ("mish", lambda x, y: x * ops.tanh(ops.softplus(y))),
    "log(2 + exp)": ("mish", lambda x, y: x * ops.tanh(ops.log(2 + ops.exp(x)))),
    "relu6": ("hard_sigmoid", lambda x, y: clip(x, 0, 6)),
    "clip from −1": ("hard_sigmoid", lambda x, y: clip(x * 0.2 + 0.5, -1, 1)),
    "relu6(x+3)/5": ("hard_sigmoid", lambda x, y: clip(x + 3, 0, 6) / 5),
    "hard gate of another value": ("hard_swish", lambda x, y: y * clip(x + 3, 0, 6) / 6),
    "hard gate with another slope": ("hard_swish", lambda x, y: x * clip(x * 0.2 + 0.5, 0, 1)),
    "hard gate that is read": ("hard_swish", lambda x, y: (x * (clip(x + 3, 0, 6) / 6), clip(x + 3, 0, 6) / 6)),
}


@pytest.mark.parametrize("name", ALMOST)
def test_what_is_almost_an_activation(name):
    op, build = ALMOST[name]
    assert not count(rewritten(build, X, X))[op]


# -- normalisations ---------------------------------------------------------------------------------------------------

SCALE, BIAS = np.linspace(0.5, 1.5, 8, dtype=F32), np.linspace(-1, 1, 8, dtype=F32)


def moment(x, axes=(2,)):
    return ops.reduce_mean(x, axes=axes, keepdims=True)


def centred(x, axes=(2,)):
    return x - moment(x, axes)


def variance(x, axes=(2,)):
    y = centred(x, axes)
    return moment(y * y, axes)


def sums(x):
    """As JAX writes means: sums without the axis, scaled, and put in place again."""
    return ops.reduce_sum(x, axes=(2,)) * (1 / 8)


def column(x):
    return ops.reshape(x, shape=(*x.shape, 1))


def fast_variance(x):
    return ops.maximum(sums(x * x) - sums(x) * sums(x), 0)


def keras(x):
    factor = ops.reciprocal(ops.sqrt(variance(x) + 1e-5)) * SCALE
    return x * factor + (g.constant(BIAS) - moment(x) * factor)


def wide(normalise):
    return lambda x: ops.cast(normalise(ops.cast(x, to=F32)), to=x.dtype)


def plain(x):
    return centred(x) / ops.sqrt(variance(x) + 1e-5)


LAYER_NORM = {
    "plain": plain,
    "scale": lambda x: plain(x) * SCALE,
    "scale and bias": lambda x: g.constant(BIAS) + g.constant(SCALE) * plain(x),
    "bias": lambda x: plain(x) + BIAS,
    "pow": lambda x: centred(x) / ops.pow(moment(ops.pow(centred(x), 2.0)) + 1e-5, 0.5) * SCALE + BIAS,
    "reciprocal": lambda x: centred(x) * ops.reciprocal(ops.sqrt(variance(x) + 1e-5)) * SCALE,
    "1/√": lambda x: centred(x) * (g.constant(1.0, F32) / ops.sqrt(1e-5 + variance(x))) * SCALE,
    "power −½": lambda x: centred(x) * ops.pow(variance(x) + 1e-5, -0.5),
    "scale in the factor": lambda x: centred(x) * (ops.reciprocal(ops.sqrt(variance(x) + 1e-5)) * SCALE) + BIAS,
    "keras": keras,
    "flax": lambda x: (
        (x - column(sums(x))) * (ops.reciprocal(ops.sqrt(column(fast_variance(x)) + 1e-5)) * SCALE.reshape(1, 1, 8)) + BIAS
    ),
    "jax": lambda x: (x - ops.expand(column(sums(x)), shape=x.shape)) / ops.sqrt(moment(centred(x) ** 2.0) + 1e-5),
    "two axes": lambda x: (
        centred(x, (1, 2)) / ops.sqrt(variance(x, (1, 2)) + 1e-5) * np.full((3, 8), 1.5, F32) + np.full((1, 3, 8), 0.5, F32)
    ),
}
RMS_NORM = {
    "t5": lambda x: x * ops.reciprocal(ops.sqrt(moment(x * x) + 1e-6)) * SCALE,
    "llama": lambda x: g.constant(SCALE) * (x * (g.constant(1.0, F32) / ops.sqrt(moment(ops.pow(x, 2.0)) + 1e-6))),
    "quotient": lambda x: x / ops.sqrt(moment(x * x) + 1e-6),
    "jax": lambda x: x * ops.pow(column(sums(x * x)) + 1e-6, -0.5) * SCALE,
}


@pytest.mark.parametrize(
    ("op", "form"), [("layer_norm", f) for f in LAYER_NORM] + [("rms_norm", f) for f in RMS_NORM], ids=lambda x: x
)
def test_normalisations(op, form):
    after = rewritten({"layer_norm": LAYER_NORM, "rms_norm": RMS_NORM}[op][form], (2, 3, 8))
    assert count(after).keys() <= {"input", "constant", op}, after


def half_scale(x):
    """As Llama has it: the scale behind the cast."""
    y = ops.cast(x, to=F32)
    return ops.cast(y * ops.reciprocal(ops.sqrt(moment(y * y) + 1e-6)), to=x.dtype) * SCALE.astype(F16)


@pytest.mark.parametrize(
    ("op", "build"),
    [("layer_norm", wide(LAYER_NORM["scale and bias"])), ("rms_norm", wide(RMS_NORM["t5"])), ("rms_norm", half_scale)],
)
def test_normalisations_in_a_wider_type(op, build):
    after = rewritten(build, TensorType((2, 3, 8), F16))
    assert count(after).keys() <= {"input", "constant", op}, after


NO_NORM = {
    "another axis": lambda x, y: (x - moment(x, (1,))) / ops.sqrt(variance(x, (1,)) + 1e-5),
    "mean over another axis": lambda x, y: (x - moment(x, (1,))) / ops.sqrt(variance(x) + 1e-5),
    "mean of another value": lambda x, y: (x - moment(y)) / ops.sqrt(variance(x) + 1e-5),
    "variance of another value": lambda x, y: centred(x) / ops.sqrt(variance(y) + 1e-5),
    "unbiased variance": lambda x, y: (
        centred(x) / ops.sqrt(ops.reduce_sum(centred(x) ** 2.0, axes=(2,), keepdims=True) / 7 + 1e-5)
    ),
    "ε behind the root": lambda x, y: centred(x) / (ops.sqrt(variance(x)) + 1e-5),
    "uncentred numerator": lambda x, y: x / ops.sqrt(variance(x) + 1e-5),
    "root that is read": lambda x, y: (plain(x), ops.sqrt(variance(x) + 1e-5) + 1),
    "centred that is returned": lambda x, y: (plain(x), centred(x)),
}


@pytest.mark.parametrize("name", NO_NORM)
def test_what_is_almost_a_normalisation(name):
    found = count(rewritten(NO_NORM[name], (2, 3, 8), (2, 3, 8)))
    assert not found["layer_norm"] and not found["rms_norm"]


def test_a_mean_along_the_wrong_axis_of_a_square():
    """[8] broadcasts to [8, 8] along the rows, not along the columns it was taken over."""

    def build(x):
        return (x - ops.reduce_mean(x, axes=(1,))) / ops.sqrt(variance(x, (1,)) + 1e-5)

    assert not count(rewritten(build, (8, 8)))["layer_norm"]


def test_what_is_no_scale_stays_outside():
    after = rewritten(lambda x: plain(x) * g.constant(np.ones((2, 3, 1), F32) * 2), (2, 3, 8))
    assert count(after)["layer_norm"] == count(after)["mul"] == 1


def grouped(x, ones=1.0, scale=(8, 1, 1)):
    apart = ops.reshape(x, shape=(x.shape[0], 4, -(-x.type.size // (4 * x.shape[0]))))
    y = ops.instance_norm(apart, np.full(4, ones, F32), np.zeros(4, F32), epsilon=1e-5)
    return ops.reshape(y, shape=x.shape) * SCALE.reshape(scale) + BIAS.reshape(8, 1, 1)


def test_group_norm_by_instance_norm():
    after = rewritten(grouped, (2, 8, 3, 5))
    assert (
        count(after).keys() <= {"input", "constant", "reshape", "group_norm"}
        and node_of(after, "group_norm").attrs["groups"] == 4
    )
    assert not count(rewritten(lambda x: grouped(x, ones=2.0), (2, 8, 3, 5)))["group_norm"]
    assert not count(rewritten(lambda x: grouped(x, scale=(1, 1, 8)), (2, 8, 8, 8)))["group_norm"]


def soft(x, axis=2, largest=ops.reduce_max, total_axis=None):
    e = ops.exp(x - largest(x, axes=(axis,), keepdims=True))
    return e, ops.reduce_sum(e, axes=(axis if total_axis is None else total_axis,), keepdims=True)


SOFTMAX = {
    "quotient": (2, lambda x: soft(x)[0] / soft(x)[1]),
    "reciprocal": (2, lambda x: soft(x)[0] * ops.reciprocal(soft(x)[1])),
    "axis 1": (1, lambda x: soft(x, 1)[0] / soft(x, 1)[1]),
    "jax": (
        2,
        lambda x: (lambda e: e / column(ops.reduce_sum(e, axes=(2,))))(
            ops.exp(x - column(ops.maximum(ops.reduce_max(x, axes=(2,)), -math.inf)))
        ),
    ),
}


@pytest.mark.parametrize("form", SOFTMAX)
def test_softmax(form):
    axis, build = SOFTMAX[form]
    after = rewritten(build, (3, 4, 4))
    assert count(after) == {"input": 1, "softmax": 1} and node_of(after, "softmax").attrs["axis"] == axis


@pytest.mark.parametrize(
    "build",
    [
        lambda x: soft(x)[0] / soft(x, total_axis=1)[1],
        lambda x: soft(x, largest=ops.reduce_min)[0] / soft(x, largest=ops.reduce_min)[1],
        lambda x: (soft(x)[0] / soft(x)[1], soft(x)[0]),
        lambda x: soft(x)[0] / (soft(x)[1] + 1e-3),
        lambda x: soft(x)[1] / soft(x)[0],
    ],
    ids=["another axis", "minimum", "exponential returned", "more in the denominator", "upside down"],
)
def test_what_is_almost_softmax(build):
    assert not count(rewritten(build, (3, 4, 4)))["softmax"]


# -- rotary embeddings ------------------------------------------------------------------------------------------------

ANGLES = np.arange(6, dtype=F32)[:, None] * 10 ** -np.arange(4, dtype=F32)
TWICE = np.concatenate([ANGLES, ANGLES], axis=1)


def rotated(x, cos, sin, sign=-1):
    d = x.shape[-1] // 2
    a, b = narrow(x, 3, 0, d), narrow(x, 3, d, d)
    return x * cos + ops.concat(-b if sign < 0 else b, a, axis=3) * sin


def by_position(x, at):
    angles = ops.reshape(ops.cast(at, to=F32), shape=(1, 1, 6, 1)) * (10.0 ** -np.arange(4)).astype(F32)
    emb = ops.concat(angles, angles, axis=3)
    return rotated(x, ops.cos(emb) * 1.5, ops.sin(emb) * 1.5)


def by_halves(x, cos, sin):
    d = x.shape[-1] // 2
    a, b = narrow(x, 3, 0, d), narrow(x, 3, d, d)
    return ops.concat(a * cos - b * sin, b * cos + a * sin, axis=3)


HEADS, AT = (2, 3, 6, 8), np.arange(6)
ROTARY = {
    "known": (lambda x: rotated(x, np.cos(TWICE), np.sin(TWICE)), HEADS),
    "computed": (by_position, HEADS, AT),
    "looked up": (
        lambda x, at: rotated(
            x, ops.gather(g.constant(np.cos(TWICE)), at, axis=0), ops.gather(g.constant(np.sin(TWICE)), at, axis=0)
        ),
        HEADS,
        AT,
    ),
    "by halves": (lambda x: by_halves(x, g.constant(np.cos(ANGLES)), g.constant(np.sin(ANGLES))), HEADS),
}


@pytest.mark.parametrize("form", ROTARY)
def test_rotary_embedding(form):
    found = count(rewritten(*ROTARY[form]))
    assert found["rotary_embedding"] == 1 and not found["slice"] and found["concat"] == 0


@pytest.mark.parametrize(
    "build",
    [
        lambda x: rotated(x, np.cos(TWICE), np.sin(TWICE), sign=1),
        lambda x: rotated(x, np.cos(np.arange(48, dtype=F32).reshape(6, 8)), np.sin(TWICE)),
        lambda x: (lambda y: (y, y.node.inputs[1] + 1))(rotated(x, np.cos(TWICE), np.sin(TWICE))),
        lambda x: (
            by_halves(x, g.constant(np.cos(ANGLES)), g.constant(np.sin(ANGLES)))
            + ops.concat(narrow(x, 3, 0, 4) * np.cos(ANGLES), narrow(x, 3, 4, 4), axis=3)
        ),
    ],
    ids=["no minus", "halves that differ", "part that is read", "product that is read"],
)
def test_what_is_almost_a_rotary_embedding(build):
    assert not count(rewritten(build, HEADS))["rotary_embedding"]


# -- attention --------------------------------------------------------------------------------------------------------

Q, K = (2, 4, 5, 8), (2, 4, 7, 8)


def turned(k):
    return ops.transpose(k, perm=(*range(k.rank - 2), k.rank - 1, k.rank - 2))


def attend(q, k, v, score=lambda s: s * 8**-0.5):
    return ops.matmul(ops.softmax(score(ops.matmul(q, turned(k))), axis=-1), v)


def repeat(x, n):
    b, h, s, d = x.shape
    return ops.reshape(ops.expand(ops.reshape(x, shape=(b, h, 1, s, d)), shape=(b, h, n, s, d)), shape=(b, h * n, s, d))


def split(x):
    b, l, c = x.shape
    return ops.transpose(ops.reshape(x, shape=(b, l, 4, c // 4)), perm=(0, 2, 1, 3))


def guarded(q, k, v, mask):
    w = ops.softmax(ops.matmul(q, turned(k)) + mask, axis=3)
    return ops.matmul(ops.where(ops.isnan(w), g.constant(0, F32), w), v)


def flat(x):
    return ops.reshape(x, shape=(x.shape[0] * x.shape[1], *x.shape[2:]))


def by_einsum(q, k, v):
    """As einsum is written out: three dimensions for the products, four between."""
    s = ops.reshape(ops.matmul(flat(q), turned(flat(k))), shape=(2, 4, 5, 7))
    w = ops.softmax(s * 8**-0.5, axis=3)
    return ops.reshape(ops.matmul(flat(w), flat(v)), shape=(2, 4, 5, 8))


def in_float32(q, k, v):
    w = ops.softmax(ops.cast(ops.matmul(q, turned(k)) * 0.25, to=F32), axis=3)
    return ops.matmul(ops.cast(w, to=q.dtype), v)


BOOL = np.random.default_rng(1).random((2, 1, 1, 7)) < 0.6
BOOL[..., 0] = True
ADDED = np.where(BOOL, F32.type(0), F32.type(LOWEST))
KNOWN = BOOL & (np.arange(5)[:, None] != 3)
KNOWN[..., 0] = True
ROOT4 = 8**-0.25

ATTENTION = {
    "scaled": (attend, Q, K, K),
    "divided": (lambda q, k, v: attend(q, k, v, lambda s: s / math.sqrt(8)), Q, K, K),
    "unscaled": (lambda q, k, v: attend(q, k, v, lambda s: s), Q, K, K),
    "queries scaled": (lambda q, k, v: attend(q * 8**-0.5, k, v, lambda s: s), Q, K, K),
    "both scaled": (lambda q, k, v: ops.matmul(ops.softmax(ops.matmul(q * ROOT4, turned(k) * ROOT4), axis=3), v), Q, K, K),
    "scaled before splitting": (
        lambda q, k, v: attend(split(q * ROOT4), split(k * ROOT4), split(v), lambda s: s),
        (2, 5, 32),
        (2, 7, 32),
        (2, 7, 32),
    ),
    "added mask": (lambda q, k, v, m: attend(q, k, v, lambda s: s / 3 + m), Q, K, K, ADDED),
    "mask first": (lambda q, k, v, m: attend(q, k, v, lambda s: m + s / 3), Q, K, K, ADDED),
    "scaled with its mask": (lambda q, k, v, m: attend(q, k, v, lambda s: (s + m) * 0.5), Q, K, K, (4, 5, 7)),
    "two masks": (lambda q, k, v, m, n: attend(q, k, v, lambda s: s + m + n), Q, K, K, ADDED, (4, 5, 7)),
    "where −∞": (lambda q, k, v, m: attend(q, k, v, lambda s: ops.where(m, s, g.constant(-math.inf, F32))), Q, K, K, BOOL),
    "where lowest": (lambda q, k, v, m: attend(q, k, v, lambda s: ops.where(m, s, g.constant(LOWEST, F32))), Q, K, K, BOOL),
    "where hidden": (lambda q, k, v, m: attend(q, k, v, lambda s: ops.where(m, g.constant(-1e9, F32), s)), Q, K, K, ~BOOL),
    "all hidden from one": (
        lambda q, k, v, m: attend(q, k, v, lambda s: ops.where(m, s, g.constant(LOWEST, F32))),
        Q,
        K,
        K,
        np.arange(5)[:, None] != np.full(7, 3),
    ),
    "known, where": (
        lambda q, k, v: attend(q, k, v, lambda s: ops.where(g.constant(KNOWN), s, g.constant(-1e4, F32))),
        Q,
        K,
        K,
    ),
    "where and added": (
        lambda q, k, v, m, n: attend(q, k, v, lambda s: ops.where(m, s, g.constant(-math.inf, F32)) + n),
        Q,
        K,
        K,
        BOOL,
        (4, 5, 7),
    ),
    "guarded": (
        lambda q, k, v, m: guarded(q, k, v, ops.where(m, g.constant(0, F32), g.constant(-math.inf, F32))),
        Q,
        K,
        K,
        np.arange(5)[:, None] != np.full(7, 3),
    ),
    "capped": (lambda q, k, v: attend(q, k, v, lambda s: ops.tanh(s * 0.3 / 20) * 20), Q, K, K),
    "three dimensions": (attend, (3, 5, 8), (3, 7, 8), (3, 7, 8)),
    "three dimensions, mask": (
        lambda q, k, v, m: attend(q, k, v, lambda s: s + m),
        (3, 5, 8),
        (3, 7, 8),
        (3, 7, 8),
        (3, 5, 7),
    ),
    "two dimensions": (attend, (5, 8), (7, 8), (7, 6)),
    "by einsum": (by_einsum, Q, K, K),
    "keys that are no transposition": (
        lambda q, k, v: ops.matmul(ops.softmax(ops.matmul(q, k), axis=3), v),
        Q,
        (2, 4, 8, 7),
        K,
    ),
    "keys turned in three dimensions": (
        lambda q, k, v: ops.matmul(ops.softmax(ops.matmul(q, ops.reshape(turned(flat(k)), shape=(2, 4, 8, 7))), axis=3), v),
        Q,
        K,
        K,
    ),
    "one head of keys": (attend, Q, (2, 1, 7, 8), (2, 1, 7, 8)),
    "float16": (in_float32, TensorType(Q, F16), TensorType(K, F16), TensorType(K, F16)),
}


@pytest.mark.parametrize("form", ATTENTION)
def test_attention(form):
    found = count(rewritten(*ATTENTION[form]))
    assert found["attention"] == 1 and not found["softmax"] and not found["matmul"], form


def test_repeated_heads_are_used_in_place():
    for n, shape in ((2, (2, 2, 7, 8)), (4, (2, 1, 7, 8))):
        after = rewritten(lambda q, k, v, n=n: attend(q, repeat(k, n), repeat(v, n)), Q, shape, shape)
        assert node_of(after, "attention").inputs[1].shape == shape and not count(after)["expand"]
    # Heads laid side by side belong to other queries.
    tiled = rewritten(
        lambda q, k, v: attend(q, ops.tile(k, repeats=(1, 2, 1, 1)), ops.tile(v, repeats=(1, 2, 1, 1))),
        Q,
        shape_of(2),
        shape_of(2),
    )
    assert node_of(tiled, "attention").inputs[1].shape == K
    uneven = rewritten(lambda q, k, v: attend(q, repeat(k, 2), v), Q, shape_of(2), K)
    assert node_of(uneven, "attention").inputs[1].shape == K


def shape_of(heads):
    return (2, heads, 7, 8)


def seen(l, s, left=None, offset=0):
    i, j = np.arange(l)[:, None], np.arange(s)
    return (j <= i + offset) & (True if left is None else j >= i + offset - left)


WINDOWS = {
    "causal": (seen(5, 7), Window(None, 0, 0)),
    "causal behind a cache": (seen(5, 7, offset=2), Window(None, 0, 2)),
    "sliding": (seen(5, 7, left=1, offset=1), Window(1, 0, 1)),
    "everything": (np.ones((5, 7), bool), Window()),
}


@pytest.mark.parametrize("hidden", [-math.inf, LOWEST, -1e4])
@pytest.mark.parametrize("name", WINDOWS)
def test_known_masks_become_windows(name, hidden):
    visible, window = WINDOWS[name]
    mask = np.where(visible, F32.type(0), F32.type(hidden))[None, None]
    node = node_of(rewritten(lambda q, k, v: attend(q, k, v, lambda s: s * 0.3 + g.constant(mask)), Q, K, K), "attention")
    assert len(node.inputs) == 3 and Window(*(node.attrs[k] for k in ("left", "right", "offset"))) == window


def test_a_known_mask_that_is_broadcast():
    mask = np.where(seen(32, 40, offset=8), F32.type(0), F32.type(LOWEST))
    shapes = (2, 4, 32, 8), (2, 4, 40, 8), (2, 4, 40, 8)
    for shape in ((2, 1, 32, 40), (2, 4, 32, 40)):
        after = rewritten(
            lambda q, k, v, s=shape: attend(q, k, v, lambda x: x + ops.expand(g.constant(mask), shape=s)), *shapes
        )
        assert node_of(after, "attention").attrs["offset"] == 8 and len(node_of(after, "attention").inputs) == 3


def test_a_known_mask_beside_another():
    for hidden, operands in ((-math.inf, 4), (LOWEST, 4)):
        mask = g.constant(np.where(seen(5, 7), F32.type(0), F32.type(hidden)))
        after = rewritten(lambda q, k, v, m, mask=mask: attend(q, k, v, lambda s: s + mask + m), Q, K, K, ADDED)
        node = node_of(after, "attention")
        assert len(node.inputs) == operands and (node.attrs["right"] == 0) == (hidden == -math.inf)


def test_a_known_mask_that_is_no_window():
    visible = seen(5, 7)
    visible[1, 6] = True
    mask = np.where(visible, F32.type(0), F32.type(LOWEST))
    node = node_of(rewritten(lambda q, k, v: attend(q, k, v, lambda s: s + g.constant(mask)), Q, K, K), "attention")
    assert len(node.inputs) == 4 and node.attrs["right"] is None


NO_ATTENTION = {
    "another axis": lambda q, k, v: ops.matmul(ops.softmax(ops.matmul(q, turned(k)), axis=2), v),
    "weights that are returned": lambda q, k, v: (lambda w: (ops.matmul(w, v), w))(
        ops.softmax(ops.matmul(q, turned(k)), axis=3)
    ),
    "scores that are returned": lambda q, k, v: (lambda s: (ops.matmul(ops.softmax(s, axis=3), v), s))(
        ops.matmul(q, turned(k)) * 2
    ),
    "scores that are read": lambda q, k, v: (
        lambda s: ops.matmul(ops.softmax(s, axis=3), v) + ops.reduce_sum(s, axes=(2, 3), keepdims=True)
    )(ops.matmul(q, turned(k))),
    "weights on the right": lambda q, k, v: ops.matmul(turned(v), turned(ops.softmax(ops.matmul(q, turned(k)), axis=3))),
    "weights that are scaled by row": lambda q, k, v: ops.matmul(
        ops.softmax(ops.matmul(q, turned(k)), axis=3) * g.constant(np.full((5, 1), 2, F32)), v
    ),
    "scores scaled by row": lambda q, k, v: attend(q, k, v, lambda s: s * g.constant(np.arange(5, dtype=F32)[:, None])),
    "no product of scores": lambda q, k, v: ops.matmul(ops.softmax(ops.exp(ops.matmul(q, turned(k))), axis=3), v),
    "a small number for the hidden": lambda q, k, v: attend(
        q, k, v, lambda s: ops.where(g.constant(seen(5, 7)), s, g.constant(-5, F32))
    ),
}


@pytest.mark.parametrize("name", NO_ATTENTION)
def test_what_is_almost_attention(name):
    assert not count(rewritten(NO_ATTENTION[name], Q, K, K))["attention"]


# -- the whole --------------------------------------------------------------------------------------------------------


def encoder(layers, x):
    """Transformer layers as the older exporter writes them."""
    rng = np.random.default_rng(0)

    def weight(*shape):
        return rng.standard_normal(shape).astype(F32) / 4

    def linear(x, n):
        return ops.matmul(x, weight(x.shape[-1], n)) + weight(n)

    b, l, c = x.shape
    for _ in range(layers):
        q, k, v = (split(linear(x, c)) for _ in range(3))
        y = ops.reshape(ops.transpose(attend(q, k, v, lambda s: s / 2.0), perm=(0, 2, 1, 3)), shape=(b, l, c))
        x = plain(x + linear(y, c)) * weight(c) + weight(c)
        x = plain(x + linear(GELU["x·(1+erf)·½"](linear(x, 2 * c)), c)) * weight(c) + weight(c)
    return x


def test_an_encoder_in_few_steps():
    graph, arrays = graph_of(lambda x: encoder(2, x), (2, 6, 8))
    cpu = device("cpu")
    prepared = pipeline.prepare(graph, True, cpu, {})
    found = count(recognise(tidy(graph)))
    assert (found["attention"], found["layer_norm"], found["gelu"], found["matmul"]) == (2, 4, 2, 12)
    assert count(prepared)["layer_norm"] == 4 and count(prepared)["attention"] == 2
    (result,) = Plan(prepared, cpu, hot=True)(*arrays)
    (expected,) = evaluate(graph.outputs, dict(zip(graph.inputs, arrays, strict=True)))
    np.testing.assert_allclose(result, expected, 1e-4, 1e-5)


def test_nothing_recognised_leaves_the_graph_alone():
    graph = tidy(graph_of(lambda x: ops.relu(x) + 1, X)[0])
    assert recognise(graph) is graph


def test_only_what_is_eligible():
    graph = tidy(graph_of(lambda x: GELU["x·(1+erf)·½"](x) * ops.sigmoid(x), X)[0])
    assert count(recognise(graph, lambda node: node.op is not ops.gelu))["erf"] == 1


@pytest.mark.parametrize(("condition", "left"), [(True, 1), (False, 2)])
def test_where_that_is_no_choice(condition, left):
    graph, _ = graph_of(lambda x, y: ops.where(g.constant(np.full((3, 1), condition)), x, y), X, X)
    assert simplify(graph).outputs[0] is graph.inputs[left - 1]
    narrow_, _ = graph_of(lambda x, y: ops.where(g.constant(np.full((3, 1), condition)), x, y), (3, 1), (1, 5))
    assert count(simplify(narrow_))["where"] == 1


def test_substitution_in_what_replaces():
    """Replacements may be made of Values that are replaced themselves."""
    x = g.input(TensorType(X, F32))
    a = ops.exp(x)
    b = ops.neg(a)
    graph = Graph([x], [b, a])
    after = substitute(graph, {a: ops.abs(x), b: ops.sqrt(a)})
    assert [v.node.op.name for v in after.outputs] == ["sqrt", "abs"] and count(after) == {"input": 1, "abs": 1, "sqrt": 1}
    assert substitute(graph, {}).nodes == graph.nodes


def test_large_constants_are_computed_at_once_and_equal_ones_once():
    weights = [np.random.default_rng(i).standard_normal((700, 800)).astype(F32) for i in range(3)]
    held = [g.constant(w) for w in weights]
    x = g.input(TensorType((800,), F16))
    graph = Graph([x], [ops.cast(w, to=F16) * x for w in (*held, held[0])] + [ops.cast(held[1], to=F16) * x])
    found = [v.node.inputs[0].constant for v in fold(graph, {}).outputs]
    assert found[3] is found[0] and found[4] is found[1]
    for array, weight in zip(found, weights, strict=False):
        np.testing.assert_array_equal(array, weight.astype(F16))
