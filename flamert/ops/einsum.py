"""Einstein summation, written in transpositions, products and matrix products."""

from __future__ import annotations

import math
import string
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flamert import graph as g
from flamert.errors import ShapeError
from flamert.graph import Value
from flamert.ops.linear import matmul
from flamert.ops.logic import where
from flamert.ops.op import composite
from flamert.ops.reduce import reduce_sum
from flamert.ops.shape import reshape, transpose

Term = tuple[Value, str]
"""An operand with one label for each of its axes."""


@composite
def einsum(*xs: Any, equation: str) -> Any:
    """Σ over the labels that the result lacks, of the product of the operands, as NumPy's einsum.

    equation: "ij,jk->ik", with ellipses that broadcast, repeated labels that take diagonals, and optionally no right side.
    Numeric, one type for all; half types accumulate in float32 within each product. Source: ONNX Einsum-28.
    """
    labels, result = parse(equation, [x.rank for x in xs])
    sizes = _sizes(zip(labels, [x.shape for x in xs], strict=True))
    missing = set(result) - sizes.keys()
    if missing:
        raise ShapeError(f"{equation!r}: no operand has the label {min(missing)!r}")
    terms = [_without_ones(_diagonal(x, axes), sizes) for x, axes in zip(xs, labels, strict=True)]
    for group in _path(labels, result, sizes):
        chosen = [terms[i] for i in group]
        terms = [t for i, t in enumerate(terms) if i not in group]
        while len(chosen) > 1:
            left, right, *others = chosen
            chosen = [_product(left, right, set(result).union(*[axes for _, axes in terms + others])), *others]
        terms.append(_summed(chosen[0], set(result).union(*[axes for _, axes in terms])))
    [(value, axes)] = terms
    value = transpose(value, perm=tuple(axes.index(a) for a in result if a in axes))
    return reshape(value, shape=tuple(sizes[a] for a in result))


def parse(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Labels of every operand's axes and of the result's; an ellipsis becomes labels of its own, aligned at the right.

    Raises ShapeError for an equation that is malformed or does not fit the operands' ranks.
    """
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise ShapeError(f"{equation!r} has {len(terms)} terms for {len(ranks)} operands")
    widths = [rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True)]
    for term, width in zip(terms, widths, strict=True):
        if width < 0 or (width and "..." not in term):
            raise ShapeError(f"term {term!r} of {equation!r} does not fit its operand's rank")
    free = [c for c in map(chr, range(0x100, 0x180)) if c not in text][: max(widths, default=0)]
    dots = "".join(free)
    labels = [t.replace("...", dots[len(dots) - w :]) for t, w in zip(terms, widths, strict=True)]
    if not arrow:
        once = sorted(c for c in set("".join(terms)) - {"."} if left.count(c) == 1)
        right = "..." * ("..." in left) + "".join(once)
    result = right.replace("...", dots)
    if not all(c in string.ascii_letters or c in dots for c in "".join([*labels, result])) or len(set(result)) != len(result):
        raise ShapeError(f"{equation!r} is no equation of letters, ellipses and commas whose result names each label once")
    return labels, result


def _sizes(operands: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    """The length that each label stands for; length 1 broadcasts."""
    sizes: dict[str, int] = {}
    for axes, shape in operands:
        for label, d in zip(axes, shape, strict=True):
            if sizes.setdefault(label, d) == 1:
                sizes[label] = d
            elif d not in (1, sizes[label]):
                raise ShapeError(f"label {label!r} has the lengths {sizes[label]} and {d}")
    return sizes


def _path(labels: Sequence[str], result: str, sizes: dict[str, int]) -> list[tuple[int, ...]]:
    """Which terms to multiply in which order; those multiplied leave the list and their product joins its end."""
    if len(labels) < 3:
        return [tuple(range(len(labels)))]
    names = {label: i for i, label in enumerate(sizes)}
    hollow = np.empty(())
    arguments: list[Any] = []
    for axes in labels:
        arguments += [np.broadcast_to(hollow, [sizes[a] for a in axes]), [names[a] for a in axes]]
    return np.einsum_path(*arguments, [names[a] for a in result], optimize=("greedy", 1 << 62))[0][1:]


def _diagonal(x: Value, axes: str) -> Term:
    """Repeated labels made one, by taking the diagonal."""
    for label in sorted(set(axes)):
        while axes.count(label) > 1:
            i, j = axes.index(label), axes.rindex(label)
            if x.shape[i] != x.shape[j]:
                raise ShapeError(f"label {label!r} has the lengths {x.shape[i]} and {x.shape[j]} in one operand")
            eye = np.eye(x.shape[i], dtype=bool).reshape([d if k in (i, j) else 1 for k, d in enumerate(x.shape)])
            x = reduce_sum(where(g.constant(eye), x, g.constant(0, x.dtype)), axes=(j,))
            axes = axes[:j] + axes[j + 1 :]
    return x, axes


def _without_ones(term: Term, sizes: dict[str, int]) -> Term:
    """A term without the axes along which it broadcasts."""
    x, axes = term
    kept = [i for i, d in enumerate(x.shape) if d != 1 or sizes[axes[i]] == 1]
    return reshape(x, shape=tuple(x.shape[i] for i in kept)), "".join(axes[i] for i in kept)


def _summed(term: Term, kept: set[str]) -> Term:
    """A term summed over the labels that nothing else needs."""
    x, axes = term
    gone = tuple(i for i, label in enumerate(axes) if label not in kept)
    return (reduce_sum(x, axes=gone), "".join(a for a in axes if a in kept)) if gone else term


def _product(left: Term, right: Term, kept: set[str]) -> Term:
    """Two terms multiplied, and summed over the labels they have that are not kept."""
    left, right = _summed(left, kept.union(right[1])), _summed(right, kept.union(left[1]))
    (x, xs), (y, ys) = left, right
    batch = [a for a in xs if a in ys and a in kept]
    inner = [a for a in xs if a in ys and a not in kept]
    rows, columns = [a for a in xs if a not in ys], [a for a in ys if a not in xs]
    axes = "".join([*batch, *rows, *columns])
    if not inner:
        return _arranged(left, batch, rows, [None] * len(columns)) * _arranged(right, batch, [None] * len(rows), columns), axes
    size = dict(zip(xs + ys, x.shape + y.shape, strict=True))
    b, m, k, n = (math.prod(size[a] for a in group) for group in (batch, rows, inner, columns))
    x_BMK = reshape(_arranged(left, batch, rows, inner), shape=(b, m, k))
    y_BKN = reshape(_arranged(right, batch, inner, columns), shape=(b, k, n))
    return reshape(matmul(x_BMK, y_BKN), shape=tuple(size[a] for a in axes)), axes


def _arranged(term: Term, *groups: Sequence[str | None]) -> Value:
    """A term with its axes in the order of the groups; None stands for a new axis of length 1."""
    x, axes = term
    order = [a for group in groups for a in group]
    x = transpose(x, perm=tuple(axes.index(a) for a in order if a is not None))
    lengths = iter(x.shape)
    return reshape(x, shape=tuple(1 if a is None else next(lengths) for a in order))
