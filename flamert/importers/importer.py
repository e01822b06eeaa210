"""The importer: a partial evaluator that walks ONNX nodes for one input signature and builds the stages of a Program."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from flamert import graph as g
from flamert.errors import FlamertError, InvalidModel, NoGradient, UnsafeModel, UnsupportedOp, translated
from flamert.graph import INPUT, Graph, Node, Source, Value
from flamert.importers.frames import Frame, Scope, copied, replace, unknown
from flamert.importers.host import Body
from flamert.importers.onnx import OnnxGraph, OnnxNode, resolved
from flamert.importers.registry import Context, Converter, Enter, Entry, HostCall, NeedValue, Opaque, as_entry, find
from flamert.importers.training import Training
from flamert.limits import MAX_NESTING, MAX_NODES
from flamert.ops.evaluate import evaluate, value_of
from flamert.ops.folding import Folding
from flamert.runtime.program import Call, Read, Return, Slot, Stage

FOLD_BYTES = 1 << 16
"""Known results up to this size are computed while importing; larger ones are left to the folding pass."""

_EMPTY = OnnxGraph((), (), (), {})


class Importer:
    """One walk over a model for one signature. `start` gives the first Stage; later ones come from the stages' `resume`.

    functions: model-local functions by (domain, name, overload). file: for messages. declared: element types that the file
    says its outputs have.
    """

    def __init__(
        self,
        functions: Mapping[tuple[str, str, str], OnnxGraph],
        file: str = "",
        declared: Mapping[str, np.dtype | None] | None = None,
        folding: Folding | None = None,
    ) -> None:
        self.functions = functions
        self.file = file
        self.declared = declared or {}
        self.folding = folding or Folding()
        self.keys: dict[Node, Hashable] = {}
        """What folding notes of nodes."""
        self.visited = 0
        self.frames: list[Frame] = []
        self.slots: dict[Value | Opaque, Slot] = {}
        self.numbers = itertools.count()
        self.received: list[Slot] = []
        self.rolled: set[OnnxNode] = set()
        self.stopped: OnnxNode | None = None  # the node whose data the last stage waits for
        """Loops that are not to be unrolled."""
        self.training: Training | None = None
        self.whole = False
        """Whether the model must come out as one stage, so that loops are unrolled whatever it takes."""
        self.weights: dict[int, Value] = {}
        """What stands for weights that are no constants, by the identity of their arrays."""
        self.contents: dict[Value, np.ndarray] = {}
        """What all inputs hold, where the import is for one set of contents only."""
        self.consulted: set[Value] = set()
        """Inputs of `contents` that were looked at: only for what these hold is the import right."""
        self.deciding = False
        """Whether branches are taken, and loops ended, by what `contents` gives, floating data or not."""

    # -- values that come from outside --------------------------------------------------------------------------------

    def receive(self, obj: Any, name: str = "") -> Entry:
        """An Entry for a run-time object of this structure, with a slot for each of its leaves, in `flatten`'s order."""
        if obj is None:
            return None
        if isinstance(obj, list):
            return [self.receive(x, name) for x in obj]
        if isinstance(obj, np.ndarray | np.generic):
            return self.receive_type(g.TensorType(tuple(obj.shape), obj.dtype), name)
        entry = Opaque(type(obj).__name__)
        self.slots[entry] = self._slot(None)
        self.received.append(self.slots[entry])
        return entry

    def receive_type(self, type: g.TensorType, name: str = "") -> Value:
        value = g.input(type, name)
        self.slots[value] = self._slot(type.dtype)
        self.received.append(self.slots[value])
        return value

    def _slot(self, dtype: np.dtype | None) -> Slot:
        return Slot(next(self.numbers), dtype)

    # -- the walk -----------------------------------------------------------------------------------------------------

    def start(
        self,
        graph: OnnxGraph,
        opsets: Mapping[str, int],
        bindings: Mapping[str, Entry],
        outputs: Sequence[str] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Stage:
        """Import `graph` with its inputs, initializers and captured names bound; its outputs are what the program returns.

        attributes: those of the function that the graph is part of, if it is part of one.
        """
        if outputs is not None:
            graph = graph.pruned(outputs)
        scope = Scope(opsets)
        scope.names.update(bindings)
        self.frames = [Frame(graph, scope)]
        self.frames[0].attributes = attributes
        return self.run()

    def run(self) -> Stage:
        """Go on until the model ends or only data can tell how."""
        while True:
            frame = self.frames[-1]
            ended = frame.at == len(frame.graph.nodes)
            results = [self.lookup(frame.scope, name) for name in frame.graph.outputs] if ended else []
            if ended and len(self.frames) == 1:
                return self._finish(results)
            node = frame.node if ended else frame.graph.nodes[frame.at]
            assert node is not None
            source = Source(node.op_type, node.name or (node.outputs[0] if node.outputs else ""), self.file)
            try:
                with g.sourced(source):
                    if ended:
                        result = frame.leave(results, frame.state)
                        self.frames.pop()
                    else:
                        result = self._convert(frame, node)
                        frame.at += 1
                    if not isinstance(result, HostCall):
                        self._settle(self.frames[-1], node, result)
                    elif not self._roll_up():
                        self.stopped = node
                        return self._call(node, result)
            except NeedValue as need:
                if not self._roll_up():
                    self.stopped = node
                    return self._read(need.wanted)
            except FlamertError as error:
                error.at(str(source))
                raise
            except Exception as error:  # whatever contradiction in the file a converter tripped over
                raise translated(error, str(source), InvalidModel) from error

    def lookup(self, scope: Scope, name: str) -> Entry:
        return None if name == "" else scope.find(name)

    def _convert(self, frame: Frame, node: OnnxNode) -> Any:
        self.visited += 1
        if self.visited > MAX_NODES:
            raise UnsafeModel(f"the model expands to more than {MAX_NODES} nodes")
        inputs = [self.lookup(frame.scope, name) for name in node.inputs]
        function = self.functions.get((node.domain, node.op_type, node.overload)) if self.functions else None
        attributes: Mapping[str, Any] = node.attributes
        if frame.attributes is not None:
            attributes = resolved(attributes, frame.attributes)
        if function is not None:
            return self._enter_function(function, inputs, attributes)
        opset = frame.scope.opsets.get(node.domain, 0)
        found = find(node.domain, node.op_type, opset) if opset else None
        if found is None:
            return self._expand_schema(node, opset, inputs, attributes)
        if not attributes.keys() <= found.attributes:
            unknown = sorted(attributes.keys() - found.attributes)
            raise UnsupportedOp(f"{node.op_type} (opset {opset}) has the unknown attribute {', '.join(unknown)}")
        while inputs and inputs[-1] is None:
            inputs.pop()
        if found.operands is not None and len(inputs) > found.operands:
            raise InvalidModel(f"{node.op_type} takes at most {found.operands} inputs at opset {opset}, got {len(inputs)}")
        ctx = Context(self, node, opset)
        if not found.strings and any(isinstance(v, Value) and v.dtype.hasobject for v in inputs):
            return self._on_host(found, ctx, inputs, attributes)
        return found.run(ctx, *inputs, **attributes)

    def _settle(self, frame: Frame, node: OnnxNode, result: Any) -> None:
        """Bind a conversion's results to the node's output names, folding small known ones; or enter another graph."""
        if isinstance(result, Enter):
            function = result.attributes is not None
            scope = Scope(result.graph.opsets or frame.scope.opsets, None if function else frame.scope)
            weights = result.graph.initializers
            scope.names.update({k: self.weights.get(id(v)) or as_entry(v) for k, v in weights.items()})
            scope.names.update(result.bindings)
            entered = Frame(result.graph, scope, node, result.leave, result.state)
            entered.attributes = result.attributes if function else frame.attributes
            entered.again = result.again
            self.frames.append(entered)
            return
        results = result if isinstance(result, tuple | list) else (result,)
        if len(results) < sum(map(bool, node.outputs)):
            raise InvalidModel(f"{node.op_type} gives {len(results)} outputs, {len(node.outputs)} are named").at(
                str(Source(node.op_type, node.name, self.file))
            )
        for name, entry in zip(node.outputs, results, strict=False):
            if name:
                if isinstance(entry, Value) and entry.node.known and entry.constant is None and entry.type.nbytes <= FOLD_BYTES:
                    entry = g.constant(self.folding.array(entry, self.keys))
                frame.scope.names[name] = entry

    def _enter_function(self, function: OnnxGraph, inputs: Sequence[Entry], attributes: Mapping[str, Any]) -> Enter:
        if len(self.frames) > MAX_NESTING:
            raise UnsafeModel(f"functions are nested more than {MAX_NESTING} deep (is {function.name!r} recursive?)")
        if len(inputs) > len(function.inputs):
            raise InvalidModel(f"function {function.name!r} takes {len(function.inputs)} inputs, got {len(inputs)}")
        padded = [*inputs, *[None] * (len(function.inputs) - len(inputs))]
        bindings = dict(zip(function.inputs, padded, strict=True))
        return Enter(function, bindings, lambda results, state: results, (), {**function.defaults, **attributes})

    def _expand_schema(self, node: OnnxNode, opset: int, inputs: Sequence[Entry], attributes: Mapping[str, Any]) -> Any:
        from flamert.importers.schema import function_body

        if opset == 0:
            known = sorted(self.frames[-1].scope.opsets)
            raise UnsupportedOp(
                f"{node.domain or 'ai.onnx'}::{node.op_type}: the model imports no opset of this domain (it imports {known})"
            )
        function = function_body(node, self.frames[-1].scope.opsets, inputs, attributes)
        if function is None:
            raise UnsupportedOp(
                f"{node.domain or 'ai.onnx'}::{node.op_type} (opset {opset}) has no converter; register one with "
                "flamert.importers.registry.converter"
            )
        return self._enter_function(function, inputs, attributes)

    def _on_host(self, found: Converter, ctx: Context, inputs: Sequence[Entry], attributes: Mapping[str, Any]) -> Any:
        """A node on string tensors: build its graph over stand-in inputs and evaluate that with NumPy when data is there."""
        stand_ins = {v: g.input(v.type) for v in inputs if isinstance(v, Value) and not v.node.known}
        try:
            result = found.run(ctx, *[stand_ins.get(v, v) if isinstance(v, Value) else v for v in inputs], **attributes)
        except NeedValue as need:
            original = {s: v for v, s in stand_ins.items()}
            raise NeedValue([original.get(w, w) for w in need.wanted]) from None
        if isinstance(result, HostCall | Enter):
            raise UnsupportedOp(f"{ctx.node.op_type} of strings")
        results = list(result) if isinstance(result, tuple | list) else [result]
        if not stand_ins:
            return [g.constant(value_of(r)) for r in results]
        names = list(stand_ins.values())
        return HostCall(lambda *arrays: evaluate(results, dict(zip(names, arrays, strict=True))), tuple(stand_ins))

    def _roll_up(self) -> bool:
        """Where only data can tell how to go on inside a loop that is being unrolled, go back and let it run on the host.

        Its body is then specialised once per outcome; unrolled, outcomes would multiply with every turn.
        """
        if self.whole:
            return False
        for frame in self.frames:
            if frame.node is not None and frame.node.op_type == "Gradient":
                raise NoGradient("only data can tell how the graph goes on from xs to y, so there is no one graph to derive")
        for depth in reversed(range(1, len(self.frames))):
            frame = self.frames[depth]
            if frame.again and frame.node is not None and frame.node.op_type in ("Loop", "Scan"):
                del self.frames[depth:]
                self.frames[-1].at -= 1
                self.rolled.add(frame.node)
                return True
        return False

    # -- the ends of stages -------------------------------------------------------------------------------------------

    def _finish(self, results: Sequence[Entry]) -> Stage:
        for name, entry in zip(self.frames[-1].graph.outputs, results, strict=True):
            want = self.declared.get(name)
            if isinstance(entry, Value) and want is not None and entry.dtype != want:
                raise InvalidModel(f"output {name!r} is declared as {want.name}, and is {entry.dtype.name}").at(self.file)
        crossing: list[Value] = []
        trees = tuple([self._tree(r, crossing) for r in results])
        return self._stage(crossing, Return(trees), None)

    def _read(self, wanted: Sequence[Value]) -> Stage:
        """Close the stage so that `wanted` can be read; what follows knows their contents."""
        crossing: list[Value] = []
        slots = tuple([self._tree(v, crossing) for v in wanted])

        def resume(found: Sequence[np.ndarray], received: Importer) -> None:
            replace(received.frames, dict(zip(wanted, [g.constant(np.array(a)) for a in found], strict=True)))

        return self._close(crossing, Read(slots), resume)

    def _call(self, node: OnnxNode, call: HostCall) -> Stage:
        crossing: list[Value] = []
        arguments = tuple([self._tree(a, crossing) for a in call.arguments])
        if call.then is not None:
            # A frame with nothing to import: `then` has its turn on leaving it.
            self.frames.append(Frame(_EMPTY, Scope({}), node, call.then, call.state))

        def resume(found: Sequence[Any], received: Importer) -> None:
            results = [received.receive(r) for r in found]
            if call.then is None:
                received._settle(received.frames[-1], node, results)
            else:
                frame = received.frames[-1]
                frame.scope.names = {str(i): r for i, r in enumerate(results)}
                frame.graph = OnnxGraph((), (), frame.scope.names, {})

        return self._close(crossing, Call(call.run, arguments, call.within), resume)

    def subprogram(self, graph: OnnxGraph) -> Body:
        """A body graph of the node at hand as a callable, with what it reads from the names around it."""
        frame = self.frames[-1]
        entries = {name: self.lookup(frame.scope, name) for name in sorted(graph.free)}
        opsets = graph.opsets or frame.scope.opsets
        return Body(
            graph,
            opsets,
            frame.attributes,
            entries,
            functools.partial(Importer, self.functions, self.file, folding=self.folding),
        )

    def _close(self, crossing: list[Value], step: Read | Call, resume: Callable[[Sequence[Any], Importer], None]) -> Stage:
        """End the static stage here. Its continuation starts from a copy of this importer's state, once per outcome."""
        state = self.copy({name for frame in self.frames for name in frame.needed()})
        crossing = list(dict.fromkeys([*crossing, *unknown(state.frames)]))
        for value in crossing:
            if value not in self.slots:
                self.slots[value] = self._slot(value.dtype)
        slots = {v: self.slots[v] for v in crossing}
        state.slots = {e: slot for e, slot in self.slots.items() if isinstance(e, Opaque)}

        def go_on(found: Sequence[Any]) -> Stage:
            importer = state.copy()
            fresh = {v: g.input(v.type) for v in slots}
            importer.slots.update({fresh[v]: slot for v, slot in slots.items()})
            if isinstance(step, Read):
                resume(found, importer)
            replace(importer.frames, fresh)
            if isinstance(step, Call):
                resume(found, importer)
            received = tuple(importer.received)
            stage = importer.run()
            stage.received = received
            return stage

        return self._stage(crossing, step, go_on)

    def _stage(self, crossing: Sequence[Value], step: Any, resume: Any) -> Stage:
        computed = [v for v in dict.fromkeys(crossing) if v.node.op is not INPUT]
        if not computed:
            return Stage(None, (), (), step, resume)
        read = [n.outputs[0] for n in g.topological(computed) if n.op is INPUT]
        return Stage(Graph(read, computed), [self.slots[v] for v in read], [self.slots[v] for v in computed], step, resume)

    def _tree(self, entry: Entry, crossing: list[Value]) -> Any:
        """An Entry as run-time slots and arrays; Values that must be computed for it are added to `crossing`."""
        if isinstance(entry, list):
            return [self._tree(e, crossing) for e in entry]
        if isinstance(entry, Value):
            if entry.node.known:
                return value_of(entry) if entry.constant is None else entry.constant
            if entry not in self.slots:
                self.slots[entry] = self._slot(entry.dtype)
            crossing.append(entry)
            return self.slots[entry]
        return self.slots[entry] if isinstance(entry, Opaque) else entry

    def copy(self, needed: set[str] | None = None) -> Importer:
        """The same state, independent of this one; with `needed`, other names are forgotten."""
        twin = Importer(self.functions, self.file, self.declared, self.folding)
        twin.visited, twin.numbers, twin.rolled, twin.whole = self.visited, self.numbers, self.rolled, self.whole
        twin.frames = copied(self.frames, needed)
        twin.slots = dict(self.slots)
        return twin
