"""What a plan is made of: pieces of memory, places in them, and kernel calls over these."""

from __future__ import annotations

from typing import Any, NamedTuple

from flamert.graph import Node, TensorType
from flamert.ops.op import Kernel


class Storage:
    """A piece of memory that one or more Values live in: an arena buffer, or an array: state, or a constant."""

    __slots__ = ("array", "constant", "end", "start", "type")

    def __init__(self, type: TensorType, start: int, array: Any = None, constant: bool = False) -> None:
        self.type, self.start, self.end, self.array, self.constant = type, start, start, array, constant


class Place(NamedTuple):
    """A Value's part of a storage: byte offset and strides (None: contiguous)."""

    storage: Storage
    offset: int
    strides: tuple[int, ...] | None


class Step(NamedTuple):
    """One kernel call: where its operands and results lie, and scratch memory."""

    node: Node
    kernel: Kernel
    inputs: tuple[tuple[TensorType, Place] | None, ...]
    outputs: tuple[tuple[TensorType, Place], ...]
    work: tuple[tuple[TensorType, Place], ...]
