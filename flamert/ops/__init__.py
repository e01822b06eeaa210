"""Every op, by name: `ops.softmax(x, axis=-1)` on Values builds graph. One module per family holds type rules and kernels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flamert.ops.op import OPS, Kernel, Op, composite, kernel, op

FAMILIES = (
    "activation",
    "attention",
    "attention_blhd",
    "batch_norm",
    "cast",
    "channels_last",
    "columns",
    "conv",
    "cross_entropy",
    "deform",
    "einsum",
    "elementwise",
    "functions",
    "fused",
    "groups",
    "image",
    "index",
    "linear",
    "linear_attention",
    "logic",
    "loss",
    "lstm",
    "lstm_gradient",
    "normalize",
    "order",
    "pointwise",
    "pool",
    "pool_gradient",
    "quantize",
    "random",
    "recurrent",
    "recurrent_gradient",
    "reduce",
    "region",
    "resize",
    "rotary",
    "rows",
    "scatter",
    "shape",
    "signal",
    "slopes",
    "trees",
)

if TYPE_CHECKING:  # the names that an op and a module share mean the op
    attention: Any
    attention_blhd: Any
    batch_norm: Any
    cast: Any
    columns: Any
    conv: Any
    cross_entropy: Any
    einsum: Any
    linear: Any
    linear_attention: Any
    lstm: Any
    lstm_gradient: Any
    pointwise: Any
    quantize: Any

__all__ = ["FAMILIES", "OPS", "Kernel", "Op", "composite", "kernel", "op"]

for _family in (*FAMILIES, "cpu"):
    importlib.import_module(f"{__name__}.{_family}")

globals().update(OPS)


def __getattr__(name: str) -> Any:
    """An op that was registered later."""
    try:
        return OPS[name]
    except KeyError:
        raise AttributeError(f"there is no op {name!r}; `flamert ops` lists them") from None
