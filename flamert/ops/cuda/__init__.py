"""Kernels that make ops fast on an NVIDIA GPU; importing this package registers them. CuPy is imported when they are bound."""

from flamert.ops.cuda import attention, conv, functions, linear, pointwise, pool, reduce, rows

__all__ = ["attention", "conv", "functions", "linear", "pointwise", "pool", "reduce", "rows"]
