"""Chains of reshapes and transposes in their shortest form, moved behind products and elementwise ops that do not mind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flamert import ops
from flamert.graph import Graph, Node, Value, uses
from flamert.rewrite import rebuild

VIEWS = (ops.reshape, ops.transpose)

FAMILIES = frozenset({"elementwise", "functions", "activation", "cast"})


def straighten(graph: Graph) -> Graph:
    """Write every chain of views as one reshape, transpose and reshape at most, without merging axes only to split them again.

    Views of rows, the axes before the last, go behind a product with a matrix and behind elementwise ops: rows may come in any
    order and shape, and what is done to them at one end is mostly undone at the other.
    """
    if not any(node.op in VIEWS for node in graph.nodes):
        return graph

    count = uses(graph)

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        seen = [v is not None and v.node.op in VIEWS and not v.node.known for v in inputs]
        if not any(seen):
            return None
        if node.op in VIEWS:
            found = _chain(node.op(inputs[0], **node.attrs))
            if found is None:
                return None
            # New values are not counted: what made them has one reader, or had before.
            joined = _joined_after(found) if count.get(found.x, 1) == 1 else None
            return (found.value() if joined is None else joined,)
        if node.op in (ops.matmul, ops.linear) and seen[0] and _plain(node):
            return _behind(node, inputs, 0)
        if node.op.family in FAMILIES and len(node.types) == 1:
            return _past_elements(node, inputs)
        return None

    return rebuild(graph, rule)


def _joined_after(chain: _Chain) -> Value | None:
    """The view of a concatenation as one of views, each part put where it belongs at once; None where nothing is permuted."""
    concat = chain.x.node
    if concat.op is not ops.concat or not chain.permutes or chain.atoms != tuple(d for d in chain.x.shape if d != 1):
        return None
    axis = concat.attrs["axis"] % chain.x.rank
    at = sum(d != 1 for d in chain.x.shape[:axis])
    parts = []
    for v in concat.inputs:
        assert v is not None
        sizes = (*chain.atoms[:at], v.shape[axis], *chain.atoms[at + 1 :])
        part = ops.transpose(ops.reshape(v, shape=sizes), perm=chain.order)
        seen = _chain(part)
        parts.append(part if seen is None else seen.value())
    return ops.reshape(ops.concat(*parts, axis=chain.order.index(at)), shape=chain.shape)


class _Chain(NamedTuple):
    """A view of `x`: its axes split into `atoms`, these in another `order`, and merged to `shape`."""

    x: Value
    atoms: tuple[int, ...]
    """Sizes, in x's order."""
    order: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def permutes(self) -> bool:
        return self.order != tuple(range(len(self.order)))

    def value(self, x: Value | None = None, last: int | None = None) -> Value:
        """The view, of x; or of another value whose last axis, of length `last`, stands where x's last atoms stood."""
        sizes, shape = list(self.atoms), self.shape
        if last is not None:
            sizes, shape = [*sizes[: self.leading], last], (*shape[:-1], last)
        order = [i for i in self.order if i < len(sizes)]
        y = ops.reshape(self.x if x is None else x, shape=tuple(sizes)) if x is not None or self.permutes else self.x
        if order != sorted(order):
            y = ops.transpose(y, perm=tuple(order))
        if y.node.op is ops.reshape and y.node.inputs[0] is not None and y.node.inputs[0].shape == y.shape:
            y = y.node.inputs[0]
        return y if y.shape == shape else ops.reshape(y, shape=shape)

    @property
    def leading(self) -> int:
        """How many atoms come before those of the view's last axis, if these are x's last in x's order; else −1."""
        size, count = 1, 0
        while size < self.shape[-1] and count < len(self.order):
            count += 1
            if self.order[-count] != len(self.order) - count:
                return -1
            size *= self.atoms[-count]
        return len(self.order) - count if size == self.shape[-1] and count else -1


def _chain(v: Value) -> _Chain | None:
    """What a chain of views is; None where it cannot be written so."""
    views: list[Node] = []
    while v.node.op in VIEWS:
        views.append(v.node)
        v = v.node.inputs[0]  # type: ignore[assignment]
    if not v.type.size:
        return None
    atoms = [d for d in v.shape if d != 1]
    order, groups = list(range(len(atoms))), [[i] for i in range(len(atoms))]
    dims = [[] if d == 1 else groups.pop(0) for d in v.shape]
    for view in reversed(views):
        if view.op is ops.transpose:
            dims = [dims[p] for p in view.attrs["perm"]]
            order = [i for group in dims for i in group]
            continue
        made = _grouped(atoms, order, view.attrs["shape"])
        if made is None:
            return None
        atoms, order, dims = made
    return _joined(_Chain(v, tuple(atoms), tuple(order), views[0].types[0].shape), dims)


def _grouped(atoms: list[int], order: list[int], shape: Sequence[int]) -> tuple[list[int], list[int], list[list[int]]] | None:
    """Atoms grouped to the axes of a shape, split where need be; None where sizes do not divide."""
    rest = list(order)
    dims: list[list[int]] = []
    for d in shape:
        group: list[int] = []
        while d > 1:
            if not rest:
                return None
            i = rest.pop(0)
            size = atoms[i]
            if d % size == 0:
                group.append(i)
                d //= size
            elif size % d == 0:
                # Two atoms in the place of one: those behind it are renumbered.
                atoms = [*atoms[:i], d, size // d, *atoms[i + 1 :]]
                rest = [i + 1, *[j + (j > i) for j in rest]]
                dims = [[j + (j > i) for j in g] for g in dims]
                group = [*[j + (j > i) for j in group], i]
                d = 1
            else:
                return None
        dims.append(group)
    return atoms, [i for group in dims for i in group], dims


def _joined(chain: _Chain, dims: list[list[int]]) -> _Chain:
    """The chain with those atoms as one that stay beside each other in one axis of the view."""
    atoms, order = list(chain.atoms), list(chain.order)
    at = {i: k for k, group in enumerate(dims) for i in group}
    i = 0
    while i + 1 < len(atoms):
        beside = order.index(i) + 1 < len(order) and order[order.index(i) + 1] == i + 1
        if beside and at[i] == at[i + 1]:
            atoms[i] *= atoms[i + 1]
            del atoms[i + 1]
            order = [j - (j > i) for j in order if j != i + 1]
            at = {j - (j > i): k for j, k in at.items() if j != i + 1}
        else:
            i += 1
    return chain._replace(atoms=tuple(atoms), order=tuple(order))


def _plain(node: Node) -> bool:
    """Whether this multiplies rows with one matrix."""
    b = node.inputs[1]
    alone = node.op is ops.matmul or (len(node.inputs) == 3 and not node.attrs["activation"])
    return alone and b is not None and b.rank == 2


def _behind(node: Node, inputs: tuple[Value | None, ...], at: int) -> Sequence[Value] | None:
    """The node on what its operand `at` views, seen through the same views of rows."""
    operand = inputs[at]
    assert operand is not None
    chain = _chain(operand) if operand.rank > 1 else None
    leading = -1 if chain is None else chain.leading
    if chain is None or leading < 1:
        return None
    if not chain.permutes:
        seen = _as_rows(chain.x, operand.shape[-1])
        if seen is None or seen.shape == operand.shape:
            return None
        result = node.op(*[seen if i == at else v for i, v in enumerate(inputs)], **node.attrs)
        return (ops.reshape(result, shape=(*operand.shape[:-1], result.shape[-1])),)
    lead = chain.atoms[:leading]
    seen = ops.reshape(chain.x, shape=(*lead, operand.shape[-1]))
    if seen.shape == chain.x.shape:
        seen = chain.x
    result = node.op(*[seen if i == at else v for i, v in enumerate(inputs)], **node.attrs)
    return (chain.value(result, result.shape[-1]),)


def _as_rows(x: Value, columns: int) -> Value | None:
    """x with as many of its last axes merged as make up so many columns; None where they do not, or nothing is left before."""
    rank, size = x.rank, 1
    while size < columns and rank:
        rank -= 1
        size *= x.shape[rank]
    if size != columns or rank < 1:
        return None
    return x if rank == x.rank - 1 else ops.reshape(x, shape=(*x.shape[:rank], columns))


def _past_elements(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
    """For elementwise ops of one whole operand: the others are the same for all rows."""
    shape = node.types[0].shape
    whole = [i for i, v in enumerate(inputs) if v is not None and v.shape == shape]
    rest = [v for i, v in enumerate(inputs) if v is not None and i not in whole]
    same = all(v.type.size == 1 or v.shape == shape[-1:] for v in rest)
    x = inputs[whole[0]] if len(whole) == 1 and same else None
    if x is None or x.node.op not in VIEWS:
        return None
    return _behind(node, inputs, whole[0])
