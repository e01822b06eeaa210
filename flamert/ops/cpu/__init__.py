"""Kernels that make ops fast on a CPU; importing this package registers them."""

from flamert.ops.cpu import (
    attention,
    batch_norm,
    conv,
    conv_gradient,
    linear,
    normalize,
    pointwise,
    pool,
    recurrent,
    reduce,
    shape,
)

__all__ = [
    "attention",
    "batch_norm",
    "conv",
    "conv_gradient",
    "linear",
    "normalize",
    "pointwise",
    "pool",
    "recurrent",
    "reduce",
    "shape",
]
