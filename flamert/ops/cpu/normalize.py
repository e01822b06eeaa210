"""Softmax and layer normalization on the CPU: each row stays in the cache from its first pass to its last."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flamert.graph import Node
from flamert.ops.cpu.library import library, native
from flamert.ops.normalize import layer_norm, log_softmax, rms_norm, softmax
from flamert.ops.op import Op, Site, kernel


def _over_rows(node: Node) -> bool:
    x = node.inputs[0]
    assert x is not None
    return x.type.size > 0 and math.prod(x.shape[node.attrs["axis"] % x.rank + 1 :]) == 1


def _register_softmax(op: Op, logarithm: bool) -> None:
    @kernel(op, "numpy", when=native(_over_rows), bind=True, contiguous=True)
    def _(site: Site, out: Any, x: Any, *, axis: int) -> Callable[[], None]:
        lib = library()
        assert lib is not None
        n = x.shape[axis]
        return lib.call("softmax", [out, x], [x.size // n, n, logarithm])


_register_softmax(softmax, False)
_register_softmax(log_softmax, True)


def _whole_rows(node: Node) -> bool:
    """Whether scale and bias have one number for each element of a row."""
    x, *affine = node.inputs
    assert x is not None
    n = math.prod(x.shape[node.attrs["axis"] :])
    return x.type.size > 0 and all(v is None or v.type.size == n for v in affine)


@kernel(layer_norm, "numpy", when=native(_whole_rows), bind=True, contiguous=True)
def _(site: Site, out: Any, x: Any, scale: Any = None, bias: Any = None, *, axis: int, epsilon: float) -> Callable[[], None]:
    return _call(out, x, scale, bias, axis, epsilon, centred=True)


@kernel(rms_norm, "numpy", when=native(_whole_rows), bind=True, contiguous=True)
def _(site: Site, out: Any, x: Any, scale: Any = None, *, axis: int, epsilon: float) -> Callable[[], None]:
    return _call(out, x, scale, None, axis, epsilon, centred=False)


def _call(out: Any, x: Any, scale: Any, bias: Any, axis: int, epsilon: float, centred: bool) -> Callable[[], None]:
    lib = library()
    assert lib is not None
    n = math.prod(x.shape[axis:])
    return lib.call("layer_norm", [out, x, scale, bias], [x.size // n, n, centred], [epsilon])
