"""Every op, by name: `ops.softmax(x, axis=-1)` on Values builds graph. One module per family holds type rules and kernels."""

from __future__ import annotations

from typing import Any

from flamert.ops import (
    attention,
    cast,
    conv,
    elementwise,
    image,
    index,
    linear,
    loss,
    normalize,
    pool,
    quantize,
    random,
    recurrent,
    reduce,
    shape,
    signal,
)
from flamert.ops.op import OPS, Kernel, Op, composite, kernel, op

__all__ = [
    "OPS",
    "Kernel",
    "Op",
    "attention",
    "cast",
    "composite",
    "conv",
    "elementwise",
    "image",
    "index",
    "kernel",
    "linear",
    "loss",
    "normalize",
    "op",
    "pool",
    "quantize",
    "random",
    "recurrent",
    "reduce",
    "shape",
    "signal",
]


def __getattr__(name: str) -> Any:
    try:
        return OPS[name]
    except KeyError:
        raise AttributeError(f"there is no op {name!r}; `flamert ops` lists them") from None
