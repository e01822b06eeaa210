"""Normalisations that exporters wrote in means and roots: layer norm, RMS norm, group norm by instance norm, and softmax."""

from __future__ import annotations

from typing import NamedTuple

from flamert import dtypes, ops
from flamert.graph import Node, Value
from flamert.passes.patterns.index import Index, Match, mean, other, reduction, scalar


class Spread(NamedTuple):
    """What a normalisation divides by: the root of ε + the variance of x (or, not `centred`, of the mean of x²) over `axes`."""

    x: Value
    axes: tuple[int, ...]
    centred: bool
    epsilon: float

    @property
    def kept(self) -> tuple[int, ...]:
        return tuple([1 if i in self.axes else d for i, d in enumerate(self.x.shape)])


def layer_norm(index: Index, node: Node) -> Match | None:
    """(x − mean) / √(var + ε) · scale + bias, or x / √(mean x² + ε) · scale; at the root. Scale and bias may be absent.

    Known as well: 1/√ as a factor of its own or already times the scale, and x·f + (bias − mean·f) with that factor f.
    """
    inside = [node]
    spread = _spread(node, inside)
    if spread is None:
        return None
    value, inverse = _inverse(index, node, inside)
    if value.shape not in (spread.kept, spread.x.shape):
        return None
    scale, bias = None, None
    reader = index.reader(value)
    if reader is not None and inverse and reader.op.name == "mul":
        scale = _parameter(other(reader, value), spread)
        if scale is not None:
            inside.append(reader)
            value = reader.outputs[0]
            reader = index.reader(value)
    if reader is not None:
        if reader.op.name != ("mul" if inverse else "div") or not _numerator(other(reader, value), spread, inside):
            return None
        if not inverse and reader.inputs[1] is not value:
            return None
        inside.append(reader)
        value = reader.outputs[0]
    else:
        folded = _mean_folded(index, value, spread, inside) if inverse else None
        if folded is None:
            return None
        value, bias = folded
    return _finished(index, value, spread, scale, bias, inside)


def _spread(node: Node, inside: list[Node]) -> Spread | None:
    """For √(measure + ε), or (measure + ε) to the power −½."""
    added = node.inputs[0].node  # type: ignore[union-attr]
    if added.op.name != "add" or (node.op.name == "pow" and scalar(node.inputs[1]) != -0.5):
        return None
    a, b = added.inputs
    measure, epsilon = (a, scalar(b)) if scalar(a) is None else (b, scalar(a))
    if epsilon is None or measure is None or added.types[0] != measure.type:
        return None
    inside.append(added)
    found = _variance(measure, inside)
    if found is None:
        return None
    x, axes, centred = found
    trailing = axes == tuple(range(axes[0], x.rank))
    return Spread(x, axes, centred, epsilon) if trailing and x.dtype in dtypes.STANDARD_FLOAT else None


def _variance(value: Value, inside: list[Node]) -> tuple[Value, tuple[int, ...], bool] | None:
    """(x, axes, true) where `value` is the variance of x, (x, axes, false) where it is the mean of x²."""
    node = value.node
    while node.op.name == "reshape" or (node.op.name == "maximum" and 0.0 in (scalar(node.inputs[0]), scalar(node.inputs[1]))):
        inside.append(node)
        value = node.inputs[-1] if scalar(node.inputs[0]) == 0 else node.inputs[0]  # type: ignore[assignment]
        node = value.node
    if node.op.name == "sub":
        return _by_squares(node, inside)
    found = mean(value, inside)
    base = None if found is None else _squared(found[0], inside)
    if found is None or base is None:
        return None
    axes = found[1]
    if base.node.op.name == "sub":
        x = base.node.inputs[0]
        assert x is not None
        nodes: list[Node] = []
        if _numerator(base, Spread(x, axes, True, 0.0), nodes):
            inside += nodes
            return x, axes, True
    return base, axes, False


def _by_squares(node: Node, inside: list[Node]) -> tuple[Value, tuple[int, ...], bool] | None:
    """The variance as mean x² − (mean x)², which loses digits that the op does not lose."""
    inside.append(node)
    squares, product = node.inputs
    assert squares is not None and product is not None
    of_square, centre = mean(squares, inside), _squared(product, inside)
    of_x = None if centre is None else mean(centre, inside)
    x = None if of_square is None else _squared(of_square[0], inside)
    if of_square is None or of_x is None or x is not of_x[0] or of_square[1] != of_x[1]:
        return None
    return of_x[0], of_x[1], True


def _squared(value: Value, inside: list[Node]) -> Value | None:
    """x where `value` is x · x."""
    node = value.node
    if node.op.name != "mul" or node.inputs[0] is not node.inputs[1]:
        return None
    inside.append(node)
    return node.inputs[0]


def _inverse(index: Index, root: Node, inside: list[Node]) -> tuple[Value, bool]:
    """(value, true) where the root is inverted before it is used, (the root, false) otherwise; aligned with x if need be."""
    value, inverse = root.outputs[0], root.op.name == "pow"
    while (reader := index.reader(value)) is not None:
        quotient = reader.op.name == "div" and reader.inputs[1] is value and reader.types[0] == value.type
        inverts = reader.op.name == "reciprocal" or (quotient and scalar(reader.inputs[0]) == 1)
        if reader.op.name not in ("reshape", "expand") and (inverse or not inverts):
            break
        inverse = inverse or inverts
        inside.append(reader)
        value = reader.outputs[0]
    return value, inverse


def _numerator(value: Value, spread: Spread, inside: list[Node]) -> bool:
    """Whether `value` is x − mean x, or just x where only squares were averaged."""
    if not spread.centred:
        return value is spread.x
    node = value.node
    if node.op.name != "sub" or node.inputs[0] is not spread.x or not _is_mean(node.inputs[1], spread, inside):
        return False
    inside.append(node)
    return True


def _is_mean(value: Value | None, spread: Spread, inside: list[Node]) -> bool:
    """Whether `value` is the mean of x over the same axes, aligned with x."""
    assert value is not None
    return value.shape in (spread.kept, spread.x.shape) and mean(value, inside) == (spread.x, spread.axes)


def _mean_folded(index: Index, factor: Value, spread: Spread, inside: list[Node]) -> tuple[Value, Value] | None:
    """(result, bias) of x·f + (bias − mean·f)."""
    readers = index.readers.get(factor, [])
    if len(readers) != 2 or factor in index.returned or not spread.centred or any(r.op.name != "mul" for r in readers):
        return None
    scaled, shift = readers if other(readers[0], factor) is spread.x else readers[::-1]
    negated, total = index.reader(shift.outputs[0]), index.reader(scaled.outputs[0])
    if other(scaled, factor) is not spread.x or not _is_mean(other(shift, factor), spread, inside):
        return None
    if negated is None or total is None or negated.op.name != "sub" or total.op.name != "add":
        return None
    bias = _parameter(negated.inputs[0], spread)
    if bias is None or negated.inputs[1] is not shift.outputs[0] or negated.outputs[0] not in total.inputs:
        return None
    inside += [scaled, shift, negated, total]
    return total.outputs[0], bias


def _parameter(value: Value | None, spread: Spread) -> Value | None:
    """The Value in the shape of the normalised axes, where it broadcasts to x along all others."""
    assert value is not None
    shape = spread.x.shape[spread.axes[0] :]
    given = value.shape
    while len(given) > len(shape) and given[0] == 1:
        given = given[1:]
    if given != shape or value.dtype not in dtypes.STANDARD_FLOAT:
        return None
    return value if value.shape == shape else ops.reshape(value, shape=shape)


def _finished(
    index: Index, value: Value, spread: Spread, scale: Value | None, bias: Value | None, inside: list[Node]
) -> Match | None:
    """With the scale and bias that follow, and the casts around it where x was widened for it."""
    source = spread.x.node.inputs[0] if spread.x.node.op.name == "cast" else None
    x = spread.x
    if value.type != x.type:
        return None
    while (reader := index.reader(value)) is not None:
        if reader.op.name == "cast" and source is not None and source.dtype in dtypes.HALF and reader.types[0] == source.type:
            x, source = source, None
        elif reader.types[0] != value.type or bias is not None:
            break
        elif reader.op.name == "mul" and scale is None:
            scale = _parameter(other(reader, value), spread)
            if scale is None:
                break
        elif reader.op.name == "add" and spread.centred:
            bias = _parameter(other(reader, value), spread)
            if bias is None:
                break
        else:
            break
        inside.append(reader)
        value = reader.outputs[0]
    if not index.enclosed(inside, value) or value.type != x.type:
        return None
    options = {"axis": spread.axes[0], "epsilon": spread.epsilon}
    if spread.centred:
        return value, index.make(ops.layer_norm, x, scale, bias, **options)
    return value, index.make(ops.rms_norm, x, scale, **options)


def group_norm(index: Index, node: Node) -> Match | None:
    """Instance norm over [N, groups, …], perhaps written as group norm, then scale and bias per channel; at the norm."""
    before, ones, zeros = (v.node for v in node.inputs)  # type: ignore[union-attr]
    after = index.reader(node.outputs[0])
    if before.op.name != "reshape" or after is None or after.op.name != "reshape":
        return None
    x, groups = before.inputs[0], node.types[0].shape[1]
    assert x is not None
    if node.attrs.get("groups", groups) != groups:
        return None
    if after.types[0] != x.type or x.rank < 2 or groups < 2 or x.shape[1] % groups or node.types[0].shape[0] != x.shape[0]:
        return None
    if not _all(ones.outputs[0], 1) or not _all(zeros.outputs[0], 0):
        return None
    inside, value, operands = [before, node, after], after.outputs[0], []
    for op in ("mul", "add"):
        reader = index.reader(value)
        if reader is None or reader.op.name != op or reader.types[0] != x.type:
            return None
        operand = _per_channel(other(reader, value), x)
        if operand is None:
            return None
        operands.append(operand)
        inside.append(reader)
        value = reader.outputs[0]
    # The first reshape may have other readers: it costs nothing.
    if not index.enclosed(inside[1:], value):
        return None
    return value, index.make(ops.group_norm, x, *operands, groups=groups, epsilon=node.attrs["epsilon"])


def _all(value: Value, number: float) -> bool:
    return value.constant is not None and bool((value.constant == number).all())


def _per_channel(value: Value, x: Value) -> Value | None:
    """The Value as [C], where it broadcasts to x along all axes but the channels'."""
    aligned = (1,) * (x.rank - value.rank) + value.shape
    fits = aligned == (1, x.shape[1], *[1] * (x.rank - 2)) and value.dtype in dtypes.STANDARD_FLOAT
    return ops.reshape(value, shape=(x.shape[1],)) if fits else None


def softmax(index: Index, node: Node) -> Match | None:
    """exp(x − max x) / Σ exp(x − max x); at exp."""
    shifted = node.inputs[0].node  # type: ignore[union-attr]
    inside = [node, shifted]
    if shifted.op.name != "sub" or shifted.types != node.types:
        return None
    x, largest = shifted.inputs
    assert x is not None and largest is not None
    found = reduction(largest, inside)
    if found is None or found[0] != "reduce_max" or found[1] is not x or found[3] != 1 or len(found[2]) != 1:
        return None
    (axis,) = found[2]
    kept = tuple([1 if i == axis else d for i, d in enumerate(x.shape)])
    exponential = node.outputs[0]
    if largest.shape not in (kept, x.shape):
        return None
    for reader in index.readers.get(exponential, ()):
        total = reader.inputs[-1] if reader.op.name == "div" else None
        if reader.op.name == "mul":
            inverse = other(reader, exponential).node
            if inverse.op.name == "reciprocal":
                total = inverse.inputs[0]
                inside.append(inverse)
        if total is None or total is exponential or total.shape not in (kept, x.shape) or reader.types != node.types:
            continue
        if reduction(total, inside) != ("reduce_sum", exponential, (axis,), 1.0):
            return None
        root = reader.outputs[0]
        return (root, index.make(ops.softmax, x, axis=axis)) if index.enclosed([*inside, reader], root) else None
    return None
