"""Gradients are closed under differentiation, grow in proportion to the graph, and every op is tried or excused by name."""

from collections import Counter

import numpy as np
import pytest

from flamert import dtypes
from flamert import graph as g
from flamert.grad import grad
from flamert.grad.registry import NONE, RULES, _nothing
from flamert.graph import CONSTANT, INPUT, TensorType
from flamert.ops import OPS
from flamert.testing import check_gradient
from tests.cases import CASES

FLOAT32 = TensorType((3,), dtypes.float32)

UNTRIED = {
    "dequantize": "it computes in float32, too coarse for differences; linear, and tested in test_gradient_conventions",
    "dynamic_quantize_lstm": "a staircase, whose gradient passes straight through the rounding",
    "dropout": "it draws anew at every call: test_gradient_conventions",
    "couple_pairs": "its kernel stops short of the minimiser whose gradient it has: test_gradient_conventions",
    "rnn_gradient": "an operand is a function of the others, so that differences by one alone mean nothing: order 2 of rnn",
    "gru_gradient": "as rnn_gradient",
    "lstm_gradient": "as rnn_gradient",
}
"""Ops from floating operands to floating results that no row compares with differences, and why."""


def node_of(case):
    """A row's node in float64."""
    arrays = [None if x is None else np.asarray(x) for x in case.inputs]
    wide = [x.astype(np.float64) if x is not None and x.dtype in dtypes.STANDARD_FLOAT else x for x in arrays]
    operands = [None if x is None else g.input(TensorType(x.shape, x.dtype)) for x in wide]
    operands = [g.constant(x) if i in case.constants else v for i, (x, v) in enumerate(zip(wide, operands, strict=True))]
    return OPS[case.op].node(tuple(operands), case.attrs)


def floating(node):
    """Whether there are numbers on both sides that could move smoothly."""
    sides = [v.type for v in node.inputs if v is not None], node.types
    return all(any(t.dtype in dtypes.STANDARD_FLOAT and t.size for t in side) for side in sides)


def kind(node):
    """What decides which way a rule goes: the op, its modes, and the types of its operands."""
    modes = [(name, a) for name, a in sorted(node.attrs.items()) if isinstance(a, str | bool | None)]
    return node.op.name, tuple(modes), tuple([None if v is None else v.dtype for v in node.inputs])


def emitted(node):
    """The nodes of one node's gradient, by all of its operands and through all of its results."""
    operands = [v if v is None or v.node.op is CONSTANT else g.input(v.type) for v in node.inputs]
    alone = node.op.node(tuple(operands), node.attrs)
    wrt = [v for v in alone.inputs if v is not None and v.dtype in dtypes.STANDARD_FLOAT]
    results = [v for v in alone.outputs if v.dtype in dtypes.STANDARD_FLOAT]
    flows = grad(results, wrt, [g.input(v.type) for v in results])
    return g.topological([f for f in flows if f is not None])


def test_what_rules_emit_has_gradients_in_turn():
    """From the ops of all rows to what their gradients are made of, to what those gradients' gradients are made of, …"""
    waiting = [node_of(case) for case in CASES]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node.op not in (INPUT, CONSTANT) and node.op.name not in NONE and kind(node) not in seen:
            seen.add(kind(node))
            found = emitted(node)
            assert not {n.op.name for n in found} & NONE.keys(), f"the gradient of {node.op.name} has none"
            waiting.extend(found)
    assert {name for name, _, _ in seen} == OPS.keys() - NONE.keys()


@pytest.mark.parametrize("order", [1, 2])
def test_every_gradient_is_compared_with_differences(order):
    smooth, tried = set(), set()
    for case in CASES:
        if case.op not in NONE and RULES.get(case.op) is not _nothing and case.op not in smooth and floating(node_of(case)):
            smooth.add(case.op)
        if case.gradient and case.op in smooth - tried and check_gradient(case, order):
            tried.add(case.op)
    assert smooth - tried == UNTRIED.keys()


def size(build, n):
    """How many nodes of each op the gradient of `build(x, n)` has, besides those it shares with the function itself."""
    x = g.input(FLOAT32)
    y = build(x, n)
    (dx,) = grad(y, [x])
    assert dx is not None and dx.type == FLOAT32
    return Counter(node.op.name for node in set(g.topological([dx])) - set(g.topological([y])))


def chain(x, n):
    y = x
    for _ in range(n):
        y = y * x
    return y


def fan(x, n):
    y = x
    for _ in range(n):
        y = y + x * x
    return y


def diamonds(x, n):
    """2ⁿ ways from x to the result."""
    y = x
    for _ in range(n):
        y = y * y
    return y


@pytest.mark.parametrize(("build", "n"), [(chain, 10_000), (fan, 1_000), (diamonds, 500)])
def test_gradients_grow_in_proportion(build, n):
    small, large = size(build, n // 10), size(build, n)
    assert small.keys() == large.keys()
    for name, count in large.items():
        assert count <= 10 * small[name] + 10, name
    assert large.total() <= 5 * n + 10


def test_gradients_of_gradients_of_a_long_chain():
    x = g.input(FLOAT32)
    totals = []
    for n in (200, 2_000):
        (first,) = grad(chain(x, n), [x])
        (second,) = grad(first, [x])
        totals.append(len(g.topological([second])))
    assert totals[1] <= 10.1 * totals[0]
