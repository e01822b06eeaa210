"""How much memory a graph's results take at a time, and how long a node takes: estimates that passes decide by."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Sequence

from flamert.graph import CONSTANT, INPUT, Node, Value

BANDWIDTH, ARITHMETIC = 3e12, 3e14
"""Bytes and operations a second. Their ratio counts, and only roughly: that of a GPU's halves, or of a CPU's floats."""

Named = tuple[Value, bool]
"""A result, or that of its node's copy."""

Copied = Callable[[Node, Value, bool], bool]
"""(node, operand, whether the node is a copy) → whether it reads the operand's copy."""


class Trace:
    """An order of nodes, copies among them, as far as memory is concerned.

    elsewhere: results that take none here. kept: results that are there at the end. scratch: bytes that a node takes while it
    runs, besides. Views lie in their operands; an op that works in place takes the place of an operand that it is the last to
    read.
    """

    def __init__(self, elsewhere: Collection[Value], kept: Collection[Value], scratch: Callable[[Node], int]) -> None:
        self.elsewhere, self.kept, self.scratch = elsewhere, kept, functools.cache(scratch)

    def peak(self, order: Iterable[tuple[Node, bool]], copied: Copied) -> int:
        """The most bytes that results take at a time. order: (node, whether it is a copy)."""
        steps = [(node, copy) for node, copy in order if node.op is not CONSTANT]
        reads = self._reads(steps, copied)
        last = {named: time for time, read in enumerate(reads) for named in read}
        for v in self.kept:
            last[self._root.get((v, False), (v, False))] = len(steps)
        now = sum(self._size(v) for node, _ in steps if node.op is INPUT for v in node.outputs)
        most = now
        for time, ((node, copy), read) in enumerate(zip(steps, reads, strict=True)):
            if node.op is INPUT:
                continue
            made = [(v, copy) for v in node.outputs if (v, copy) not in self._root]
            size = sum(self._size(v) for v, _ in made)
            ending = {n for n in read if last[n] == time and n[0].node.op is not INPUT}
            ended = sum(self._size(v) for v, _ in ending)
            taken = len(made) == 1 and any(read[i] in ending and read[i][0].type == node.types[0] for i in self._places(node))
            most = max(most, now + (0 if taken else size) + self.scratch(node))
            now += size - ended - sum(self._size(v) for v, c in made if (v, c) not in last)
        return most

    def _reads(self, steps: Sequence[tuple[Node, bool]], copied: Copied) -> list[list[Named]]:
        """What each step reads, views as what they lie in."""
        self._root: dict[Named, Named] = {}
        reads = []
        for node, copy in steps:
            named = [(v, copied(node, v, copy)) for v in node.inputs if v is not None and v.node.op is not CONSTANT]
            read = [self._root.get(n, n) for n in named]
            if node.op is not INPUT and node.op.view is not None and read:
                self._root[node.outputs[0], copy] = read[0]
            reads.append(read)
        return reads

    @staticmethod
    def _places(node: Node) -> list[int]:
        """Numbers, among operands that are no constants, of those whose place the result may take."""
        there = [i for i, v in enumerate(node.inputs) if v is not None and v.node.op is not CONSTANT]
        return [k for k, i in enumerate(there) if i in node.op.inplace]

    def _size(self, value: Value) -> int:
        return 0 if value in self.elsewhere else value.type.nbytes


def seconds(node: Node) -> float:
    """About how long a node takes."""
    operands = [v for v in node.inputs if v is not None]
    moved = sum(v.type.nbytes for v in operands) + sum(t.nbytes for t in node.types)
    name, out = node.op.name, node.types[0]
    operations = 0
    if name in ("matmul", "linear", "gemm"):
        operations = 2 * out.size * (operands[0].shape[0] if node.attrs.get("trans_a") else operands[0].shape[-1])
    elif name.startswith("conv"):
        operations = 2 * out.size * operands[1].type.size // max(1, min(operands[1].shape[0], operands[1].shape[-1]))
    elif name.startswith("attention"):
        operations = 4 * operands[0].type.size * max(operands[1].shape[1:3])
    return moved / BANDWIDTH + operations / ARITHMETIC if node.op.view is None else 0.0
