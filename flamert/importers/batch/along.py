"""How ops that work along an axis carry a batch: softmax, norms, reductions, recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from flamert.importers.batch.lifting import Batch, Lifting, State
from flamert.importers.batch.rules import batch, mixes, only, rule
from flamert.ops.rules import axis_in

REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")


# -- along an axis ----------------------------------------------------------------------------------------------------


@rule("Softmax", "LogSoftmax", "Hardmax")
def _softmax(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    state, rank = batch(lifting, node), lifting.rank(node, node.input[0])
    old = lifting.opset(node) < 13
    axis = axis_in(lifting.attribute(node, "axis", 1 if old else -1), rank)
    if state.axis >= axis if old else state.axis == axis:
        raise mixes(lifting, node)
    return [state]


@rule("LpNormalization", "CumSum", "CumProd", "TopK")
def _along(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0)
    state, rank = batch(lifting, node), lifting.rank(node, node.input[0])
    given = lifting.constant(node, 1) if node.op_type.startswith("Cum") else None
    axis = given[0] if given is not None else lifting.attribute(node, "axis", -1)
    if axis_in(axis, rank) == state.axis:
        raise mixes(lifting, node)
    return [state] * len(node.output)


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def _layer_norm(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0)
    state, rank = batch(lifting, node), lifting.rank(node, node.input[0])
    if state.axis >= axis_in(lifting.attribute(node, "axis", -1), rank):
        raise mixes(lifting, node)
    return [state] * len(node.output)


@rule("MeanVarianceNormalization")
def _mvn(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    state, rank = batch(lifting, node), lifting.rank(node, node.input[0])
    if state.axis in [axis_in(a, rank) for a in lifting.attribute(node, "axes", [0, 2, 3])]:
        raise mixes(lifting, node)
    return [state]


@rule("ArgMax", "ArgMin")
def _arg(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    rank = lifting.rank(node, node.input[0])
    axes = [axis_in(lifting.attribute(node, "axis", 0), rank)]
    return [_reduced(lifting, node, axes, lifting.attribute(node, "keepdims", 1))]


@rule(*[f"Reduce{kind}" for kind in REDUCTIONS])
def _reduce(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0)
    rank = lifting.rank(node, node.input[0])
    given = lifting.constant(node, 1) if len(node.input) > 1 else lifting.attribute(node, "axes")
    if not given and lifting.attribute(node, "noop_with_empty_axes", 0):
        return [batch(lifting, node)]
    axes = [axis_in(a, rank) for a in given] if given else list(range(rank))
    return [_reduced(lifting, node, axes, lifting.attribute(node, "keepdims", 1))]


def _reduced(lifting: Lifting, node: NodeProto, axes: Sequence[int], keep: int) -> Batch:
    state = batch(lifting, node)
    if state.axis in axes:
        raise mixes(lifting, node, "reduces the axis of the batch")
    return state if keep else Batch(state.axis - sum(a < state.axis for a in axes), state.inner)


@rule("Trilu")
def _trilu(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0)
    state = batch(lifting, node)
    if state.axis >= lifting.rank(node, node.input[0]) - 2:
        raise mixes(lifting, node)
    return [state]


# -- recurrent layers -------------------------------------------------------------------------------------------------


@rule("RNN", "GRU", "LSTM")
def _recurrent(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0, 4, 5, 6)
    state, first = batch(lifting, node), bool(lifting.attribute(node, "layout", 0))
    axis = 0 if first else 1
    if state.axis != axis or set(state.inner) != {1}:
        raise lifting.refusal(node, f"it takes examples along axis {axis}, and the batch is at axis {state.axis}")
    for i, own in ((4, 0), (5, axis), (6, axis)):
        if i < len(node.input) and node.input[i]:
            if lifting.state(node, i) is None:
                node.input[i] = lifting.repeated(node, node.input[i], own)
            elif lifting.state(node, i) != Batch(own, state.inner):
                raise lifting.refusal(node, f"its state {node.input[i]!r} has the batch at another axis than {own}")
    last = Batch(axis, state.inner)
    return [Batch(0 if first else 2, state.inner), last, last]
