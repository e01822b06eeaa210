"""Kernels that make ops fast on a CPU; importing this package registers them."""

from flamert.ops.cpu import attention, conv, linear, normalize, pointwise, pool, reduce, shape

__all__ = ["attention", "conv", "linear", "normalize", "pointwise", "pool", "reduce", "shape"]
