"""Sizes that vary: a function of sizes to graphs, written for several of them and merged into one ONNX graph.

What is the same in all of them stays. A dimension that differs becomes symbolic; a number that differs, in the shape that a
Reshape takes for instance, is left to the runtime (0, −1) or computed from the inputs' shapes. Anything else that differs is
an error that names the node.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import NodeProto, ValueInfoProto

from flamert.errors import InputError
from flamert.exporters.writer import Writer

Ends = tuple[list[ValueInfoProto], list[ValueInfoProto]]
Point = dict[str, int]
"""Sizes by name."""

TRIED = ((5, 7, 11), (13, 17, 19), (23, 29, 31), (37, 41, 43))
"""Sizes that graphs are written for: primes, lest dimensions be equal by chance."""


class Polynomial(dict[tuple[str, ...], int]):
    """A number as a sum of products of different sizes: product → coefficient."""

    def __call__(self, point: Point) -> int:
        return sum(c * math.prod(point[n] for n in names) for names, c in self.items())

    def __str__(self) -> str:
        ordered = sorted(self.items(), key=lambda term: -len(term[0]))
        terms = ["*".join([str(c)] * (c != 1 or not names) + list(names)) for names, c in ordered]
        return " + ".join(terms).replace("+ -", "- ") or "0"


class Draft(NamedTuple):
    """A graph as it is written for one choice of sizes."""

    point: Point
    writer: Writer
    ends: Ends


def tried(build: Callable[..., Any], given: Mapping[str, Sequence[int] | None] | None) -> dict[str, tuple[int, ...]]:
    """Three values for each size that `build` takes: those given, else primes. Of a `**sizes` the names are given too."""
    parameters = inspect.signature(build).parameters.values()
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    if len(names) < len(parameters):
        names += [name for name in given or () if name not in names]
    if unknown := set(given or ()) - set(names):
        raise InputError(f"the graph is a function of {', '.join(names)}; it has no size {min(unknown)!r}")
    if len(names) > len(TRIED):
        raise InputError(f"{len(names)} sizes vary; at most {len(TRIED)} may")
    sizes = {name: tuple((given or {}).get(name) or TRIED[i]) for i, name in enumerate(names)}
    for name, numbers in sizes.items():
        if len(set(numbers)) != 3 or len(numbers) != 3 or min(numbers) < 2:
            raise InputError(f"{name!r} needs three different sizes above 1 to try, got {list(numbers)}")
    return sizes


def points(sizes: Mapping[str, Sequence[int]]) -> Iterator[Point]:
    """What to write graphs for: each combination of the first two of all sizes, and all third ones, which only check."""
    yield from (dict(zip(sizes, corner, strict=True)) for corner in itertools.product(*[s[:2] for s in sizes.values()]))
    yield {name: numbers[2] for name, numbers in sizes.items()}


def merge(drafts: Sequence[Draft]) -> tuple[Writer, Ends]:
    """The first draft, its writer changed so that it holds for all sizes. The last draft is the one that checks."""
    return _Merger(drafts).merged()


class _Merger:
    """Goes through the drafts side by side; `writer` is the first one's, and `sizes` are the nodes to put before its own."""

    def __init__(self, drafts: Sequence[Draft]) -> None:
        self.drafts = drafts
        self.points = [d.point for d in drafts]
        self.names = list(self.points[0])
        self.writer = drafts[0].writer
        corners = self.points[:-1]
        self.products = [p for n in range(len(self.names) + 1) for p in itertools.combinations(self.names, n)]
        self.system = np.array([[math.prod(point[n] for n in p) for p in self.products] for point in corners], float)
        self.inputs = [self._info(infos) for infos in zip(*[d.ends[0] for d in drafts], strict=True)]
        self.first = {
            dim.dim_param: (info.name, axis)
            for info in reversed(self.inputs)
            for axis, dim in reversed(list(enumerate(info.type.tensor_type.shape.dim)))
        }
        self.sizes: list[NodeProto] = []
        self._computed: dict[Any, str] = {}

    def merged(self) -> tuple[Writer, Ends]:
        counts = {len(d.writer.nodes) for d in self.drafts}
        nodes = [self._node(same) for same in zip(*[list(d.writer.nodes) for d in self.drafts], strict=False)]
        if len(counts) > 1:
            raise InputError(f"the graph has {' or '.join(map(str, sorted(counts)))} nodes, depending on {self._varying()}")
        outputs = [self._info(infos) for infos in zip(*[d.ends[1] for d in self.drafts], strict=True)]
        self.writer.nodes = [*self.sizes, *nodes]
        self.writer.drop_unread()
        return self.writer, (self.inputs, outputs)

    def _varying(self) -> str:
        return " and ".join(self.names)

    def polynomial(self, numbers: Sequence[int]) -> Polynomial | None:
        """The numbers, one for each draft, as a function of the sizes; None where it is no such polynomial."""
        solved = np.rint(np.linalg.solve(self.system, np.array(numbers[:-1], float)))
        found = Polynomial({p: int(c) for p, c in zip(self.products, solved, strict=True) if c})
        return found if [found(point) for point in self.points] == list(numbers) else None

    def _info(self, infos: Sequence[ValueInfoProto]) -> ValueInfoProto:
        """An input's or output's declaration; dimensions that vary in no known way go without a name."""
        shapes = [[dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in infos]
        merged = ValueInfoProto()
        merged.CopyFrom(infos[0])
        if len({(i.name, i.type.tensor_type.elem_type, len(s)) for i, s in zip(infos, shapes, strict=True)}) > 1:
            raise InputError(f"{infos[0].name!r} has another rank or type, depending on {self._varying()}")
        for dim, numbers in zip(merged.type.tensor_type.shape.dim, zip(*shapes, strict=True), strict=True):
            if len(set(numbers)) > 1:
                formula = self.polynomial(numbers)
                dim.Clear()
                if formula is not None:
                    dim.dim_param = str(formula)
        return merged

    def _node(self, same: Sequence[NodeProto]) -> NodeProto:
        """One node for those of all drafts."""
        node = same[0]
        kinds = sorted({n.op_type for n in same})
        if len(kinds) > 1 or len({(len(n.input), len(n.attribute), tuple(n.output)) for n in same}) > 1:
            what = f"is {' or '.join(kinds)}" if len(kinds) > 1 else f"is {kinds[0]} of other operands or attributes"
            raise InputError(f"node {node.name!r} {what}, depending on {self._varying()}")
        for attributes in zip(*[n.attribute for n in same], strict=True):
            if any(a != attributes[0] for a in attributes):
                raise InputError(f"node {node.name!r}: {node.op_type}'s {attributes[0].name!r} depends on {self._varying()}")
        for i, names in enumerate(zip(*[n.input for n in same], strict=True)):
            arrays = [d.writer.arrays.get(name) for d, name in zip(self.drafts, names, strict=True)]
            if all(a is None for a in arrays) and len(set(names)) == 1:
                continue
            if any(a is None for a in arrays):
                raise InputError(f"node {node.name!r}: {node.op_type} reads other results, depending on {self._varying()}")
            if not _equal(arrays):
                node.input[i] = self._number(node, i, arrays)
        return node

    def _number(self, node: NodeProto, i: int, arrays: Sequence[Any]) -> str:
        """The name of what stands for integers that differ."""
        if len({(a.shape, a.dtype) for a in arrays}) > 1 or arrays[0].dtype != np.int64 or arrays[0].ndim != 1:
            types = " or ".join(sorted({f"{a.dtype.name}{list(a.shape)}" for a in arrays}))
            raise InputError(
                f"node {node.name!r}: {node.op_type} takes a constant ({types}) that depends on {self._varying()}; make it in "
                "ops from constants that do not (slice a longer one, expand a shorter one)"
            )
        columns: list[Any] = [tuple(map(int, numbers)) for numbers in zip(*arrays, strict=True)]
        entries: list[Any] = [numbers[0] if len(set(numbers)) == 1 else numbers for numbers in columns]
        if i == 1 and node.op_type in ("Reshape", "Expand"):
            self._leave(node, entries)
        formulas: list[int | Polynomial] = []
        for entry in entries:
            formula = entry if isinstance(entry, int) else self.polynomial(entry)
            if formula is None:
                raise InputError(f"node {node.name!r}: how {list(entry)} depend on {self._varying()} is not clear")
            formulas.append(formula)
        return self._shape(formulas)

    def _leave(self, node: NodeProto, entries: list[Any]) -> None:
        """Leave to the runtime what it finds out for itself: dimensions that stay, and one more of a Reshape."""
        shapes = [d.writer.shapes.get(node.input[0]) for d in self.drafts]
        if node.op_type == "Expand":
            for back in range(1, len(entries) + 1):
                if not isinstance(entries[-back], int) and _dims(shapes, -back) == entries[-back]:
                    entries[-back] = 1
            return
        if not any(a.name == "allowzero" and a.i for a in node.attribute):
            for axis, entry in enumerate(entries):
                if not isinstance(entry, int) and _dims(shapes, axis) == entry:
                    entries[axis] = 0
        rest = [axis for axis, entry in enumerate(entries) if not isinstance(entry, int)]
        if rest:
            entries[next((axis for axis in rest if self.polynomial(entries[axis]) is None), rest[0])] = -1

    def _shape(self, entries: Sequence[int | Polynomial]) -> str:
        """The name of a vector of these numbers: a constant, or computed before all other nodes."""
        parts: list[Any] = []
        for fixed, group in itertools.groupby(entries, lambda e: isinstance(e, int)):
            run = list(group)
            parts += [np.array(run, np.int64)] if fixed else run
        names = [self.writer.constant(p) if isinstance(p, np.ndarray) else self._value(p) for p in parts]
        return names[0] if len(names) == 1 else self._compute("Concat", *names, axis=0)

    def _value(self, formula: Polynomial) -> str:
        total = ""
        for names, coefficient in formula.items():
            term = ""
            for size in names:
                if size not in self.first:
                    raise InputError(f"no input has a dimension of {size!r}, so that it cannot be computed")
                name, axis = self.first[size]
                length = self._compute("Shape", name, stem=size, start=axis, end=axis + 1)
                term = self._compute("Mul", term, length) if term else length
            factor = self.writer.constant(np.array([coefficient], np.int64))
            term = factor if not term else term if coefficient == 1 else self._compute("Mul", term, factor)
            total = self._compute("Add", total, term) if total else term
        return total

    def _compute(self, op_type: str, *operands: str, stem: str = "shape", **attributes: Any) -> str:
        key = (op_type, operands, tuple(attributes.items()))
        if key not in self._computed:
            self.writer.stem = stem
            self._computed[key] = self.writer(op_type, *operands, **attributes)
            self.sizes.append(self.writer.nodes.pop())
        return self._computed[key]


def _dims(shapes: Sequence[tuple[int, ...] | None], axis: int) -> tuple[int, ...] | None:
    """The lengths of one axis, where all are known."""
    known = [s[axis] for s in shapes if s is not None and -len(s) <= axis < len(s)]
    return tuple(known) if len(known) == len(shapes) else None


def _equal(arrays: Sequence[Any]) -> bool:
    first = arrays[0]
    return all(
        a is first or (a.dtype == first.dtype and a.shape == first.shape and a.tobytes() == first.tobytes()) for a in arrays[1:]
    )
