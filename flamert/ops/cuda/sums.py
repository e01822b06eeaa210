"""Products on the GPU with sums of what they read: in one launch where cuBLASLt has one that is faster than two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flamert import dtypes
from flamert.errors import DeviceError
from flamert.graph import Node, TensorType
from flamert.ops.cuda.copy import copier
from flamert.ops.cuda.emit_reduce import Layout, laid
from flamert.ops.cuda.linear import ALIGNMENT, Way, fastest_way, multipliable, product_of, scratch, suits
from flamert.ops.cuda.reduce import reduction
from flamert.ops.fused import product_and_sums
from flamert.ops.op import Site, kernel


def _suits(node: Node) -> bool:
    """Halves only: nothing is promised of float32 that is rounded to TF32 before it is added up."""
    return node.types[0].dtype in dtypes.HALF and node.types[1].size <= 65535 and suits(node)


def _layout(node: Node, innermost: bool) -> Layout:
    """How the sums are made. innermost: whether what is added up lies next to each other."""
    kept, side = node.types[1].size, node.attrs["side"]
    x = node.inputs[side]
    assert x is not None
    return (
        laid(kept, x.shape[1 - side], 1, x.dtype.itemsize) if innermost else laid(1, x.shape[1 - side], kept, x.dtype.itemsize)
    )


def _workspace(node: Node) -> tuple[TensorType, ...]:
    parts = [layout.outer * layout.splits * layout.inner for layout in (_layout(node, True), _layout(node, False))]
    return (*scratch(node), TensorType((max(parts),), dtypes.float32))


@kernel(product_and_sums, "cupy", when=_suits, bind=True, workspace=_workspace, hot=True)
def _(site: Site, out: tuple[Any, Any], a: Any, b: Any, *, side: int) -> Callable[[], None]:
    y, line = out
    copies: list[Callable[[], Any]] = []
    a, b = operands = tuple([multipliable(m, site.xp, copies) for m in (a, b)])
    apart = product_of(a, b, 1, y.dtype, site.device)
    ways = [Way.of(site, apart, operands, y, (*copies, *_sums(site, operands[side], line)))]
    if site.device.deterministic:
        return ways[0].run
    if line.data.ptr % ALIGNMENT == 0:
        try:
            together = product_of(a, b, 1, y.dtype, site.device, sums=(side, line))
        except DeviceError:  # there is none for these operands
            return ways[0].run
        ways.append(Way.of(site, together, operands, y, copies))
    return fastest_way(ways)


def _sums(site: Site, x: Any, line: Any) -> list[Callable[[], Any]]:
    """The launches that make them on their own."""
    side, before = site.node.attrs["side"], list[Callable[[], Any]]()
    columns = x.T if side == 0 else x  # what is added up comes first
    if not columns.flags.c_contiguous and not columns.T.flags.c_contiguous:
        dense = site.xp.empty(columns.shape, columns.dtype)
        before.append(copier(dense, columns))
        columns = dense
    innermost = not columns.flags.c_contiguous
    layout, types = _layout(site.node, innermost), (site.node.types[1].dtype,) * 2
    parts = site.work[1] if layout.splits > 1 else None
    return [*before, reduction("reduce_sum", layout, types, site.xp, columns.T if innermost else columns, line, parts)]
