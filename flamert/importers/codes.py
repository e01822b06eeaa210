"""From floating weights back to the small integers that stand for them, node by node."""

from __future__ import annotations

from typing import NamedTuple

import ml_dtypes
import numpy as np

from flamert import dtypes
from flamert.importers.onnx import OnnxNode


class Step(NamedTuple):
    """One node of a chain. at: which of its operands comes from the codes. others: what the rest of them are called."""

    node: OnnxNode
    at: int

    @property
    def others(self) -> tuple[str, ...]:
        return tuple([n for i, n in enumerate(self.node.inputs) if n and i != self.at])


def undone(step: Step, y: np.ndarray, shape: tuple[int, ...], others: list[np.ndarray]) -> np.ndarray:
    """What a step must have been given, in float64, to result in y."""
    kind, others = step.node.op_type, [np.asarray(a).astype(np.float64) for a in others]
    if kind == "Mul":
        return y / others[0]
    if kind == "Div":
        return y * others[0]
    if kind == "Add":
        return y - others[0]
    if kind == "Sub":
        return others[0] - y if step.at else y + others[0]
    if kind == "DequantizeLinear":
        scale, *zero = [_spread(a, step.node, shape) for a in others]
        return y / scale + (zero[0] if zero else 0.0)
    return moved(step, y, shape)


def moved(step: Step, y: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a step's result where its operand, of this shape, had it."""
    if step.node.op_type == "Transpose":
        perm = step.node.attributes.get("perm", range(y.ndim)[::-1])
        return y.transpose(np.argsort(perm))
    return y.reshape(shape)


def _spread(a: np.ndarray, node: OnnxNode, shape: tuple[int, ...]) -> np.ndarray:
    """Scales or zero points of a DequantizeLinear as they broadcast to this shape."""
    if a.size == 1:
        return a.reshape(())
    axis = node.attributes.get("axis", 1) % len(shape)
    block = node.attributes.get("block_size", 0)
    if block:
        return np.repeat(a, block, axis=axis).take(range(shape[axis]), axis=axis)
    return a.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def rounded(y: np.ndarray, to: np.dtype) -> np.ndarray:
    """The nearest values of a type of codes; what lies beyond its ends becomes these."""
    info = ml_dtypes.iinfo(to) if to in dtypes.INTEGER else ml_dtypes.finfo(to)
    y = np.clip(np.nan_to_num(y), float(info.min), float(info.max))
    return (np.rint(y) if to in dtypes.INTEGER else y).astype(to)
