"""How ops on sizes carry the batch's: Shape → Gather → Concat and the like, and what is filled to such a size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from flamert.importers.batch.lifting import Batch, Dims, Lifting, Sizes, State
from flamert.importers.batch.rules import only, sized

# -- sizes that grow with the batch -----------------------------------------------------------------------------------


def _sizes(lifting: Lifting, node: NodeProto, i: int) -> list[Sizes | None]:
    state = lifting.state(node, i)
    if isinstance(state, Dims):
        return list(state.factors)
    return [None] * math.prod(lifting.shapes(node, node.input[i])[0])


@sized("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape")
def _same_sizes(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0)
    return [Dims(tuple(_sizes(lifting, node, 0)))]


@sized("Gather")
def _picked(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0)
    factors = _sizes(lifting, node, 0)
    return [Dims(tuple([factors[i] for i in lifting.constant(node, 1) or ()]))]


@sized("Slice")
def _cut(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0)
    factors = _sizes(lifting, node, 0)
    if len(node.input) > 1:
        start, end, step = ((lifting.constant(node, i) or [1])[0] for i in (1, 2, 4))
    else:
        (start,), (end,), step = lifting.attribute(node, "starts"), lifting.attribute(node, "ends"), 1
    return [Dims(tuple(factors[start:end:step]))]


@sized("Concat")
def _put_together(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    return [Dims(tuple([f for i in range(len(node.input)) for f in _sizes(lifting, node, i)]))]


@sized("Mul")
def _multiplied(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    length = math.prod(lifting.shapes(node, node.output[0])[0])
    parts = [_sizes(lifting, node, i) for i in (0, 1)]
    spread = [p * length if len(p) == 1 else p for p in parts]
    if any(a is not None and b is not None for a, b in zip(*spread, strict=True)):
        raise lifting.refusal(node, "it multiplies the size of the batch with itself")
    return [_grown(lifting, node, [a is not None or b is not None for a, b in zip(*spread, strict=True)])]


@sized("Div")
def _divided(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0)
    a, b = (lifting.contents(node, i) for i in (0, 1))
    assert a is not None and b is not None
    if any((np.asarray(x) % np.asarray(y)).any() for x, y in zip(a, b, strict=True)):
        raise lifting.refusal(node, "it rounds the size of the batch")
    length = math.prod(lifting.shapes(node, node.output[0])[0])
    factors = _sizes(lifting, node, 0)
    factors = factors * length if len(factors) == 1 else factors
    return [_grown(lifting, node, [f is not None for f in factors])]


def _grown(lifting: Lifting, node: NodeProto, grow: Sequence[bool]) -> Dims:
    """Sizes that the node computes, of which some grow in proportion to the batch."""
    found = [sample[node.output[0]] for sample in lifting.samples]
    arrays = [np.asarray(v.constant).reshape(-1) for v in found]
    return Dims(tuple([tuple([int(a[i]) for a in arrays]) if g else None for i, g in enumerate(grow)]))


@sized("Equal")
def _compared(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    """No size is −1 (or 0), whatever the batch."""
    length = math.prod(lifting.shapes(node, node.output[0])[0])
    parts = [p * length if len(p) == 1 else p for p in (_sizes(lifting, node, i) for i in (0, 1))]
    values = [lifting.contents(node, i) for i in (0, 1)]
    for mine, others in (0, 1), (1, 0):
        for i, f in enumerate(parts[mine]):
            other = [np.broadcast_to(np.asarray(a).reshape(-1), length)[i] for a in values[others] or ()]
            if f is not None and (parts[others][i] is not None or any(n > 0 for n in other)):
                raise lifting.refusal(node, "it asks how large the batch is")
    return [None]


@sized("Where")
def _chosen(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 1, 2)
    conditions = lifting.contents(node, 0) or []
    length = math.prod(lifting.shapes(node, node.output[0])[0])
    parts = [p * length if len(p) == 1 else p for p in (_sizes(lifting, node, i) for i in (1, 2))]
    truths = [np.broadcast_to(np.asarray(c).reshape(-1), length) for c in conditions]
    chosen = [{bool(t[i]) for t in truths} for i in range(length)]
    if any(len(c) > 1 for c in chosen):
        raise lifting.refusal(node, "what it chooses depends on the size of the inputs")
    return [Dims(tuple([parts[0][i] if True in c else parts[1][i] for i, c in enumerate(chosen)]))]


@sized("Expand", "ConstantOfShape", "Tile")
def _filled(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    """What is repeated to the size of the batch is the same for each example."""
    if node.op_type != "ConstantOfShape":
        only(lifting, node, 1)
    factors = _sizes(lifting, node, len(node.input) - 1)
    grown = [i for i, f in enumerate(factors) if f is not None]
    if not grown:
        return [None]
    if len(grown) > 1:
        raise lifting.refusal(node, "its result has the batch at two axes")
    after = lifting.shapes(node, node.output[0])
    axis = grown[0] + len(after[0]) - len(factors)
    if node.op_type == "Expand":
        before = lifting.shapes(node, node.input[0])
        at = axis - len(after[0]) + len(before[0])
        if at >= 0 and any(s[at] != 1 for s in before):
            raise lifting.refusal(node, f"{node.input[0]!r} has other sizes than 1 along the axis of the batch")
    return [Batch(axis, tuple([t[axis] for t in after]))]


@sized("Shape")
def _shape_of_sizes(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    return [None]
