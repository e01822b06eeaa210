"""Which passes run, in which order. The passes themselves are one file each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.graph import Graph, Node
from flamert.ops.cpu import pointwise as on_cpu
from flamert.passes.affine import fold_affine
from flamert.passes.autocast import autocast, widen
from flamert.passes.deduplicate import deduplicate
from flamert.passes.epilogue import fuse_epilogues
from flamert.passes.fold import fold
from flamert.passes.layout import channels_last
from flamert.passes.patterns import recognise
from flamert.passes.pointwise import fuse_pointwise
from flamert.passes.products import turn_products
from flamert.passes.rows import fuse_rows, open_rows
from flamert.passes.simplify import simplify
from flamert.runtime.device import Device
from flamert.runtime.plan import decompose

Pass = Callable[[Graph], Graph]


def inference(device: Device, cache: dict[Any, Any]) -> tuple[Pass, ...]:
    """The passes for inference on this device, in order. cache: what is derived from one model's weights."""
    folding = partial(fold, cache=cache)
    return (
        folding,
        partial(decompose, backend=device.backend, hot=True),
        simplify,
        deduplicate,
        partial(recognise, eligible=partial(_beats_its_parts, backend=device.backend)),
        fold_affine,
        folding,
        partial(channels_last, eligible=partial(_has_kernel, backend=device.backend)),
        folding,
        simplify,
        turn_products,
        partial(fuse_epilogues, eligible=partial(_has_kernel, backend=device.backend)),
        *_fusion(device.backend),
        folding,
        deduplicate,
    )


def prepare(graph: Graph, hot: bool, device: Device, cache: dict[Any, Any]) -> Graph:
    """A graph as the importer made it → as the planner should see it, for inference."""
    for apply in inference(device, cache):
        graph = apply(graph)
    return graph


def lower(graph: Graph, to: np.dtype, device: Device, cache: dict[Any, Any]) -> Graph:
    """A forward graph in mixed precision, ready to be differentiated: with attention put together where a kernel of that type
    has it, backward too."""
    wanted = partial(_flash, to=to) if device.backend == "cupy" else _never
    for apply in (
        partial(fold, cache=cache),
        simplify,
        deduplicate,
        partial(recognise, eligible=wanted),
        partial(autocast, to=to),
    ):
        graph = apply(graph)
    return graph


def _flash(node: Node, to: np.dtype) -> bool:
    """Whether this is attention that a kernel takes once its operands are of the type `to`."""
    if node.op.name != "attention" or any(v is not None and v.dtype != dtypes.float32 for v in node.inputs):
        return False
    from flamert.ops.cuda.attention import flash

    q, k, v, mask, lengths = (*[None if x is None else x.type for x in node.inputs], None, None)[:5]
    assert q is not None and k is not None and v is not None
    return flash(node, q, k, v, mask, lengths)


def _never(node: Node) -> bool:
    return False


PRECISIONS: dict[str | None, Pass] = {
    None: lambda graph: graph,
    "fp32": widen,
    "fp16": partial(autocast, to=dtypes.float16, islands=False),
    "bf16": partial(autocast, to=dtypes.bfloat16, islands=False),
}
"""What inference computes in, by name: what becomes of a graph before all other passes."""

SLOW_REFERENCE = frozenset({"rotary_embedding"})
"""Ops whose reference kernel takes longer than the ops they can be made of."""


def _beats_its_parts(node: Node, backend: str) -> bool:
    """Whether an op is worth putting together: it has a kernel, and not just a slow one."""
    kernel = node.op.kernel_for(node, backend, hot=True)
    return kernel is not None and (kernel.backend is not None or node.op.name not in SLOW_REFERENCE)


def _has_kernel(node: Node, backend: str) -> bool:
    """Whether a composite has a kernel of its own; its body would undo what the pass is about to do."""
    return node.op.kernel_for(node, backend) is not None


def _fusion(backend: str) -> tuple[Pass, ...]:
    """What becomes of elementwise ops, and on a GPU of reductions among them."""
    if backend == "numpy":
        return (partial(fuse_pointwise, eligible=on_cpu.elementwise, together=True),)
    from flamert.ops.cuda import pointwise as on_gpu
    from flamert.ops.cuda import rows

    return (
        open_rows,
        deduplicate,
        partial(fuse_rows, eligible=on_gpu.elementwise, fits=rows.fits),
        partial(fuse_pointwise, eligible=on_gpu.elementwise, together=True),
    )
