"""Which passes run, in which order. The passes themselves are one file each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from flamert.graph import Graph, Node
from flamert.ops.cpu.pointwise import elementwise
from flamert.passes.affine import fold_affine
from flamert.passes.deduplicate import deduplicate
from flamert.passes.epilogue import fuse_epilogues
from flamert.passes.fold import fold
from flamert.passes.layout import channels_last
from flamert.passes.patterns import recognise
from flamert.passes.pointwise import fuse_pointwise
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
        partial(fuse_epilogues, eligible=partial(_has_kernel, backend=device.backend)),
        partial(fuse_pointwise, eligible=elementwise if device.backend == "numpy" else _never),
        folding,
        deduplicate,
    )


def prepare(graph: Graph, hot: bool, device: Device, cache: dict[Any, Any]) -> Graph:
    """A graph as the importer made it → as the planner should see it, for inference."""
    for apply in inference(device, cache):
        graph = apply(graph)
    return graph


SLOW_REFERENCE = frozenset({"rotary_embedding"})
"""Ops whose reference kernel takes longer than the ops they can be made of."""


def _beats_its_parts(node: Node, backend: str) -> bool:
    """Whether an op is worth putting together: it has a kernel, and not just a slow one."""
    kernel = node.op.kernel_for(node, backend, hot=True)
    return kernel is not None and (kernel.backend is not None or node.op.name not in SLOW_REFERENCE)


def _has_kernel(node: Node, backend: str) -> bool:
    """Whether a composite has a kernel of its own; its body would undo what the pass is about to do."""
    return node.op.kernel_for(node, backend) is not None


def _never(node: Node) -> bool:
    """No chains where no kernel runs them."""
    return False
