"""Kernels that make ops fast on a CPU; importing this package registers them."""

from flamert.ops.cpu import conv, linear, pointwise

__all__ = ["conv", "linear", "pointwise"]
