"""What converters of sliding-window ops share: `auto_pad`, absent attributes and `ceil_mode` turned into explicit numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flamert.errors import InvalidModel, ShapeError
from flamert.ops.windows import check_windows, extent


class Geometry(NamedTuple):
    """Attributes of windows as ops take them: one number per spatial axis, pads as all begins then all ends."""

    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]


def geometry(
    spatial: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    pads: Sequence[int] | None,
    dilations: Sequence[int] | None,
    auto_pad: str = "NOTSET",
) -> Geometry:
    """Fill in what a node leaves out. SAME_*: ⌈d / stride⌉ windows; the larger half of the padding goes last or first."""
    n = len(spatial)
    strides, dilations = tuple(strides or [1] * n), tuple(dilations or [1] * n)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        check_windows(n, kernel, strides, [0] * 2 * n, dilations)
        reach = extent(kernel, dilations)
        total = [max((-(-d // s) - 1) * s + e - d, 0) for d, s, e in zip(spatial, strides, reach, strict=True)]
        pads = split(total, auto_pad)
    elif auto_pad == "VALID":
        pads = (0,) * 2 * n
    elif auto_pad not in ("NOTSET", ""):
        raise InvalidModel(f"auto_pad {auto_pad!r} is none of NOTSET, VALID, SAME_UPPER, SAME_LOWER")
    return Geometry(strides, tuple(pads or [0] * 2 * n), dilations)


def split(total: Sequence[int], auto_pad: str) -> tuple[int, ...]:
    """Paddings as begins and ends: half each, the larger half last for SAME_UPPER, else first; negative ones are all ends."""
    begins = [max(t // 2 if auto_pad == "SAME_UPPER" else -(-t // 2), 0) for t in total]
    return (*begins, *[t - b for t, b in zip(total, begins, strict=True)])


def ceil_pads(spatial: Sequence[int], kernel: Sequence[int], windows: Geometry) -> tuple[int, ...]:
    """The pads with which a last, incomplete window counts too, unless it would start in the padding at the end."""
    n = len(spatial)
    ends = []
    for i, (d, e) in enumerate(zip(spatial, extent(kernel, windows.dilations), strict=True)):
        begin, end, stride = windows.pads[i], windows.pads[n + i], windows.strides[i]
        count = -((e - d - begin - end) // stride) + 1
        if (count - 1) * stride >= d + begin:
            count -= 1
        floor = (d + begin + end - e) // stride + 1
        ends.append(end if count == floor else (count - 1) * stride + e - d - begin)
    return (*windows.pads[:n], *ends)


def check_kernel(attribute: Sequence[int] | None, kernel: Sequence[int]) -> None:
    """Raise ShapeError where the attribute `kernel_shape` contradicts the weights."""
    if attribute and tuple(attribute) != tuple(kernel):
        raise ShapeError(f"kernel_shape {list(attribute)} contradicts weights with a kernel of {list(kernel)}")
