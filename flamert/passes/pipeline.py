"""Which passes run, in which order. The passes themselves are one file each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from flamert import dtypes
from flamert import graph as g
from flamert.graph import Graph, Node, TensorType
from flamert.ops.cpu import pointwise as on_cpu
from flamert.passes.affine import fold_affine
from flamert.passes.autocast import autocast, widen
from flamert.passes.casts import cast_together
from flamert.passes.columns import fuse_columns
from flamert.passes.cross_entropy import losses_by_rows, narrow_losses, widen_losses
from flamert.passes.deduplicate import deduplicate
from flamert.passes.epilogue import fuse_epilogues
from flamert.passes.finish import finish_columns
from flamert.passes.fold import fold
from flamert.passes.gates import remake_gates
from flamert.passes.groups import open_groups
from flamert.passes.halves import halve_products
from flamert.passes.heads import lay_heads
from flamert.passes.keep import keep_columns
from flamert.passes.layers import merge_layers
from flamert.passes.layout import channels_last
from flamert.passes.moments import shift_moments
from flamert.passes.parts import join_parts, scatter_onto
from flamert.passes.patches import multiply_patches
from flamert.passes.patterns import recognise
from flamert.passes.pointwise import fuse_pointwise
from flamert.passes.products import (
    align_products,
    lay_weights,
    merge_products,
    scale_products,
    take_activations,
    take_biases,
    turn_products,
    widen_results,
)
from flamert.passes.remade import remake_rows
from flamert.passes.repeat import repeat_free
from flamert.passes.row_sums import sum_rows
from flamert.passes.row_views import views_first
from flamert.passes.rows import fuse_rows, open_rows
from flamert.passes.simplify import simplify
from flamert.passes.stored import stored
from flamert.passes.straighten import straighten
from flamert.passes.updates import without_updates
from flamert.passes.views import settle_views
from flamert.runtime.device import Device
from flamert.runtime.plan import decompose

Pass = Callable[[Graph], Graph]


class Passes(NamedTuple):
    """Passes in order, in groups: those between the first and the last have nothing to do with updates of state."""

    first: tuple[Pass, ...]
    between: tuple[Pass, ...]
    last: tuple[Pass, ...]


def inference(device: Device, cache: dict[Any, Any], precision: str | None = None) -> Passes:
    """The passes for inference on this device. cache: what is derived from one model's weights."""
    folding = partial(fold, cache=cache)
    half = HALVES.get(precision)
    first: tuple[Pass, ...] = (
        *([widen] if precision == "fp32" else []),
        folding,
        *([] if device.backend == "numpy" else [losses_by_rows]),
        partial(decompose, backend=device.backend, hot=True),
        simplify,
        deduplicate,
    )
    between: tuple[Pass, ...] = (
        partial(recognise, eligible=partial(_beats_its_parts, backend=device.backend, half=half)),
        fold_affine,
        folding,
        *([] if half is None else [partial(autocast, to=half, islands=False), folding]),
        *([] if device.backend == "numpy" else [multiply_patches, align_products, open_groups, shift_moments]),
        partial(channels_last, eligible=partial(_has_kernel, backend=device.backend)),
        folding,
        *(_around_products(device.backend)),
        simplify,
        turn_products,
        _epilogues(device.backend),
        *([] if device.backend == "numpy" else [take_biases, merge_products, _activations(device.backend)]),
        *([partial(halve_products, cache=cache, eligible=_elementwise("cupy"))] if device.allow_tf32 and half is None else []),
        *([] if device.backend == "numpy" else [widen_losses, widen_results]),
        *_reductions(device.backend),
    )
    last: tuple[Pass, ...] = (
        partial(fuse_pointwise, eligible=_elementwise(device.backend), together=True),
        folding,
        deduplicate,
        *([partial(lay_weights, cache=cache)] if device.allow_tf32 else []),
    )
    return Passes(first, between, last)


def prepare(
    graph: Graph, hot: bool, device: Device, cache: dict[Any, Any], precision: str | None = None, updates: int = 0
) -> Graph:
    """A graph as the importer made it → as the planner should see it. precision: one of `PRECISIONS`. updates: how many of the
    outputs, at their end, are what state becomes."""
    make = partial(_prepared, graph, device, cache, precision, updates)
    return stored(graph, make, device.signature, precision, updates) if device.tunes else make()


def _prepared(graph: Graph, device: Device, cache: dict[Any, Any], precision: str | None, updates: int) -> Graph:
    passes = inference(device, cache, precision)
    graph = applied(passes.first, graph)
    graph = without_updates(graph, updates, _elementwise(device.backend), partial(applied, passes.between))
    return applied(passes.last, graph)


def applied(passes: Iterable[Pass], graph: Graph) -> Graph:
    """What passes, one after another, make of a graph."""
    for apply in passes:
        graph = apply(graph)
    return graph


def lower(graph: Graph, to: np.dtype | None, device: Device, cache: dict[Any, Any]) -> Graph:
    """A forward graph made ready to be differentiated: in mixed precision where `to` is a half type, and for GPUs with the
    functions put together whose gradients are made of less than those of their parts, attention that has a kernel among them.
    """
    if to is None and device.backend != "cupy":
        return graph
    wanted = partial(_wanted, to=to) if device.backend == "cupy" else _never
    passes: list[Pass] = [partial(fold, cache=cache), simplify, deduplicate, partial(recognise, eligible=wanted)]
    if device.backend == "cupy":
        passes += [multiply_patches, align_products, straighten]
    if to is not None:
        passes.append(partial(autocast, to=to))
    if device.backend == "cupy":
        passes.append(merge_layers)
    for apply in passes:
        graph = apply(graph)
    return graph


WHOLE = frozenset({"gelu", "gelu_tanh", "swish", "softmax", "layer_norm", "group_norm"})
"""Functions whose gradients read their operand alone, where those of their parts keep one result after another."""


def _wanted(node: Node, to: np.dtype | None) -> bool:
    return node.op.name in WHOLE or _attended(node, to)


def _attended(node: Node, to: np.dtype | None) -> bool:
    """Whether this is attention of float32 that a kernel takes, as it is or once its operands are of the type `to`."""
    if node.op.name != "attention":
        return False
    from flamert.ops.cuda import attention, flash

    q, k, v, mask, lengths = (*[None if x is None else x.type for x in node.inputs], None, None)[:5]
    assert q is not None and k is not None and v is not None
    if q.dtype != dtypes.float32:
        return False
    return flash.takes(node, q, k, v, mask, lengths) if to is None else attention.takes(node, q, k, v, mask, lengths)


def _never(node: Node) -> bool:
    return False


HALVES: dict[str | None, np.dtype] = {"fp16": dtypes.float16, "bf16": dtypes.bfloat16}

PRECISIONS = (None, "fp32", *HALVES)
"""What inference computes in, by name. None: as the file has it."""

SLOW_REFERENCE = frozenset({"rotary_embedding", "group_norm"})
"""Ops whose reference kernel takes longer than the ops they can be made of."""

OPENED = frozenset({"group_norm"})
"""Ops that a later pass takes apart for GPUs, better than their exporters did."""


def _beats_its_parts(node: Node, backend: str, half: np.dtype | None = None) -> bool:
    """Whether an op is worth putting together: it has a kernel, and not just a slow one. half: what float32 will become."""
    if half is not None:
        inputs = [v and g.input(TensorType(v.shape, half if v.dtype == dtypes.float32 else v.dtype)) for v in node.inputs]
        types = [TensorType(t.shape, half if t.dtype == dtypes.float32 else t.dtype) for t in node.types]
        node = Node(node.op, tuple(inputs), node.attrs, tuple(types))
    if backend == "cupy" and node.op.name in OPENED:
        return True
    kernel = node.op.kernel_for(node, backend, hot=True)
    return kernel is not None and (kernel.backend is not None or node.op.name not in SLOW_REFERENCE)


def _has_kernel(node: Node, backend: str) -> bool:
    """Whether a composite has a kernel of its own; its body would undo what the pass is about to do."""
    return node.op.kernel_for(node, backend) is not None


def _epilogues(backend: str) -> Pass:
    """On a GPU, convolutions take what cuDNN does in the same launch; the rest is fused with more than it could be there."""
    eligible = partial(_has_kernel, backend=backend)
    if backend == "numpy":
        return partial(fuse_epilogues, eligible=eligible)
    from flamert.ops.cuda.conv import in_one_launch

    return partial(fuse_epilogues, eligible=eligible, accepted=in_one_launch)


def _activations(backend: str) -> Pass:
    """What products with biases end with."""
    return partial(take_activations, eligible=partial(_has_kernel, backend=backend))


def _has_kernel_of_its_own(node: Node, backend: str) -> bool:
    """Whether it has a kernel that was written for this backend."""
    found = node.op.kernel_for(node, backend)
    return found is not None and found.backend is not None


def _around_products(backend: str) -> tuple[Pass, ...]:
    """What becomes of views and casts around matrix products on a GPU."""
    if backend == "numpy":
        return ()
    own = partial(_has_kernel_of_its_own, backend=backend)
    settled = settle_views, join_parts, scatter_onto, narrow_losses
    return scale_products, straighten, partial(lay_heads, eligible=own), *settled, straighten


def _elementwise(backend: str) -> Callable[[Node], bool]:
    """Which nodes can be part of a chain."""
    if backend == "numpy":
        return on_cpu.elementwise
    from flamert.ops.cuda import pointwise as on_gpu

    return on_gpu.elementwise


def _reductions(backend: str) -> tuple[Pass, ...]:
    """What becomes of reductions on a GPU, and of elementwise ops among them."""
    if backend == "numpy":
        return ()
    from flamert.ops.cuda import columns, rows

    eligible = _elementwise(backend)
    return (
        partial(views_first, eligible=eligible),
        open_rows,
        simplify,
        deduplicate,
        partial(fuse_rows, eligible=eligible, fits=rows.fits),
        partial(sum_rows, eligible=eligible, fits=rows.fits),
        partial(remake_rows, fits=rows.fits),
        cast_together,
        partial(remake_gates, eligible=eligible),
        partial(repeat_free, eligible=eligible),
        partial(fuse_columns, eligible=eligible, fits=columns.fits),
        partial(keep_columns, eligible=eligible, fits=columns.fits),
        partial(finish_columns, eligible=eligible, fits=columns.fits),
    )
