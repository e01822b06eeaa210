"""A model as one static graph, with every named value at hand: what differentiation and training start from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flamert import dtypes
from flamert import graph as g
from flamert.errors import NoGradient
from flamert.graph import INPUT, Value
from flamert.importers.importer import Importer
from flamert.importers.onnx import OnnxGraph
from flamert.importers.registry import Entry
from flamert.importers.training import COUNTER, Training
from flamert.origin import Traced
from flamert.runtime.program import Call, Return, Slot, Stage


def trace(
    graph: OnnxGraph,
    opsets: Mapping[str, int],
    importer: Any,
    weights: Mapping[str, np.ndarray],
    feeds: Mapping[str, Any],
    outputs: Sequence[str],
    variable: frozenset[str],
    lasting: bool = False,
    seed: int | None = None,
) -> Traced:
    """Import `graph` for these feeds as a single stage.

    importer: makes a fresh Importer. variable: names of weights that become inputs of the graph; the others are constants.
    lasting: the result must hold for other contents of inputs and weights too, except those that it lists as static.
    seed: of the training form's random numbers; None imports the form that the file has.
    Where the model's structure depends on the contents of integer, bool or string inputs, or of weights (the scales of a
    Resize), those become constants too and are listed as `static`: the result holds for these contents only. Where it
    depends on floating data, branches and turns are those that the data at hand leads to, and the inputs are listed as
    `consulted`; if it is to be lasting, or a host step needs the data, NoGradient is raised, naming the node. Loops are
    unrolled.
    """
    static: set[str] = set()
    deciding = False
    while True:
        walk: Importer = importer()
        walk.whole, walk.deciding = True, deciding
        walk.training = None if seed is None else Training(seed, walk.receive_type(COUNTER, "counter"))
        inputs = variable - static
        held: dict[str, Entry] = {n: walk.receive(a, n) if n in inputs else g.constant(a) for n, a in weights.items()}
        walk.weights = {id(weights[n]): held[n] for n in inputs & weights.keys()}
        bindings = {n: e for n, e in held.items() if n in graph.initializers}
        for name, x in feeds.items():
            bindings[name] = _known(x) if name in static else walk.receive(x, name)
        entered = {n: e for n, e in {**held, **bindings}.items() if n in feeds or n in variable}
        arrays = {n: np.asarray(x) for n, x in {**weights, **feeds}.items() if isinstance(x, np.ndarray | np.generic)}
        if not lasting:
            walk.contents = {e: arrays[n] for n, e in entered.items() if n in arrays and isinstance(e, Value)}
        stage = walk.start(graph, opsets, bindings, outputs)
        if isinstance(stage.step, Return):
            return _traced(walk, entered, frozenset(static))
        try:
            static |= _to_fix(walk, stage, entered, static, variable)
        except NoGradient:
            if lasting or deciding:
                raise
            deciding = True


def _traced(walk: Importer, entered: Mapping[str, Entry], static: frozenset[str]) -> Traced:
    names = {**entered, **walk.frames[0].scope.names}
    if walk.training is None:
        consulted = frozenset(n for n, e in entered.items() if isinstance(e, Value) and e in walk.consulted)
        return Traced(names, entered, static, consulted)
    found = walk.training.moved
    moved = {n: found[e] for n, e in entered.items() if isinstance(e, Value) and e in found}
    return Traced(names, entered, static, moved=moved, counter=walk.training.counter)


def _known(x: Any) -> Entry:
    return [_known(e) for e in x] if isinstance(x, list) else g.constant(np.asarray(x))


def _to_fix(walk: Importer, stage: Stage, entered: Mapping[str, Entry], static: set[str], variable: frozenset[str]) -> set[str]:
    """The inputs and weights whose contents the importer asked for; NoGradient where they are, or hide, floating data."""
    step = stage.step
    trees = step.arguments if isinstance(step, Call) else step.slots  # type: ignore[union-attr]
    wanted = {slot.index for tree in trees for slot in _slots(tree)}
    values = [v for v, slot in walk.slots.items() if slot.index in wanted and isinstance(v, Value)]
    leaves = {node.outputs[0] for node in g.topological(values) if node.op is INPUT}
    names = {name for name, entry in entered.items() for v in _values(entry) if v in leaves}
    data = {v for name, entry in entered.items() if name not in variable for v in _values(entry)}
    if any(v.dtype in dtypes.FLOAT for v in leaves & data) or not names - static:
        node = walk.stopped
        assert node is not None
        raise NoGradient(
            f"{node.op_type} node {node.name or node.outputs[0]!r} decides on floating data how the model goes on, so that "
            "there is no one graph to differentiate; take the gradient of the part behind it, or make that input a constant"
        )
    return names - static


def _slots(tree: Any) -> Iterator[Slot]:
    if isinstance(tree, Slot):
        yield tree
    elif isinstance(tree, list):
        for t in tree:
            yield from _slots(t)


def _values(entry: Entry) -> Iterator[Value]:
    if isinstance(entry, Value):
        yield entry
    elif isinstance(entry, list):
        for e in entry:
            yield from _values(e)
