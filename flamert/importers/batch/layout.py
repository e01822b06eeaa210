"""How ops that move elements about carry a batch, and how the sizes in their operands make room for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper

from flamert.importers.batch.lifting import Batch, Dims, Lifting, Sizes, State
from flamert.importers.batch.rules import around, batch, growing, mixes, only, rule
from flamert.ops.rules import axis_in

MAX = np.iinfo(np.int64).max

# -- other places for the same elements -------------------------------------------------------------------------------


@rule("Reshape")
def _reshape(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    """The elements of each example stay in one run, whose place among the result's axes the sizes in front of it show."""
    state = batch(lifting, node)
    before, after = around(lifting, node)
    places = [p for p in range(len(after[0])) if all(_fits(s, t, state.axis, p) for s, t in zip(before, after, strict=True))]
    if not places:
        raise lifting.refusal(node, "it puts what lies in front of the batch axis and behind it together")
    sizes = lifting.state(node, 1)
    raw = lifting.contents(node, 1) if len(node.input) > 1 else [np.array(lifting.attribute(node, "shape", []))]
    assert raw is not None
    zeros = not lifting.attribute(node, "allowzero", 0)
    grown = growing(sizes)
    at = _place(places, grown, raw, after, state, zeros)
    inner = tuple([t[at] for t in after])
    if zeros and at != state.axis and any(r[state.axis : state.axis + 1].tolist() == [0] for r in raw):
        raise lifting.refusal(node, f"its shape copies the axis of the batch, which goes to axis {at}")
    if grown:
        if grown != [at] or sizes.factors[at] != inner:  # type: ignore[union-attr]
            raise lifting.refusal(node, "the batch in its shape is not where its data has it")
    elif not _follows(raw, at, state, inner, zeros):
        _rewrite(lifting, node, raw, at, state, inner, zeros)
    return [Batch(at, inner)]


def _fits(before: Sequence[int], after: Sequence[int], axis: int, place: int) -> bool:
    return math.prod(before[:axis]) == math.prod(after[:place])


def _place(
    places: Sequence[int],
    grown: Sequence[int],
    raw: Sequence[np.ndarray],
    after: Sequence[Sequence[int]],
    state: Batch,
    zeros: bool,
) -> int:
    """Which of the possible axes: the one that the shape names as the batch's; else one of size 1; else the first."""
    named = [p for p in places if p in grown]
    copied = [p for p in places if zeros and p == state.axis and all(r[p] == 0 for r in raw)]
    single = [p for p in places if all(t[p] == 1 for t in after)]
    single.sort(key=lambda p: (p != state.axis, p))
    return (named or copied or single or list(places))[0]


def _follows(raw: Sequence[np.ndarray], at: int, state: Batch, inner: Sizes, zeros: bool) -> bool:
    """Whether the shape makes room for the batch as it is."""
    return all(r[at] == -1 for r in raw) or (
        zeros and at == state.axis and inner == state.inner and all(r[at] == 0 for r in raw)
    )


def _rewrite(
    lifting: Lifting, node: NodeProto, raw: Sequence[np.ndarray], at: int, state: Batch, inner: Sizes, zeros: bool
) -> None:
    """Let the shape of a Reshape make room for the batch at an axis."""
    constant = all(r.tolist() == raw[0].tolist() for r in raw)
    target = [int(n) for n in raw[0]]
    if zeros and constant and at == state.axis and inner == state.inner:
        target[at] = 0
    elif constant and -1 not in target:
        target[at] = -1
    elif len(node.input) > 1 and all(r[at] > 0 for r in raw):
        node.input[1] = lifting.times(node.input[1], len(target), at)
        return
    else:
        raise lifting.refusal(node, f"its shape {target} has no room for the batch at axis {at}")
    if len(node.input) > 1:
        node.input[1] = lifting.integers(target, f"{node.input[1]}.free")
    else:
        _set(node, shape=target)


def _set(node: NodeProto, **attributes: object) -> None:
    for name, value in attributes.items():
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])


@rule("Flatten")
def _flatten(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    state = batch(lifting, node)
    before, after = around(lifting, node)
    axis = axis_in(lifting.attribute(node, "axis", 1), len(before[0]))
    start, place = (0, 0) if state.axis < axis else (axis, 1)
    if any(math.prod(s[start : state.axis]) != 1 for s in before):
        raise lifting.refusal(node, "it puts what lies in front of the batch axis and the batch together")
    return [Batch(place, tuple([t[place] for t in after]))]


@rule("Transpose")
def _transpose(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    state, rank = batch(lifting, node), lifting.rank(node, node.input[0])
    perm = lifting.attribute(node, "perm") or list(reversed(range(rank)))
    return [Batch([axis_in(p, rank) for p in perm].index(state.axis), state.inner)]


@rule("Squeeze")
def _squeeze(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    state, shapes = batch(lifting, node), lifting.shapes(node, node.input[0])
    rank = len(shapes[0])
    given = lifting.constant(node, 1) if len(node.input) > 1 else lifting.attribute(node, "axes")
    if given is not None:
        axes = [axis_in(a, rank) for a in given]
        if state.axis in axes:
            raise lifting.refusal(node, "it drops the axis of the batch")
        return [Batch(state.axis - sum(a < state.axis for a in axes), state.inner)]
    axes = [a for a in range(rank) if all(s[a] == 1 for s in shapes)]
    if any(s[a] == 1 for s in shapes for a in range(rank) if a not in axes):
        raise lifting.refusal(node, "which axes it drops depends on the size of the inputs")
    extra = state.axis in axes
    axes = [a for a in axes if a != state.axis]
    if lifting.opset(node) >= 13:
        node.input.append(lifting.integers(axes, f"{node.output[0]}.axes"))
    else:
        _set(node, axes=axes)
    if not axes:
        node.op_type = "Identity"
        del node.input[1:], node.attribute[:]
    return [Batch(state.axis - sum(a < state.axis for a in axes), state.inner, extra)]


@rule("Unsqueeze")
def _unsqueeze(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0)
    state, rank = batch(lifting, node), lifting.rank(node, node.output[0])
    given = lifting.constant(node, 1) if len(node.input) > 1 else lifting.attribute(node, "axes")
    added = [axis_in(a, rank) for a in given or ()]
    return [Batch([a for a in range(rank) if a not in added][state.axis], state.inner)]


# -- parts and wholes -------------------------------------------------------------------------------------------------


@rule("Concat")
def _concat(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    states = {s for n in node.input if (s := lifting.states.get(n)) is not None}
    if len(states) != 1:
        raise lifting.refusal(node, "its operands have the batch at different axes")
    (state,) = states
    assert isinstance(state, Batch)
    axis = axis_in(lifting.attribute(node, "axis", 1), lifting.rank(node, node.output[0]))
    if axis == state.axis:
        raise mixes(lifting, node)
    for i, name in enumerate(node.input):
        if lifting.states.get(name) is None:
            if set(state.inner) != {1}:
                raise lifting.refusal(node, f"{name!r} is the same for all examples, whose axis holds more than them")
            node.input[i] = lifting.repeated(node, name, state.axis)
    return [state]


@rule("Split")
def _split(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0)
    state = batch(lifting, node)
    if axis_in(lifting.attribute(node, "axis", 0), lifting.rank(node, node.input[0])) == state.axis:
        raise mixes(lifting, node, "splits the axis of the batch")
    return [state] * len(node.output)


@rule("Slice")
def _slice(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    state, (before, after) = batch(lifting, node), around(lifting, node)
    rank, late = len(before[0]), len(node.input) > 1
    only(lifting, node, 0, 2)
    starts = lifting.contents(node, 1) if late else [np.array(lifting.attribute(node, "starts", []))]
    axes = lifting.constant(node, 3) if late else lifting.attribute(node, "axes")
    assert starts is not None
    named = [axis_in(a, rank) for a in (axes if axes is not None else range(len(starts[0])))]
    ends = lifting.state(node, 2) if late else None
    for i, axis in enumerate(named):
        if isinstance(ends, Dims) and ends.factors[i] is not None and axis != state.axis:
            raise lifting.refusal(node, "where it ends along another axis depends on the batch")
    if state.axis not in named:
        return [state]
    at = named.index(state.axis)
    steps = lifting.constant(node, 4)
    if any(s[state.axis] != t[state.axis] for s, t in zip(before, after, strict=True)) or (steps and steps[at] < 0):
        raise mixes(lifting, node, "takes a part of the axis of the batch")
    bounds = [lifting.constant(node, i) if late else lifting.attribute(node, n) for i, n in ((1, "starts"), (2, "ends"))]
    first, last = ([edge if i == at else n for i, n in enumerate(b or ())] for b, edge in zip(bounds, (0, MAX), strict=True))
    if late:
        stem = node.output[0]
        node.input[1], node.input[2] = lifting.integers(first, f"{stem}.starts"), lifting.integers(last, f"{stem}.ends")
        _widen(lifting, node)
    else:
        _set(node, starts=first, ends=last)
    return [state]


def _widen(lifting: Lifting, node: NodeProto) -> None:
    """Axes and steps of a Slice as int64, as its new bounds are."""
    for i in (3, 4):
        found = lifting.contents(node, i)
        if found is not None and found[0].dtype != np.int64:
            node.input[i] = lifting.add("Cast", [node.input[i]], f"{node.input[i]}.wide", to=TensorProto.INT64)


@rule("Gather")
def _gather(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    data, indices = lifting.state(node, 0), lifting.state(node, 1)
    axis = axis_in(lifting.attribute(node, "axis", 0), lifting.rank(node, node.input[0]))
    if isinstance(data, Batch) and indices is None:
        if data.axis == axis:
            raise lifting.refusal(node, "it takes single examples out of the batch")
        return [Batch(data.axis + (lifting.rank(node, node.input[1]) - 1) * (axis < data.axis), data.inner)]
    if isinstance(indices, Batch) and data is None:
        return [Batch(axis + indices.axis, indices.inner)]
    raise lifting.refusal(node, "each example would look up indices of its own in data of its own")


@rule("GatherElements")
def _gather_elements(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    data, indices = batch(lifting, node), batch(lifting, node, 1)
    if data != indices or axis_in(lifting.attribute(node, "axis", 0), lifting.rank(node, node.input[0])) == data.axis:
        raise mixes(lifting, node)
    return [data]


@rule("Pad")
def _pad(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0)
    state, rank = batch(lifting, node), lifting.rank(node, node.input[0])
    amounts = lifting.constant(node, 1) if len(node.input) > 1 else lifting.attribute(node, "pads", [])
    axes = lifting.constant(node, 3)
    named = [axis_in(a, rank) for a in axes] if axes is not None else list(range(rank))
    if state.axis in named and any((amounts or [])[named.index(state.axis) :: len(named)]):
        raise mixes(lifting, node, "adds to the axis of the batch")
    return [state]


@rule("Tile")
def _tile(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0)
    state, (before, after) = batch(lifting, node), around(lifting, node)
    if any(s[state.axis] != t[state.axis] for s, t in zip(before, after, strict=True)):
        raise mixes(lifting, node, "repeats the axis of the batch")
    return [state]


@rule("Expand")
def _expand(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    state, (before, after) = batch(lifting, node), around(lifting, node)
    sizes, target = lifting.state(node, 1), lifting.contents(node, 1)
    assert target is not None
    axis = state.axis + len(after[0]) - len(before[0])
    at = axis - len(after[0]) + len(target[0])
    if any(t[axis] != n for t, n in zip(after, state.inner, strict=True)):
        raise mixes(lifting, node, "repeats the axis of the batch")
    grown = growing(sizes)
    if grown and (grown != [at] or sizes.factors[at] != state.inner):  # type: ignore[union-attr]
        raise lifting.refusal(node, "the batch in its shape is not where its data has it")
    if not grown and at >= 0 and any(t[at] != 1 for t in target):
        node.input[1] = lifting.times(node.input[1], len(target[0]), at)
    return [Batch(axis, state.inner)]


@rule("OneHot")
def _one_hot(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    only(lifting, node, 0)
    state, rank = batch(lifting, node), lifting.rank(node, node.output[0])
    return [Batch(state.axis + (axis_in(lifting.attribute(node, "axis", -1), rank) <= state.axis), state.inner)]


@rule("Shape")
def _shape(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    state, rank = batch(lifting, node), lifting.rank(node, node.input[0])
    factors = [state.inner if a == state.axis else None for a in range(rank)]
    return [Dims(tuple(factors[slice(lifting.attribute(node, "start", 0), lifting.attribute(node, "end"))]))]


@rule("Size")
def _size(lifting: Lifting, node: NodeProto) -> Sequence[State]:
    return [Dims((tuple([math.prod(s) for s in lifting.shapes(node, node.input[0])]),))]
