"""Compute Values with the reference kernels, one node after the other: constant folding, oracles, host steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flamert.errors import FlamertError, UnsupportedOp, translated
from flamert.graph import CONSTANT, INPUT, Node, Value, topological
from flamert.graph import input as graph_input
from flamert.limits import require_memory
from flamert.ops.op import Kernel, Site, expand, reference


def evaluate(outputs: Sequence[Value], feeds: Mapping[Value, Any] | None = None, xp: Any = np) -> list[Any]:
    """Arrays for `outputs`, given arrays for the input Values they depend on. Nothing is shared with the operands."""
    known: dict[Value, Any] = dict(feeds or {})
    with np.errstate(all="ignore"):
        for node in topological(outputs):
            if node.op is CONSTANT:
                known[node.outputs[0]] = node.attrs["value"]
            elif node.op is not INPUT:
                results = apply(node, [None if v is None else known[v] for v in node.inputs], xp)
                known.update(zip(node.outputs, results, strict=True))
    return [known[v] for v in outputs]


def apply(node: Node, inputs: Sequence[Any], xp: Any = np, kernel: Kernel | None = None) -> list[Any]:
    """One node on arrays, into fresh results."""
    try:
        return _apply(node, inputs, xp, kernel or reference(node.op))
    except FlamertError as error:
        error.at(str(node.source or node.op.name))
        raise
    except Exception as error:
        raise translated(error, str(node.source or node.op.name)) from error


def _apply(node: Node, inputs: Sequence[Any], xp: Any, kernel: Kernel | None) -> list[Any]:
    if kernel is None and node.op.body is not None and node.op.view is None:
        arguments = tuple(None if v is None else graph_input(v.type) for v in node.inputs)
        feeds = {a: x for a, x in zip(arguments, inputs, strict=True) if a is not None}
        return evaluate(expand(node, arguments), feeds, xp)
    scratch = kernel.workspace(node) if kernel is not None and kernel.workspace else ()
    require_memory(sum([t.nbytes for t in (*node.types, *scratch)]), node.op.name)
    if kernel is None and node.op.view is not None:
        # A view's result is copied out, so that whoever gets it owns it.
        return [xp.array(node.op.view(xp.ascontiguousarray(inputs[0]).reshape(xp.shape(inputs[0])), **node.attrs))]
    if kernel is None:
        raise UnsupportedOp(f"{node.op.name} has no reference kernel")
    outs = [xp.empty(t.shape, t.dtype) for t in node.types]
    work = tuple(xp.empty(t.shape, t.dtype) for t in scratch)
    operands = [a if a is None or not kernel.wants_dense(i) else xp.ascontiguousarray(a) for i, a in enumerate(inputs)]
    kernel.thunk(Site(xp, node, work), outs[0] if len(outs) == 1 else tuple(outs), operands)()
    return outs


def value_of(value: Value) -> np.ndarray:
    """The array of a Value that depends on constants alone (`value.node.known`)."""
    return value.constant if value.constant is not None else evaluate([value])[0]
