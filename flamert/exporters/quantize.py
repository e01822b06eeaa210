"""Exporters of quantization, and of integer products."""

from __future__ import annotations

from typing import Any

import numpy as np

from flamert import dtypes, ops
from flamert.exporters.registry import exporter
from flamert.exporters.shape import Dims, dims
from flamert.exporters.writer import Term, Writer
from flamert.graph import Value


@exporter(ops.dynamic_quantize)
def _(to: Writer, x: Value) -> Any:
    return to("DynamicQuantizeLinear", x, outputs=3)


def _one(to: Writer, x: Value | None) -> Term:
    """A single number without axes."""
    return to("Reshape", x, dims(())) if x is not None and x.rank else x


def _shaped(to: Writer, scale: Value, zero: Value | None, axis: int | None, block: int) -> tuple[Term, Term, dict[str, Any]]:
    if scale.type.size == 1 and not block:
        return _one(to, scale), _one(to, zero), {}
    return scale, zero, {"axis": axis, "block_size": block or None}


@exporter(ops.quantize)
def _(
    to: Writer, /, x: Value, scale: Value, zero: Value | None = None, *, axis: int | None, block_size: int, **kind: Any
) -> Any:
    dtype, saturate = kind["to"], kind["saturate"]
    scales, zeros, along = _shaped(to, scale, zero, axis, block_size)
    if zeros is None:
        zeros = np.zeros(scale.shape if along else (), dtype)
    return to("QuantizeLinear", x, scales, zeros, **along, saturate=saturate if dtype in dtypes.FLOAT8 else None)


@exporter(ops.dequantize)
def _(
    to: Writer, /, x: Value, scale: Value, zero: Value | None = None, *, axis: int | None, block_size: int, **kind: Any
) -> Any:
    if kind["to"] != scale.dtype or (zero is not None and x.dtype == dtypes.int32):
        return None
    scales, zeros, along = _shaped(to, scale, zero, axis, block_size)
    return to("DequantizeLinear", x, scales, zeros, **along)


def _single(*zeros: Value | None) -> bool:
    return all(z is None or z.type.size == 1 for z in zeros)


@exporter(ops.matmul_integer)
def _(to: Writer, a: Value, b: Value, a_zero: Value | None = None, b_zero: Value | None = None) -> Any:
    return to("MatMulInteger", a, b, _one(to, a_zero), _one(to, b_zero)) if _single(a_zero, b_zero) else None


@exporter(ops.conv_integer)
def _(
    to: Writer, x: Value, w: Value, x_zero: Value | None = None, w_zero: Value | None = None, *, pads: Dims, **windows: Any
) -> Any:
    if not _single(x_zero, w_zero) or min(pads) < 0:
        return None
    return to("ConvInteger", x, w, _one(to, x_zero), _one(to, w_zero), pads=pads, kernel_shape=w.shape[2:], **windows)
