"""A Graph made ready to run on one device: kernels chosen, order fixed, every buffer placed. Calling it is a loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flamert.errors import FlamertError, OutOfMemory, UnsupportedOp, translated
from flamert.graph import CONSTANT, INPUT, Graph, Node, TensorType, Value
from flamert.limits import require_memory
from flamert.ops.op import Derived, Kernel, Site, expand
from flamert.rewrite import rebuild
from flamert.runtime.arena import Arena, Arenas
from flamert.runtime.calls import COPY, COPYING, chained
from flamert.runtime.capture import Replay, obstacle_of
from flamert.runtime.device import ALIGNMENT, Device
from flamert.runtime.faults import named
from flamert.runtime.hosted import hosted, needs_host
from flamert.runtime.joins import Part, parts, parts_of
from flamert.runtime.late import Late, taken_late
from flamert.runtime.memory import Lifetime, place
from flamert.runtime.reads import LEAVES, destinations, last_reads
from flamert.runtime.shortage import TooLarge, largest
from flamert.runtime.steps import Place, Step, Storage


class Bound(NamedTuple):
    """A plan's calls bound to one arena."""

    inputs: tuple[Any, ...]
    calls: tuple[Callable[[], Any], ...]
    steps: tuple[int, ...]  # the step that each call begins with
    outputs: tuple[Any, ...]
    replay: Replay | None  # on devices that can record calls
    late: tuple[Late, ...] = ()


class Plan:
    """`plan(*inputs)` → list of fresh arrays, one per output of the graph.

    inputs: device arrays of exactly the graph's input types. Every buffer lives in one arena, placed by lifetime, which the
    plans of a model take turns with; several threads may call at once, each call with an arena of its own. `cache` is shared
    by the plans of one model: uploaded constants, what kernels prepacked, arenas. `hot`: choose kernels that cost more to set
    up and less to run.

    state: arrays that graph inputs live in from call to call; they are not passed. updates: output number → the array that it
    replaces the contents of; such outputs are not returned. They are written straight into their arrays where nothing reads
    the old contents any more, the others once everything has been computed. A plan with state is for one caller at a time.

    most: bytes that its arena may take; raises TooLarge, before there is one, where it would take more.
    """

    def __init__(
        self,
        graph: Graph,
        device: Device,
        *,
        cache: dict | None = None,
        hot: bool = False,
        state: Mapping[Value, Any] | None = None,
        updates: Mapping[int, Any] | None = None,
        most: int | None = None,
    ) -> None:
        self._state = dict(state or {})
        self._updates = dict(updates or {})
        self.device = device
        self.cache = {} if cache is None else cache
        self._held: dict[Any, Derived] = {}
        self.hot = hot
        self.graph = decompose(graph, device.backend, hot)
        self.steps: list[Step] = []
        self._storages: list[Storage] = []
        self._places: dict[Value, Place] = {}
        self._phantoms: dict[Value, np.ndarray] = {}
        self._donated: dict[Value, Any] = {}
        self._parts: dict[Value, Part] = {}
        self._joined: dict[Node, Place] = {}
        self._schedule()
        buffers = self._storages
        offsets, self.nbytes = place([Lifetime(s.type.nbytes, s.start, s.end) for s in buffers], ALIGNMENT)
        self._offsets = dict(zip(buffers, offsets, strict=True))
        if most is not None and self.nbytes > most:
            raise TooLarge(self.nbytes, largest(self))
        self._arenas = Arenas.of(device, self.cache)
        arena = self._arena()
        arena.bound[self] = self._bind(arena.memory)
        self._arenas.give(arena)
        if hot:
            device.trim()  # kernels were chosen by trying them, on memory of their own

    def __call__(self, *inputs: Any) -> list[Any]:
        arena = self._arena()
        try:
            bound = arena.bound.get(self)
            if bound is None:
                bound = arena.bound[self] = self._bind(arena.memory)
            return self._run(bound, inputs)
        finally:
            self._arenas.give(arena)

    def _arena(self) -> Arena:
        try:
            return self._arenas.take(self.nbytes)
        except OutOfMemory as error:
            raise OutOfMemory(f"{error}. Largest buffers: {largest(self)}") from error

    def _run(self, bound: Bound, inputs: Sequence[Any]) -> list[Any]:
        if self.device.remote:
            self.device.check()
        for buffer, array in zip(bound.inputs, inputs, strict=True):
            if buffer is not None:
                buffer[...] = array
        if bound.replay is None or not bound.replay():
            self._step_through(bound)
        made = {late.number: late.made(self.device) for late in bound.late}
        for i, array in self._updates.items():
            if bound.outputs[i] is not array:
                array[...] = bound.outputs[i]
        owned = self.device.owned
        return [made[i] if i in made else owned(x) for i, x in enumerate(bound.outputs) if i not in self._updates]

    def _step_through(self, bound: Bound) -> None:
        """Make the calls one by one."""
        call: Any = None
        try:
            with np.errstate(all="ignore"):
                for call in bound.calls:
                    call()
        except Exception as error:
            raise self._failure(error, bound.steps[bound.calls.index(call)]) from error

    @property
    def obstacle(self) -> str | None:
        """Why the calls of this plan cannot be recorded and replayed as one; None where they can, or have been."""
        hosts = ((step, step.kernel.host) for step in self.steps)
        return next((reason for step, host in hosts if (reason := obstacle_of(step.node, host)) is not None), None)

    def profile(self, inputs: Sequence[Any], repeats: int = 1) -> list[tuple[Step, float, float]]:
        """(step, start, seconds) of every kernel call in the fastest of `repeats` runs; starts count from the run's own.

        State that is written where it lies moves on with every run.
        """
        memory = self.device.afford(lambda: self.device.allocate(self.nbytes), self.nbytes, "an arena")
        bound = self._bind(memory, chain=False)
        best: list[tuple[Step, float, float]] = []
        for _ in range(repeats):
            for buffer, array in zip(bound.inputs, inputs, strict=True):
                if buffer is not None:
                    buffer[...] = array
            rows = []
            begin = time.perf_counter()
            with np.errstate(all="ignore"):
                for step, call in zip(self.steps, bound.calls, strict=True):
                    t = time.perf_counter()
                    call()
                    self.device.synchronize()
                    rows.append((step, t - begin, time.perf_counter() - t))
            if not best or (rows and rows[-1][1] < best[-1][1]):
                best = rows
        return best

    def _failure(self, error: Exception, at: int) -> FlamertError:
        where = named(self.steps[at].node)
        return error.at(where) if isinstance(error, FlamertError) else translated(error, where)

    def _schedule(self) -> None:
        """Decide for every node: its kernel, where its results lie, and when each storage is last read."""
        last = last_reads(self.graph)
        self._donated = destinations(self.graph, self._state, self._updates, last)
        self._parts = parts_of(self.graph, self._donated)
        n = len(self.graph.nodes)
        for time_, node in enumerate(self.graph.nodes):
            if not self.device.remote:
                require_memory(sum([t.nbytes for t in node.types]), node.op.name, node.source)
            if node.op is INPUT:
                held = self._state.get(node.outputs[0])
                where = self._new(node.types[0], 0) if held is None else Place(Storage(node.types[0], -1, held), 0, None)
                self._places[node.outputs[0]] = where
            elif node.op is CONSTANT:
                self._constant(node)
            elif node in self._joined:
                self._join(node)
            elif node.op.view is None or not self._alias(node, time_):
                self._call(node, time_, last)
            for v in node.outputs:
                storage = self._places[v].storage
                storage.end = max(storage.end, last.get(v, time_))
        for v in (*self.graph.inputs, *self.graph.outputs):
            if v not in self._places:  # an input that nothing reads
                self._places[v] = self._new(v.type, 0)
        for v in self.graph.outputs:
            self._places[v].storage.end = n
        self._phantoms.clear()
        self._parts.clear()

    def _new(self, type: TensorType, start: int) -> Place:
        storage = Storage(type, start)
        self._storages.append(storage)
        return Place(storage, 0, None)

    def _constant(self, node: Node) -> None:
        array = node.attrs["value"]
        made = Derived.of(array, self.device.name, lambda: self.device.upload(array, lasting=True), self.cache, self._held)
        self._places[node.outputs[0]] = Place(Storage(node.types[0], -1, made, constant=True), 0, None)

    def _alias(self, node: Node, time_: int) -> bool:
        """Give a view node a place inside its operand's storage; False where the operand's layout does not allow it."""
        operand = node.inputs[0]
        assert operand is not None
        storage, offset, _ = self._places[operand]
        if storage.array is not None:
            try:
                viewed = Storage(node.types[0], -1, node.op.view(storage.array, **node.attrs), storage.constant)
            except ValueError:
                return False
            self._places[node.outputs[0]] = Place(viewed, 0, None)
            return True
        seen = self._phantoms.get(operand)
        if seen is None:
            seen = self._phantoms[operand] = np.empty(operand.shape, operand.dtype)
        try:
            view = node.op.view(seen, **node.attrs)
        except ValueError:  # a reshape across strides needs a contiguous operand
            return False
        self._phantoms[node.outputs[0]] = view
        if view.size:
            offset += view.__array_interface__["data"][0] - seen.__array_interface__["data"][0]
        self._places[node.outputs[0]] = Place(storage, offset, None if view.flags.c_contiguous else view.strides)
        return True

    def _call(self, node: Node, time_: int, last: dict[Value, int]) -> None:
        kernel = node.op.kernel_for(node, self.device.backend, hot=self.hot)
        if kernel is None and node.op.view is not None:
            kernel = COPY
        elif self.device.remote and needs_host(node, kernel):
            kernel = hosted(self.device)
        if kernel is None:
            raise UnsupportedOp(f"no {self.device.backend} kernel for {node!r}").at(str(node.source))
        inputs = tuple(
            [
                None if v is None else (v.type, self._dense(v, time_) if kernel.wants_dense(i) else self._places[v])
                for i, v in enumerate(node.inputs)
            ]
        )
        work = []
        for t in kernel.workspace(node) if kernel.workspace is not None else ():
            work.append((t, self._new(t, time_)))
        outputs = []
        for v in node.outputs:
            where = self._in_whole(node, v, kernel, time_)
            if v in self._donated and not kernel.hot:
                where = Place(Storage(v.type, -1, self._donated[v]), 0, None)
            elif where is None and node.op.inplace and len(node.outputs) == 1:
                where = self._takeover(node, v, time_, last)
            outputs.append((v.type, where or self._new(v.type, time_)))
            self._places[v] = outputs[-1][1]
        self.steps.append(Step(node, kernel, inputs, tuple(outputs), tuple(work)))

    def _in_whole(self, node: Node, result: Value, kernel: Kernel, time_: int) -> Place | None:
        """The place of a result in the concatenation that alone reads it, if the kernel can write there."""
        part = self._parts.get(result)
        if part is None or not part.takes(node, kernel):
            return None
        whole = self._joined.get(part.whole)
        if whole is None:
            whole = self._joined[part.whole] = self._new(part.whole.types[0], time_)
        self._phantoms[result] = part.lies
        return Place(whole.storage, part.offset, part.strides)

    def _join(self, node: Node) -> None:
        """A concatenation of which some parts lie where they belong: the others are copied there."""
        whole = self._places[node.outputs[0]] = self._joined[node]
        for v, part in parts(node):
            at = self._places[v]
            if at.storage is not whole.storage or not part.holds(at.offset, at.strides):
                to = Place(whole.storage, part.offset, part.strides)
                copy = Node(COPYING, (v,), {}, (v.type,), node.source)
                self.steps.append(Step(copy, COPY, ((v.type, at),), ((v.type, to),), ()))

    def _dense(self, value: Value, time_: int) -> Place:
        """The operand's place if it is contiguous there; else that of a copy, made just before."""
        at = self._places[value]
        held = at.storage.array
        if at.strides is None and (held is None or held.flags.c_contiguous):
            return at
        if at.storage.constant:  # copied now: a kernel may pack it for good when it is bound
            return Place(Storage(value.type, -1, self.device.xp.ascontiguousarray(held), constant=True), 0, None)
        copy = self._new(value.type, time_)
        node = Node(COPYING, (value,), {}, (value.type,))
        self.steps.append(Step(node, COPY, ((value.type, at),), ((value.type, copy),), ()))
        return copy

    def _takeover(self, node: Node, result: Value, time_: int, last: dict[Value, int]) -> Place | None:
        """The place of an operand that dies here and is of the result's type, so that the op can work in place."""
        for i in node.op.inplace:
            operand = node.inputs[i] if i < len(node.inputs) else None
            if operand is None or operand.type != result.type or operand.node.op in (INPUT, CONSTANT):
                continue
            at = self._places[operand]
            whole = at.offset == 0 and at.strides is None and at.storage.type.nbytes >= result.type.nbytes
            # A view of the same memory among the other operands would be overwritten before it is read.
            viewed = any([v is not None and v is not operand and self._places[v].storage is at.storage for v in node.inputs])
            if whole and not viewed and at.storage.array is None and at.storage.end <= time_:
                return at
        return None

    def _returned(self) -> list[tuple[int, TensorType, Place, bool]]:
        """(number, type, place, whether it updates an array) of each output."""
        return [(i, v.type, self._places[v], i in self._updates) for i, v in enumerate(self.graph.outputs)]

    def _bind(self, memory: Any, chain: bool = True) -> Bound:
        """Every array and call bound to an arena's memory; `chain`: calls that can run as one become one."""
        device = self.device

        def array(type: TensorType, at: Place) -> Any:
            if at.storage.array is not None:
                return at.storage.array
            return device.view(memory, self._offsets[at.storage] + at.offset, type, at.strides)

        calls: list[Any] = [None] * len(self.steps)
        # Those that measure come last: kernels of the others are compiled meanwhile, all at once.
        for i, step in sorted(enumerate(self.steps), key=lambda item: item[1].kernel.measures):
            if step.kernel.measures:
                device.settle()
            site = Site(device.xp, step.node, tuple([array(t, p) for t, p in step.work]), self.cache, device, self._held)
            outs = [array(t, p) for t, p in step.outputs]
            operands = [None if x is None else array(*x) for x in step.inputs]
            try:
                calls[i] = step.kernel.thunk(site, outs[0] if len(outs) == 1 else tuple(outs), operands)
            except Exception as error:
                raise self._failure(error, i) from error
        read = {v for node in self.graph.nodes for v in node.inputs} | set(self.graph.outputs)
        passed = [v for v in self.graph.inputs if v not in self._state]
        inputs = tuple([array(v.type, self._places[v]) if v in read else None for v in passed])
        late = taken_late(self.steps, calls, self._returned(), array) if chain and device.remote else ()
        calls, steps = chained(calls) if chain else (calls, list(range(len(calls))))
        outputs = tuple([array(v.type, self._places[v]) for v in self.graph.outputs])
        replay = Replay(device, calls, self.obstacle) if chain and self.hot and device.records else None
        return Bound(inputs, tuple(calls), tuple(steps), outputs, replay, late)


def decompose(graph: Graph, backend: str, hot: bool = False) -> Graph:
    """Write composites that this backend has no kernel for in the ops of their bodies, repeatedly."""

    def lacks_kernel(node: Node) -> bool:
        return node.op not in LEAVES and node.op.body is not None and node.op.kernel_for(node, backend, hot=hot) is None

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        return expand(node, inputs) if lacks_kernel(node) else None

    while any(map(lacks_kernel, graph.nodes)):
        graph = rebuild(graph, rule)
    return graph
