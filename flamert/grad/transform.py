"""The reverse sweep: from Values and cotangents to gradients, by the rules of the registry. Linear in the number of nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from flamert import dtypes
from flamert import graph as g
from flamert.errors import NoGradient, ShapeError
from flamert.grad.registry import NONE, RULES, Missing
from flamert.graph import CONSTANT, INPUT, OPERATORS, Node, Value
from flamert.ops.op import expand
from flamert.rewrite import inline

DIFFERENTIABLE = dtypes.STANDARD_FLOAT | dtypes.COMPLEX
"""Element types that gradients flow through."""


def grad(
    outputs: Value | Sequence[Value], wrt: Sequence[Value], cotangents: Sequence[Value | None] | None = None
) -> list[Value | None]:
    """Σ over outputs of cotangent · ∂output/∂w for each w in `wrt`, as new Values of w's type; None where nothing flows.

    outputs: one Value or several. wrt: any Values the outputs may depend on, intermediate ones too. cotangents: one per
    output, of its type (None: zero); ones by default, so that a scalar loss needs none. The result is ordinary graph and
    can be differentiated again. Raises NoGradient, naming the ONNX node, where an op on the way has no gradient.
    """
    outputs = [outputs] if isinstance(outputs, Value) else list(outputs)
    seeds = [_ones(v) for v in outputs] if cotangents is None else list(cotangents)
    pending: dict[Value, list[Value]] = {}
    for output, seed in zip(outputs, seeds, strict=True):
        if seed is not None:
            if seed.shape != output.shape or (output.dtype in DIFFERENTIABLE and seed.dtype != output.dtype):
                raise ShapeError(f"the cotangent is {seed.type}, the output {output.type}")
            pending.setdefault(output, []).append(seed)
    totals = _sweep(outputs, set(wrt), pending)
    return [totals.get(w) for w in wrt]


def _sweep(outputs: Iterable[Value], wrt: set[Value], pending: dict[Value, list[Value]]) -> dict[Value, Value]:
    """Walk from the outputs back to `wrt`; `pending` holds the contributions that each Value has received so far."""
    order, active = _between(list(outputs), wrt)
    totals: dict[Value, Value] = {v: _sum(pending.pop(v)) for v in list(pending) if v in wrt and v.node not in active}
    for node in reversed(order):
        received = [_sum(pending.pop(v)) if v in pending else None for v in node.outputs]
        for value, total in zip(node.outputs, received, strict=True):
            if value in wrt and total is not None:
                totals[value] = total
        if node not in active or all(r is None for r in received):
            continue
        with g.sourced(node.source):
            for v, contribution in zip(node.inputs, _contributions(node, received, wrt, active), strict=False):
                if contribution is not None and v is not None and (v in wrt or v.node in active):
                    pending.setdefault(v, []).append(_fitted(contribution, v, node))
    for leaf in wrt & pending.keys():
        totals[leaf] = _sum(pending.pop(leaf))
    return totals


def _between(outputs: Sequence[Value], wrt: set[Value]) -> tuple[list[Node], set[Node]]:
    """Nodes that the outputs need, down to `wrt`, operands first; and those of them that depend on `wrt`."""
    order: list[Node] = []
    done: set[Node] = set()
    stack = [v.node for v in reversed(outputs)]
    leaves = {v.node for v in wrt if all(o in wrt for o in v.node.outputs) and _independent(v.node, wrt)}
    while stack:
        node = stack[-1]
        if node in done:
            stack.pop()
            continue
        operands = () if node in leaves else node.inputs
        waiting = [v.node for v in operands if v is not None and v.node not in done]
        if waiting:
            stack.extend(reversed(waiting))
            continue
        done.add(node)
        order.append(node)
        stack.pop()
    active: set[Node] = set()
    for node in order:
        if any(v is not None and (v in wrt or v.node in active) for v in node.inputs):
            active.add(node)
    return order, active


def _independent(node: Node, wrt: set[Value]) -> bool:
    """Whether the walk may end here: leaves of the graph, or when one Value alone is asked for, as nothing before it counts."""
    return node.op in (INPUT, CONSTANT) or len(wrt) == len(node.outputs)


def _contributions(node: Node, received: Sequence[Value | None], wrt: set[Value], active: set[Node]) -> Sequence[Value | None]:
    """What flows to each operand of a node, by its rule or through its body."""
    name = node.op.name
    rule = RULES.get(name)
    if rule is None:
        if node.op.body is None or name in NONE:
            reason = NONE.get(name, "no gradient rule is registered for it")
            raise NoGradient(f"{name} has no gradient: {reason}").at(str(node.source) if node.source else None)
        return _through_body(node, received)
    several = len(node.outputs) > 1
    dy = tuple(received) if several else received[0]
    y = node.outputs if several else node.outputs[0]
    result = rule(dy, y, *node.inputs, **node.attrs)
    results = [result] if isinstance(result, Value | Missing) or result is None else list(result)
    for v, r in zip(node.inputs, results, strict=False):
        if isinstance(r, Missing) and v is not None and (v in wrt or v.node in active) and v.dtype in DIFFERENTIABLE:
            raise NoGradient(f"{name}: {r.reason}").at(str(node.source) if node.source else None)
    return [None if isinstance(r, Missing) else r for r in results]


def _through_body(node: Node, received: Sequence[Value | None]) -> list[Value | None]:
    """A composite's gradient is that of the ops it is written in."""
    return through(lambda *operands: expand(node, operands), node.inputs, received)


def through(
    function: Callable[..., Sequence[Value | None]], inputs: Sequence[Value | None], received: Sequence[Value | None]
) -> list[Value | None]:
    """What flows to each of `inputs` through results that `function` makes of them and that received these cotangents.

    Taken over stand-ins for the inputs and put back, so that what the inputs depend on plays no part.
    """
    stand_ins = tuple([None if v is None else g.input(v.type) for v in inputs])
    seeds = [None if r is None else g.input(r.type) for r in received]
    given = [(o, s) for o, s in zip(function(*stand_ins), seeds, strict=True) if s is not None and o is not None]
    wanted = [v for v in stand_ins if v is not None]
    flows = grad([o for o, _ in given], wanted, [s for _, s in given])
    inner = g.Graph([*wanted, *[s for s in seeds if s is not None]], [f for f in flows if f is not None])
    values = iter(inline(inner, [*[v for v in inputs if v is not None], *[r for r in received if r is not None]]))
    found = iter([None if f is None else next(values) for f in flows])
    return [None if v is None else next(found) for v in stand_ins]


def _fitted(contribution: Value, operand: Value, node: Node) -> Value:
    """A contribution summed over the axes that the operand was broadcast along, in the operand's type.

    What quantization sends straight through codes, integers or narrow floats, keeps the type it has.
    """
    extra = contribution.rank - operand.rank
    if contribution.shape != operand.shape:
        axes = [i for i in range(contribution.rank) if i < extra or operand.shape[i - extra] != contribution.shape[i]]
        if extra < 0 or any(i >= extra and operand.shape[i - extra] != 1 for i in axes):
            raise ShapeError(f"the gradient of {node.op.name} is {contribution.type} for an operand {operand.type}")
        contribution = OPERATORS["reduce_sum"](contribution, axes=tuple(axes), keepdims=False)
        if contribution.shape != operand.shape:
            contribution = OPERATORS["reshape"](contribution, shape=operand.shape)
    if contribution.dtype != operand.dtype and operand.dtype in DIFFERENTIABLE:
        contribution = OPERATORS["cast"](contribution, to=operand.dtype)
    return contribution


def _sum(contributions: list[Value]) -> Value:
    """Pairwise, so that a thousand readers make a tree ten deep and not a chain."""
    while len(contributions) > 1:
        pairs = [a + b for a, b in zip(contributions[::2], contributions[1::2], strict=False)]
        contributions = pairs + ([contributions[-1]] if len(contributions) % 2 else [])
    return contributions[0]


def _ones(value: Value) -> Value:
    one = g.constant(np.ones((), value.dtype))
    return OPERATORS["expand"](one, shape=value.shape) if value.shape else one
