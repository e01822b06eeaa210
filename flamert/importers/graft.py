"""Low-rank terms beside a loaded model's weights: where they can go, nodes that add them, weights with them merged.

The file that is saved never sees them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper

from flamert import dtypes
from flamert.errors import InputError
from flamert.importers.edits import add_weight, drop_weight, reading, set_nodes, writing
from flamert.importers.low_rank import DOMAIN
from flamert.importers.onnx import OnnxNode
from flamert.origin import LowRank, Projection

if TYPE_CHECKING:
    from flamert.importers.load import OnnxOrigin


def merged(origin: OnnxOrigin) -> dict[str, np.ndarray]:
    """Weights with their terms added, computed in float32 at least."""
    found = {}
    for graft in origin.grafts.values():
        w, a, b = (origin.weights[n] for n in (graft.at.weight, graft.a, graft.b))
        wide = dtypes.accumulator(w.dtype)
        low = b.reshape(b.shape[:2]).astype(wide) @ a.reshape(len(a), -1).astype(wide)
        low = low.T if graft.at.inputs_first else low
        found[graft.at.weight] = (w.astype(wide) + low.reshape(w.shape) * wide.type(graft.scale)).astype(w.dtype)
    return found


def projections(origin: OnnxOrigin) -> list[Projection]:
    """Weights of the main graph that MatMul, Gemm, Conv or Attention multiply data with, each once.

    Those that a branch or a loop's body reads too are left out: a term would not reach in there.
    """
    readers: dict[str, list[OnnxNode]] = {}
    for node in origin.graph.nodes:
        for name in node.reads:
            readers.setdefault(name, []).append(node)
    found: dict[str, Projection] = {}
    for node in origin.graph.nodes:
        weight = node.inputs[1] if len(node.inputs) > 1 else ""
        captured = any(weight not in reader.inputs for reader in readers.get(weight, ()))
        if weight in origin.graph.initializers and weight not in found and not captured:
            projection = _projection(node, weight, origin.weights[weight], len(readers[weight]) == 1)
            if projection is not None:
                taken = {p.name for p in found.values()}
                name = projection.name
                names = (f"{name}.{i}" if i else name for i in range(len(taken) + 1))
                found[weight] = projection._replace(name=next(n for n in names if n not in taken))
    return list(found.values())


def _projection(node: OnnxNode, weight: str, array: np.ndarray, alone: bool) -> Projection | None:
    if array.dtype not in dtypes.STANDARD_FLOAT or array.ndim < 2:
        return None
    kind = (node.domain, node.op_type)
    name = module_of(weight, node)
    if kind == ("", "Conv"):
        return Projection(name, weight, array.shape[0], array.shape[1:], False, alone and node.attributes.get("group", 1) == 1)
    if array.ndim != 2:
        return None
    rows, columns = array.shape
    if kind == ("", "Gemm") and node.attributes.get("transB", 0):
        return Projection(name, weight, rows, (columns,), False, alone and not node.attributes.get("transA", 0))
    if kind in (("", "Gemm"), ("", "MatMul"), ("com.microsoft", "Attention")):
        beside = alone and kind[0] == "" and not node.attributes.get("transA", 0)
        return Projection(name, weight, columns, (rows,), True, beside)
    return None


def module_of(weight: str, node: OnnxNode) -> str:
    """What PyTorch would call the layer: its weight's name, or, of a weight without one, the path of its node."""
    if weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    if "::" in weight and node.name:
        path = node.name.strip("/").split("/")
        return ".".join(path[:-1] if len(path) > 1 and path[-1].split("_")[0] == node.op_type else path)
    return weight


def attach(origin: OnnxOrigin, graft: LowRank, a: np.ndarray, b: np.ndarray) -> None:
    """Add a term. Its factors join the model's weights."""
    if graft.at.name in origin.grafts:
        raise InputError(f"{graft.at.name!r} has a low-rank term already; merge it first")
    for name, array in ((graft.a, a), (graft.b, b)):
        add_weight(origin, name, array)
    if not origin.grafts:
        origin.ungrafted = origin.graph.nodes
    origin.grafts[graft.at.name] = graft
    origin.opsets[DOMAIN] = 1
    weight = graft.at.weight
    nodes = list(origin.graph.nodes)
    at = next(i for i, node in enumerate(nodes) if weight in node.reads)
    nodes[at : at + 1] = _beside(origin, nodes[at], graft) if graft.at.beside else [_weight(origin, graft), nodes[at]]
    if not graft.at.beside:
        nodes = [reading(node, weight, _adapted(weight)) if node.domain != DOMAIN else node for node in nodes]
    set_nodes(origin, nodes)


def _beside(origin: OnnxOrigin, node: OnnxNode, graft: LowRank) -> Iterator[OnnxNode]:
    """The node, and behind it the term, under the name that the node's result had."""
    base = writing(node, node.outputs[0], f"{node.outputs[0]}.base")
    yield base
    kept = ("auto_pad", "dilations", "pads", "strides") if node.op_type == "Conv" else ()
    attributes = {k: v for k, v in node.attributes.items() if k in kept}
    scale = graft.scale * node.attributes.get("alpha", 1.0)
    yield _made(
        origin,
        "LowRankConv" if node.op_type == "Conv" else "LowRank",
        [base.outputs[0], node.inputs[0], graft.a, graft.b],
        node.outputs[0],
        scale=float(scale),
        dropout=float(graft.dropout),
        **attributes,
    )


def _weight(origin: OnnxOrigin, graft: LowRank) -> OnnxNode:
    operands, result = [graft.at.weight, graft.a, graft.b], _adapted(graft.at.weight)
    first = int(graft.at.inputs_first)
    return _made(origin, "LowRankWeight", operands, result, scale=float(graft.scale), inputs_first=first)


def _adapted(weight: str) -> str:
    return f"{weight}.adapted"


def _made(origin: OnnxOrigin, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> OnnxNode:
    proto = helper.make_node(op_type, inputs, [output], name=f"{output}.{op_type}", domain=DOMAIN, **attributes)
    return OnnxNode(proto, origin.tensors)


def detach(origin: OnnxOrigin) -> None:
    """Take all terms away, and their factors out of the weights."""
    for graft in origin.grafts.values():
        for name in (graft.a, graft.b):
            drop_weight(origin, name)
    if origin.grafts:
        set_nodes(origin, origin.ungrafted)
    origin.grafts.clear()
