"""Ops that exporters took apart are put together again: activations, normalisations, softmax, rotary embeddings, attention.

Every match replaces nodes that nobody outside it reads, by one op whose values are the same up to rounding.
"""

from __future__ import annotations

from flamert.graph import Graph
from flamert.passes.patterns import activation, attention, normalize, rotary
from flamert.passes.patterns.index import Index, Recognisers
from flamert.rewrite import substitute

STAGES: tuple[Recognisers, ...] = (
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
        "exp": (normalize.softmax,),
        "concat": (rotary.rotary_embedding, rotary.rotary_embedding_by_halves),
    },
    {"softmax": (attention.attention,)},
)
"""By the op a pattern is looked for at. A later stage sees what the earlier ones have put together."""


def recognise(graph: Graph) -> Graph:
    """Runs after constant folding, `simplify` and `deduplicate`, on which the forms that it looks for depend."""
    for stage in STAGES:
        index = Index(graph)
        found = dict(match for op, recognisers in stage.items() for match in index.matches(op, recognisers))
        if found:
            graph = substitute(graph, found)
    return graph
