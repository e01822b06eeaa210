"""Spectra: Fourier transforms of whole axes and of sliding frames. A complex number is a pair in the last dimension."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import dtypes
from flamert.errors import ShapeError
from flamert.graph import TensorType
from flamert.ops.elementwise import mul
from flamert.ops.index import gather
from flamert.ops.op import composite, kernel, op
from flamert.ops.rules import axis_in, require
from flamert.ops.shape import reshape


@op
def dft(x: TensorType, *, axis: int, length: int, inverse: bool = False, onesided: bool = False) -> TensorType:
    """X[k] = Σₙ x[n]·exp(∓2πi·kn/N) along `axis`, n and k in [0, N), N = length; the inverse has a plus and divides by N.

    x: floating [..., 1] (real) or [..., 2] (real and imaginary part); cut or padded with zeros to N along `axis`, which is not
    the last. Half types compute in float32. Returns [..., 2] with N along `axis`. onesided: of a real x only k ≤ N/2, the
    rest being conjugate; with inverse the way back from there, to N real numbers [..., 1].
    Raises ShapeError for other shapes and for length < 1. Source: ONNX DFT-20.
    """
    require(x, dtypes.STANDARD_FLOAT, "floating")
    if x.rank < 2 or x.shape[-1] not in (1, 2) or axis_in(axis, x.rank) == x.rank - 1:
        raise ShapeError(f"{list(x.shape)} must end in 1 (real) or 2 (complex), and axis {axis} come before that")
    if length < 1:
        raise ShapeError(f"a transform of length {length}")
    if onesided and x.shape[-1] != (2 if inverse else 1):
        raise ShapeError(f"one-sided transforms go from real to complex numbers and back, {list(x.shape)} does not fit")
    bins = length // 2 + 1 if onesided and not inverse else length
    shape = list(x.shape)
    shape[axis], shape[-1] = bins, 1 if onesided and inverse else 2
    return TensorType(tuple(shape), x.dtype)


def joined(xp: Any, x: Any) -> Any:
    """Pairs as complex numbers, or single numbers as real ones, without the last dimension; at least float32."""
    x = x.astype(dtypes.accumulator(x.dtype), copy=False)
    if x.shape[-1] == 1:
        return x[..., 0]
    return xp.ascontiguousarray(x).view(xp.complex64 if x.dtype.itemsize == 4 else xp.complex128)[..., 0]


def part(out: Any, result: Any) -> None:
    """Write a complex result as pairs, a real one as it is."""
    out[..., 0] = result.real
    if out.shape[-1] == 2:
        out[..., 1] = result.imag


@kernel(dft)
def _(xp: Any, out: Any, x: Any, *, axis: int, length: int, inverse: bool, onesided: bool) -> None:
    if out.size == 0:
        return
    names = {(False, False): "fft", (True, False): "ifft", (False, True): "rfft", (True, True): "irfft"}
    if x.size == 0:
        out[...] = 0
        return
    part(out, getattr(xp.fft, names[inverse, onesided])(joined(xp, x), n=length, axis=axis % x.ndim))


@composite
def stft(signal: Any, window: Any = None, *, step: int, length: int, onesided: bool = True) -> Any:
    """The `dft` of each frame signal[:, f·step : f·step + length] · window, f = 0 … (L − length) // step.

    signal: floating [B, L, 1] or [B, L, 2]; window: [length] of its type, all ones when left out. Returns [B, frames, bins, 2]
    with length // 2 + 1 bins if onesided (for real signals only), else `length`. Raises ShapeError where a frame is longer than
    the signal. Source: ONNX STFT-17.
    """
    if signal.rank != 3 or not 0 < length <= signal.shape[1] or step < 1:
        raise ShapeError(f"no frames of length {length} with step {step} in a signal [batch, length, 1 or 2] of {signal.type}")
    if window is not None and window.shape != (length,):
        raise ShapeError(f"window must be [{length}], not {list(window.shape)}")
    starts = np.arange(0, signal.shape[1] - length + 1, step)
    frames = gather(signal, starts[:, None] + np.arange(length), axis=1)
    if window is not None:
        frames = mul(frames, reshape(window, shape=(length, 1)))
    return dft(frames, axis=2, length=length, onesided=onesided)


@kernel(stft)
def _(xp: Any, out: Any, signal: Any, window: Any = None, *, step: int, length: int, onesided: bool) -> None:
    if out.size == 0:
        return
    x = joined(xp, signal)
    frames = xp.lib.stride_tricks.sliding_window_view(x, length, axis=1)[:, ::step]
    if window is not None:
        frames = frames * window.astype(dtypes.accumulator(window.dtype), copy=False)
    part(out, (xp.fft.rfft if onesided else xp.fft.fft)(frames))
