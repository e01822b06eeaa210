"""Checks of ops against oracles, for the tables in tests/ and for users who register ops of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flamert import dtypes
from flamert import graph as g
from flamert.graph import Graph, Node
from flamert.ops.evaluate import apply, evaluate
from flamert.ops.op import OPS, Op
from flamert.rewrite import with_inputs
from flamert.runtime.device import device as device_named
from flamert.runtime.plan import Plan

TOLERANCE: dict[np.dtype, tuple[float, float]] = {
    dtypes.float64: (1e-9, 1e-12),
    dtypes.float32: (2e-5, 1e-6),
    dtypes.float16: (4e-3, 1e-3),
    dtypes.bfloat16: (3e-2, 1e-2),
    dtypes.complex64: (1e-4, 1e-5),
    dtypes.complex128: (1e-9, 1e-12),
}
"""(relative, absolute) error allowed by element type; types not listed must agree exactly."""


@dataclass(frozen=True)
class Case:
    """One row of a test table: an op on these arrays (None: operand left out) gives what the oracle says.

    oracle: a function of the inputs and attributes, or the expected array, or a tuple of them for several results.
    Floating inputs in float32 are tried in every type of `dtypes`; the oracle is given what that cast left of them, in float64.
    tolerance: (relative, absolute) instead of the type's own. gradient: whether central differences should be tried.
    constants: operands that are given as constants, as weights are, which some kernels insist on.
    """

    op: str
    inputs: Sequence[Any]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    oracle: Any = None
    dtypes: Sequence[np.dtype] = (dtypes.float32,)
    tolerance: tuple[float, float] | None = None
    gradient: bool = True
    name: str = ""
    constants: Sequence[int] = ()

    def __str__(self) -> str:
        shapes = "_".join("x".join(map(str, np.shape(x))) or "scalar" for x in self.inputs if x is not None)
        return f"{self.op}-{self.name or shapes}"


def check_op(case: Case, dtype: np.dtype = dtypes.float32, device: str = "cpu") -> None:
    """Check one row in one element type on one device: inferred types, values, every eligible kernel, and a plan.

    Raises AssertionError with the op, the kernel and the largest difference.
    """
    op = OPS[case.op]
    inputs = [_cast(x, dtype) for x in case.inputs]
    node = _node(op, inputs, case)
    expected = expected_of(case, inputs)
    backend = device_named(device).backend
    for kernel in [k for k in op.kernels if k.backend in (None, backend) and (k.when is None or k.when(node))]:
        if backend == "numpy":
            with np.errstate(all="ignore"):  # as plans run
                results = apply(node, inputs, kernel=kernel)
            _compare(case, f"kernel {kernel.backend or 'reference'}", node, results, expected)
    _compare(case, f"plan on {device}", node, run_plan(node, inputs, device), expected)
    found = run_plan(node, inputs, device, hot=True, turned=True)
    _compare(case, f"hot plan on {device} with operands turned around", node, found, expected)
    if op.body is not None and backend == "numpy":
        fresh = _node(op, inputs, case)
        _compare(case, "body", node, run_plan(fresh, inputs, device, expand_body=True), expected)


def check_gradient(case: Case, order: int = 1, seed: int = 0, device: str = "cpu") -> int:
    """Check an op's gradient in float64 against central differences, along random directions of all floating operands.

    order 2 checks the gradient's own gradient. Differences are made by reference kernels, the gradient by these and as models
    make it on this device, unless it draws numbers. Returns how many operands there were to check: none where neither operands
    nor results come in float64. Raises AssertionError with the largest difference.
    """
    from flamert.grad import grad

    inputs = [None if x is None else _precise(np.asarray(x)) for x in case.inputs]
    node = _node(OPS[case.op], inputs, Case(case.op, case.inputs, case.attrs))
    floating = [v for v in node.inputs if v is not None and v.dtype == np.float64 and v.type.size]
    results = [v for v in node.outputs if v.dtype == np.float64 and v.type.size]
    if not floating or not results:
        return 0
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal(v.shape) for v in results]
    flows = grad(results, floating, [g.constant(w) for w in weights])
    for _ in range(order - 1):
        weighted = [(f, rng.standard_normal(f.shape)) for f in flows if f is not None and f.type.size]
        if not weighted:
            return 0
        results, weights = [f for f, _ in weighted], [w for _, w in weighted]
        flows = grad(results, floating, [g.constant(w) for w in weights])
    at: dict[Any, Any] = {v: x for v, x in zip(node.inputs, inputs, strict=False) if v is not None}
    present = [f for f in flows if f is not None]
    made = {"reference kernels": evaluate(present, at)}
    if not any(n.op.random for n in Graph(list(at), present).nodes):
        made[f"a plan on {device}"] = _prepared(present, at, device)
    for v, f in zip(floating, flows, strict=True):
        direction = rng.standard_normal(v.shape)
        step = 1e-5 * max(1.0, float(np.abs(at[v]).max()))
        ends = [evaluate(results, {**at, v: at[v] + side * step * direction}) for side in (1, -1)]
        rise = [sum(float((w * np.asarray(r)).sum()) for w, r in zip(weights, end, strict=True)) for end in ends]
        expected = (rise[0] - rise[1]) / (2 * step)
        label = f"{case}: order {order} gradient of operand {node.inputs.index(v)}"
        for by, values in made.items():
            slope = np.zeros(v.shape) if f is None else values[present.index(f)]
            got, scale = float((slope * direction).sum()), max(1.0, abs(expected), float(np.abs(slope).sum()) * 1e-2)
            close = abs(got - expected) <= 2e-5 * scale
            assert close, f"{label} is {got} by {by}, along a direction where differences give {expected}"
    return len(floating)


def _prepared(results: Sequence[g.Value], at: Mapping[g.Value, Any], device: str) -> list[Any]:
    """What a model's plan that runs often gives for Values on a device, the second time."""
    from flamert.passes.pipeline import prepare

    where = device_named(device, allow_tf32=False, deterministic=True)
    plan = Plan(prepare(Graph(list(at), results), True, where, {}), where, hot=True)
    arrays = [where.upload(np.asarray(x)) for x in at.values()]
    plan(*arrays)
    return [where.download(r, v.dtype) for r, v in zip(plan(*arrays), results, strict=True)]


Runtime = Callable[[Any, Mapping[str, Any]], "list[Any] | None"]
"""Runs a ModelProto on arrays by name: its outputs in order, or None where it lacks an operator in these types."""


def imported_back(proto: Any, feeds: Mapping[str, Any]) -> list[Any]:
    """A Runtime: this one."""
    from flamert.importers.load import load

    return list(load(proto, device="cpu").run(feeds).values())


def check_export(case: Case, runtimes: Sequence[Runtime] = (imported_back,), opset: int | None = None) -> None:
    """Check that an op in float32, exported to ONNX, gives the same values elsewhere.

    runtimes: where to run the model; the first that has all its operators decides. Raises AssertionError with the largest
    difference, or if none has them; UnsupportedOp for what ONNX cannot express.
    """
    from flamert.exporters.graph import model_proto

    inputs = [_cast(x, dtypes.float32) for x in case.inputs]
    node = _node(OPS[case.op], inputs, case)
    given = [(v, x) for v, x in zip(node.inputs, inputs, strict=False) if v is not None and v.node.op is not g.CONSTANT]
    proto = model_proto(Graph([v for v, _ in given], node.outputs), opset=opset)
    feeds = {info.name: x for info, (_, x) in zip(proto.graph.input, given, strict=True)}
    results = next((r for r in (runtime(proto, feeds) for runtime in runtimes) if r is not None), None)
    assert results is not None, f"{case}: no runtime has all operators of the exported model"
    _compare(case, "exported", node, results, expected_of(case, inputs), slack=5)


def check_spelling(case: Case, dtype: np.dtype = dtypes.float32) -> None:
    """Check that what export writes in the place of an op that ONNX lacks gives the same values, on the CPU.

    Raises AssertionError with the largest difference, UnsupportedOp where the op has no such form.
    """
    import flamert.exporters.graph  # noqa: F401 (registers the spellings)
    from flamert.exporters.registry import SPELLINGS

    inputs = [_cast(x, dtype) for x in case.inputs]
    node = _node(OPS[case.op], inputs, case)
    results = SPELLINGS[case.op](*node.inputs, **node.attrs)
    values = results if isinstance(results, tuple | list) else [results]
    feeds = {v: x for v, x in zip(node.inputs, inputs, strict=False) if v is not None and v.node.op is not g.CONSTANT}
    _compare(case, "spelling", node, evaluate(values, feeds), expected_of(case, inputs), slack=5)


def _precise(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if x.dtype in dtypes.STANDARD_FLOAT else x


def expected_of(case: Case, inputs: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """What the oracle says, as a tuple."""
    if not callable(case.oracle):
        expected = case.oracle
    else:
        expected = case.oracle(*[_widened(x) for x in inputs], **case.attrs)
    return expected if isinstance(expected, tuple) else (expected,)


def run_plan(
    node: Node, inputs: Sequence[Any], device: str, expand_body: bool = False, *, hot: bool = False, turned: bool = False
) -> list[np.ndarray]:
    """The node as a graph of its own, planned and run on a device twice; results of the second run on the host.

    hot: with the kernels of a plan that runs often, recorded where the device records. turned: on operands that lie with their
    axes reversed, so that none of several axes is contiguous.
    """
    from flamert.ops.op import expand

    where = device_named(device, allow_tf32=False)
    given = [(v, x) for v, x in zip(node.inputs, inputs, strict=False) if v is not None and v.node.op is not g.CONSTANT]
    arrays = [where.upload(x) for _, x in given]
    sources = [v for v, _ in given]
    if turned:
        arrays = [where.upload(np.ascontiguousarray(np.transpose(x))) for _, x in given]
        sources = [g.input(g.TensorType(v.shape[::-1], v.dtype)) for v, _ in given]
        views = {v: OPS["transpose"](s, perm=tuple(range(v.rank))[::-1]) for (v, _), s in zip(given, sources, strict=True)}
        node = with_inputs(node, tuple([v if v is None else views.get(v, v) for v in node.inputs]))
    graph = Graph(sources, expand(node) if expand_body else node.outputs)
    plan = Plan(graph, where, hot=hot)
    plan(*arrays)
    return [where.download(r, v.dtype) for r, v in zip(plan(*arrays), graph.outputs, strict=True)]


def _node(op: Op, inputs: Sequence[Any], case: Case) -> Node:
    operands = [
        None if x is None else g.constant(x) if i in case.constants else g.input(g.TensorType(x.shape, x.dtype))
        for i, x in enumerate(inputs)
    ]
    return op.node(tuple(operands), case.attrs)


def _cast(x: Any, dtype: np.dtype) -> Any:
    if x is None:
        return None
    x = np.asarray(x)
    return x.astype(dtype) if x.dtype == np.float32 else x


def _widened(x: Any) -> Any:
    return x.astype(np.float64) if x is not None and x.dtype in dtypes.STANDARD_FLOAT else x


def _compare(case: Case, what: str, node: Node, results: Sequence[Any], expected: Sequence[Any], slack: float = 1) -> None:
    assert len(results) == len(expected), f"{case}: {what} gives {len(results)} results, the oracle {len(expected)}"
    for i, (got, want, type) in enumerate(zip(results, expected, node.types, strict=True)):
        if want is None:
            continue
        got, want = np.asarray(got), np.asarray(want)
        label = f"{case}: {what}, result {i}"
        assert got.shape == type.shape and got.dtype == type.dtype, f"{label} is {got.dtype}{got.shape}, inferred {type}"
        assert got.shape == want.shape, f"{label} has shape {got.shape}, the oracle {want.shape}"
        rtol, atol = case.tolerance or [slack * t for t in TOLERANCE.get(type.dtype, (0, 0))]
        if rtol or atol:
            wide = np.complex128 if type.dtype in dtypes.COMPLEX else np.float64
            np.testing.assert_allclose(got.astype(wide), want.astype(wide), rtol, atol, err_msg=label)
        else:
            np.testing.assert_array_equal(got, want.astype(got.dtype) if want.dtype != got.dtype else want, err_msg=label)


__all__ = [
    "TOLERANCE",
    "Case",
    "Runtime",
    "check_export",
    "check_gradient",
    "check_op",
    "check_spelling",
    "expected_of",
    "imported_back",
    "run_plan",
]
