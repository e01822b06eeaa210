"""Pieces of transformers: linear layers, heads, attention, masks, dropout.

Hidden states are rows, [batch · length, width]: that is what matrix products want. Only attention needs to know which rows
belong together.
"""

from __future__ import annotations

import numpy as np

from flamert import graph as g
from flamert import ops
from flamert.graph import Value
from models.building import Initial, Place, Shape, linear, normal


def dense(at: Place, x: Value, outputs: int, *, bias: bool = True, initial: Initial | None = None) -> Value:
    """A linear layer whose weight is at first normal with 0.02."""
    return linear(at, x, outputs, bias=bias, initial=initial or normal(0.02))


def scores(x: Value, table: Value, batch: int) -> Value:
    """Logits [batch, length, tokens] of rows: their products with the rows of a table of tokens."""
    return ops.reshape(ops.gemm(x, table, trans_b=True), shape=(batch, x.shape[0] // batch, table.shape[0]))


def split(x: Value, batch: int, heads: int) -> Value:
    """Rows as [batch, heads, length, size]."""
    rows, width = x.shape
    return ops.transpose(ops.reshape(x, shape=(batch, rows // batch, heads, width // heads)), perm=(0, 2, 1, 3))


def attend(q: Value, k: Value, v: Value, mask: Value | None = None, *, drop: float = 0.0) -> Value:
    """softmax(q · kᵀ / √size) · v as rows, with attention only where the mask, broadcast to [batch, heads, L, L], is true.

    q, k, v: [batch, heads, length, size]; of k and v there may be fewer heads, each for a group of those of q.
    """
    batch, heads, length, size = q.shape
    if k.shape[1] != heads:
        k, v = (ops.repeat(x, repeats=(1, heads // x.shape[1], 1, 1)) for x in (k, v))
    products = ops.matmul(q, ops.transpose(k, perm=(0, 1, 3, 2))) * size**-0.5
    weights = ops.softmax(products if mask is None else ops.where(mask, products, -1e9), axis=-1)
    mixed = ops.matmul(dropout(weights, drop), v)
    return ops.reshape(ops.transpose(mixed, perm=(0, 2, 1, 3)), shape=(batch * length, heads * size))


def causal(length: int) -> Value:
    """The mask [length, length] that lets every position see itself and those before."""
    return ops.trilu(ops.expand(g.constant(np.array(True)), shape=(length, length)), upper=False)


def dropout(x: Value, ratio: float) -> Value:
    """x as it is; in training some of it is dropped."""
    return ops.dropout(x, g.constant(np.float32(ratio)))[0] if ratio else x


def sinusoids(amplitude: float) -> Initial:
    """Position embeddings to start from: sines and cosines of many wavelengths. Source: Vaswani et al. 2017."""

    def waves(rng: np.random.Generator, shape: Shape) -> np.ndarray:
        half = shape[1] // 2
        angles = np.arange(shape[0])[:, None] / 1e4 ** (np.arange(half) / half)
        return (amplitude * np.concatenate([np.sin(angles), np.cos(angles)], axis=1)).astype(np.float32)

    return waves
