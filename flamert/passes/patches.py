"""Convolutions whose windows lie side by side as matrix products of patches, which is all they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flamert import ops
from flamert.graph import Graph, Node, Value
from flamert.rewrite import rebuild

LEAST = 64
"""Elements of a patch from which a product beats a convolution."""


def multiply_patches(graph: Graph) -> Graph:
    """conv with strides as long as its kernel, and nothing else about it → matmul: the first layer of vision transformers."""
    return rebuild(graph, lambda node, inputs: _product(node, inputs) if node.op is ops.conv and _tiles(node) else None)


def _tiles(node: Node) -> bool:
    x, w = node.inputs[:2]
    attrs = node.attrs
    assert x is not None and w is not None
    plain = attrs["group"] == 1 and not any(attrs["pads"]) and set(attrs["dilations"]) == {1}
    side_by_side = tuple(attrs["strides"]) == w.shape[2:] and math.prod(w.shape[2:]) > 1
    whole = all(d % k == 0 for d, k in zip(x.shape[2:], w.shape[2:], strict=True))
    return plain and side_by_side and whole and math.prod(w.shape[1:]) >= LEAST and x.type.size > 0


def _product(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value]:
    x, w, bias = (*inputs, None)[:3]
    assert x is not None and w is not None
    n, kernel = x.rank - 2, w.shape[2:]
    windows = tuple(d // k for d, k in zip(x.shape[2:], kernel, strict=True))
    split = ops.reshape(x, shape=(*x.shape[:2], *[d for pair in zip(windows, kernel, strict=True) for d in pair]))
    perm = (0, *range(2, 2 + 2 * n, 2), 1, *range(3, 3 + 2 * n, 2))
    patches = ops.reshape(ops.transpose(split, perm=perm), shape=(x.shape[0], math.prod(windows), math.prod(w.shape[1:])))
    y = ops.matmul(patches, ops.transpose(ops.reshape(w, shape=(w.shape[0], math.prod(w.shape[1:]))), perm=(1, 0)))
    y = y if bias is None else y + bias
    y = ops.reshape(y, shape=(x.shape[0], *windows, w.shape[0]))
    return (ops.transpose(y, perm=(0, n + 1, *range(1, n + 1))),)
