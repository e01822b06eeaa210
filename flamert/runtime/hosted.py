"""What a GPU's array module cannot compute runs on the host: reference kernels between two copies. Correct and slow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flamert.graph import Node
from flamert.ops.evaluate import apply
from flamert.ops.op import Kernel, Site
from flamert.runtime.device import Device, storage


def needs_host(node: Node, kernel: Kernel | None) -> bool:
    """Whether a node that meets only array-module kernels uses element types that the GPU's array module lacks.

    Ops that only move elements work on their bit patterns all the same.
    """
    if kernel is not None and (kernel.backend is not None or kernel.host):
        return kernel.host
    types = [*node.types, *[v.type for v in node.inputs if v is not None]]
    return not node.op.moves and any(storage(t.dtype) != t.dtype for t in types)


def hosted(device: Device) -> Kernel:
    """The reference kernel of any node, on copies in host memory. It cannot be captured."""

    def bind(site: Site, out: Any, *inputs: Any, **attrs: Any) -> Callable[[], None]:
        node = site.node
        outs = out if isinstance(out, tuple) else (out,)
        types = [None if v is None else v.dtype for v in node.inputs]

        def run() -> None:
            arrays = [
                None if x is None or dtype is None else device.download(x, dtype)
                for x, dtype in zip(inputs, types, strict=True)
            ]
            for to, result in zip(outs, apply(node, arrays), strict=True):
                to[...] = device.upload(np.ascontiguousarray(result).reshape(result.shape))

        return run

    return Kernel(None, bind, bind=True, host=True)  # type: ignore[arg-type]
