"""Converters of control flow: If takes a branch; Loop, Scan and SequenceMap are unrolled, or run as host steps (loops.py)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.errors import InvalidModel, ShapeError, UnsafeModel
from flamert.graph import Value
from flamert.importers import loops
from flamert.importers.host import stand_in
from flamert.importers.onnx import OnnxGraph
from flamert.importers.registry import Context, Enter, Entry, converter, is_known
from flamert.importers.sequence import elements, of_unknown_length, sequence
from flamert.ops.rules import axis_in
from flamert.ops.shape import narrow


@converter("If", strings=True)
def _(ctx: Context, condition: Value, *, then_branch: OnnxGraph, else_branch: OnnxGraph) -> Enter:
    truth = ctx.value(condition)
    if truth.size != 1:
        raise ShapeError(f"the condition of an If is one truth value, got {condition.type}")
    return Enter(then_branch if truth.item() else else_branch, {}, lambda results, state: results)


# -- Loop -------------------------------------------------------------------------------------------------------------


@converter("Loop", strings=True)
def _(ctx: Context, limit: Value | None = None, condition: Value | None = None, *state: Entry, body: OnnxGraph) -> Any:
    state = (*state, *[None] * (len(ctx.node.inputs) - 2 - len(state)))
    n, n_scans = len(state), len(body.outputs) - 1 - len(state)
    if len(body.inputs) != n + 2 or n_scans < 0:
        raise InvalidModel(f"a Loop with {n} states has a body of {len(body.inputs)} inputs and {len(body.outputs)} outputs")
    turns, go_on = _turns(ctx, limit), _truth(ctx, condition)
    endless = _stays_true(body)
    if endless and turns is not None and go_on and turns > loops.MAX_TURNS:
        raise UnsafeModel(f"the Loop asks for {turns} turns and never stops by itself; {loops.MAX_TURNS} are allowed")
    if turns == 0 or go_on is False:
        return [*state, *_no_turns(ctx, body, n, n_scans, (limit, condition, *state))]
    if go_on and (ctx.whole or (endless and turns is not None and ctx.unrolls(turns, size(body)))):
        return _unroll_loop(ctx, body, endless, turns, n, 0, list(state), [])
    inner = ctx.subprogram(body)
    run = functools.partial(loops.loop, inner, n, endless)
    return _hosted(ctx, body, run, [inner.outer, limit, condition, list(state)])


def _turns(ctx: Context, limit: Value | None) -> int | None:
    """How many turns a Loop makes at most: a number, or None where there is no bound or only data can tell."""
    known = ctx.value(limit) if ctx.whole and limit is not None else ctx.known(limit)
    return None if known is None else max(int(known.item()), 0)


def _truth(ctx: Context, condition: Value | None) -> bool | None:
    if condition is None:
        return True
    known = ctx.value(condition) if ctx.whole else ctx.known(condition)
    return None if known is None else bool(known.item())


def _unroll_loop(
    ctx: Context, body: OnnxGraph, endless: bool, turns: int | None, n: int, i: int, state: list[Entry], scans: list[Entry]
) -> Enter:
    """Turn i of a Loop, `turns` at most. endless: it makes them all; otherwise each turn must tell whether another follows.

    scans: what earlier turns put out, turn by turn.
    """
    if ctx.whole:
        ctx.unrolls(turns if endless and turns is not None else i + 1, size(body))

    def leave(results: list[Entry], earlier: list[Entry]) -> Any:
        collected = [*earlier, *results[1 + n :]]
        if (turns is None or i + 1 < turns) and (endless or ctx.value(results[0]).all()):
            return _unroll_loop(ctx, body, endless, turns, n, i + 1, results[1 : 1 + n], collected)
        width = len(body.outputs) - 1 - n
        return _stacked(ctx, results[1 : 1 + n], [collected[k::width] for k in range(width)], [0] * width)

    number, true = loops.shaped(i, np.int64, body, 0), loops.shaped(True, np.bool_, body, 1)
    bindings = dict(zip(body.inputs, (g.constant(number), g.constant(true), *state), strict=True))
    return Enter(body, bindings, leave, scans, again=True)


def _stays_true(body: OnnxGraph) -> bool:
    """Whether a Loop body hands on the condition that it was given, or a constant true."""
    name = body.outputs[0]
    writers = {output: node for node in body.nodes for output in node.outputs}
    while (node := writers.get(name)) is not None and node.op_type == "Identity" and not node.domain:
        name = node.inputs[0]
    if node is None:
        value = body.initializers.get(name)
        return name == body.inputs[1] or (value is not None and bool(value.all()))
    value = node.attributes.get("value", node.attributes.get("value_int"))
    return node.op_type == "Constant" and bool(np.all(value)) and value is not None


def _stacked(ctx: Context, state: Sequence[Entry], scans: Sequence[Sequence[Value]], axes: Sequence[int]) -> Any:
    """The final state, and each scan output's turns side by side along a new axis."""
    if any(v.dtype.hasobject for turns in scans for v in turns):
        return ctx.host(lambda *r: [*r[: len(state)], *map(loops.stack, r[len(state) :], axes)], *state, *map(list, scans))
    return [*state, *[_stack(turns, axis) for turns, axis in zip(scans, axes, strict=True)]]


def _stack(turns: Sequence[Value], axis: int) -> Value:
    shape = turns[0].shape
    at = axis_in(axis, len(shape) + 1)
    if any(v.type != turns[0].type for v in turns):
        raise ShapeError(f"the turns of a loop put out {', '.join(str(v.type) for v in turns[:3])}, …: they do not stack")
    rows = [ops.reshape(v, shape=(*shape[:at], 1, *shape[at:])) for v in turns]
    return rows[0] if len(rows) == 1 else ops.concat(*rows, axis=at)


def _no_turns(ctx: Context, body: OnnxGraph, n: int, n_scans: int, arguments: Sequence[Entry]) -> list[Value]:
    """The scan outputs of a Loop without a turn: empty, of the type that a turn would have given."""
    if not n_scans:
        return []
    inner = ctx.subprogram(body)
    first = [loops.shaped(0, np.int64, body, 0), loops.shaped(True, np.bool_, body, 1), *map(stand_in, arguments[2:])]
    types = inner.types(None, list(map(stand_in, inner.outer)), first)
    return [g.constant(loops.nothing(body, 1 + n + k, types[1 + n + k], 0)) for k in range(n_scans)]


def _hosted(ctx: Context, body: OnnxGraph, run: Callable[..., Any], arguments: Sequence[Entry]) -> Any:
    """A loop as a host step; already now if it depends on no data, unless its body draws random numbers."""
    if all(map(is_known, arguments)) and not draws(body):
        return ctx.host(run, *arguments, within=True)
    return loops.deferred(run, arguments)


def size(graph: OnnxGraph) -> int:
    """Nodes of a graph, those of graphs inside it included."""
    return sum(1 + sum(map(size, node.subgraphs())) for node in graph.nodes)


def draws(graph: OnnxGraph) -> bool:
    """Whether a graph, or one inside it, draws random numbers."""
    random = ("Random", "Bernoulli", "Multinomial", "Dropout")
    return any(node.op_type.startswith(random) or any(map(draws, node.subgraphs())) for node in graph.nodes)


# -- Scan -------------------------------------------------------------------------------------------------------------


@converter("Scan", 9, strings=True)
def _(
    ctx: Context,
    *inputs: Value,
    body: OnnxGraph,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] = (),
    scan_input_directions: Sequence[int] = (),
    scan_output_axes: Sequence[int] = (),
    scan_output_directions: Sequence[int] = (),
) -> Any:
    n = len(inputs) - num_scan_inputs
    n_scans = len(body.outputs) - n
    _check_scan(body, inputs, n, n_scans)
    state, xs = list(inputs[:n]), inputs[n:]
    axes = [axis_in(a, x.rank) for a, x in zip(scan_input_axes or [0] * len(xs), xs, strict=True)]
    turns = _length(x.shape[a] for a, x in zip(axes, xs, strict=True))
    plan = loops.Scanning(
        n,
        turns,
        tuple(axes),
        _flags(scan_input_directions, len(xs)),
        tuple(scan_output_axes) or (0,) * n_scans,
        _flags(scan_output_directions, n_scans),
    )
    if len(plan.output_axes) != n_scans:
        raise InvalidModel(f"{n_scans} scan outputs have {len(plan.output_axes)} axes")
    if turns and ctx.unrolls(turns, size(body)) and not any(x.dtype.hasobject for x in inputs):
        return _unroll_scan(ctx, body, plan, xs, 0, state, [])
    inner = ctx.subprogram(body)
    return _hosted(ctx, body, functools.partial(loops.scan, inner, plan), [inner.outer, state, list(xs)])


@converter("Scan", 8, strings=True)
def _(
    ctx: Context,
    lengths: Value | None = None,
    *inputs: Value,
    body: OnnxGraph,
    num_scan_inputs: int,
    directions: Sequence[int] = (),
) -> Any:
    n = len(inputs) - num_scan_inputs
    n_scans = len(body.outputs) - n
    _check_scan(body, inputs, n, n_scans)
    state, xs = list(inputs[:n]), list(inputs[n:])
    if any(x.rank < (1 if i < n else 2) for i, x in enumerate(inputs)):
        raise ShapeError("Scan's inputs have a batch axis, and those that are scanned a sequence axis after it")
    batch, turns = _length(x.shape[0] for x in inputs), _length(x.shape[1] for x in xs)
    if lengths is not None and lengths.shape != (batch,):
        raise ShapeError(f"sequence_lens {lengths.type} must be one length for each of {batch} batch entries")
    flags = _flags(directions, len(xs))
    plan = loops.Scanning(n, turns, (0,) * len(xs), flags, (0,) * n_scans, (False,) * n_scans)
    inner = ctx.subprogram(body)
    run = functools.partial(loops.scan_batch, inner, plan, batch)
    return _hosted(ctx, body, run, [inner.outer, lengths, state, xs])


def _check_scan(body: OnnxGraph, inputs: Sequence[Entry], n: int, n_scans: int) -> None:
    if n < 0 or n == len(inputs) or n_scans < 0 or len(body.inputs) != len(inputs):
        raise InvalidModel(
            f"a Scan with {n} states and {len(inputs) - n} scanned inputs has a body of "
            f"{len(body.inputs)} inputs and {len(body.outputs)} outputs"
        )


def _length(sizes: Any) -> int:
    """The one size that all scanned inputs have."""
    (length, *others) = sizes
    if any(s != length for s in others):
        raise ShapeError(f"the scanned inputs have lengths {[length, *others]}, they must be equal")
    return length


def _flags(directions: Sequence[int], count: int) -> tuple[bool, ...]:
    if directions and len(directions) != count:
        raise InvalidModel(f"{len(directions)} directions are given for {count} inputs or outputs")
    return tuple(map(bool, directions)) or (False,) * count


def _unroll_scan(
    ctx: Context, body: OnnxGraph, plan: loops.Scanning, xs: Sequence[Value], i: int, state: list[Entry], scans: list[Entry]
) -> Enter:
    """Turn i of a Scan. `scans`: what earlier turns put out, turn by turn, after the inputs that are scanned."""

    def leave(results: list[Entry], kept: list[Entry]) -> Any:
        xs, collected = kept[: len(plan.axes)], [*kept[len(plan.axes) :], *results[plan.n :]]
        if i + 1 < plan.turns:
            return _unroll_scan(ctx, body, plan, xs, i + 1, results[: plan.n], collected)
        width = len(plan.output_axes)
        rows = [collected[k::width][::-1] if plan.output_reversed[k] else collected[k::width] for k in range(width)]
        return _stacked(ctx, results[: plan.n], rows, plan.output_axes)

    parts = [
        _part(x, axis, plan.turns - 1 - i if back else i) for x, axis, back in zip(xs, plan.axes, plan.reversed, strict=True)
    ]
    return Enter(body, dict(zip(body.inputs, [*state, *parts], strict=True)), leave, [*xs, *scans], again=True)


def _part(x: Value, axis: int, i: int) -> Value:
    """x[…, i, …] along an axis, which is dropped."""
    return ops.reshape(narrow(x, axis, i, 1), shape=x.shape[:axis] + x.shape[axis + 1 :])


# -- SequenceMap ------------------------------------------------------------------------------------------------------


@converter("SequenceMap", 17, strings=True)
def _(ctx: Context, items: Entry, *others: Entry, body: OnnxGraph) -> Any:
    if len(body.inputs) != 1 + len(others):
        raise InvalidModel(f"SequenceMap over {1 + len(others)} inputs has a body of {len(body.inputs)}")
    if any(map(of_unknown_length, (items, *others))):
        return ctx.host(lambda *xs: list(map(elements, xs)), items, *others, then=lambda inputs, state: _map(ctx, body, inputs))
    return _map(ctx, body, [items, *others])


def _map(ctx: Context, body: OnnxGraph, inputs: list[Entry]) -> Any:
    count = len(sequence(ctx, inputs[0]))
    return _map_turn(body, 0, count, inputs, []) if count else [[] for _ in body.outputs]


def _map_turn(body: OnnxGraph, i: int, count: int, inputs: list[Entry], done: list[Entry]) -> Enter:
    def leave(results: list[Entry], state: list[Entry]) -> Any:
        inputs, collected = state[: len(body.inputs)], [*state[len(body.inputs) :], *results]
        if i + 1 < count:
            return _map_turn(body, i + 1, count, inputs, collected)
        return [collected[k :: len(body.outputs)] for k in range(len(body.outputs))]

    for x in inputs:
        if isinstance(x, list) and len(x) != count:
            raise ShapeError(f"SequenceMap over sequences of {count} and {len(x)} elements")
    bindings = {name: x[i] if isinstance(x, list) else x for name, x in zip(body.inputs, inputs, strict=True)}
    return Enter(body, bindings, leave, [*inputs, *done], again=True)
