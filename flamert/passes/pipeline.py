"""Which passes run, in which order. One tuple per purpose; the passes themselves are one file each."""

from __future__ import annotations

from collections.abc import Callable

from flamert.graph import Graph
from flamert.passes.fold import fold
from flamert.runtime.device import Device

Pass = Callable[[Graph], Graph]

INFERENCE: tuple[Pass, ...] = (fold,)


def prepare(graph: Graph, hot: bool, device: Device) -> Graph:
    """A graph as the importer made it → as the planner should see it, for inference."""
    for apply in INFERENCE:
        graph = apply(graph)
    return graph
