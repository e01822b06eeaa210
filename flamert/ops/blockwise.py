"""Kernels that make several passes over one floating operand: block by block on the CPU, so that the passes stay in cache.

Half types are widened to float32 on the way in and rounded once on the way out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.graph import Node, TensorType
from flamert.ops.op import Op, Site, kernel

BLOCK = 1 << 14
"""Elements per block: result, operand and a temporary in float32 fill 192 KiB, which a core's second-level cache holds."""

Steps = Callable[..., None]


def blockwise(target: Op) -> Callable[[Steps], Steps]:
    """Register `steps(xp, y, x, **attrs)` as the kernel of an op on one operand.

    y, x: arrays of one shape, float32 or float64, that share no memory. The steps fill y, which may hold what they like
    meanwhile, and leave x alone.
    """

    def register(steps: Steps) -> Steps:
        @kernel(target, bind=True, contiguous=True, workspace=_scratch)
        def bound(site: Site, out: Any, x: Any, **attrs: Any) -> Callable[[], Any]:
            if site.xp is np:
                return _in_blocks(steps, site, out.reshape(-1), x.reshape(-1), attrs)
            return lambda: _whole(steps, site, out, x, attrs)

        return steps

    return register


def _scratch(node: Node) -> list[TensorType]:
    """One block for the operand and one for the result, in the type they are computed in."""
    block = TensorType((min(node.types[0].size, BLOCK),), dtypes.accumulator(node.types[0].dtype))
    return [block, block]


def _in_blocks(steps: Steps, site: Site, out: Any, x: Any, attrs: dict[str, Any]) -> Callable[[], Any]:
    wide_x, wide_y = site.work
    narrow = wide_x.dtype != out.dtype
    copied = narrow or np.may_share_memory(out, x)
    blocks = []
    for start in range(0, out.size, BLOCK):
        y, source = out[start : start + BLOCK], x[start : start + BLOCK]
        operand = wide_x[: y.size] if copied else source
        blocks.append((y, source, wide_y[: y.size] if narrow else y, operand))

    def run() -> None:
        for y, source, result, operand in blocks:
            if copied:
                operand[...] = source
            steps(np, result, operand, **attrs)
            if narrow:
                y[...] = result

    return run


def _whole(steps: Steps, site: Site, out: Any, x: Any, attrs: dict[str, Any]) -> None:
    """All at once, as a GPU likes it; the operand is copied, since the result may lie in its place."""
    operand = x.astype(site.work[0].dtype)
    result = out if operand.dtype == out.dtype else site.xp.empty_like(operand)
    steps(site.xp, result, operand, **attrs)
    if result is not out:
        out[...] = result
