"""Graph → Graph: rebuild by a rule, substitute Values, inline a graph into others, match patterns. Passes use these."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flamert.graph import INPUT, Graph, Node, Value, sourced

Rule = Callable[[Node, tuple[Value | None, ...]], Sequence[Value] | None]
"""(old node, its new operands) → its new results, or None to keep it as it is."""


def rebuild(graph: Graph, rule: Rule) -> Graph:
    """Apply `rule` to every node, operands first. A node whose operands and op stay the same stays the same object."""
    new: dict[Value | None, Value | None] = {}
    """Only what has changed."""
    with sourced(None) as source:
        last = None
        for node in graph.nodes:
            if node.op is INPUT:
                continue
            inputs = node.inputs
            if not new.keys().isdisjoint(inputs):
                inputs = tuple([new.get(v, v) for v in inputs])
            if node.source is not last:
                source(last := node.source)
            results = rule(node, inputs)
            if results is None:
                results = node.outputs if inputs == node.inputs else with_inputs(node, inputs).outputs
            if results is not node.outputs:
                new.update(zip(node.outputs, results, strict=True))
    outputs = tuple([v if (value := new.get(v)) is None else value for v in graph.outputs])
    return graph if outputs == graph.outputs else Graph(graph.inputs, outputs)


def with_inputs(node: Node, inputs: tuple[Value | None, ...]) -> Node:
    """The same application to other operands of the same types."""
    return Node(node.op, inputs, node.attrs, node.types, node.source)


def substitute(graph: Graph, replacements: Mapping[Value, Value]) -> Graph:
    """The graph with some of its Values replaced.

    Each replacement is an expression over Values of the same graph that come before what it replaces; those that are replaced
    themselves are replaced in it too.
    """

    def final(v: Value) -> Value:
        while v in replacements:
            v = replacements[v]
        return v

    new: dict[Node, tuple[Value, ...]] = {}
    roots = [final(v) for v in graph.outputs]
    stack = [v.node for v in reversed(roots)]
    while stack:
        node = stack[-1]
        if node in new:
            stack.pop()
            continue
        operands = [None if v is None else final(v) for v in node.inputs]
        pending = [v.node for v in operands if v is not None and v.node not in new]
        if pending:
            stack.extend(reversed(pending))
            continue
        inputs = tuple([None if v is None else new[v.node][v.index] for v in operands])
        new[node] = node.outputs if inputs == node.inputs else with_inputs(node, inputs).outputs
        stack.pop()
    return Graph(graph.inputs, [new[v.node][v.index] for v in roots])


def inline(graph: Graph, arguments: Sequence[Value | None]) -> tuple[Value, ...]:
    """The graph's outputs, with its inputs replaced by `arguments`. Nodes without a source get that of whoever inlines."""
    new: dict[Value, Value | None] = dict(zip(graph.inputs, arguments, strict=True))
    for node in graph.nodes:
        if node.op is not INPUT:
            _copy(node, new)
    return tuple([new[v] for v in graph.outputs])  # type: ignore[misc]


def _copy(node: Node, new: dict[Value, Value | None]) -> None:
    """The same application to what its operands have become."""
    inputs = tuple([None if v is None else new[v] for v in node.inputs])
    with contextlib.nullcontext() if node.source is None else sourced(node.source):
        results = node.outputs if inputs == node.inputs else Node(node.op, inputs, node.attrs, node.types).outputs
    new.update(zip(node.outputs, results, strict=True))


class Template:
    """A graph to be inlined again and again. `same`: what replaces the inputs that never differ; nodes that depend on these
    alone are there once for all copies. `template(*arguments)`: the outputs for arguments of the other inputs, in order."""

    def __init__(self, graph: Graph, same: Mapping[Value, Value]) -> None:
        self._outputs = graph.outputs
        self._inputs = [v for v in graph.inputs if v not in same]
        self._same: dict[Value, Value | None] = dict(same)
        self._rest: list[Node] = []
        differing: set[Value | None] = set(self._inputs)
        for node in graph.nodes:
            if node.op is INPUT:
                continue
            if differing.isdisjoint(node.inputs):
                _copy(node, self._same)
            else:
                differing.update(node.outputs)
                self._rest.append(node)

    def __call__(self, *arguments: Value) -> tuple[Value, ...]:
        new = {**self._same, **dict(zip(self._inputs, arguments, strict=True))}
        for node in self._rest:
            _copy(node, new)
        return tuple([new[v] for v in self._outputs])  # type: ignore[misc]


class Pattern:
    """A tree of ops to look for. `Pattern(op, a, b, **attrs)`; a string captures any Value under that name.

    The same name twice must meet the same Value. Operands of commutative ops (add, mul) match in either order.
    A number matches a constant of that value, to 1e-3 relative.
    """

    commutative = frozenset({"add", "mul"})

    def __init__(self, op: str, *operands: Pattern | str | float, **attrs: Any) -> None:
        self.op = op
        self.operands = operands
        self.attrs = attrs

    def match(self, value: Value | None, found: Mapping[str, Value] | None = None) -> dict[str, Value] | None:
        """The captures, or None where `value` has another shape than this pattern."""
        return _match(self, value, dict(found or {}))


def _match(pattern: Pattern | str | float, value: Value | None, found: dict[str, Value]) -> dict[str, Value] | None:
    if value is None:
        return None
    if isinstance(pattern, str):
        if found.setdefault(pattern, value) is value:
            return found
        return None
    if not isinstance(pattern, Pattern):
        array = value.constant
        if array is None or array.size != 1:
            return None
        return found if abs(float(array.reshape(())) - pattern) <= 1e-3 * max(abs(pattern), 1e-3) else None
    node = value.node
    if node.op.name != pattern.op or any(node.attrs.get(k) != a for k, a in pattern.attrs.items()):
        return None
    orders = [node.inputs]
    if pattern.op in Pattern.commutative:
        orders.append(node.inputs[::-1])
    for operands in orders:
        captured: dict[str, Value] | None = dict(found)
        for p, v in zip(pattern.operands, operands, strict=False):
            captured = _match(p, v, captured)  # type: ignore[arg-type]
            if captured is None:
                break
        if captured is not None:
            return captured
    return None
