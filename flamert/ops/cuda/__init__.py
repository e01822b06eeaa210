"""Kernels that make ops fast on an NVIDIA GPU; importing this package registers them. CuPy is imported when they are bound."""

from flamert.ops.cuda import (
    attention,
    columns,
    conv,
    cross_entropy,
    flash,
    functions,
    gather,
    linear,
    lstm,
    pointwise,
    pool,
    reduce,
    rows,
    scatter,
    shape,
    totals,
)

__all__ = [
    "attention",
    "columns",
    "conv",
    "cross_entropy",
    "flash",
    "functions",
    "gather",
    "linear",
    "lstm",
    "pointwise",
    "pool",
    "reduce",
    "rows",
    "scatter",
    "shape",
    "totals",
]
