"""The casts of a step's weights as one: a launch for all instead of one for each."""

from __future__ import annotations

import numpy as np

from flamert import ops
from flamert.graph import INPUT, Graph, Value
from flamert.rewrite import substitute


def cast_together(graph: Graph) -> Graph:
    """Casts of the graph's float32 inputs to one half type → one `cast_many`."""
    found: dict[np.dtype, dict[Value, Value]] = {}
    for node in graph.nodes:
        x = node.inputs[0] if node.op is ops.cast else None
        if x is not None and x.node.op is INPUT and x.dtype == np.float32 and node.types[0].dtype.itemsize == 2:
            found.setdefault(node.types[0].dtype, {})[node.outputs[0]] = x
    new: dict[Value, Value] = {}
    for dtype, casts in found.items():
        if len(casts) > 1:
            new |= dict(zip(casts, ops.cast_many(*casts.values(), to=dtype), strict=True))
    return substitute(graph, new) if new else graph
