"""Attention of float32 on a GPU, by kernels of our own: they compile, and give what the op says, as emulated and on one."""

from types import SimpleNamespace

import numpy as np
import pytest

import flamert as fr
from flamert import dtypes, ops
from flamert import graph as g
from flamert.grad.transform import grad
from flamert.graph import Graph, TensorType
from flamert.ops.cuda import copy, flash
from flamert.ops.cuda.emit_flash import forward
from flamert.ops.cuda.emit_flash_back import backward, parts
from flamert.ops.cuda.emit_tiles import STATIC_BYTES, Form
from flamert.ops.op import expand
from flamert.passes.heads import lay_heads
from flamert.passes.pipeline import lower, prepare
from flamert.runtime.device import device
from flamert.runtime.plan import Plan
from models.bert.make import bert
from models.gpt2.make import gpt2
from tests import bound
from tests.cases import CASES
from tests.emulated import Kernel
from tests.test_emit import compile_source, nvrtc

EXACT, ROUGH = 4e-6, 3e-3
"""Largest errors, of the largest result, with products as float32 has them, and of operands rounded to TF32."""


def attend(q, k, v, mask=None, *, scale, left=None, right=None, offset=0, dy=None):
    """y and the sums' logarithms, and with dy also dq, dk, dv; all in float64, [B, H, L, D]."""
    group = q.shape[1] // k.shape[1]
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    keys, values = (np.repeat(x, group, 1) for x in (k, v))
    s = scale * q @ keys.swapaxes(2, 3)
    if mask is not None:
        s = np.where(mask, s, -np.inf) if mask.dtype == bool else s + mask
    i, j = np.arange(q.shape[2])[:, None] + offset, np.arange(k.shape[2])
    seen = np.ones((len(i), len(j)), bool)
    seen &= True if right is None else j <= i + right
    seen &= True if left is None else j >= i - left
    s = np.where(seen, s, -np.inf)
    top = s.max(-1, keepdims=True)
    e = np.exp(s - np.where(np.isfinite(top), top, 0))
    total = e.sum(-1, keepdims=True)
    p = e / np.where(total == 0, 1, total)
    y = p @ values
    with np.errstate(divide="ignore"):
        sums = np.log(total) + top
    if dy is None:
        return y, sums
    ds = p * (dy @ values.swapaxes(2, 3) - (dy * y).sum(-1, keepdims=True))
    dk, dv = ds.swapaxes(2, 3) @ q * scale, p.swapaxes(2, 3) @ dy
    together = [x.reshape(x.shape[0], -1, group, *x.shape[2:]).sum(2) for x in (dk, dv)]
    return y, sums, ds @ keys * scale, *together


def near(got, want, bound):
    assert np.abs(got - want).max() <= bound * max(1, np.abs(want).max())


def packed(b, heads, l, d, rng):
    """q, k and v as one product leaves them: [B, L, 3, H, D], seen by heads."""
    return rng.standard_normal((b, l, 3, heads, d)).astype(np.float32).transpose(2, 0, 3, 1, 4)


def drawn(b, hq, hkv, l, s, d, dv, rng):
    shapes = (b, hq, l, d), (b, hkv, s, d), (b, hkv, s, dv)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def masks(kind, b, h, l, s, rng):
    if kind is None:
        return None
    shape = {"keys": (b, 1, 1, s), "rows": (1, h, l, s), "seen": (b, 1, l, s), "hidden": (b, 1, 1, s)}[kind]
    if kind == "seen":
        found = rng.random(shape) < 0.6
        found[0, 0, 0] = False
        return found
    found = rng.standard_normal(shape).astype(np.float32)
    if kind == "hidden":
        found[..., s // 2 :] = np.finfo(np.float32).min
        found[..., 0] = -np.inf
    return found


FORMS = {
    "plain": ((1, 2, 2, 40, 40, 32, 32), None, {}),
    "small": ((2, 1, 1, 3, 5, 8, 8), None, {}),
    "one": ((1, 1, 1, 1, 1, 8, 16), None, {}),
    "ragged": ((1, 1, 1, 71, 69, 64, 64), None, {}),
    "causal": ((1, 2, 2, 70, 70, 32, 32), None, {"right": 0}),
    "later": ((1, 1, 1, 20, 75, 16, 8), None, {"right": 0, "offset": 55}),
    "blind": ((1, 1, 1, 70, 40, 16, 16), None, {"right": 0, "offset": -38}),
    "window": ((1, 1, 1, 100, 100, 8, 24), None, {"left": 9, "right": 3}),
    "left": ((1, 1, 1, 50, 90, 8, 8), None, {"left": 20, "offset": 60}),
    "groups": ((2, 4, 2, 36, 41, 16, 16), None, {"right": 4}),
    "keys": ((2, 2, 2, 37, 45, 16, 16), "keys", {}),
    "rows": ((2, 4, 2, 37, 45, 16, 16), "rows", {"right": 8}),
    "seen": ((2, 2, 1, 33, 34, 16, 16), "seen", {}),
    "hidden": ((2, 1, 1, 33, 70, 16, 16), "hidden", {}),
    "wide": ((1, 1, 1, 33, 40, 80, 80), None, {}),
    "widest": ((1, 1, 1, 18, 34, 128, 128), "rows", {"right": 20}),
}


@pytest.fixture
def emulation(monkeypatch):
    for module in (copy, flash):
        monkeypatch.setattr(module, "compiled", Kernel)


@pytest.mark.parametrize("tf32", [None, True], ids=["exact", "tf32"])
@pytest.mark.parametrize("name", FORMS)
def test_as_emulated(name, tf32, emulation):
    sizes, mask, window = FORMS[name]
    rng = np.random.default_rng(0)
    operands = drawn(*sizes, rng)
    mask = masks(mask, sizes[0], sizes[1], sizes[3], sizes[4], rng)
    check(operands, mask, {"scale": sizes[5] ** -0.5, **window}, tf32, rng)


def check(operands, mask, attrs, tf32, rng):
    """The four kernels on these operands."""
    q, k, v = operands
    dy = rng.standard_normal((*q.shape[:3], v.shape[3])).astype(np.float32)
    given = [q, k, v, *([] if mask is None else [mask])]
    y, sums, *gradients = attend(*given, **attrs, dy=dy)
    bound_ = ROUGH if tf32 else EXACT
    [found] = bound.run("attention", given, attrs, tf32=tf32)
    near(found, y, bound_)
    laid, logs = bound.run("attention_blhd", given, {**attrs, "sums": True}, tf32=tf32)
    assert laid.transpose(0, 2, 1, 3).tobytes() == found.tobytes()
    there = np.isfinite(sums)
    near(logs[there], sums[there], bound_)
    assert np.all(logs[~there] == np.inf)
    for got, want in zip(bound.run("attention_gradient", [dy, found, *given], attrs, tf32=tf32), gradients, strict=True):
        near(got, want, bound_)
    results = bound.run("attention_gradient_blhd", [dy, laid.transpose(0, 2, 1, 3), logs, *given], attrs, tf32=tf32)
    for got, want in zip(results, gradients, strict=True):
        near(got.transpose(0, 2, 1, 3), want, bound_)


SPECIAL = [(None, False), ("float", False), ("float", True), ("bool", True), ("bool", False)]


@pytest.mark.parametrize("exact", [False, True], ids=["tf32", "exact"])
@pytest.mark.parametrize("d", [8, 64, 80, 128])
def test_kernels_compile(d, exact):
    """Every mask and every window, though not all of either with all of the other."""
    lib, include = nvrtc()
    for number, (mask, by_row) in enumerate(SPECIAL[: 5 if d == 8 else 2]):
        low, high = number % 2 > 0, number // 2 % 2 > 0
        form = Form(d, min(d, 64), 2 if number else 4, 1, exact, low, high, mask or "", by_row)
        sources = [backward(form, part) for part in parts(form)]
        sources += [forward(form._replace(spans=n)) for n in ((1, 2) if d <= flash.TWICE and not exact else (1,))]
        for source in sources:
            compile_source(lib, include, source)


def test_shared_memory_is_within_what_is_there_without_asking():
    for d in range(8, 129, 8):
        for dv in range(8, 129, 8):
            form = Form(d, dv, 4)
            assert 2 * 4 * form.tile * (d + dv + 10) <= STATIC_BYTES and form.tile % 16 == 0


@pytest.mark.parametrize("tf32", [None, True], ids=["exact", "tf32"])
def test_packed_operands_are_read_as_they_lie(tf32, emulation, monkeypatch):
    monkeypatch.setattr(flash, "copier", None)
    rng = np.random.default_rng(0)
    check(list(packed(2, 3, 35, 16, rng)), None, {"scale": 0.25, "right": 0}, tf32, rng)


@pytest.mark.parametrize("blocks", [1, 132], ids=["two", "one"])
def test_a_warp_with_two_groups_of_rows(blocks, emulation, monkeypatch):
    monkeypatch.setattr(flash, "MULTIPROCESSORS", blocks if blocks == 1 else 1 << 20)
    rng = np.random.default_rng(0)
    operands = drawn(1, 1, 1, 150, 70, 16, 16, rng)
    for mask, attrs in ((None, {"right": 0}), (masks("keys", 1, 1, 150, 70, rng), {"right": 40, "left": 50})):
        check(operands, mask, {"scale": 0.25, **attrs}, True, rng)


def test_operands_that_lie_badly_are_copied(emulation):
    rng = np.random.default_rng(0)
    wide = [rng.standard_normal((1, 1, 20, 17)).astype(np.float32) for _ in range(3)]
    turned = [np.ascontiguousarray(x.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)[..., :16] for x in wide]
    for operands in ([x[..., 1:] for x in wide], turned):
        out = np.full((1, 1, 20, 17), 7, np.float32)
        attrs = {"scale": 0.25}
        bound.run("attention", operands, attrs, outs=[out[..., 1:]])
        near(out[..., 1:], attend(*operands, **attrs)[0], EXACT)
        assert np.all(out[..., 0] == 7)


def test_nan_and_infinity_are_not_lost(emulation):
    rng = np.random.default_rng(0)
    for number in range(3):
        operands = drawn(1, 1, 1, 20, 20, 8, 8, rng)
        operands[number][0, 0, 7, 3] = np.nan
        for tf32 in (None, True):
            [y] = bound.run("attention", operands, {"scale": 0.3}, tf32=tf32)
            lost = np.isnan(y[0, 0])
            assert lost[7].all() if number == 0 else lost.any(axis=1).all()


def test_a_query_that_large_numbers_hide_from_all_keys(emulation):
    """It weighs them all the same, and sends nothing back."""
    rng = np.random.default_rng(0)
    q, k, v, dy = drawn(1, 1, 1, 9, 12, 8, 8, rng) + drawn(1, 1, 1, 9, 12, 8, 8, rng)[:1]
    mask = np.full((1, 1, 1, 12), np.finfo(np.float32).min)
    y, sums = bound.run("attention_blhd", [q, k, v, mask], {"scale": 0.3, "sums": True})
    np.testing.assert_allclose(y[0, :, 0], np.broadcast_to(v[0, 0].mean(0), (9, 8)), atol=1e-6)
    y = y.transpose(0, 2, 1, 3)
    for x in bound.run("attention_gradient_blhd", [dy, y, sums, q, k, v, mask], {"scale": 0.3}):
        assert not x.any()


@pytest.mark.parametrize(
    ("sizes", "attrs", "taken"),
    [
        ((8, 8), {}, True),
        ((128, 64), {"left": 3, "right": 0, "offset": 5}, True),
        ((12, 8), {}, False),
        ((136, 8), {}, False),
        ((8, 136), {}, False),
        ((8, 8), {"softcap": 2.0}, False),
    ],
)
def test_what_the_kernels_leave_to_others(sizes, attrs, taken):
    rng = np.random.default_rng(0)
    operands = drawn(1, 2, 1, 5, 6, *sizes, rng)
    attrs = {"scale": 0.5, **attrs}
    own = {"attention": operands, "attention_blhd": operands, "attention_gradient": [None] * 2}
    y = np.zeros((1, 2, 5, sizes[1]), np.float32)
    own["attention_gradient"] = [y, y, *operands]
    own["attention_gradient_blhd"] = [y, y, y[..., :1], *operands]
    for op, given in own.items():
        for more, still in (([], taken), ([np.zeros((5, 6), np.float32)], False), ([None, np.array([6])], False)):
            if more and (attrs.get("offset") or not taken):
                continue
            node = bound.node_of(op, [*given, *more], attrs)
            found = node.op.kernel_for(node, "cupy")
            assert (found is not None and found.backend == "cupy") == still, (op, more)
    halves = bound.node_of("attention", [x.astype(np.float16) for x in operands], attrs)
    found = halves.op.kernel_for(halves, "cupy")
    assert found is None or found.run.__module__ != flash.__name__


ROWS = [case for case in CASES if case.op.startswith("attention") and "eights" in str(case)]


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_rows_of_the_table(case, emulation):
    assert bound.check(case, dtypes.float32)


def planned(network, training):
    """The graph of a network of two layers as a plan for a GPU gets it, forward, or forward and backward."""
    model = fr.load(network(layers=2, width=32, heads=4, vocabulary=50, context=24, drop=0.0).proto(), device="cpu")
    feeds = {spec.name: np.zeros((2, 10), np.int64) for spec in model.inputs}
    output = model.outputs[0].name
    weights = [name for name, x in model.params.items() if training and x.ndim]
    traced = model.trace(feeds, [output], frozenset(weights), lasting=True)
    on, leaves = SimpleNamespace(backend="cupy", allow_tf32=True, tunes=False), list(traced.inputs.values())
    outputs = [traced.values[output]]
    if training:
        [y] = lower(Graph(leaves, outputs), None, on, {}).outputs
        outputs = [x for x in grad(ops.reduce_sum(y * y, axes=(0, 1, 2)), [traced.inputs[n] for n in weights]) if x is not None]
    return prepare(Graph(leaves, outputs), True, on, {}, None)


@pytest.mark.parametrize("network", [bert, gpt2])
def test_plans_for_a_gpu_hold_attention_and_its_gradient(network):
    for training in (False, True):
        after = planned(network, training)
        found = [node for node in after.nodes if node.op.name.startswith("attention")]
        assert [n.op.name for n in found] == ["attention_blhd"] * 2 + ["attention_gradient_blhd"] * 2 * training
        for node in found:
            assert node.op.kernel_for(node, "cupy", hot=True).run.__module__ == flash.__name__
            assert (node.attrs["right"] == 0) == (network is gpt2)


REAL = {
    "bert": ((32, 12, 12, 128, 128, 64, 64), None, {}),
    "bert-one": ((1, 12, 12, 128, 128, 64, 64), "hidden", {}),
    "padded": ((32, 12, 12, 128, 128, 64, 64), "keys", {}),
    "gpt2": ((8, 12, 12, 512, 512, 64, 64), None, {"right": 0}),
    "gpt2-one": ((1, 12, 12, 512, 512, 64, 64), None, {"right": 0}),
    "vit": ((64, 12, 12, 197, 197, 64, 64), None, {}),
    "llama": ((2, 8, 2, 300, 300, 128, 128), "seen", {"right": 0}),
    "bias": ((4, 8, 8, 160, 200, 80, 80), "rows", {"left": 100}),
}


@pytest.mark.gpu
@pytest.mark.parametrize("tf32", [None, True], ids=["exact", "tf32"])
@pytest.mark.parametrize("name", [*FORMS, *REAL])
def test_on_a_gpu(name, tf32):
    """Forward and backward against float64, by heads and position by position, recorded, and the same bits each time."""
    sizes, kind, window = {**FORMS, **REAL}[name]
    rng = np.random.default_rng(0)
    b, h, _, l, s, d, dv = sizes
    operands = drawn(*sizes, rng) if name not in ("bert", "gpt2", "vit") else list(packed(b, h, l, d, rng))
    mask = masks(kind, b, h, l, s, rng)
    given = [*operands, *([] if mask is None else [mask])]
    dy = rng.standard_normal((b, h, l, dv)).astype(np.float32)
    attrs = {"scale": d**-0.5, **window}
    y, _, *gradients = attend(*given, **attrs, dy=dy)
    leaves = [g.input(TensorType(x.shape, x.dtype)) for x in (*given, dy)]
    result = ops.attention(*leaves[:-1], **attrs)
    graph = Graph(leaves, [result, *ops.attention_gradient(leaves[-1], result, *leaves[:-1], **attrs)])
    on = device("cuda", allow_tf32=tf32)
    for laid in (False, True):
        plan = Plan(lay_heads(graph, lambda node: True) if laid else graph, on, hot=True)
        mine = [step for step in plan.steps if step.node.op.name.startswith("attention")]
        assert len(mine) == 2 and all(step.kernel.run.__module__ == flash.__name__ for step in mine)
        before = None
        for _ in range(3):
            found = [on.download(x, dtypes.float32) for x in plan(*[on.upload(np.ascontiguousarray(x)) for x in (*given, dy)])]
            for got, want in zip(found, [y, *gradients], strict=True):
                near(got, want, ROUGH if tf32 else EXACT)
            assert before is None or all(a.tobytes() == b.tobytes() for a, b in zip(found, before, strict=True))
            before = found
        assert plan.obstacle is None


@pytest.mark.gpu
def test_tf32_is_as_near_as_products_of_matrices_are():
    rng = np.random.default_rng(0)
    operands = drawn(4, 12, 12, 256, 256, 64, 64, rng)
    want = attend(*operands, scale=0.125)[0]
    leaves = [g.input(TensorType(x.shape, x.dtype)) for x in operands]
    whole = ops.attention(*leaves, scale=0.125)
    on = device("cuda", allow_tf32=True)
    errors = []
    for outputs in ([whole], expand(whole.node)):
        [found] = Plan(Graph(leaves, outputs), on, hot=True)(*map(on.upload, operands))
        errors.append(np.abs(on.download(found, dtypes.float32) - want))
    assert errors[0].max() <= 1.25 * errors[1].max() and errors[0].mean() <= 1.1 * errors[1].mean()
