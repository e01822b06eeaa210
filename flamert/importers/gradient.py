"""Converter of ONNX's Gradient (ai.onnx.preview.training): the derivative of one tensor of a graph by others of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from flamert import graph as g
from flamert import ops
from flamert.errors import InvalidModel
from flamert.grad.transform import DIFFERENTIABLE, grad
from flamert.graph import INPUT, Graph, Value, topological
from flamert.importers.onnx import OnnxGraph, OnnxNode
from flamert.importers.optimizers import TRAINING
from flamert.importers.registry import Context, Enter, Entry, converter
from flamert.rewrite import inline


@converter("Gradient", domain=TRAINING)
def _(ctx: Context, *inputs: Value, xs: Sequence[str], zs: Sequence[str] = (), y: str) -> Enter:
    """Σ ∂y/∂x for each x of `xs`, at the values that are given for `xs` and then `zs`.

    The part of the graph that leads from these names to y is imported once more, with what is given in their place: so y is
    a function of independent variables, wherever in the graph they lie, and nothing of it has been folded away.
    """
    names = (*xs, *zs)
    if len(inputs) != len(names):
        raise InvalidModel(f"Gradient names {len(names)} tensors in xs and zs, and has {len(inputs)} inputs")
    scope = ctx.importer.frames[-1].scope
    variables = [_variable(v) if v.dtype in DIFFERENTIABLE else v for v in inputs[: len(xs)]]
    given = [*variables, *inputs[len(xs) :]]
    bindings = {n: v for n, v in zip(names, given, strict=True) if scope.names.get(n) is not v}

    def leave(results: list[Entry], state: list[Entry]) -> list[Value]:
        return _gradients(results[0], state[: len(xs)], state[len(xs) :])

    part = _between(ctx.importer.frames[-1].graph, bindings.keys(), y)
    return Enter(part, bindings, leave, [*variables, *inputs[: len(xs)]])


def _variable(value: Value) -> Value:
    """A Value of its own that is `value`; one that is not known, lest what follows be folded."""
    return g.input(value.type) if value.node.known else ops.reshape(value, shape=value.shape)


def _between(graph: OnnxGraph, names: Collection[str], y: str) -> OnnxGraph:
    """The nodes on the way from these names to y. Whatever else they read has been computed already."""
    reached = set(names)
    forward: list[OnnxNode] = []
    for node in graph.nodes:
        if not reached.isdisjoint(node.reads) and reached.isdisjoint(node.outputs):
            forward.append(node)
            reached.update(filter(None, node.outputs))
    needed, kept = {y}, []
    for node in reversed(forward):
        if not needed.isdisjoint(node.outputs):
            kept.append(node)
            needed.update(node.reads)
    return OnnxGraph(reversed(kept), (), (y,), {}, graph.name)


def _gradients(y: Value, variables: Sequence[Value], values: Sequence[Value]) -> list[Value]:
    """∂y/∂x for each variable, zero where y does not depend on it; then `values` in the place of stand-ins."""
    wanted = [v if v.dtype in DIFFERENTIABLE else None for v in variables]
    flows = iter(grad(y, [v for v in wanted if v is not None]))
    found = [None if v is None else next(flows) for v in wanted]
    nothing = [ops.expand(g.constant(0, v.dtype), shape=v.shape) for v in variables]
    results = [zero if f is None else f for f, zero in zip(found, nothing, strict=True)]
    stand_ins = {v: x for v, x in zip(variables, values, strict=True) if v.node.op is INPUT}
    leaves = [n.outputs[0] for n in topological(results) if n.op is INPUT]
    return list(inline(Graph(leaves, results), [stand_ins.get(v, v) for v in leaves]))
