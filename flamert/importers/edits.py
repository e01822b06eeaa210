"""Changes to the records of a loaded model: its nodes, the names they read and write, its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from flamert.errors import InputError
from flamert.importers.onnx import OnnxNode

if TYPE_CHECKING:
    from flamert.importers.load import OnnxOrigin


def reading(node: OnnxNode, old: str, new: str) -> OnnxNode:
    """The node with another operand."""
    if old not in node.inputs:
        return node
    changed = copy.copy(node)
    changed.inputs = tuple([new if n == old else n for n in node.inputs])
    changed.reads = frozenset([new if n == old else n for n in node.reads])
    return changed


def writing(node: OnnxNode, old: str, new: str) -> OnnxNode:
    """The node with a result of another name."""
    if old not in node.outputs:
        return node
    changed = copy.copy(node)
    changed.outputs = tuple([new if n == old else n for n in node.outputs])
    return changed


def set_nodes(origin: OnnxOrigin, nodes: Iterable[OnnxNode]) -> None:
    """Let these be the nodes of the main graph, in order."""
    origin.graph.nodes = tuple(nodes)
    for stale in ("values", "statistics"):
        origin.__dict__.pop(stale, None)
    origin.graph.__dict__.pop("free", None)


def add_weight(origin: OnnxOrigin, name: str, array: np.ndarray) -> None:
    """Let the main graph have an initializer more. Raises InputError where the name is taken."""
    if name in origin.weights or name in origin.values:
        raise InputError(f"the model has a value {name!r} already; choose another name")
    origin.weights[name] = array
    origin.names[0][name] = name
    origin.__dict__.pop("values", None)


def drop_weight(origin: OnnxOrigin, name: str) -> None:
    """Take an initializer of the main graph away."""
    del origin.weights[name]
    del origin.names[0][name]
    origin.__dict__.pop("values", None)
