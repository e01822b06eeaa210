"""Converters of ONNX's signal ops. Windows and mel matrices depend on small known numbers only and become constants."""

from __future__ import annotations

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.errors import InvalidModel, ShapeError
from flamert.graph import Value
from flamert.importers.onnx import dtype_of
from flamert.importers.registry import Context, converter
from flamert.ops.rules import axis_in


def _transform(x: Value, length: tuple[int, ...] | None, axis: int, inverse: int, onesided: int) -> Value:
    axis = axis_in(axis, x.rank)
    if length is None:
        length = (2 * (x.shape[axis] - 1) if inverse and onesided else x.shape[axis],)
    return ops.dft(x, axis=axis, length=length[0], inverse=bool(inverse), onesided=bool(onesided))


@converter("DFT", 20)
def _(
    ctx: Context,
    x: Value,
    dft_length: Value | None = None,
    axis: Value | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Value:
    (along,) = ctx.ints(axis) or (-2,)
    return _transform(x, ctx.ints(dft_length), along, inverse, onesided)


@converter("DFT", 17)
def _(ctx: Context, x: Value, dft_length: Value | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0) -> Value:
    return _transform(x, ctx.ints(dft_length), axis, inverse, onesided)


@converter("STFT", 17)
def _(
    ctx: Context,
    signal: Value,
    frame_step: Value,
    window: Value | None = None,
    frame_length: Value | None = None,
    *,
    onesided: int = 1,
) -> Value:
    if signal.rank == 2:  # ONNX wants a last dimension of 1, but some exporters leave it out
        signal = ops.reshape(signal, shape=(*signal.shape, 1))
    (step,) = ctx.ints(frame_step) or ()
    (length,) = ctx.ints(frame_length) or (signal.shape[1] if window is None else window.shape[0],)
    return ops.stft(signal, window, step=step, length=length, onesided=bool(onesided))


def _window(ctx: Context, size: Value, periodic: int, output_datatype: int, *weights: float) -> Value:
    """w[n] = Σₖ (−1)ᵏ · weights[k] · cos(2πkn / N), N = size, or size − 1 for a symmetric window."""
    (n,) = ctx.ints(size) or ()
    if n < 0:
        raise ShapeError(f"a window of size {n}")
    angle = 2 * np.pi * np.arange(n) / max(n if periodic else n - 1, 1)
    w = sum((a if k % 2 == 0 else -a) * np.cos(k * angle) for k, a in enumerate(weights))
    return g.constant(np.asarray(w).astype(dtype_of(output_datatype)))


@converter("HannWindow", 17)
def _(ctx: Context, size: Value, *, periodic: int = 1, output_datatype: int = 1) -> Value:
    return _window(ctx, size, periodic, output_datatype, 0.5, 0.5)


@converter("HammingWindow", 17)
def _(ctx: Context, size: Value, *, periodic: int = 1, output_datatype: int = 1) -> Value:
    return _window(ctx, size, periodic, output_datatype, 25 / 46, 21 / 46)


@converter("BlackmanWindow", 17)
def _(ctx: Context, size: Value, *, periodic: int = 1, output_datatype: int = 1) -> Value:
    return _window(ctx, size, periodic, output_datatype, 0.42, 0.5, 0.08)


@converter("MelWeightMatrix", 17)
def _(
    ctx: Context,
    num_mel_bins: Value,
    dft_length: Value,
    sample_rate: Value,
    lower_edge_hertz: Value,
    upper_edge_hertz: Value,
    *,
    output_datatype: int = 1,
) -> Value:
    bands, length, rate = (int(ctx.value(v).item()) for v in (num_mel_bins, dft_length, sample_rate))
    # Edges are rounded to bins, so that no gradient is lost by going by their contents.
    low, high = (float(ctx.contents(v).item()) for v in (lower_edge_hertz, upper_edge_hertz))
    if bands < 1 or length < 1 or rate < 1:
        raise InvalidModel(f"a mel matrix of {bands} bands for a DFT of length {length} at {rate} Hz")
    return g.constant(mel_weights(bands, length, rate, low, high).astype(dtype_of(output_datatype)))


def mel_weights(bands: int, length: int, rate: int, low: float, high: float) -> np.ndarray:
    """[length // 2 + 1, bands]: triangles over the bins of a one-sided DFT, each from its neighbours' peaks to its own.

    The bands + 2 corners lie evenly on the mel scale, 2595 · log₁₀(1 + f / 700), and are rounded down to bins.
    """
    mel = np.linspace(2595 * np.log10(1 + low / 700), 2595 * np.log10(1 + high / 700), bands + 2, endpoint=False)
    corners = ((length + 1) * 700 * (10 ** (mel / 2595) - 1) // rate).astype(np.int64)
    left, peak, right = (corners[i : i + bands] for i in range(3))
    bins = np.arange(length // 2 + 1)[:, None]
    rise = np.where(peak == left, bins == peak, (bins - left) / np.maximum(peak - left, 1))
    fall = (right - bins) / np.maximum(right - peak, 1)
    weights = np.where(bins <= peak, rise, fall)
    return np.where((bins >= left) & ((bins < right) | (bins == peak)), weights, 0)
