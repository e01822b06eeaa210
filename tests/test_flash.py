"""Attention in half types on a GPU: what cuDNN computes, forward and backward, is what the op says."""

import numpy as np
import pytest

from flamert import dtypes, ops
from flamert import graph as g
from flamert.graph import Graph, TensorType
from flamert.ops.cuda.cudnn import available
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


@pytest.mark.parametrize("laid", [False, True], ids=["heads", "positions"])
@pytest.mark.parametrize("dtype", [dtypes.bfloat16, dtypes.float16], ids=lambda t: t.name)
@pytest.mark.parametrize("form", FORMS)
def test_flash_attention(form, dtype, laid):
    if not available():
        pytest.skip("needs nvidia-cudnn-frontend")
    shape, heads, mask, right = FORMS[form]
    shapes = [shape, (shape[0], heads, *shape[2:]), (shape[0], heads, *shape[2:])]
    rng = np.random.default_rng(0)
    inputs = [g.input(TensorType((b, l, h, d), dtype)) for b, h, l, d in shapes]
    q, k, v = (ops.transpose(x, perm=(0, 2, 1, 3)) for x in inputs)
    hidden = None if mask is None else g.input(TensorType(mask, dtype))
    dy = g.input(TensorType(shape, dtype))
    attrs = {"scale": shape[3] ** -0.5, "right": right}
    y = ops.attention(q, k, v, hidden, **attrs)
    outputs = [y, *ops.attention_gradient(dy, y, q, k, v, hidden, **attrs)]
    leaves = [*inputs, *([] if hidden is None else [hidden]), dy]
    arrays = [rng.standard_normal(v.shape).astype(dtype) for v in leaves]
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
