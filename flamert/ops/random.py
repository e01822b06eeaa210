"""Random numbers, and what is made of them: samples of distributions, dropout.

An op given a counter is a function of it and the seed. Without one, each call goes on where the last one stopped: from the
seed, with the numbers of ONNX's reference evaluator if on the CPU; or, lacking one, from a start that nobody can foresee.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.errors import ShapeError, UnsupportedType
from flamert.graph import Node, TensorType
from flamert.ops.cast import cast
from flamert.ops.logic import where
from flamert.ops.op import Site, composite, kernel, op
from flamert.ops.rules import dims_of, require

WORD = 0xFFFF_FFFF
MULTIPLIERS = (0xD251_1F53, 0xCD9E_8D57)
KEY_STEPS = (0x9E37_79B9, 0xBB67_AE85)
ROUNDS = 10


def philox(xp: Any, n: int, key: int, counter: Any) -> Any:
    """n random 32-bit words, a function of the 64-bit key and counter: Philox4x32-10, Salmon et al. 2011.

    The counter may be an array on the device, so that a captured graph draws new numbers whenever it is replayed.
    """
    index = xp.arange(-(-n // 4), dtype=xp.uint64)
    counter = xp.asarray(counter, dtype=xp.uint64).reshape(()) + xp.zeros_like(index)
    shift, word = xp.uint64(32), xp.uint64(WORD)
    state = [index & word, index >> shift, counter & word, counter >> shift]
    keys = [key & WORD, key >> 32 & WORD]
    for _ in range(ROUNDS):
        left, right = (s * xp.uint64(m) for s, m in zip(state[::2], MULTIPLIERS, strict=True))
        state = [
            (right >> shift) ^ state[1] ^ xp.uint64(keys[0]),
            right & word,
            (left >> shift) ^ state[3] ^ xp.uint64(keys[1]),
            left & word,
        ]
        keys = [k + step & WORD for k, step in zip(keys, KEY_STEPS, strict=True)]
    return xp.stack(state, axis=-1).reshape(-1)[:n].astype(xp.uint32)


class Stream:
    """The random numbers of one node, call after call: NumPy's generators on the CPU, `philox` elsewhere."""

    def __init__(self, xp: Any, seed: int | None) -> None:
        self.xp = xp
        self.key = int(np.random.SeedSequence().generate_state(1, np.uint64)[0]) if seed is None else seed % (1 << 64)
        self.fast = np.random.Generator(np.random.Philox(key=self.key))
        self.seeded = None if seed is None else np.random.RandomState(seed % (1 << 32))
        self.calls = 0
        self.lock = threading.Lock()

    def _on_host(self, name: str, out: Any, counter: Any) -> None:
        if counter is None and self.seeded is not None:
            out[...] = getattr(self.seeded, name)(out.shape)
        elif counter is None:
            getattr(self.fast, name)(out=out, dtype=out.dtype)
        else:
            at = np.random.Generator(np.random.Philox(key=self.key, counter=int(counter) << 128))
            getattr(at, name)(out=out, dtype=out.dtype)

    def _words(self, n: int, counter: Any) -> Any:
        if counter is None:
            with self.lock:
                counter, self.calls = self.calls, self.calls + 1
        return philox(self.xp, n, self.key, counter)

    def uniform(self, out: Any, counter: Any = None) -> None:
        """Fill a float32 or float64 array with numbers from [0, 1)."""
        if self.xp is np:
            self._on_host("random", out, counter)
            np.minimum(out, np.nextafter(out.dtype.type(1), out.dtype.type(0)), out=out)  # seeded doubles may have become 1
        elif out.dtype == np.float32:
            out[...] = (self._words(out.size, counter) >> 8).astype(np.float32).reshape(out.shape) * np.float32(2.0**-24)
        else:
            high, low = (self._words(2 * out.size, counter) >> 6).astype(np.float64).reshape(2, *out.shape)
            out[...] = (high * 2.0**26 + low) * 2.0**-52

    def normal(self, out: Any, counter: Any = None) -> None:
        """Fill a float32 or float64 array with numbers from the standard normal distribution (by Box and Muller's method)."""
        if self.xp is np:
            self._on_host("standard_normal", out, counter)
            return
        radius, angle = pair = self.xp.empty((2, *out.shape), out.dtype)
        self.uniform(pair, counter)
        out[...] = self.xp.sqrt(-2 * self.xp.log1p(-radius)) * self.xp.cos(2 * np.pi * angle)


def _stream(site: Site, seed: int | None) -> Stream:
    """A seeded stream goes on when a model's plan is made again; node and type tell it from others of the model."""
    if seed is None:
        return Stream(site.xp, None)
    key = ("random", site.xp.__name__, str(site.node.source), seed, site.node.types)
    return site.cache.setdefault(key, Stream(site.xp, seed))


def _wide(node: Node) -> list[TensorType]:
    """Half types are drawn in float32 and rounded."""
    type = node.types[0]
    return [TensorType(type.shape, dtypes.float32)] if type.dtype in dtypes.HALF else []


def _drawn(counter: TensorType | None, shape: tuple[int, ...], dtype: np.dtype) -> TensorType:
    if dtype not in dtypes.STANDARD_FLOAT:
        raise UnsupportedType(f"there are no random numbers of type {dtype.name}")
    if counter is not None and (counter.size != 1 or counter.dtype != dtypes.uint64):
        raise ShapeError(f"a counter is one uint64, not {counter}")
    return TensorType(dims_of(shape), dtype)


@op(random=True)
def random_uniform(
    counter: TensorType | None = None,
    *,
    shape: tuple[int, ...],
    dtype: np.dtype = dtypes.float32,
    low: float = 0.0,
    high: float = 1.0,
    seed: int | None = None,
) -> TensorType:
    """Independent numbers from [low, high), each as likely as any other. Floating. Source: ONNX RandomUniform-22."""
    return _drawn(counter, shape, np.dtype(dtype))


@kernel(random_uniform, bind=True, workspace=_wide)
def _(site: Site, out: Any, counter: Any = None, *, low: float, high: float, seed: int | None, **attrs: Any) -> Any:
    return _fill(site, out, Stream.uniform, counter, high - low, low, seed)


@op(random=True)
def random_normal(
    counter: TensorType | None = None,
    *,
    shape: tuple[int, ...],
    dtype: np.dtype = dtypes.float32,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: int | None = None,
) -> TensorType:
    """Independent numbers, normally distributed around `mean` with standard deviation `scale`. Floating.

    Source: ONNX RandomNormal-22.
    """
    return _drawn(counter, shape, np.dtype(dtype))


@kernel(random_normal, bind=True, workspace=_wide)
def _(site: Site, out: Any, counter: Any = None, *, mean: float, scale: float, seed: int | None, **attrs: Any) -> Any:
    return _fill(site, out, Stream.normal, counter, scale, mean, seed)


def _fill(
    site: Site, out: Any, draw: Callable[..., None], counter: Any, scale: float, offset: float, seed: int | None
) -> Callable[[], None]:
    stream = _stream(site, seed)
    drawn = site.work[0] if site.work else out

    def run() -> None:
        draw(stream, drawn, counter)
        if scale != 1:
            site.xp.multiply(drawn, scale, out=drawn)
        if offset != 0:
            site.xp.add(drawn, offset, out=drawn)
        if drawn is not out:
            out[...] = drawn

    return run


@composite(random=True)
def bernoulli(p: Any, counter: Any = None, *, dtype: np.dtype, seed: int | None = None) -> Any:
    """1 with probability p, else 0, for every element. p: floating; returns `dtype`. Source: ONNX Bernoulli-22."""
    wide = dtypes.accumulator(p.dtype)
    drawn = random_uniform(counter, shape=p.shape, dtype=wide, seed=seed)
    hit = drawn < (p if p.dtype == wide else cast(p, to=wide))
    return hit if dtype == dtypes.bool_ else cast(hit, to=dtype)


@composite(random=True)
def dropout(x: Any, ratio: Any, counter: Any = None, *, seed: int | None = None) -> Any:
    """x / (1 − ratio) where a draw from [0, 1) reaches the ratio, else 0; and where that was.

    x: floating; ratio: a floating scalar in [0, 1]. Returns (y, mask): x's type, and bool.
    Source: ONNX Dropout-22.
    """
    ratio = cast(ratio, to=dtypes.float32)
    mask = random_uniform(counter, shape=x.shape, seed=seed) >= ratio
    scale = cast(1 / (1 - ratio), to=x.dtype)
    return where(mask, x * scale, 0), mask


@op(random=True)
def multinomial(
    logits: TensorType,
    counter: TensorType | None = None,
    *,
    samples: int,
    dtype: np.dtype = dtypes.int32,
    seed: int | None = None,
) -> TensorType:
    """Classes drawn with probability softmax(logits), with replacement.

    logits: floating [N, C], C ≥ 1. Returns [N, samples] of int32 or int64. Source: ONNX Multinomial-22.
    """
    require(logits, dtypes.STANDARD_FLOAT, "floating")
    if np.dtype(dtype) not in (dtypes.int32, dtypes.int64):
        raise UnsupportedType(f"classes are int32 or int64, not {np.dtype(dtype).name}")
    if logits.rank != 2 or not logits.shape[1]:
        raise ShapeError(f"{logits} is no table of samples × classes")
    return TensorType((logits.shape[0], *dims_of((samples,))), np.dtype(dtype))


@kernel(multinomial, bind=True)
def _(site: Site, out: Any, logits: Any, counter: Any = None, *, seed: int | None, **attrs: Any) -> Callable[[], None]:
    xp, stream = site.xp, _stream(site, seed)
    n, classes = logits.shape

    def run() -> None:
        wide = logits.astype(xp.float64)
        share = xp.cumsum(xp.exp(wide - wide.max(axis=1, keepdims=True)), axis=1)
        drawn = xp.empty(out.shape, xp.float64)
        stream.uniform(drawn, counter)
        # All rows in one sorted array: row i's cumulated shares lie in (i, i + 1].
        row = xp.arange(n, dtype=xp.float64)[:, None]
        steps = (share / share[:, -1:] + row).reshape(-1)
        found = xp.searchsorted(steps, (drawn + row).reshape(-1), side="right").reshape(out.shape)
        out[...] = xp.clip(found - row.astype(xp.int64) * classes, 0, classes - 1)

    return run
