"""Which passes run, in which order. The passes themselves are one file each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from flamert.graph import Graph, Node
from flamert.ops.cpu.pointwise import elementwise
from flamert.ops.fused import conv_channels_last, linear, to_channels_last
from flamert.passes.affine import fold_affine
from flamert.passes.deduplicate import deduplicate
from flamert.passes.epilogue import fuse_epilogues
from flamert.passes.fold import fold
from flamert.passes.layout import channels_last
from flamert.passes.pointwise import fuse_pointwise
from flamert.passes.simplify import simplify
from flamert.runtime.device import Device

Pass = Callable[[Graph], Graph]


def inference(device: Device, cache: dict[Any, Any]) -> tuple[Pass, ...]:
    """The passes for inference on this device, in order. cache: what is derived from one model's weights."""
    folding = partial(fold, cache=cache)
    return (
        folding,
        simplify,
        deduplicate,
        fold_affine,
        folding,
        partial(channels_last, eligible=partial(_has_channels_last_kernel, backend=device.backend)),
        folding,
        simplify,
        partial(fuse_epilogues, eligible=partial(_has_linear_kernel, backend=device.backend)),
        partial(fuse_pointwise, eligible=elementwise if device.backend == "numpy" else _never),
        folding,
        deduplicate,
    )


def prepare(graph: Graph, hot: bool, device: Device, cache: dict[Any, Any]) -> Graph:
    """A graph as the importer made it → as the planner should see it, for inference."""
    for apply in inference(device, cache):
        graph = apply(graph)
    return graph


def _has_channels_last_kernel(node: Node, backend: str) -> bool:
    """Whether this convolution has a kernel of its own with channels last (its body would only transpose to and fro)."""
    x, w, b = (*node.inputs, None)[:3]
    assert x is not None
    trial = conv_channels_last.node((to_channels_last(x), w, b), node.attrs)
    return conv_channels_last.kernel_for(trial, backend) is not None


def _has_linear_kernel(node: Node, backend: str) -> bool:
    return linear.kernel_for(linear.node(node.inputs, {}), backend) is not None


def _never(node: Node) -> bool:
    """No chains where no kernel runs them."""
    return False
