"""Gradients: `grad(value, wrt)` emits them as graph, by the rules that one module per family registers."""

from flamert.grad import (
    activation,
    cast,
    conv,
    elementwise,
    functions,
    logic,
    pool,
    quantize,
    random,
    region,
    resize,
    shape,
    signal,
    trees,
)
from flamert.grad.registry import Missing, flat, gradient, no_gradient
from flamert.grad.transform import grad

__all__ = [
    "Missing",
    "activation",
    "cast",
    "conv",
    "elementwise",
    "flat",
    "functions",
    "grad",
    "gradient",
    "logic",
    "no_gradient",
    "pool",
    "quantize",
    "random",
    "region",
    "resize",
    "shape",
    "signal",
    "trees",
]
