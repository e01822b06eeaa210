"""What libraries on a GPU make of operands that begin anywhere, repeat, or are parts of larger arrays."""

import random

import numpy as np
import pytest

from flamert import dtypes, ops
from flamert import graph as g
from flamert.graph import Graph, TensorType
from flamert.ops.shape import narrow
from flamert.runtime.device import device
from flamert.runtime.plan import Plan

pytestmark = pytest.mark.gpu
F, B, H = dtypes.float32, dtypes.bfloat16, dtypes.float16
rng = np.random.default_rng(0)


def value(shape, dtype=F):
    return g.input(TensorType(shape, dtype))


def run(inputs, outputs, arrays, **how):
    """Results of a hot plan's third run, which replays what the second recorded, and the plan."""
    on = device("cuda", **how)
    plan = Plan(Graph(inputs, outputs), on, hot=True)
    for _ in range(3):
        results = plan(*[on.upload(a) for a in arrays])
    assert plan.obstacle is None
    return [on.download(r, v.dtype).astype(np.float32) for r, v in zip(results, outputs, strict=True)], plan


@pytest.mark.parametrize("dtype", [F, B], ids=lambda t: t.name)
@pytest.mark.parametrize("start", [0, 1, 2, 4, 8])
def test_products_of_operands_that_begin_anywhere(start, dtype):
    x, w = value((256, 520), dtype), value((512, 512), dtype)
    a, b = (rng.standard_normal(v.shape).astype(dtype) for v in (x, w))
    [got], _ = run([x, w], [ops.matmul(narrow(x, 1, start, 512), w)], [a, b], allow_tf32=True)
    want = a[:, start : start + 512].astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(got, want, atol=np.abs(want).max() * (2e-2 if dtype == B else 2e-3))


@pytest.mark.parametrize("dtype", [B, H], ids=lambda t: t.name)
@pytest.mark.parametrize("activation", ["", "gelu_tanh"])
@pytest.mark.parametrize("stack", [(), (3,)])
def test_products_with_biases_and_activations(stack, activation, dtype):
    x, w, b = value((3, 64, 512), dtype), value((*stack, 512, 768), dtype), value((768,), dtype)
    arrays = [(rng.standard_normal(v.shape) / 8).astype(dtype) for v in (x, w, b)]
    [got], plan = run([x, w, b], [ops.linear(x, w, b, activation=activation)], arrays)
    assert "linear" in [s.node.op.name for s in plan.steps]
    a, c, d = (v.astype(np.float64) for v in arrays)
    want = a @ c + d
    if activation:
        want = want / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (want + 0.044715 * want**3)))
    np.testing.assert_allclose(got, want, atol=np.abs(want).max() * 2e-2)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_to_keys_that_heads_share(causal):
    q, k, v = value((2, 4, 64, 64), B), value((2, 1, 64, 64), B), value((2, 1, 64, 64), B)
    arrays = [rng.standard_normal(x.shape).astype(B) for x in (q, k, v)]
    wide = [ops.expand(x, shape=q.shape) for x in (k, v)]
    [got], _ = run([q, k, v], [ops.attention(q, *wide, scale=1 / 8, right=0 if causal else None)], arrays)
    a, b, c = (x.astype(np.float64) for x in arrays)
    scores = a @ b.swapaxes(-1, -2) / 8
    if causal:
        scores = np.where(np.tri(64, dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    want = p / p.sum(-1, keepdims=True) @ c
    np.testing.assert_allclose(got, want, atol=3e-2)


def test_reshapes_are_views_where_numpys_are():
    """A plan decides on NumPy arrays of the same strides whether a reshape is a view."""
    import cupy

    draw = random.Random(0)
    for _ in range(5000):
        shape = [draw.choice([1, 2, 3, 4, 6]) for _ in range(3)]
        wide, perm = [d + draw.choice([0, 0, 1]) for d in shape], draw.sample(range(3), 3)
        on_host, on_gpu = (xp.empty(wide, "f4")[tuple(map(slice, shape))].transpose(perm) for xp in (np, cupy))
        size = on_host.size
        rows = draw.choice([k for k in range(1, size + 1) if size % k == 0])
        try:
            on_host.reshape(rows, size // rows, copy=False)
        except ValueError:
            continue
        assert on_gpu.reshape(rows, size // rows).data.ptr == on_gpu.data.ptr, (shape, wide, perm, rows)
