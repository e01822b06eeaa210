"""Changes of element type: cast, with ONNX's rounding and saturation, and bit cast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from flamert import dtypes
from flamert.errors import UnsupportedType
from flamert.graph import TensorType
from flamert.ops.narrow import ROUND_MODES, decode, encode
from flamert.ops.op import Site, composite, kernel, op

NARROW = dtypes.NARROW_FLOAT | dtypes.NARROW_INTEGER


@op
def cast(x: TensorType, *, to: np.dtype, saturate: bool = True, round_mode: str = "up") -> TensorType:
    """x in the element type `to`. Any type but string; complex numbers only become complex. Source: ONNX Cast-28.

    Floats round to nearest, halves to even, and toward 0 where `to` is an integer; integers lose their upper bits; bool
    is whether x ≠ 0. A float out of an integer's range gives no defined value. saturate: what is too large for a float8
    becomes its largest number, else NaN or ∞. round_mode: "up", "down" or "nearest" power of two, for float8_e8m0fnu.
    """
    to = np.dtype(to)
    if dtypes.string in (x.dtype, to) or to not in dtypes.ALL:
        raise UnsupportedType(f"there is no cast from {x.dtype.name} to {to.name} on tensors of numbers")
    if x.dtype in dtypes.COMPLEX and to not in dtypes.COMPLEX:
        raise UnsupportedType(f"{x.dtype.name} has no cast to {to.name}: which part is meant?")
    if round_mode not in ROUND_MODES:
        raise ValueError(f"round_mode is one of {', '.join(ROUND_MODES)}, not {round_mode!r}")
    return TensorType(x.shape, to)


@composite
def cast_many(*xs: Any, to: np.dtype) -> Any:
    """A tuple of `cast`s of several tensors to one type, as mixed precision makes them of all weights at once."""
    return tuple([cast(x, to=to) for x in xs])


@kernel(cast, bind=True)
def _(site: Site, out: Any, x: Any, *, to: np.dtype, saturate: bool, round_mode: str) -> Callable[[], Any]:
    operand = site.node.inputs[0]
    assert operand is not None
    source, to = operand.dtype, site.node.types[0].dtype
    narrow = (source in NARROW) + (to in NARROW)
    if source != to and narrow == 2 and site.xp is np:  # ml_dtypes has not every cast between its own types
        return functools.partial(_convert_bytes, np, out.view(np.uint8), x.view(np.uint8), source, to, saturate, round_mode)
    if source != to and narrow and site.xp is not np:
        return functools.partial(_convert_bytes, site.xp, out, x, source, to, saturate, round_mode)
    if source != to and to in dtypes.FLOAT8:
        return functools.partial(_convert_to_float8, out, x, to, saturate, round_mode)
    return functools.partial(site.xp.copyto, out, x, casting="unsafe")


def _convert_to_float8(out: Any, x: Any, to: np.dtype, saturate: bool, round_mode: str) -> None:
    if x.dtype not in dtypes.STANDARD_FLOAT:
        x = x.astype(np.float32)
    if to == dtypes.float8_e8m0fnu:
        out.view(np.uint8)[...] = encode(np, x.astype(np.float32), to, saturate, round_mode)
        return
    if saturate:
        largest = x.dtype.type(ml_dtypes.finfo(to).max)
        x = np.minimum(np.maximum(x, -largest), largest)
    np.copyto(out, x, casting="unsafe")


def _convert_bytes(xp: Any, out: Any, x: Any, source: np.dtype, to: np.dtype, saturate: bool, round_mode: str) -> None:
    """Narrow types held as bytes: the only way where the array module lacks them."""
    if source in NARROW:
        x = decode(xp, x, source)
    if to in dtypes.NARROW_FLOAT:
        out[...] = encode(xp, x.astype(xp.float32), to, saturate, round_mode)
    elif to in dtypes.NARROW_INTEGER:
        out[...] = x.astype(xp.int32) & ((1 << dtypes.bits(to)) - 1)
    else:
        xp.copyto(out, x, casting="unsafe")


def _viewed(x: Any, *, to: np.dtype) -> Any:
    return x.view(to if isinstance(x, np.ndarray) or to not in NARROW else np.uint8)


@op(view=_viewed)
def bit_cast(x: TensorType, *, to: np.dtype) -> TensorType:
    """The same bits under the element type `to`, which has as many. Any types but string. Source: ONNX BitCast-26."""
    to = np.dtype(to)
    if dtypes.string in (x.dtype, to) or dtypes.bits(x.dtype) != dtypes.bits(to):
        raise UnsupportedType(f"{x.dtype.name} and {to.name} differ in their number of bits")
    return TensorType(x.shape, to)
