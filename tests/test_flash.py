"""Attention in half types on a GPU: what cuDNN computes, forward and backward, is what the op says."""

import numpy as np
import pytest

from flamert import dtypes, ops
from flamert import graph as g
from flamert.graph import Graph, TensorType
from flamert.ops.cuda.cudnn import Attention, available
from flamert.ops.evaluate import evaluate
from flamert.passes.heads import lay_heads
from flamert.runtime.device import device
from flamert.runtime.plan import Plan

pytestmark = pytest.mark.gpu

FORMS = {
    "plain": ((2, 4, 64, 32), 4, None, None),
    "groups": ((2, 4, 64, 32), 2, None, None),
    "causal": ((1, 2, 128, 64), 2, None, 0),
    "odd": ((3, 2, 37, 16), 2, None, None),
    "masked": ((2, 2, 40, 32), 2, (2, 1, 40, 40), None),
}


def attended(form, dtype):
    """Attention and its gradient: (leaves, outputs)."""
    if not available():
        pytest.skip("needs nvidia-cudnn-frontend")
    shape, heads, mask, right = FORMS[form]
    shapes = [shape, (shape[0], heads, *shape[2:]), (shape[0], heads, *shape[2:])]
    inputs = [g.input(TensorType((b, l, h, d), dtype)) for b, h, l, d in shapes]
    q, k, v = (ops.transpose(x, perm=(0, 2, 1, 3)) for x in inputs)
    hidden = None if mask is None else g.input(TensorType(mask, dtype))
    dy = g.input(TensorType(shape, dtype))
    attrs = {"scale": shape[3] ** -0.5, "right": right}
    y = ops.attention(q, k, v, hidden, **attrs)
    outputs = [y, *ops.attention_gradient(dy, y, q, k, v, hidden, **attrs)]
    return [*inputs, *([] if hidden is None else [hidden]), dy], outputs


def drawn(leaves):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(v.shape).astype(v.dtype) for v in leaves]


@pytest.mark.parametrize("laid", [False, True], ids=["heads", "positions"])
@pytest.mark.parametrize("dtype", [dtypes.bfloat16, dtypes.float16], ids=lambda t: t.name)
@pytest.mark.parametrize("form", FORMS)
def test_flash_attention(form, dtype, laid):
    leaves, outputs = attended(form, dtype)
    arrays = drawn(leaves)
    wanted = evaluate(outputs, dict(zip(leaves, arrays, strict=True)))
    on = device("cuda")
    graph = Graph(leaves, outputs)
    plan = Plan(lay_heads(graph, lambda node: True) if laid else graph, on, hot=True)
    names = {step.node.op.name for step in plan.steps}
    wanted_names = {"attention_blhd", "attention_gradient_blhd"} if laid else {"attention", "attention_gradient"}
    assert wanted_names <= names and plan.obstacle is None
    for _ in range(3):
        results = plan(*[on.upload(x) for x in arrays])
        for got, want in zip(results, wanted, strict=True):
            error = np.abs(on.download(got, dtype).astype(np.float64) - want.astype(np.float64)).max()
            assert error <= 0.03 * max(1, np.abs(want.astype(np.float64)).max())


@pytest.mark.parametrize("form", ["causal", "masked", "groups"])
def test_what_was_built_in_another_process_attends_alike(form, monkeypatch, tmp_path):
    leaves, outputs = attended(form, dtypes.bfloat16)
    on = device("cuda")
    arrays = [on.upload(x) for x in drawn(leaves)]
    monkeypatch.setenv("FLAMERT_CACHE", str(tmp_path))
    built, found = [], []
    build, build_back = Attention._build, Attention._build_back
    monkeypatch.setattr(Attention, "_build", lambda self: built.append("forward") or build(self))
    monkeypatch.setattr(Attention, "_build_back", lambda self, *args: built.append("backward") or build_back(self, *args))
    for _ in range(2):
        Attention._built.cache_clear()
        Attention._built_back.cache_clear()
        plan = Plan(Graph(leaves, outputs), on, hot=True)
        for _ in range(3):
            results = [on.download(y, dtypes.bfloat16) for y in plan(*arrays)]
        found.append(results)
        assert plan.obstacle is None
    assert built == ["forward", "backward"]
    for a, b in zip(*found, strict=True):  # sums over queries are added up in whatever order
        np.testing.assert_allclose(a.astype("f"), b.astype("f"), rtol=2e-2, atol=1e-2)
