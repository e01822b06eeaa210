"""Gradients of ops that move elements: they move back, and sum up where one element went to several places."""

from __future__ import annotations

from typing import Any

from flamert import ops
from flamert.grad.registry import gradient


@gradient(ops.reshape)
def _(dy: Any, y: Any, x: Any, *, shape: Any) -> Any:
    return ops.reshape(dy, shape=x.shape)


@gradient(ops.expand)
def _(dy: Any, y: Any, x: Any, *, shape: Any) -> Any:
    return dy  # the sweep sums it up


@gradient(ops.transpose)
def _(dy: Any, y: Any, x: Any, *, perm: Any) -> Any:
    return ops.transpose(dy, perm=tuple(perm.index(i) for i in range(x.rank)))
