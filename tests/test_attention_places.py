"""Where operands of attention and its results may lie: in arrays with others beside them, at any address."""

from types import SimpleNamespace

import numpy as np
import pytest

from flamert import dtypes
from flamert.ops.cuda import attention, copy, flash
from flamert.ops.op import OPS
from flamert.runtime.joins import WIDE
from tests import bound
from tests.emulated import Kernel

SIZES = (2, 3, 21, 16)
"""Batch, heads, length, and elements of a head."""


@pytest.fixture(autouse=True)
def emulation(monkeypatch):
    for module in (copy, flash):
        monkeypatch.setattr(module, "compiled", Kernel)


def gradients(outs, laid):
    """dq, dk and dv into these arrays [B, H, L, D]."""
    rng = np.random.default_rng(0)
    q, k, v, dy = (rng.standard_normal(SIZES).astype(np.float32) for _ in range(4))
    attrs = {"scale": 0.25, "right": 0}
    y, sums = bound.run("attention_blhd", [q, k, v], {**attrs, "sums": True})
    y = y.transpose(0, 2, 1, 3)
    if laid:
        bound.run("attention_gradient_blhd", [dy, y, sums, q, k, v], attrs, outs=[x.transpose(0, 2, 1, 3) for x in outs])
    else:
        bound.run("attention_gradient", [dy, y, q, k, v], attrs, outs=outs)


def packed(spare):
    """Three arrays [B, H, L, D] in one [B, L, 3 · H · D + spare], and that one."""
    b, h, l, d = SIZES
    whole = np.full((b, l, 3 * h * d + spare), 7, np.float32)
    parts = whole[..., spare:].reshape(b, l, 3, h, d, copy=False) if not spare else None
    if parts is None:
        parts = np.lib.stride_tricks.as_strided(
            whole[0, 0, spare:], (b, l, 3, h, d), (*whole.strides[:2], 4 * h * d, 4 * d, 4), writeable=True
        )
    return list(parts.transpose(2, 0, 3, 1, 4)), whole


@pytest.mark.parametrize("laid", [False, True], ids=["heads", "positions"])
@pytest.mark.parametrize("spare", [0, 4, 1])
def test_gradients_are_written_side_by_side(spare, laid, monkeypatch):
    apart = [np.zeros(SIZES, np.float32) for _ in range(3)]
    gradients(apart, laid)
    beside, whole = packed(spare)
    if spare * 4 % WIDE == 0:
        monkeypatch.setattr(flash, "copier", None)
    gradients(beside, laid)
    for got, want in zip(beside, apart, strict=True):
        np.testing.assert_array_equal(got, want)
    assert np.all(whole[..., :spare] == 7)


@pytest.mark.parametrize("op", ["attention_gradient", "attention_gradient_blhd"])
def test_gradients_of_all_types_may_be_parts(op):
    kernels = [k for k in OPS[op].kernels if k.backend == "cupy"]
    assert len(kernels) == 2 and all(k.strided for k in kernels)


@pytest.mark.parametrize(("start", "width", "copied"), [(0, 64, False), (8, 64, False), (3, 64, True), (0, 67, True)])
def test_halves_that_begin_badly_are_copied(start, width, copied):
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((2, 3, 5, width)).astype(dtypes.bfloat16)
    x = whole[..., start : start + 16]
    calls, [found] = attention._dense(bound.XP, bound.Array(x))
    assert bool(calls) == copied and (found.array is x) != copied
    for call in calls:
        call()
    assert found.array.tobytes() == x.tobytes()


def test_a_mask_that_begins_badly_is_copied(monkeypatch):
    seen = []

    def forward(operands, mask, *rest):
        return lambda: seen.append(mask)

    monkeypatch.setattr(attention, "Attention", lambda *_, **__: SimpleNamespace(forward=forward))
    monkeypatch.setattr(attention, "available", lambda: True)
    q = np.zeros((1, 2, 5, 16), dtypes.float16)
    whole = np.arange(2 * 5 * 5 + 1).astype(dtypes.float16)
    for start in (0, 1):
        mask = whole[start : start + 50].reshape(1, 2, 5, 5)
        bound.run("attention", [q, q, q, mask], {"scale": 0.25})
        assert (seen[-1].array is mask) == (start == 0) and seen[-1].array.tobytes() == mask.tobytes()
