"""Sums over groups of channels, of which group normalisation and its gradient are made where a GPU computes them."""

from __future__ import annotations

import math
from typing import Any

from flamert.graph import Value
from flamert.ops.op import composite
from flamert.ops.reduce import accumulating, moments, reduce_sum
from flamert.ops.rules import axis_in
from flamert.ops.shape import reshape


def _apart(x: Value, groups: int, axis: int) -> tuple[Value, int]:
    """x as [N, G, C / G, S] or [N, S, G, C / G] for the channels' axis 1 or last; and where G is."""
    axis = axis_in(axis, x.rank)
    n, c = x.shape[0], x.shape[axis]
    rest = math.prod(x.shape[1:axis]) * math.prod(x.shape[axis + 1 :])
    if axis == 1:
        return reshape(x, shape=(n, groups, c // groups, rest)), 1
    return reshape(x, shape=(n, rest, groups, c // groups)), 2


@composite
def group_moments(x: Any, *, groups: int, axis: int = 1) -> Any:
    """(mean, variance) of x over each group of C / groups channels and all that is not a channel: [N, G] each.

    x: floating [N, C, …], or with its channels last where `axis` says so. The variance is biased. Both results are float32 for
    half types, else of x's type.
    """
    seen, at = _apart(x, groups, axis)
    found = moments(seen, axes=tuple(i for i in (1, 2, 3) if i != at))
    return tuple(reshape(v, shape=(x.shape[0], groups)) for v in found)


@composite
def group_sums(dy: Any, x: Any, mean: Any, *, groups: int, axis: int = 1) -> Any:
    """(Σ dy, Σ dy · (x − mean)) over all that is not a channel: [N, C] each.

    dy, x: floating [N, C, …], or with their channels last where `axis` says so. mean: that of each group, as `group_moments`
    makes it, whose type both results have.
    """
    (flow, at), (seen, _) = _apart(accumulating(dy), groups, axis), _apart(accumulating(x), groups, axis)
    middle = reshape(mean, shape=tuple(d if i in (0, at) else 1 for i, d in enumerate(seen.shape)))
    over = (3 if at == 1 else 1,)
    sums = reduce_sum(flow, axes=over), reduce_sum(flow * (seen - middle), axes=over)
    return tuple(reshape(v, shape=(x.shape[0], x.shape[axis])) for v in sums)
