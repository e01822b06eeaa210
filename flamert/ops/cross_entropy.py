"""Cross-entropy of scores with class numbers, and its gradient: what a GPU makes without ever storing a softmax."""

from __future__ import annotations

from typing import Any

from flamert.ops.functions import exp
from flamert.ops.index import gather_elements
from flamert.ops.normalize import log_softmax
from flamert.ops.op import composite
from flamert.ops.reduce import accumulating, cast_like, reduce_log_sum_exp
from flamert.ops.scatter import scatter_elements
from flamert.ops.shape import pad, reshape


def _at(t: Any) -> Any:
    """Class numbers with an axis of length 1 for the classes."""
    return reshape(t, shape=(t.shape[0], 1, *t.shape[1:]))


@composite
def cross_entropy(x: Any, t: Any) -> Any:
    """(−log softmax(x)[n, t[n, …], …], log Σ exp(x) over axis 1), neither of which can overflow on the way.

    x: floating [N, C, …]. t: integer [N, …], in [−C, C). Returns two results of t's shape, in x's type, or float32 for half
    types. Raises ShapeError for a class out of range, on a GPU a late one (see ops/index.py).
    """
    wide = accumulating(x)
    log = gather_elements(log_softmax(wide, axis=1), _at(t), axis=1)
    return reshape(-log, shape=t.shape), reduce_log_sum_exp(wide, axes=(1,))


@composite
def cross_entropy_gradient(x: Any, t: Any, sums: Any, dlosses: Any, dsums: Any = None, *, zeros: int = 0) -> Any:
    """dx = (dlosses + dsums) · softmax(x) − dlosses at the classes t, where dlosses and dsums reach `cross_entropy`'s results.

    x, t: as there. sums: its second result, which spares kernels a pass. dlosses, dsums: of t's shape and that result's type;
    dsums is zero where left out. zeros: what no class stands for, behind the classes, as a product that was made wider than
    they are many wants it. Returns x's type, with so much more along axis 1.
    """
    given = _at(dlosses)
    # By the logarithm, which the forward pass has made where it had no kernel of its own.
    flow = exp(log_softmax(accumulating(x), axis=1)) * (given if dsums is None else given + _at(dsums))
    dx = cast_like(scatter_elements(flow, _at(t), -given, axis=1, reduction="add"), x)
    return pad(dx, pads=(*[0] * x.rank, 0, zeros, *[0] * (x.rank - 2))) if zeros else dx
