"""Gradients: `grad(value, wrt)` emits them as graph, by the rules that one module per family registers."""

import sys
import types
from typing import Any

from flamert.grad import (
    activation,
    attention,
    cast,
    conv,
    elementwise,
    functions,
    index,
    linear,
    linear_attention,
    logic,
    loss,
    normalize,
    order,
    pool,
    quantize,
    random,
    recurrent,
    reduce,
    region,
    resize,
    rotary,
    scatter,
    shape,
    signal,
    trees,
)
from flamert.grad.registry import Missing, flat, gradient, no_gradient
from flamert.grad.transform import grad
from flamert.graph import Value

__all__ = [
    "Missing",
    "activation",
    "attention",
    "cast",
    "conv",
    "elementwise",
    "flat",
    "functions",
    "grad",
    "gradient",
    "index",
    "linear",
    "linear_attention",
    "logic",
    "loss",
    "no_gradient",
    "normalize",
    "order",
    "pool",
    "quantize",
    "random",
    "recurrent",
    "reduce",
    "region",
    "resize",
    "rotary",
    "scatter",
    "shape",
    "signal",
    "trees",
]


class _Callable(types.ModuleType):
    """`flamert.grad` is this package and, as users write it, the function."""

    def __call__(self, *args: Any, **kwargs: Any) -> list[Value | None]:
        return grad(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
