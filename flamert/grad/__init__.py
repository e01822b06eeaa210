"""Gradients: `grad(value, wrt)` emits them as graph, by the rules that one module per family registers."""

from flamert.grad import conv, elementwise, pool, region, resize, shape, signal
from flamert.grad.registry import Missing, flat, gradient, no_gradient
from flamert.grad.transform import grad

__all__ = [
    "Missing",
    "conv",
    "elementwise",
    "flat",
    "grad",
    "gradient",
    "no_gradient",
    "pool",
    "region",
    "resize",
    "shape",
    "signal",
]
