"""What a GPU makes of float32 where products may be TF32: errors are those of operands rounded to nearest, and no larger."""

import numpy as np
import pytest

from flamert import graph as g
from flamert import ops
from flamert.grad import grad
from flamert.graph import Graph, TensorType
from flamert.passes.pipeline import prepare
from flamert.runtime.device import device
from flamert.runtime.plan import Plan

F = np.dtype(np.float32)
MORE = 1.3
"""How many times the error of rounding is allowed. Operands that are cut off make it two to four times as large."""

pytestmark = pytest.mark.gpu


def rounded(x):
    """To the ten bits behind the point that TF32 has, ties away from zero."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


def apart(x, want):
    return float(np.linalg.norm(np.asarray(x, np.float64) - want) / np.linalg.norm(want))


def on_gpu(graph, arrays):
    """What a plan with tuned kernels gives, the second time."""
    on = device("cuda", allow_tf32=True)
    plan = Plan(prepare(graph, True, on, {}), on, hot=True)
    given = [on.upload(x) for x in arrays]
    plan(*given)
    return [on.download(r, v.dtype) for r, v in zip(plan(*given), graph.outputs, strict=True)]


def drawn(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


# Rows, summed, columns; which of the operands is transposed. BERT-base's layers, forward and backward.
PRODUCTS = [
    (4096, 768, 2304, ""),
    (4096, 768, 768, ""),
    (4096, 768, 3072, ""),
    (4096, 3072, 768, ""),
    (4096, 2304, 768, "b"),
    (768, 4096, 2304, "a"),
    (768, 4096, 768, "a"),
    (3072, 4096, 768, "a"),
    (128, 768, 768, ""),
    (100, 70, 33, ""),
]


@pytest.mark.parametrize(("m", "k", "n", "transposed"), PRODUCTS)
@pytest.mark.parametrize("bias", [False, True])
def test_products(m, k, n, transposed, bias):
    rng = np.random.default_rng(0)
    a, b, c = (
        drawn(rng, *((k, m) if transposed == "a" else (m, k))),
        drawn(rng, *((n, k) if transposed == "b" else (k, n))),
        drawn(rng, n),
    )
    x, y, z = (g.input(TensorType(v.shape, F)) for v in (a, b, c))
    product = ops.matmul(
        ops.transpose(x, perm=(1, 0)) if transposed == "a" else x, ops.transpose(y, perm=(1, 0)) if transposed == "b" else y
    )
    [got] = on_gpu(Graph([x, y, z], [product + z if bias else product + 0.0 * z]), [a, b, c])
    a, b = (a.T if transposed == "a" else a), (b.T if transposed == "b" else b)
    added = c if bias else 0
    want = a.astype(np.float64) @ b.astype(np.float64) + added
    assert apart(got, want) <= MORE * apart(rounded(a) @ rounded(b) + added, want) + 1e-7


@pytest.mark.parametrize("rows", [7, 4096])
def test_a_feed_forward_layer(rows):
    """Its products are made of halves."""
    rng = np.random.default_rng(0)
    x, w, v = drawn(rng, rows, 768), 0.03 * drawn(rng, 768, 3072), 0.03 * drawn(rng, 3072, 768)
    c, d = drawn(rng, 3072), drawn(rng, 768)
    given = g.input(TensorType(x.shape, F))
    hidden = ops.relu(ops.matmul(ops.layer_norm(given, axis=-1), g.constant(w)) + g.constant(c))
    graph = Graph([given], [ops.matmul(hidden, g.constant(v)) + g.constant(d)])
    assert sum(n.op is ops.wide_matmul for n in prepare(graph, True, device("cuda", allow_tf32=True), {}).nodes) == 2
    [got] = on_gpu(graph, [x])

    def made(product):
        y = x.astype(np.float64) - x.mean(-1, keepdims=True, dtype=np.float64)
        y /= np.sqrt((y * y).mean(-1, keepdims=True) + graph_epsilon)
        return product(np.maximum(product(y, w) + c, 0), v) + d

    graph_epsilon = 1e-5
    exact = made(lambda a, b: a @ b.astype(np.float64))
    assert apart(got, exact) <= MORE * apart(made(lambda a, b: rounded(a) @ rounded(b)), exact)


def attention_of_rounded(q, k, v, dy, scale):
    """y, dq, dk and dv by products of rounded operands, sums and everything else in float64."""
    r = rounded
    s = scale * (r(q) @ r(k).swapaxes(2, 3))
    e = np.exp(s - s.max(-1, keepdims=True))
    p = e / r(e).sum(-1, keepdims=True)
    y = r(e) @ r(v) / r(e).sum(-1, keepdims=True)
    ds = p * (r(dy) @ r(v).swapaxes(2, 3) - (r(dy) * y).sum(-1, keepdims=True))
    return y, scale * (r(ds) @ r(k)), scale * (r(ds).swapaxes(2, 3) @ r(q)), r(p).swapaxes(2, 3) @ r(dy)


def attention_exactly(q, k, v, dy, scale):
    s = scale * (q @ k.swapaxes(2, 3))
    e = np.exp(s - s.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    y = p @ v
    ds = p * (dy @ v.swapaxes(2, 3) - (dy * y).sum(-1, keepdims=True))
    return y, scale * (ds @ k), scale * (ds.swapaxes(2, 3) @ q), p.swapaxes(2, 3) @ dy


@pytest.mark.parametrize("length", [128, 197])
@pytest.mark.parametrize("alike", [0.0, 5.0])
def test_attention(length, alike):
    """alike: how large what all keys, and all values, have in common is: gradients are made of what they do not."""
    rng = np.random.default_rng(0)
    q, k, v, dy = (0.5 * drawn(rng, 4, 12, length, 64) for _ in range(4))
    k, v = (x + np.float32(alike) * 0.5 * drawn(rng, 1, 12, 1, 64) for x in (k, v))
    q = q / np.float32(1 + alike)
    values = [g.input(TensorType(q.shape, F)) for _ in range(4)]
    y = ops.attention(*values[:3], scale=0.125)
    found = on_gpu(Graph(values, [y, *grad([y], values[:3], [values[3]])]), [q, k, v, dy])
    exact = attention_exactly(*[x.astype(np.float64) for x in (q, k, v, dy)], 0.125)
    near = attention_of_rounded(q, k, v, dy, 0.125)
    for name, got, want, rough in zip(("y", "dq", "dk", "dv"), found, exact, near, strict=True):
        assert apart(got, want) <= MORE * apart(rough, want), name
