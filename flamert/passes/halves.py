"""Products of float32 whose operands may be rounded to TF32 anyway, made of halves where these have the range for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from flamert import ops
from flamert.dtypes import float16, float32
from flamert.graph import Graph, Node, Value, constant
from flamert.ops.folding import Folding
from flamert.passes.bounds import bounds_of, known_bound
from flamert.rewrite import rebuild

TOP = 15
"""Operands are scaled to stay below two to the power of this, half of what float16 can hold."""

EVEN = 8
"""Elements that rows of halves must be a multiple of to be read 16 bytes at a time."""

NORMS = frozenset({"layer_norm", "rms_norm"})


def halve_products(graph: Graph, cache: dict[Any, Any], eligible: Callable[[Node], bool]) -> Graph:
    """a · b + bias → (a·2ⁱ in float16) · (b·2ʲ in float16) · 2⁻ⁱ⁻ʲ + bias, for constant b and an a that is bounded.

    float16 has TF32's ten bits behind the point, and is twice as fast and half as large; what it lacks is range. A norm's
    result is bounded by its scale, a product of that by its matrix, and an activation by its operand: multiplied by a power of
    two, which loses nothing, such values end below 2¹⁵, and lose bits only where they are 2²⁹ times smaller than their bound.
    Products of halves are exact in float32, which they are added up in, as with TF32. a must come from a norm or an elementwise
    op (eligible), whose kernel then writes the half. cache: as for `fold`.
    """
    if not any(map(_suits, graph.nodes)):
        return graph
    folding, keys, bounds = cache.setdefault(Folding, Folding()), dict[Node, Hashable](), bounds_of(graph)

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if not _suits(node) or not _is_made(node.inputs[0], eligible):
            return None
        a, b, bias = (*inputs, None)[:3]
        x, w = node.inputs[:2]
        assert a is not None and b is not None and x is not None and w is not None
        if x not in bounds:
            return None
        most = bounds[x].most, known_bound(w).most
        if not all(0 < m < math.inf for m in most):
            return None
        i, j = (TOP - math.frexp(m)[1] for m in most)
        left, right = (ops.cast(v * math.ldexp(1.0, power), to=float16) for v, power in ((a, i), (b, j)))
        right = constant(folding.array(right, keys))
        return (ops.wide_matmul(left, right, bias, to=float32, scale=math.ldexp(1.0, -i - j)),)

    return rebuild(graph, rule)


def _suits(node: Node) -> bool:
    """Whether this is a product of float32 with a known matrix, and no more than a bias, that halves would be read fast for."""
    if node.op not in (ops.matmul, ops.linear) or node.types[0].dtype != float32 or len(node.inputs) > 3:
        return False
    a, b = node.inputs[:2]
    assert a is not None and b is not None
    even = b.rank == 2 and not any(d % EVEN for d in b.shape)
    return even and a.rank > 1 and b.node.known and not a.node.known and not node.attrs.get("activation")


def _is_made(x: Value | None, eligible: Callable[[Node], bool]) -> bool:
    """Whether a kernel makes it, as it is or seen another way, that can make something else of it besides."""
    while x is not None and x.node.op is ops.reshape:
        x = x.node.inputs[0]
    return x is not None and (x.node.op.name in NORMS or eligible(x.node))
