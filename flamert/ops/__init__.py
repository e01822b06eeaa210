"""Every op, by name: `ops.softmax(x, axis=-1)` on Values builds graph. One module per family holds type rules and kernels."""

from __future__ import annotations

from typing import Any

from flamert.ops import (
    activation,
    attention,
    cast,
    conv,
    cpu,
    deform,
    einsum,
    elementwise,
    functions,
    fused,
    image,
    index,
    linear,
    linear_attention,
    logic,
    loss,
    lstm,
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
from flamert.ops.op import OPS, Kernel, Op, composite, kernel, op

__all__ = [
    "OPS",
    "Kernel",
    "Op",
    "activation",
    "attention",
    "cast",
    "composite",
    "conv",
    "cpu",
    "deform",
    "einsum",
    "elementwise",
    "functions",
    "fused",
    "image",
    "index",
    "kernel",
    "linear",
    "linear_attention",
    "logic",
    "loss",
    "lstm",
    "normalize",
    "op",
    "pointwise",
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

for _name in OPS.keys() & globals().keys():
    globals()[_name] = OPS[_name]  # where an op and a module share a name, `ops.<name>` is the op


def __getattr__(name: str) -> Any:
    try:
        return OPS[name]
    except KeyError:
        raise AttributeError(f"there is no op {name!r}; `flamert ops` lists them") from None
