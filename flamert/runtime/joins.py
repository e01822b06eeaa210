"""What is made straight into the place that it will have in a concatenation: which values, and where there they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from flamert.graph import CONSTANT, INPUT, Graph, Node, Value, uses
from flamert.ops.op import Kernel
from flamert.ops.shape import concat, reshape, transpose

WIDE = 16
"""Bytes on multiples of which parts begin, as kernels with wide accesses want it."""


class Part(NamedTuple):
    """A value's place in a concatenation. lies: an array of its shape and strides there, which holds nothing."""

    whole: Node
    lies: np.ndarray
    offset: int

    def holds(self, offset: int, strides: tuple[int, ...] | None) -> bool:
        """Whether an array of this shape that lies so in the concatenation lies here."""
        if strides is None or self.strides is None:
            return offset == self.offset and strides == self.strides
        steps = zip(self.lies.strides, strides, self.lies.shape, strict=True)
        return offset == self.offset and all(a == b for a, b, d in steps if d > 1)

    @property
    def strides(self) -> tuple[int, ...] | None:
        """None where it is in one piece."""
        return None if self.lies.flags.c_contiguous else self.lies.strides

    def takes(self, node: Node, kernel: Kernel) -> bool:
        """Whether this kernel can make the node's result here: in one piece, or dense along its last axis, and wherever wide
        accesses may begin.
        """
        if not self.lies.ndim or self.offset % WIDE:
            return False
        if self.strides is None and node.op.view is None:
            return True
        if not kernel.strided:
            return False
        *outer, (length, last) = zip(self.lies.shape, self.lies.strides, strict=True)
        if (length > 1 and last != self.lies.itemsize) or any(d > 1 and s % WIDE for d, s in outer):
            return False
        if node.op.view is None:
            return True
        x = node.inputs[0]
        assert x is not None
        try:  # a copy writes in the order of its operand
            self.lies.reshape(x.shape, copy=False)
        except ValueError:
            return False
        return True


def parts_of(graph: Graph, donated: Mapping[Value, Any]) -> dict[Value, Part]:
    """The values that can be made in the place of a concatenation's operand: the operand, and what it is views of.

    Nobody else may read them, since not everybody reads what does not lie in one piece.
    """
    found: dict[Value, Part] = {}
    count: dict[Value, int] = {}
    for node in graph.nodes:
        if node.op is not concat or node.outputs[0] in donated or node.outputs[0] in graph.outputs or not node.types[0].size:
            continue
        count = count or uses(graph)
        for v, part in parts(node):
            _back(v, part, count, found)
    return found


def parts(node: Node) -> Iterator[tuple[Value, Part]]:
    """Each operand of a concatenation that is not empty, and its place there."""
    whole, axis, at = np.empty(node.types[0].shape, node.types[0].dtype), node.attrs["axis"], 0
    for v in node.inputs:
        assert v is not None
        lies = np.moveaxis(np.moveaxis(whole, axis, 0)[at : at + v.shape[axis]], 0, axis)
        at += v.shape[axis]
        if v.type.size:
            yield v, Part(node, lies, _address(lies) - _address(whole))


def _address(x: np.ndarray) -> int:
    return x.__array_interface__["data"][0]


def _back(v: Value, part: Part, count: Mapping[Value, int], found: dict[Value, Part]) -> None:
    """Note where v lies, and what it is a view of, as far as the views can be undone."""
    while count[v] == 1 and v.node.op not in (INPUT, CONSTANT):
        found[v] = part
        x = v.node.inputs[0] if v.node.op in (reshape, transpose) else None
        if x is None:
            return
        if v.node.op is transpose:
            lies = part.lies.transpose(np.argsort(v.node.attrs["perm"]))
        else:
            try:
                lies = part.lies.reshape(x.shape, copy=False)
            except ValueError:
                return
        v, part = x, part._replace(lies=lies)
