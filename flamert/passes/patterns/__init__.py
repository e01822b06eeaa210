"""Ops that exporters took apart are put together again: activations, normalisations, softmax, rotary embeddings, attention.

Every match replaces nodes that nobody outside it reads, by one op whose values are the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

from flamert.graph import Graph, Node, Value
from flamert.passes.patterns import activation, attention, normalize, rotary
from flamert.passes.patterns.index import Index, Recognisers
from flamert.rewrite import substitute

STAGES: tuple[Recognisers, ...] = (
    {"exp": (normalize.softmax,)},
    {
        "erf": (activation.gelu,),
        "tanh": (activation.gelu, activation.mish),
        "sigmoid": (activation.swish,),
        "hard_sigmoid": (activation.hard_swish,),
        "minimum": (activation.hard_sigmoid,),
        "maximum": (activation.hard_sigmoid,),
        "sqrt": (normalize.layer_norm,),
        "pow": (normalize.layer_norm,),
        "instance_norm": (normalize.group_norm,),
        "group_norm": (normalize.group_norm,),
        "concat": (rotary.rotary_embedding, rotary.rotary_embedding_by_halves),
        "softmax": (attention.attention,),
    },
)
"""By the op a pattern is looked for at. A later stage sees what the earlier ones have put together."""


def recognise(graph: Graph, eligible: Callable[[Node], bool] = lambda node: True) -> Graph:
    """Runs after constant folding, `simplify` and `deduplicate`, on which the forms that it looks for depend.

    eligible: which of the new nodes are wanted.
    """
    for stage in STAGES:
        index = Index(graph)
        matches = [match for op, recognisers in stage.items() for match in index.matches(op, recognisers)]
        found = {root: value for root, value in matches if eligible(_made(value))}
        if found:
            graph = substitute(graph, found)
    return graph


def _made(value: Value) -> Node:
    """The node that was put together; attention may be reshaped to fewer dimensions behind."""
    node = value.node
    return node.inputs[0].node if node.op.name == "reshape" else node  # type: ignore[union-attr]
