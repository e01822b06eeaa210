"""Which converter turns which ONNX op into ops here, by domain and version, and what a converter may ask of the importer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flamert import dtypes
from flamert import graph as g
from flamert.errors import InvalidModel, NoGradient, UnsupportedOp
from flamert.graph import Value
from flamert.ops.evaluate import evaluate, value_of

if TYPE_CHECKING:
    from flamert.importers.host import Body
    from flamert.importers.onnx import OnnxGraph, OnnxNode
    from flamert.importers.training import Training

UNROLL_NODES = 2000
"""Nodes that unrolling a loop may add to the graph; longer loops run turn by turn on the host."""

WHOLE_NODES = 200_000
"""The same where the model must come out as one graph, which a loop on the host cannot be part of."""

Entry = Any
"""What an ONNX name is bound to: a Value, an Opaque, None (an absent optional) or a list of Entries (a sequence)."""


class Opaque:
    """A run-time Python object that no op looks into: a map, for instance."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


class NeedValue(Exception):
    """Raised by `Context.value`: conversion can go on only when the contents of these Values are known."""

    def __init__(self, wanted: Sequence[Value]) -> None:
        self.wanted = tuple(wanted)


class HostCall(NamedTuple):
    """A converter's result that only data can tell: `run` on arrays, lists and objects gives the node's outputs.

    then: makes the outputs of what `run` gave, `then(results, state)`, in graph. Entries it will need travel in `state`.
    within: `run` takes the Program that it runs in as its first argument (None while importing), to run others like it.
    """

    run: Callable[..., Sequence[Any]]
    arguments: tuple[Entry, ...]
    then: Callable[[list[Entry], list[Entry]], Any] | None = None
    state: tuple[Entry, ...] = ()
    within: bool = False


class Enter(NamedTuple):
    """A converter's result that lies in another graph: import `graph` with `bindings`, then `leave(outputs, state)`.

    `leave` returns whatever a converter may, such as another Enter. Entries it will need travel in `state`.
    `attributes`: for a function, which sees no names around it, what references to its attributes stand for.
    `again`: whether `leave` may enter the same graph again, for the next turn of a loop.
    """

    graph: OnnxGraph
    bindings: Mapping[str, Entry]
    leave: Callable[[list[Entry], list[Entry]], Any]
    state: Sequence[Entry] = ()
    attributes: Mapping[str, Any] | None = None
    again: bool = False


class Converter(NamedTuple):
    """`run(ctx, *inputs, **attributes)` → Entry, sequence of Entries, HostCall or Enter."""

    run: Callable[..., Any]
    since: int
    strings: bool
    operands: int | None
    attributes: frozenset[str]


CONVERTERS: dict[tuple[str, str], list[Converter]] = {}
"""By (domain, op type): all versions, newest first. The default domain is ""."""


def converter(op_type: str, since: int = 1, *, domain: str = "", strings: bool = False) -> Callable[[Any], Any]:
    """Register a converter for an ONNX op from opset `since` of `domain` on, until the next registered version.

    The function's positional parameters after `ctx` are the node's inputs (None where absent), its keyword-only parameters
    the attributes, with ONNX's defaults. An attribute that it does not name is an error at import. `strings`: the
    converter deals with string tensors itself; otherwise nodes that touch strings are run on the host.
    """

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        parameters = list(inspect.signature(run).parameters.values())[1:]
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        operands = None if variadic else sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
        attributes = frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        versions = CONVERTERS.setdefault((domain, op_type), [])
        if any(c.since == since for c in versions):
            raise ValueError(f"{domain}.{op_type} version {since} is registered twice")
        versions.append(Converter(run, since, strings, operands, attributes))
        versions.sort(key=lambda c: -c.since)
        return run

    return register


def find(domain: str, op_type: str, opset: int) -> Converter | None:
    """The newest converter that is not newer than the model's opset."""
    return next((c for c in CONVERTERS.get((domain, op_type), ()) if c.since <= opset), None)


class Context:
    """What a converter sees of the node at hand and of what is known so far."""

    __slots__ = ("importer", "node", "opset")

    def __init__(self, importer: Any, node: OnnxNode, opset: int) -> None:
        self.importer, self.node, self.opset = importer, node, opset

    @property
    def n_outputs(self) -> int:
        """How many outputs the node lists (trailing ones may be left out)."""
        return len(self.node.outputs)

    @property
    def training(self) -> Training | None:
        """What converters share where the model is imported in training form, else None."""
        return self.importer.training

    def wants(self, index: int) -> bool:
        """Whether the node's output `index` has a name, so that somebody may read it."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index])

    def known(self, value: Value | None) -> np.ndarray | None:
        """The contents of a Value if they do not depend on data, else None."""
        return value_of(value) if value is not None and value.node.known else None

    def value(self, value: Value) -> np.ndarray:
        """The contents of a Value. Where only data can tell, import stops here and goes on once the data is there."""
        if not isinstance(value, Value):
            raise InvalidModel(f"{self.node.op_type} needs a tensor here")
        found = self.given(value) if value.node.known or (self.importer.deciding and value.dtype not in dtypes.FLOAT) else None
        if found is None:
            raise NeedValue([value])
        return found

    def given(self, value: Value) -> np.ndarray | None:
        """The contents of a Value that depends on no data, or of any where the import is for one set of contents; else None.

        Where a gradient is to flow to them, the Value goes on standing for them: compute with it, not with its contents.
        """
        if value.node.known:
            return value_of(value)
        nodes, held = g.topological([value]), self.importer.contents
        leaves = {n.outputs[0] for n in nodes if n.op is g.INPUT}
        if not leaves <= held.keys() or any(n.op.random for n in nodes):
            return None
        self.importer.consulted |= leaves
        return evaluate([value], held)[0]

    def contents(self, value: Value) -> np.ndarray:
        """`value`, for contents that decide on shapes and that the result also follows smoothly; see `given`."""
        found = self.given(value)
        return self.value(value) if found is None else found

    def ints(self, value: Value | None) -> tuple[int, ...] | None:
        """The contents of a 1-D or scalar integer Value as Python ints; None for an absent input."""
        return None if value is None else tuple(int(i) for i in self.value(value).reshape(-1))

    def host(
        self,
        run: Callable[..., Sequence[Any]],
        *arguments: Entry,
        then: Callable[[list[Entry], list[Entry]], Any] | None = None,
        state: Sequence[Entry] = (),
        within: bool = False,
    ) -> Any:
        """Compute the node's outputs in Python, `run(*arrays)` → list of results; at once if all arguments are known.

        then, state, within: see HostCall.
        """
        if not all(map(is_known, arguments)):
            return HostCall(run, arguments, then, tuple(state), within)
        known = [concrete(a) for a in arguments]
        results = [as_entry(r) for r in (run(None, *known) if within else run(*known))]
        return results if then is None else then(results, list(state))

    def unrolls(self, turns: int, size: int) -> bool:
        """Whether to unroll the loop at hand, of so many turns of `size` nodes each, rather than to run it on the host."""
        if not self.whole:
            return turns * size <= UNROLL_NODES and self.node not in self.importer.rolled
        if turns * size > WHOLE_NODES:
            raise NoGradient(f"{turns} turns of {size} nodes are too many to unroll; at most {WHOLE_NODES} nodes are")
        return True

    @property
    def whole(self) -> bool:
        """Whether the model must come out as one graph, to be differentiated."""
        return self.importer.whole

    def subprogram(self, graph: OnnxGraph) -> Body:
        """A body graph as a callable on run-time objects, with the outer names it reads captured."""
        return self.importer.subprogram(graph)

    def unsupported(self, why: str) -> UnsupportedOp:
        """The error to raise for a part of the op that has no converter; say why, and the remedy if there is one."""
        return UnsupportedOp(f"{self.node.op_type}: {why}")


def is_known(entry: Entry) -> bool:
    """Whether an Entry depends on no data."""
    if isinstance(entry, Value):
        return entry.node.known
    if isinstance(entry, list):
        return all(map(is_known, entry))
    return not isinstance(entry, Opaque)


def concrete(entry: Entry) -> Any:
    """A known Entry as arrays and lists."""
    if isinstance(entry, Value):
        return value_of(entry)
    return [concrete(e) for e in entry] if isinstance(entry, list) else entry


def as_entry(result: Any) -> Entry:
    """Arrays and lists that were computed while importing, as Entries."""
    if isinstance(result, list):
        return [as_entry(r) for r in result]
    if isinstance(result, np.ndarray | np.generic):
        return g.constant(result)
    return result
