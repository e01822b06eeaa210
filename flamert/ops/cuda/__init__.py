"""Kernels that make ops fast on an NVIDIA GPU; importing this package registers them. CuPy is imported when they are bound."""

from flamert.ops.cuda import attention, columns, conv, functions, gather, linear, pointwise, pool, reduce, rows, scatter, totals

__all__ = [
    "attention",
    "columns",
    "conv",
    "functions",
    "gather",
    "linear",
    "pointwise",
    "pool",
    "reduce",
    "rows",
    "scatter",
    "totals",
]
