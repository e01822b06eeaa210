"""Products for `gpu_ops`: matrix products, the convolutions of ResNet-50, attention."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu_op_work import DTYPES, Case, Maker, Work, normal, operand, way
from flamert import dtypes, ops
from flamert import graph as g


def product(m: int, n: int, k: int, activation: str = "") -> Maker:
    """x·w + b, and the activation, with constant weights."""

    def make(dtype: np.dtype) -> Work:
        x = operand((m, k), dtype)
        w = g.constant((normal((k, n), dtypes.float32) / math.sqrt(k)).astype(dtype))
        y = ops.matmul(x, w) + g.constant(normal((n,), dtype))
        return Work([x], [getattr(ops, activation)(y) if activation else y], 2.0 * m * n * k)

    return make


def product_backward(m: int, n: int, k: int, of: str) -> Maker:
    """dx = dy·wᵀ, or dw = xᵀ·dy and db = Σ dy, as training has them."""

    def make(dtype: np.dtype) -> Work:
        dy = operand((m, n), dtype)
        if of == "dx":
            w = operand((k, n), dtype)
            return Work([dy, w], [ops.matmul(dy, ops.transpose(w, perm=(1, 0)))], 2.0 * m * n * k)
        x = operand((m, k), dtype)
        dw = ops.matmul(ops.transpose(x, perm=(1, 0)), dy)
        return Work([x, dy], [dw, ops.reduce_sum(dy, axes=(0,))], 2.0 * m * n * k)

    return make


class Conv(NamedTuple):
    """A convolution of ResNet-50 at this batch: image side, channels in and out, kernel, stride."""

    side: int
    inputs: int
    outputs: int
    kernel: int
    stride: int
    batch: int = 64

    def __str__(self) -> str:
        return f"{self.batch}×{self.side}²×{self.inputs} → {self.outputs}, {self.kernel}×{self.kernel} /{self.stride}"

    @property
    def pad(self) -> int:
        return self.kernel // 2

    @property
    def windows(self) -> int:
        """Along a side."""
        return (self.side + 2 * self.pad - self.kernel) // self.stride + 1

    @property
    def flops(self) -> float:
        return 2.0 * self.batch * self.windows**2 * self.outputs * self.inputs * self.kernel**2

    @property
    def attrs(self) -> dict[str, Any]:
        return {"strides": (self.stride,) * 2, "pads": (self.pad,) * 4, "dilations": (1, 1), "group": 1}


def convolution(c: Conv, of: str) -> Maker:
    """relu(conv + bias) with constant weights; or dgrad or wgrad, with the weights as training keeps them."""
    weights = (c.outputs, c.inputs, c.kernel, c.kernel)

    def make(dtype: np.dtype) -> Work:
        x = operand((c.batch, c.side, c.side, c.inputs), dtype)
        dy = operand((c.batch, c.windows, c.windows, c.outputs), dtype)
        if of == "fwd":
            w = g.constant((normal(weights, dtypes.float32) * 0.05).astype(dtype))
            b = g.constant(normal((c.outputs,), dtype))
            return Work([x], [ops.conv_channels_last(x, w, b, **c.attrs, activation="relu")], c.flops)
        if of == "dgrad":
            w = operand(weights, dtype)
            left = (c.side + 2 * c.pad - c.kernel) % c.stride
            return Work([dy, w], [ops.conv_transpose_channels_last(dy, w, **c.attrs, output_padding=(left,) * 2)], c.flops)
        return Work([x, dy], [ops.conv_weight_gradient_channels_last(x, dy, kernel=weights[2:], **c.attrs)], c.flops)

    return make


def attention(b: int, h: int, s: int, d: int, causal: bool, backward: bool) -> Maker:
    """q, k and v [b, h, s, d]. Backward: five products of scores' size, where forward has two."""

    def make(dtype: np.dtype) -> Work:
        q, k, v = (operand((b, h, s, d), dtype) for _ in range(3))
        attrs = {"scale": d**-0.5, "right": 0 if causal else None}
        flops = 4.0 * b * h * s * s * d / (2 if causal else 1)
        if not backward:
            return Work([q, k, v], [ops.attention(q, k, v, **attrs)], flops)
        dy, y = operand((b, h, s, d), dtype), operand((b, h, s, d), dtype)
        return Work([dy, y, q, k, v], list(ops.attention_gradient(dy, y, q, k, v, **attrs)), 2.5 * flops)

    return make


PRODUCTS = {
    "BERT and GPT-2, 4096 rows": [(4096, 768, 768, ""), (4096, 768, 3072, "")],
    "BERT": [(4096, 3072, 768, "gelu")],
    "GPT-2": [(4096, 2304, 768, ""), (4096, 3072, 768, "gelu_tanh"), (4096, 50304, 768, "")],
}
"""(M, N, K, activation) of matrix products."""

CONVOLUTIONS = (
    Conv(224, 3, 64, 7, 2),
    Conv(56, 64, 64, 1, 1),
    Conv(56, 64, 64, 3, 1),
    Conv(56, 64, 256, 1, 1),
    Conv(56, 256, 512, 1, 2),
    Conv(56, 128, 128, 3, 2),
    Conv(28, 128, 128, 3, 1),
    Conv(14, 256, 256, 3, 1),
    Conv(14, 1024, 256, 1, 1),
    Conv(7, 512, 512, 3, 1),
)


def products() -> Iterator[Case]:
    """Rows of the table."""
    for whose, shapes in PRODUCTS.items():
        for m, n, k, activation in shapes:
            name, sizes = f"matmul+bias{activation and '+' + activation}", f"{m}×{n}×{k} {whose}"
            for form in DTYPES:
                yield Case(name, sizes, form, product(m, n, k, activation))
                if not activation or whose == "BERT":
                    yield Case("matmul dx", sizes, form, product_backward(m, n, k, "dx"))
                    yield Case("matmul dw+db", sizes, form, product_backward(m, n, k, "dw"))
    for c in CONVOLUTIONS:
        for of in ("fwd", "dgrad", "wgrad"):
            if of != "dgrad" or c.inputs > 3:  # nobody asks for an image's gradient
                for form in DTYPES:
                    yield Case(f"conv {of}", str(c), form, convolution(c, of))
    for b, h, s, causal in ((32, 12, 128, False), (8, 12, 1024, True)):
        for backward in (False, True):
            shapes_of = f"b{b} h{h} s{s} d64{' causal' if causal else ''}"
            yield Case(f"attention {way(backward)}", shapes_of, "bf16", attention(b, h, s, 64, causal, backward))
