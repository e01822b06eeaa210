"""How ops that compute carry a batch that is independent of its axis, or at axis 0: element by element, images, products."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from onnx import NodeProto

from flamert.importers.batch.lifting import Batch, Dims, Lifting, Sizes, State
from flamert.importers.batch.rules import around, batch, growing, mixes, only, rule
from flamert.ops.rules import axis_in

# fmt: off
POINTWISE = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip", "Cos",
    "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin",
    "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)
BROADCAST = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)
IMAGES = (
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool",
    "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN", "DepthToSpace", "SpaceToDepth",
)
ROWS = (
    "Scaler", "Normalizer", "Imputer", "Binarizer", "LinearRegressor", "LinearClassifier", "SVMRegressor",
    "SVMClassifier", "TreeEnsemble", "TreeEnsembleRegressor", "TreeEnsembleClassifier", "ArrayFeatureExtractor",
)
# fmt: on


# -- element by element -----------------------------------------------------------------------------------------------


@rule(*POINTWISE, axisless=True)
def _pointwise(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0)
    return [batch(lifting, node)] * len(node.output)


@rule(*BROADCAST, axisless=True)
def _broadcast(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    if lifting.attribute(node, "broadcast"):
        raise lifting.refusal(node, "it broadcasts by an attribute, as before opset 7")
    return [_joined(lifting, node, range(len(node.input)))]


def _joined(lifting: Lifting, node: NodeProto, operands: Iterable[int], skip: int = 0) -> Batch:
    """The state of a result that operands broadcast to; the last `skip` axes are left out of account."""
    names = [node.input[i] for i in operands if node.input[i]]
    ranks = {n: lifting.rank(node, n) for n in names}
    rank = max(ranks.values())
    found: set[tuple[int, Sizes]] = set()
    for name in names:
        state = lifting.states.get(name)
        if isinstance(state, Batch):
            found.add((state.axis + rank - ranks[name], state.inner))
    if len(found) != 1:
        raise lifting.refusal(node, "its operands have the batch at different axes")
    ((axis, inner),) = found
    for name in names:
        at = axis - rank + ranks[name]
        if lifting.states.get(name) is None and 0 <= at < ranks[name] - skip:
            if any(s[at] != 1 for s in lifting.shapes(node, name)):
                raise lifting.refusal(node, f"{name!r} has other sizes than 1 along the axis of the batch")
        elif isinstance(lifting.states.get(name), Dims):
            raise lifting.refusal(node, f"{name!r} holds sizes that depend on the batch")
    return Batch(axis, inner)


def beside(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    """Of a value with an axis that one example's has not: only what needs no axes goes."""
    states = [lifting.states.get(n) for n in node.input]
    for name, state in zip(node.input, states, strict=True):
        if state is None and name and any(math.prod(s) != 1 or len(s) > 1 for s in lifting.shapes(node, name)):
            raise lifting.refusal(node, f"a Squeeze before it has dropped the batch axis, and {name!r} counts axes without it")
    found = {s for s in states if s is not None}
    if len(found) != 1:
        raise lifting.refusal(node, "a Squeeze before it has dropped the batch axis of one operand")
    return [*found] * len(node.output)


@rule("QuantizeLinear", "DequantizeLinear")
def _quantized(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0)
    state, rank = batch(lifting, node), lifting.rank(node, node.input[0])
    if lifting.rank(node, node.input[1]) > 1:
        raise lifting.refusal(node, "its scales have an axis for the batch")
    if (
        math.prod(lifting.shapes(node, node.input[1])[0]) > 1
        and axis_in(lifting.attribute(node, "axis", 1), rank) == state.axis
    ):
        raise mixes(lifting, node, "has a scale for each index along the axis of the batch")
    return [state]


# -- the batch at axis 0 ----------------------------------------------------------------------------------------------


@rule(*IMAGES)
def _images(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0)
    state = batch(lifting, node)
    if state.axis:
        raise lifting.refusal(node, f"it takes examples along axis 0, and the batch is at axis {state.axis}")
    if sum(map(bool, node.output)) > 1 or lifting.attribute(node, "training_mode", 0):
        raise lifting.refusal(node, "outputs besides the first, and training mode, go by all examples at once")
    return [state]


@rule(*ROWS, domain="ai.onnx.ml")
def _rows(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0)
    state = batch(lifting, node)
    if state.axis or lifting.rank(node, node.input[0]) < 2:
        raise lifting.refusal(node, "it takes examples as rows")
    return [state] * len(node.output)


@rule("Resize", "Upsample")
def _resize(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0, 3)
    state, rank = batch(lifting, node), lifting.rank(node, node.input[0])
    axes = [axis_in(a, rank) for a in lifting.attribute(node, "axes") or range(rank)]
    sizes = lifting.state(node, 3)
    if state.axis not in axes:
        if isinstance(sizes, Dims):
            raise lifting.refusal(node, "its sizes depend on the batch, and leave the batch's axis out")
        return [state]
    if any(s[state.axis] != t[state.axis] for s, t in zip(*around(lifting, node), strict=True)):
        raise mixes(lifting, node, "changes the size of the axis of the batch")
    if str(lifting.attribute(node, "coordinate_transformation_mode", "half_pixel")).startswith("tf_"):
        raise mixes(lifting, node, "moves along the axis of the batch")
    if lifting.attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        raise mixes(lifting, node, "keeps the ratio of all sizes, the batch's included")
    at = axes.index(state.axis)
    if isinstance(sizes, Dims):
        if growing(sizes) != [at] or sizes.factors[at] != state.inner:
            raise lifting.refusal(node, "the batch in its sizes is not where its data has it")
    elif len(node.input) > 3 and node.input[3]:
        node.input[3] = lifting.times(node.input[3], len(axes), at)
    return [state]


# -- products ---------------------------------------------------------------------------------------------------------


@rule("MatMul", "MatMulInteger")
def _matmul(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0, 1)
    a, b = node.input[:2]
    ranks = lifting.rank(node, a), lifting.rank(node, b)
    left, right = lifting.state(node, 0), lifting.state(node, 1)
    if min(ranks) < 2 and not (left is not None and ranks[1] == 1 and ranks[0] > 1 and isinstance(left, Batch)):
        raise lifting.refusal(node, "a vector is multiplied, which has no place for a batch")
    if len(node.input) > 2 and node.input[2] and math.prod(lifting.shapes(node, node.input[2])[0]) > 1:
        raise lifting.refusal(node, "it has a zero point for each row")
    if ranks[1] == 1:
        state = batch(lifting, node)
        if state.axis == ranks[0] - 1:
            raise mixes(lifting, node, "sums over the axis of the batch")
        return [state]
    rank = max(ranks)
    if isinstance(left, Batch) and left.axis >= ranks[0] - 2:
        if left.axis == ranks[0] - 1 or right is not None:
            raise mixes(lifting, node, "sums over the axis of the batch")
        return [Batch(rank - 2, left.inner)]
    if isinstance(right, Batch) and right.axis >= ranks[1] - 2:
        if right.axis == ranks[1] - 2 or left is not None:
            raise mixes(lifting, node, "sums over the axis of the batch")
        return [Batch(rank - 1, right.inner)]
    return [_joined(lifting, node, (0, 1), skip=2)]


@rule("Gemm")
def _gemm(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0, 2)
    state = batch(lifting, node)
    if state.axis != (1 if lifting.attribute(node, "transA", 0) else 0):
        raise mixes(lifting, node, "sums over the axis of the batch")
    result = Batch(0, state.inner)
    if len(node.input) > 2 and node.input[2]:
        c, rank = lifting.state(node, 2), lifting.rank(node, node.input[2])
        rows = [s[0] for s in lifting.shapes(node, node.input[2])] if rank == 2 else [1]
        if c != result and (c is not None or set(rows) != {1}):
            raise lifting.refusal(node, f"{node.input[2]!r} has rows that are not the examples'")
    return [result]


@rule("Einsum")
def _einsum(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    equation = str(lifting.attribute(node, "equation")).replace(" ", "")
    if "..." in equation:
        raise lifting.refusal(node, "its equation has an ellipsis")
    terms, _, result = equation.partition("->")
    letters: set[tuple[str, Sizes]] = set()
    for term, name in zip(terms.split(","), node.input, strict=True):
        if isinstance(state := lifting.states.get(name), Batch):
            letters.add((term[state.axis], state.inner))
    ((letter, inner),) = letters if len(letters) == 1 else [("", ())]
    shared = [n for term, n in zip(terms.split(","), node.input, strict=True) if letter in term and not lifting.states.get(n)]
    if not letter or letter not in result or shared or any(t.count(letter) > 1 for t in (*terms.split(","), result)):
        raise mixes(lifting, node, "sums over the axis of the batch")
    return [Batch(result.index(letter), inner)]
