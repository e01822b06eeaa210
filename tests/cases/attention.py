"""Rows for ops/attention.py, ops/rotary.py and ops/linear_attention.py: the oracles take one query at a time."""

import math

import numpy as np

from flamert import dtypes
from flamert.testing import Case
from tests.cases.elementwise import FLOATS, f32
from tests.differences import slopes, weighted

rng = np.random.default_rng(11)


def attention(q, k, v, mask=None, lengths=None, *, scale, softcap=0.0, left=None, right=None, offset=0):
    (b, hq, l, _), (_, hkv, s, _) = q.shape, k.shape
    y = np.zeros((b, hq, l, v.shape[3]))
    if mask is not None:
        mask = np.broadcast_to(mask, (b, hq, l, s))
    for at in np.ndindex(b, hq, l):
        n, h, i = at
        total, weighted = 0.0, np.zeros(v.shape[3])
        count = s if lengths is None else lengths[n]
        position = i + (offset if lengths is None else count - l)
        for j in range(count):
            if (right is not None and j > position + right) or (left is not None and j < position - left):
                continue
            score = scale * q[at] @ k[n, h // (hq // hkv), j]
            if softcap:
                score = softcap * math.tanh(score / softcap)
            if mask is not None:
                if mask.dtype != bool:
                    score += mask[n, h, i, j]
                elif not mask[n, h, i, j]:
                    continue
            total += math.exp(score)
            weighted += math.exp(score) * v[n, h // (hq // hkv), j]
        y[at] = weighted / total if total else 0
    return y


def qkv(b=2, hq=4, hkv=2, l=3, s=5, d=4, dv=6):
    return [f32(b, hq, l, d), f32(b, hkv, s, d), f32(b, hkv, s, dv)]


def case(operands, kinds=(dtypes.float32,), name="", **attrs):
    return Case("attention", operands, {"scale": 0.5, **attrs}, attention, kinds, name=name)


def rotated(x, cos, sin, interleaved=False):
    half = cos.shape[-1]
    y = x.copy()
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        y[..., a] = x[..., a] * cos[..., i] - x[..., b] * sin[..., i]
        y[..., b] = x[..., a] * sin[..., i] + x[..., b] * cos[..., i]
    return y


def linear_attention(q, k, v, state=None, decay=None, beta=None, *, scale):
    (b, hq, t, d), (_, hkv, _, dv) = q.shape, v.shape
    y = np.zeros((b, hq, t, dv))
    last = np.zeros((b, hkv, d, dv)) if state is None else state.astype(np.float64)
    decay = np.zeros((b, hkv, t, d)) if decay is None else np.broadcast_to(decay, (b, hkv, t, d))
    for n, h, i in np.ndindex(b, hkv, t):
        S = np.exp(decay[n, h, i])[:, None] * last[n, h]
        u = v[n, h, i]
        if beta is not None:
            u = np.broadcast_to(beta, (b, hkv, t, 1))[n, h, i] * (u - S.T @ k[n, h, i])
        last[n, h] = S + np.outer(k[n, h, i], u)
        for r in range(hq // hkv):
            y[n, h * (hq // hkv) + r, i] = scale * q[n, h * (hq // hkv) + r, i] @ last[n, h]
    return y, last


def linear_attention_gradient(*given, scale):
    operands, flows = list(given[:6]), given[6:]

    def loss(*operands):
        return weighted(flows, linear_attention(*operands, scale=scale))

    return tuple(slopes(loss, operands, k) for k, x in enumerate(operands) if x is not None)


ANY = np.array([[True, False, True, True, False], [False] * 5, [True] * 5])
HIDDEN = np.where(ANY, 0, -np.inf).astype(np.float32)
LENGTHS = np.array([5, 2], np.int64)
HEADS = (f32(2, 4, 3, 4), f32(2, 2, 3, 4), f32(2, 2, 3, 5))


drawn = np.random.default_rng(7)


def own(*shape):
    """Numbers that leave those of all other rows as they are."""
    return drawn.standard_normal(shape).astype(np.float32)


def attention_gradient(dy, y, q, k, v, mask=None, **attrs):
    """y is taken as it is given, though it is no result of these operands: what is asked is the formula."""
    group = q.shape[1] // k.shape[1]
    keys, values = (np.repeat(x, group, 1) for x in (k, v))
    scores = np.einsum("bhld,bhsd->bhls", q, keys) * attrs["scale"] + (0 if mask is None else mask)
    if attrs["right"] is not None:
        scores = np.where(np.arange(k.shape[2]) <= np.arange(q.shape[2])[:, None] + attrs["right"], scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    ds = p * (np.einsum("bhld,bhsd->bhls", dy, values) - (dy * y).sum(-1, keepdims=True))
    dk, dv = np.einsum("bhls,bhld->bhsd", ds, q) * attrs["scale"], np.einsum("bhls,bhld->bhsd", p, dy)
    together = [x.reshape(x.shape[0], -1, group, *x.shape[2:]).sum(2) for x in (dk, dv)]
    return np.einsum("bhls,bhsd->bhld", ds, keys) * attrs["scale"], *together


def attention_blhd(q, k, v, mask=None, *, sums, scale, right):
    y = attention(q, k, v, mask, scale=scale, right=right).transpose(0, 2, 1, 3)
    if not sums:
        return y
    scores = scale * np.einsum("bhld,bhsd->bhls", q, np.repeat(k, q.shape[1] // k.shape[1], 1)) + (0 if mask is None else mask)
    if right is not None:
        scores = np.where(np.arange(k.shape[2]) <= np.arange(q.shape[2])[:, None] + right, scores, -np.inf)
    return y, np.log(np.exp(scores).sum(-1, keepdims=True))


EIGHTS = tuple(
    np.random.default_rng(3).standard_normal(shape).astype(np.float32) for shape in ((2, 4, 3, 8), (2, 2, 7, 8), (2, 2, 7, 16))
)
SUMS = attention_blhd(*EIGHTS, sums=True, scale=0.4, right=4)[1].astype(np.float32)

CASES = [
    case(qkv(), FLOATS),
    case(qkv(hq=2), FLOATS, softcap=0.7),
    case(qkv(hkv=1), FLOATS, right=0),
    *[case([*qkv(), f32(*m)], FLOATS, name=f"mask-{len(m)}") for m in ((5,), (3, 5), (4, 1, 5), (2, 1, 3, 5), (1, 4, 3, 1))],
    *[case([*qkv(), ANY.reshape(m)], FLOATS, name=f"seen-{len(m)}") for m in ((3, 5), (1, 3, 5), (1, 1, 3, 5))],
    # Differences by an infinite mask are none.
    Case("attention", [*qkv(), HIDDEN], {"scale": 0.5}, attention, FLOATS, gradient=False, name="infinite-mask"),
    *[case(qkv(), right=0, offset=o, name=f"offset{o}") for o in (-2, 1, 2, 7)],
    *[
        case(qkv(s=3), left=l, right=r, offset=o, name=f"window{l}{r}{o}")
        for l, r, o in ((1, 0, 0), (0, 1, 0), (1, None, 9), (0, 0, -9))
    ],
    case([*qkv(), None, LENGTHS], FLOATS, name="lengths"),
    case([*qkv(), None, LENGTHS.astype(np.int32)], right=0, name="lengths-causal"),
    case([*qkv(), f32(2, 1, 1, 5), LENGTHS], left=1, right=1, softcap=2.0, name="everything"),
    case(qkv(s=0), name="no-keys"),
    case(qkv(l=0), name="no-queries"),
    case(qkv(b=0), name="no-batch"),
    *[
        Case("rotary_embedding", [f32(2, 3, 4, 6), f32(*c), f32(*c)], {"interleaved": i}, rotated, FLOATS)
        for c in ((2, 1, 4, 3), (2, 3, 1, 2), (4, 3))
        for i in (False, True)
    ],
    Case("linear_attention", HEADS, {"scale": 0.5}, linear_attention, FLOATS),
    Case("linear_attention", [*HEADS, f32(2, 2, 4, 5)], {"scale": 1.0}, linear_attention, FLOATS),
    *[
        Case("linear_attention", [*HEADS, None, f32(2, 2, 3, d)], {"scale": 0.5}, linear_attention, name=f"gated{d}")
        for d in (1, 4)
    ],
    *[
        Case(
            "linear_attention",
            [*HEADS, f32(2, 2, 4, 5), f32(2, 2, 3, 4), f32(2, h, 3, 1)],
            {"scale": 0.5},
            linear_attention,
            FLOATS,
        )
        for h in (1, 2)
    ],
    Case("linear_attention", [*HEADS, f32(2, 2, 4, 5).astype(np.float64)], {"scale": 1.0}, linear_attention, name="wide-state"),
    Case("linear_attention", [x[:, :, :0] for x in HEADS], {"scale": 1.0}, linear_attention, name="no-steps"),
    *[
        Case(
            "linear_attention_gradient",
            [*HEADS, f32(2, 2, 4, 5), *gates, f32(2, 4, 3, 5) if flows else None, f32(2, 2, 4, 5)],
            {"scale": 0.5},
            linear_attention_gradient,
            (dtypes.float32, dtypes.float64),
            tolerance=(1e-4, 1e-5),
            name=name,
        )
        for name, flows, gates in (
            ("plain", True, (None, None)),
            ("gated", False, (f32(2, 2, 3, 4), None)),
            ("delta", True, (f32(2, 2, 3, 4), f32(2, 2, 3, 1))),
        )
    ],
    *[
        Case(
            "attention_gradient",
            [own(2, 4, 3, 5), own(2, 4, 3, 5), own(2, 4, 3, 6), own(2, h, 7, 6), own(2, h, 7, 5), mask],
            {"scale": 0.4, "right": right},
            attention_gradient,
            tolerance=(1e-4, 1e-5),
            name=name,
        )
        for h, mask, right, name in (
            (4, None, None, "plain"),
            (2, own(2, 1, 3, 7), None, "masked"),
            (1, None, 4, "causal"),
        )
    ],
    *[
        Case(
            "attention_blhd",
            [own(2, 4, 3, 5), own(2, h, 7, 5), own(2, h, 7, 6), mask],
            {"scale": 0.4, "right": right, "sums": sums},
            attention_blhd,
            tolerance=(1e-4, 1e-5),
            name=name,
        )
        for h, mask, right, sums, name in (
            (4, None, None, False, "plain"),
            (2, own(2, 1, 3, 7), None, True, "masked"),
            (1, None, 4, True, "causal"),
        )
    ],
    Case(
        "attention_gradient_blhd",
        [*(own(2, 4, 3, d) for d in (5, 5, 1)), own(2, 4, 3, 6), own(2, 2, 7, 6), own(2, 2, 7, 5)],
        {"scale": 0.4, "right": 4},
        lambda dy, y, sums, *operands, **attrs: tuple(
            x.transpose(0, 2, 1, 3) for x in attention_gradient(dy, y, *operands, **attrs)
        ),
        tolerance=(1e-4, 1e-5),
    ),
    *[
        case([own(2, 4, 3, 8), own(2, 2, 5, 8), own(2, 2, 5, 16), *mask], name=f"eights-{name}", **attrs)
        for mask, attrs, name in (
            ((), {}, "plain"),
            ((), {"right": 0, "left": 1, "offset": 1}, "window"),
            ((own(2, 1, 1, 5),), {}, "keys"),
            ((own(1, 4, 3, 5),), {"right": 1}, "rows"),
            ((ANY[None, None],), {}, "seen"),
        )
    ],
    *[
        Case(
            "attention_gradient",
            [own(2, 4, 3, 16), own(2, 4, 3, 16), *EIGHTS, mask],
            {"scale": 0.4, "right": right},
            attention_gradient,
            tolerance=(1e-4, 1e-5),
            name=f"eights-{name}",
        )
        for mask, right, name in ((None, None, "plain"), (own(2, 1, 3, 7), None, "masked"), (None, 4, "causal"))
    ],
    Case(
        "attention_blhd",
        [*EIGHTS],
        {"scale": 0.4, "right": 4, "sums": True},
        attention_blhd,
        tolerance=(1e-4, 1e-5),
        name="eights",
    ),
    Case(
        "attention_gradient_blhd",
        [own(2, 4, 3, 16), own(2, 4, 3, 16), SUMS, *EIGHTS],
        {"scale": 0.4, "right": 4},
        lambda dy, y, sums, *operands, **attrs: tuple(
            x.transpose(0, 2, 1, 3) for x in attention_gradient(dy, y, *operands, **attrs)
        ),
        tolerance=(1e-4, 1e-5),
        name="eights",
    ),
]
