"""What an op is: a type rule, attributes, kernels, and for composites a body. The registries of ops and kernels live here."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flamert import graph as g
from flamert.errors import FlamertError, ShapeError, UnsupportedOp, UnsupportedType
from flamert.graph import Graph, Node, TensorType, Value

OPS: dict[str, Op] = {}
"""Every op by name."""


class Op:
    """An operation on tensors. Calling it with Values makes a Node and returns its result (or a tuple of results).

    infer: types of the operands and attributes → type of the result, or a tuple of types.
    view: for ops that only look at operand 0 another way; array, attrs → array that shares its memory.
    inplace: operands whose buffer the result may take over when nobody reads them afterwards.
    random: results differ from call to call, so the op is neither folded nor deduplicated.
    moves: the op only carries elements from place to place, so any element type will do.
    """

    def __init__(
        self,
        infer: Callable[..., Any],
        *,
        name: str | None = None,
        view: Callable[..., Any] | None = None,
        inplace: tuple[int, ...] = (),
        random: bool = False,
        moves: bool = False,
        body: Callable[..., Any] | None = None,
    ) -> None:
        self.name = name or infer.__name__
        self.family = infer.__module__.rsplit(".", 1)[-1]
        self.infer = infer
        self.view = view
        self.inplace = inplace
        self.random = random
        self.moves = moves or view is not None
        self.body = body
        self.kernels: list[Kernel] = []
        self.differentiable: bool | None = None
        functools.update_wrapper(self, infer)
        parameters = inspect.signature(infer).parameters.values()
        self.operands = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.required = sum(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters)
        self.defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
        self.attributes = frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def __call__(self, *inputs: Any, **attrs: Any) -> Any:
        node, single = self._apply(values(inputs), attrs)
        return node.outputs[0] if single else node.outputs

    def node(self, inputs: tuple[Value | None, ...], attrs: Mapping[str, Any]) -> Node:
        """The typed application. Trailing absent operands are dropped; attributes are completed with defaults."""
        return self._apply(inputs, attrs)[0]

    def _apply(self, inputs: tuple[Value | None, ...], attrs: Mapping[str, Any]) -> tuple[Node, bool]:
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        if not attrs.keys() <= self.attributes:
            raise UnsupportedOp(f"{self.name} has no attribute {sorted(attrs.keys() - self.attributes)}")
        if len(inputs) < self.required:
            raise ShapeError(f"{self.name} needs {self.required} operands, got {len(inputs)}")
        full = {**self.defaults, **{k: _frozen(v) for k, v in attrs.items()}}
        types = self.types(inputs, full)
        single = isinstance(types, TensorType)
        return Node(self, inputs, full, (types,) if single else tuple(types)), single

    def types(self, inputs: tuple[Value | None, ...], attrs: Mapping[str, Any]) -> Any:
        """Run the type rule; its errors say which op, on which types, and which ONNX node."""
        operands = [None if v is None else v.type for v in inputs]
        try:
            return self.infer(*operands, **attrs)
        except FlamertError as error:
            error.at(self._place(operands))
            raise
        except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
            kind = UnsupportedType if isinstance(error, TypeError) else ShapeError
            raise kind(f"{self.name}: {error}").at(self._place(operands)) from error

    def _place(self, operands: Sequence[TensorType | None]) -> str:
        source = g._source.get()
        shown = ", ".join("_" if t is None else str(t) for t in operands)
        return f"{source or 'op'}: {self.name}({shown})"

    def kernel_for(self, node: Node, backend: str, *, hot: bool = False) -> Kernel | None:
        """The preferred kernel that takes this node: newest first, those for one backend before those for all."""
        for k in self.kernels:
            if (k.backend is None or k.backend == backend) and (hot or not k.hot) and (k.when is None or k.when(node)):
                return k
        return None


def values(inputs: Sequence[Any]) -> tuple[Value | None, ...]:
    """Operands as Values. Python numbers take the element type of the first Value that is no bool, arrays keep theirs."""
    if all([v is None or isinstance(v, Value) for v in inputs]):
        return tuple(inputs)
    dtypes = [v.dtype for v in inputs if isinstance(v, Value)]
    like = next((d for d in dtypes if d != np.bool_), dtypes[0] if dtypes else None)
    return tuple(
        v if v is None or isinstance(v, Value) else g.constant(v, None if isinstance(v, np.ndarray | np.generic) else like)
        for v in inputs
    )


def _frozen(attr: Any) -> Any:
    return tuple(_frozen(a) for a in attr) if isinstance(attr, list) else attr


def op(infer: Callable[..., Any] | None = None, **traits: Any) -> Any:
    """Register a primitive op from its type rule: positional parameters are operands, keyword-only ones attributes.

    Traits (`view`, `inplace`, `random`, `moves`, `name`) are those of `Op`.
    """
    if infer is None:
        return functools.partial(op, **traits)
    return _register(Op(infer, **traits))


def composite(body: Callable[..., Any] | None = None, **traits: Any) -> Any:
    """Register an op written in other ops. The body gives it its types, its kernel, its gradient and its ONNX function."""
    if body is None:
        return functools.partial(composite, **traits)

    @functools.wraps(body)
    def infer(*types: TensorType | None, **attrs: Any) -> Any:
        arguments = [None if t is None else g.input(t) for t in types]
        results = body(*arguments, **attrs)
        return results.type if isinstance(results, Value) else tuple(v.type for v in results)

    return _register(Op(infer, body=body, **traits))


def _register(new: Op) -> Op:
    if new.name in OPS:
        raise ValueError(f"op {new.name!r} is registered twice")
    OPS[new.name] = g.OPERATORS[new.name] = new  # type: ignore[assignment]
    return new


def expand(node: Node, inputs: tuple[Value | None, ...] | None = None) -> tuple[Value, ...]:
    """A composite node's results written in the ops of its body."""
    with g.sourced(node.source):
        results = node.op.body(*(node.inputs if inputs is None else inputs), **node.attrs)
    return (results,) if isinstance(results, Value) else tuple(results)


def body_graph(node: Node) -> Graph:
    """A composite node's body as a Graph over fresh inputs (absent operands are left out)."""
    arguments = [None if v is None else g.input(v.type) for v in node.inputs]
    return Graph([v for v in arguments if v is not None], expand(node, tuple(arguments)))


class Kernel:
    """One way to compute an op.

    run(xp, out, *inputs, **attrs) fills `out` (a tuple of arrays where the op has several results). With `bind`, the
    function is called once, when a plan is made, as run(site, out, *inputs, **attrs), and returns a callable without
    arguments that does the work each time. `workspace(node)` → types of scratch arrays, handed over as `site.work` to a
    bind kernel and as the keyword `work` to a plain one. `hot`: worth its set-up only in plans that are called often; binding
    it may try ways to compute the results where these will lie. `measures`: binding it takes times, as that of hot kernels
    does, so that it comes when nothing else is going on. `contiguous`: the inputs must be C-contiguous, or those
    operands whose numbers it names. `host`: needs NumPy arrays, on a GPU too (they are copied). `strided`: results may lie
    apart, as parts of a larger array do, so long as their last axis is dense and all strides and addresses are multiples of 16
    bytes.
    """

    __slots__ = ("backend", "bind", "contiguous", "host", "hot", "measures", "op", "run", "strided", "when", "workspace")

    def __init__(
        self,
        op: Op,
        run: Callable[..., Any],
        backend: str | None = None,
        when: Callable[[Node], bool] | None = None,
        bind: bool = False,
        hot: bool = False,
        contiguous: bool | tuple[int, ...] = False,
        workspace: Callable[[Node], Sequence[TensorType]] | None = None,
        host: bool = False,
        strided: bool = False,
        measures: bool = False,
    ) -> None:
        self.measures = measures or hot
        self.op, self.run, self.backend, self.when, self.strided = op, run, backend, when, strided
        self.bind, self.hot, self.contiguous, self.workspace, self.host = bind, hot, contiguous, workspace, host

    def wants_dense(self, operand: int) -> bool:
        """Whether this operand must be C-contiguous."""
        return self.contiguous if isinstance(self.contiguous, bool) else operand in self.contiguous

    def thunk(self, site: Site, out: Any, inputs: Sequence[Any]) -> Callable[[], Any]:
        """The call with everything bound; made once per plan, called once per run."""
        attrs = site.node.attrs
        if self.bind:
            return self.run(site, out, *inputs, **attrs)
        if self.workspace is not None:
            return functools.partial(self.run, site.xp, out, *inputs, work=site.work, **attrs)
        return functools.partial(self.run, site.xp, out, *inputs, **attrs)


class Derived:
    """What was made of a constant array: its copy on a device, a packing of it. Kept for as long as some plan holds it."""

    __slots__ = ("__weakref__", "array", "made")

    def __init__(self, array: Any, made: Any) -> None:
        self.array, self.made = array, made

    @staticmethod
    def of(array: Any, kind: Any, make: Callable[[], Any], cache: dict, held: dict[Any, Derived]) -> Any:
        """`make()`, done once per kind and array for all who share the cache; `held` is the caller's hold on it."""
        key = (kind, id(array))
        shared = cache.get(Derived)
        if shared is None:
            shared = cache.setdefault(Derived, weakref.WeakValueDictionary())
        found = shared.get(key)
        if found is None:
            found = shared[key] = Derived(array, make())
        held[key] = found
        return found.made


class Site:
    """Where a kernel runs: the array module, the node, scratch memory, and a cache shared by the plans of one model.

    held: what keeps the derivatives of constants alive, normally the plan's.
    """

    __slots__ = ("cache", "device", "held", "node", "work", "xp")

    def __init__(
        self,
        xp: Any,
        node: Node,
        work: tuple[Any, ...] = (),
        cache: dict | None = None,
        device: Any = None,
        held: dict[Any, Derived] | None = None,
    ) -> None:
        self.xp, self.node, self.work, self.device = xp, node, work, device
        self.cache = {} if cache is None else cache
        self.held = {} if held is None else held

    def is_constant(self, operand: int) -> bool:
        """Whether this operand holds the same array in every call, so that work on it can be done once."""
        value = self.node.inputs[operand] if operand < len(self.node.inputs) else None
        return value is not None and value.node.op is g.CONSTANT

    def prepacked(self, kind: str, operand: int, make: Callable[[], Any]) -> Any:
        """`make()`, done once per kind and constant operand, and shared by all plans of the model."""
        value = self.node.inputs[operand]
        assert value is not None
        return Derived.of(value.constant, kind, make, self.cache, self.held)


def kernel(op: Op, backend: str | None = None, **traits: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a kernel of `op` for "numpy", "cupy" or (None) any array module. Traits are those of `Kernel`."""

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        new = Kernel(op, run, backend, **traits)
        at = 0 if backend is not None else next((i for i, k in enumerate(op.kernels) if k.backend is None), len(op.kernels))
        op.kernels.insert(at, new)
        return run

    return register


def reference(op: Op) -> Kernel | None:
    """The kernel every other one is measured against: the first registered for any array module."""
    return next((k for k in reversed(op.kernels) if k.backend is None), None)
