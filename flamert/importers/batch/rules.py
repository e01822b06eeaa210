"""Which rule says how an op carries a batch, and the questions that rules ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx import NodeProto

from flamert.importers.batch.lifting import Batch, Dims, Lifting, Rule

RULES: dict[tuple[str, str], Rule] = {}
"""By domain and op type: for nodes with an input that holds examples."""

SIZED: dict[str, Rule] = {}
"""For nodes that are given sizes which grow with the batch, and no value that holds examples."""

AXISLESS: set[Rule] = set()
"""Rules of ops that have nothing to do with axes, beyond broadcasting."""


def rule(*names: str, domain: str = "", axisless: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for these ops."""

    def register(function: Rule) -> Rule:
        RULES.update({(domain, name): function for name in names})
        if axisless:
            AXISLESS.add(function)
        return function

    return register


def sized(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule of `SIZED`."""

    def register(function: Rule) -> Rule:
        SIZED.update(dict.fromkeys(names, function))
        return function

    return register


def rule_of(lifting: Lifting, node: NodeProto) -> Rule:
    """The rule for a node. Raises UnsupportedOp where there is none."""
    from flamert.importers.batch import along, compute, layout, sizes  # noqa: F401  # they register the rules

    domain = "" if node.domain == "ai.onnx" else node.domain
    if (domain, node.op_type, node.overload) in lifting.origin.functions:
        raise lifting.refusal(node, "it calls a function of the file; inline functions first (onnx.inliner)")
    states = [lifting.states.get(n) for n in node.input]
    if not any(isinstance(s, Batch) for s in states):
        found = SIZED.get(node.op_type) if not domain else None
    else:
        found = RULES.get((domain, node.op_type))
        if any(isinstance(s, Batch) and s.extra for s in states):
            found = compute.beside if found in AXISLESS else None
    if found is None:
        raise lifting.refusal(node, "nothing is known of what it does with several examples")
    return found


def only(lifting: Lifting, node: NodeProto, *data: int) -> None:
    """Raise unless the inputs that depend on the batch are among these."""
    for i, name in enumerate(node.input):
        if i not in data and lifting.states.get(name) is not None:
            raise lifting.refusal(node, f"its input {name!r} would differ from example to example")


def batch(lifting: Lifting, node: NodeProto, i: int = 0) -> Batch:
    """The state of an input that must hold examples."""
    state = lifting.state(node, i)
    if not isinstance(state, Batch):
        raise lifting.refusal(node, f"its input {node.input[i] if i < len(node.input) else i!r} is the same for all examples")
    return state


def around(lifting: Lifting, node: NodeProto) -> tuple[Sequence[tuple[int, ...]], Sequence[tuple[int, ...]]]:
    """Shapes of the first input and the first output."""
    return lifting.shapes(node, node.input[0]), lifting.shapes(node, node.output[0])


def mixes(lifting: Lifting, node: NodeProto, what: str = "works along the axis of the batch") -> Exception:
    """The error for a node that would mix examples."""
    return lifting.refusal(node, f"it {what}, and so would mix examples")


def growing(sizes: object) -> list[int]:
    """Where a vector of sizes grows with the batch."""
    return [i for i, f in enumerate(sizes.factors) if f is not None] if isinstance(sizes, Dims) else []
