"""Cross-entropy as its kernels take it: of rows of scores, in the half type and with the columns that they were made in."""

from __future__ import annotations

from collections.abc import Sequence

from flamert import dtypes, ops
from flamert.graph import Graph, Node, Value, uses
from flamert.ops.op import Op
from flamert.passes.views import MOVING
from flamert.rewrite import rebuild

FORWARD, BACKWARD = ops.OPS["cross_entropy"], ops.OPS["cross_entropy_gradient"]

Inputs = tuple[Value | None, ...]


def losses_by_rows(graph: Graph) -> Graph:
    """Losses of the logarithm of a softmax become `cross_entropy`, and that of scores [N, C, …] one of rows [N · …, C].

    Runs before composites are decomposed, as those kernels take rows alone.
    """
    count = uses(graph)

    def rule(node: Node, inputs: Inputs) -> Sequence[Value] | None:
        if node.op in (FORWARD, BACKWARD):
            return _of_rows(node.op, inputs, node.attrs.get("zeros", 0))
        scores = inputs[0] if node.op is ops.softmax_cross_entropy else None
        if node.op is ops.nll_loss and count[node.inputs[0]] == 1:  # type: ignore[index]
            scores = _before_log_softmax(inputs[0])
        if scores is None or not scores.type.size:
            return None
        return (_weighed(scores, *inputs[1:], **node.attrs),)  # type: ignore[arg-type]

    return rebuild(graph, rule)


def _before_log_softmax(log: Value | None) -> Value | None:
    """What this is the logarithm of a softmax of, over axis 1."""
    if log is None or log.node.op is not ops.log_softmax or log.node.attrs["axis"] % log.rank != 1:
        return None
    return log.node.inputs[0]


def _weighed(scores: Value, target: Value, weight: Value | None = None, *, reduction: str, ignore_index: int | None) -> Value:
    """softmax_cross_entropy."""
    axes = tuple(range(target.rank))
    counts = None if ignore_index is None else ops.not_equal(target, ignore_index)
    at = target if counts is None else ops.where(counts, target, 0)
    loss = (_of_rows(FORWARD, (scores, at)) or FORWARD(scores, at))[0]
    weights = None if weight is None else ops.cast(ops.gather(weight, at, axis=0), to=loss.dtype)
    if counts is not None:
        weights = ops.cast(counts, to=loss.dtype) if weights is None else ops.where(counts, weights, 0)
        loss = ops.where(counts, loss, 0)
    loss = loss if weights is None else loss * weights
    if reduction != "none":
        loss = ops.reduce_sum(loss, axes=axes)
    if reduction == "mean":
        loss = loss / (float(target.type.size) if weights is None else ops.reduce_sum(weights, axes=axes))
    return ops.cast(loss, to=scores.dtype)


def _of_rows(op: Op, inputs: Inputs, zeros: int = 0) -> Sequence[Value] | None:
    x, t, *others = inputs
    assert x is not None and t is not None
    if x.rank == 2 or not x.type.size:
        return None
    turned = ops.transpose(x, perm=(0, *range(2, x.rank), 1))
    rows = ops.reshape(turned, shape=(t.type.size, x.shape[1]))
    operands = [rows, *[v if v is None else ops.reshape(v, shape=rows.shape[:1]) for v in (t, *others)]]
    if op is FORWARD:
        return [ops.reshape(v, shape=t.shape) for v in op(*operands)]
    made = op(*operands, zeros=zeros)
    lying = ops.reshape(made, shape=(*turned.shape[:-1], made.shape[1]))
    return (ops.transpose(lying, perm=(0, x.rank - 1, *range(1, x.rank - 1))),)


def narrow_losses(graph: Graph) -> Graph:
    """Scores that were cast to float32 are read as they were, and what flows back is rounded to their type at once where
    all who read it do so: `simplify` removes the casts there and back."""
    readers: dict[Value, list[Node | None]] = {v: [None] for v in graph.outputs}
    for node in graph.nodes:
        for v in node.inputs:
            if v is not None:
                readers.setdefault(v, []).append(node)

    def rule(node: Node, inputs: Inputs) -> Sequence[Value] | None:
        x = _narrow(inputs[0]) if node.op in (FORWARD, BACKWARD) else None
        if x is None:
            return None
        if node.op is FORWARD:
            return FORWARD(x, *inputs[1:])
        half = x.dtype
        if not all(r is not None and r.op is ops.cast and r.types[0].dtype == half for r in readers[node.outputs[0]]):
            return None
        return (ops.cast(BACKWARD(x, *inputs[1:], **node.attrs), to=dtypes.float32),)

    return rebuild(graph, rule)


def _narrow(x: Value | None) -> Value | None:
    """What x is a cast to float32 of, perhaps behind views; None where it is none of a half type."""
    views: list[Node] = []
    while x is not None and x.node.op in MOVING:
        views.append(x.node)
        x = x.node.inputs[0]
    if x is None or x.node.op is not ops.cast or x.dtype != dtypes.float32:
        return None
    found = x.node.inputs[0]
    if found is None or found.dtype not in dtypes.HALF:
        return None
    for view in reversed(views):
        found = view.op(found, **view.attrs)
    return found


def widen_losses(graph: Graph) -> Graph:
    """What flows back to the scores, with columns of zeros put behind it by a step of its own, is written with them at once."""
    count = uses(graph)

    def rule(node: Node, inputs: Inputs) -> Sequence[Value] | None:
        extra, x, old = _columns_added(node), inputs[0] if inputs else None, node.inputs[0] if node.inputs else None
        if not extra:
            return None
        while x is not None and old is not None and count[old] == 1 and x.node.op is ops.reshape and _keeps_columns(x.node):
            x, old = x.node.inputs[0], old.node.inputs[0]
        if x is None or old is None or x.node.op is not BACKWARD or x.rank != 2 or count[old] > 1 or x.node.attrs["zeros"]:
            return None
        made = BACKWARD(*x.node.inputs, zeros=extra)
        return (made if made.type == node.types[0] else ops.reshape(made, shape=node.types[0].shape),)

    return rebuild(graph, rule)


def _columns_added(node: Node) -> int:
    """How many columns of zeros this does nothing but put behind those of its operand."""
    x = node.inputs[0] if node.op in (ops.unslice, ops.pad) else None
    if x is None or not x.rank or (node.op is ops.pad and len(node.inputs) > 1):
        return 0
    begins = node.attrs["starts"] if node.op is ops.unslice else node.attrs["pads"][: x.rank]
    steps = node.attrs["steps"] if node.op is ops.unslice else (1,)
    shape = node.types[0].shape
    alone = not any(begins) and all(s == 1 for s in steps) and shape[:-1] == x.shape[:-1]
    return shape[-1] - x.shape[-1] if alone else 0


def _keeps_columns(view: Node) -> bool:
    x = view.inputs[0]
    return x is not None and x.rank > 0 and view.types[0].rank > 0 and x.shape[-1] == view.types[0].shape[-1]
