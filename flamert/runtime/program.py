"""Programs: plans joined by host steps, for models whose shapes or branches depend on data; built lazily, and cached."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from flamert.errors import FlamertError, translated
from flamert.graph import Graph
from flamert.runtime.device import Device
from flamert.runtime.plan import Plan
from flamert.runtime.steps import Step

MAX_CONTINUATIONS = 64
"""Continuations that one stage keeps; the least recently used go first."""

HOT_AFTER = 2
"""Calls after which a stage's plan is made again with kernels that cost more to set up."""


class Slot(NamedTuple):
    """A run-time value by number: a tensor (`dtype` known) or an opaque Python object (`dtype` None)."""

    index: int  # type: ignore[assignment]  # tuples have a method of this name, which nobody calls on a Slot
    dtype: np.dtype | None


Tree = Any
"""A Slot, an array, None, or a list of Trees: how a sequence or an optional is made of run-time values."""


class Read(NamedTuple):
    """Host step: bring small tensors to the host; what follows is specialised to their contents."""

    slots: tuple[Slot, ...]


class Call(NamedTuple):
    """Host step: `run(*arguments)` in Python on NumPy arrays and lists; what follows is specialised to its results' types.

    within: `run` takes the Program as its first argument, before the others.
    """

    run: Callable[..., Sequence[Any]]
    arguments: tuple[Tree, ...]
    within: bool = False


class Return(NamedTuple):
    """The end: what the program returns."""

    results: tuple[Tree, ...]


class Stage:
    """A static graph, then a host step. `inputs`/`outputs` are the slots its plan reads and writes.

    `resume(found)` builds the stage that follows: after a Read `found` is the arrays that were read, after a Call the
    results. `received` are the slots that the leaves of a preceding Call's results go to.
    """

    def __init__(
        self,
        graph: Graph | None,
        inputs: Sequence[Slot],
        outputs: Sequence[Slot],
        step: Read | Call | Return,
        resume: Callable[[Sequence[Any]], Stage] | None = None,
        received: Sequence[Slot] = (),
    ) -> None:
        self.graph = graph
        self.inputs = tuple(s.index for s in inputs)
        self.outputs = tuple(s.index for s in outputs)
        self.step = step
        self.resume = resume
        self.received = tuple(received)
        self.next: OrderedDict[Hashable, Stage] = OrderedDict()
        self.plan: Plan | None = None
        self.calls = 0


class Program:
    """A tree of stages over one input signature. `program(feeds)` with one object per slot of `feeds`; returns the results.

    prepare: Graph → Graph, the passes. Tensors in and out are device arrays, everything else Python objects; with `host`,
    the results are NumPy arrays.
    """

    def __init__(
        self, first: Stage, feeds: Sequence[Slot], device: Device, prepare: Callable[[Graph, bool], Graph], cache: dict
    ) -> None:
        self.first = first
        self.feeds = tuple(s.index for s in feeds)
        self._given = frozenset(self.feeds)
        self._direct: tuple[Plan, tuple[int, ...]] | None = None
        self.device = device
        self.prepare = prepare
        self.cache = cache

    @property
    def static(self) -> bool:
        """Whether the whole model is one plan."""
        return isinstance(self.first.step, Return)

    def __call__(self, feeds: Sequence[Any], hot: bool = False, host: bool = False) -> list[Any]:
        if self._direct is not None and not (host and self.device.remote):
            plan, operands = self._direct
            return plan(*[feeds[i] for i in operands])
        try:
            return self._walk(feeds, hot, host)
        except FlamertError:
            raise
        except Exception as error:  # of planning, folding, or a host step
            raise translated(error, None) from error

    def _walk(self, feeds: Sequence[Any], hot: bool, host: bool) -> list[Any]:
        env = dict(zip(self.feeds, feeds, strict=True))
        stage = self.first
        while True:
            self._run(stage, env, hot)
            if isinstance(stage.step, Return):
                self._shorten()
                return [self._result(tree, env, host) for tree in stage.step.results]
            stage = self._advance(stage, env)

    def _shorten(self) -> None:
        """Where all of the model is one plan in its final form and returns just that plan's results: call it directly."""
        first = self.first
        if self.static and first.plan is not None and first.plan.hot:
            results = [t.index if isinstance(t, Slot) else None for t in first.step.results]  # type: ignore[union-attr]
            if results == list(first.outputs):
                self._direct = first.plan, tuple([self.feeds.index(i) for i in first.inputs])

    def profile(self, feeds: Sequence[Any], repeats: int) -> Iterator[tuple[Stage, list[tuple[Step, float, float]], float]]:
        """Run once; for each stage its kernel calls as `Plan.profile` gives them, and the seconds its host step took."""
        env = dict(zip(self.feeds, feeds, strict=True))
        stage = self.first
        while True:
            plan = self.plan(stage, hot=True)
            rows = [] if plan is None else plan.profile([env[i] for i in stage.inputs], repeats)
            self._run(stage, env, True)
            if isinstance(stage.step, Return):
                yield stage, rows, 0.0
                return
            start = time.perf_counter()
            following = self._advance(stage, env)
            yield stage, rows, time.perf_counter() - start
            stage = following

    def stages(self) -> Iterator[Stage]:
        """All stages built so far."""
        pending = [self.first]
        while pending:
            stage = pending.pop()
            yield stage
            pending.extend(stage.next.values())

    def plan(self, stage: Stage, hot: bool = False) -> Plan | None:
        """The stage's plan; made at the first call, and again, for speed, once the stage proves to be called often."""
        if stage.graph is None:
            return stage.plan
        stage.calls += 1
        hot = hot or not self.device.tunes or stage.calls > HOT_AFTER
        if stage.plan is None or (hot and not stage.plan.hot):
            stage.plan = Plan(self.prepare(stage.graph, hot), self.device, cache=self.cache, hot=hot)
            if hot:
                stage.graph = None  # the plan is final
        return stage.plan

    def _run(self, stage: Stage, env: dict[int, Any], hot: bool) -> None:
        plan = stage.plan
        if plan is None or not plan.hot:
            plan = self.plan(stage, hot)
        if plan is not None:
            env.update(zip(stage.outputs, plan(*[env[i] for i in stage.inputs]), strict=True))

    def _advance(self, stage: Stage, env: dict[int, Any]) -> Stage:
        """Take the host step and find, or build, the stage that continues from its outcome."""
        if isinstance(stage.step, Read):
            found: Sequence[Any] = [self._host(env[s.index], s.dtype) for s in stage.step.slots]
            key: Hashable = tuple([a.tobytes() for a in found])
            leaves: list[Any] = []
        else:
            assert isinstance(stage.step, Call)
            arguments = [self._gather(tree, env) for tree in stage.step.arguments]
            found = stage.step.run(self, *arguments) if stage.step.within else stage.step.run(*arguments)
            leaves = []
            key = tuple([flatten(result, leaves) for result in found])
        following = stage.next.get(key)
        if following is None:
            assert stage.resume is not None
            following = stage.next[key] = stage.resume(found)
            while len(stage.next) > MAX_CONTINUATIONS:
                stage.next.popitem(last=False)
        else:
            stage.next.move_to_end(key)
        for slot, leaf in zip(following.received, leaves, strict=True):
            env[slot.index] = leaf if slot.dtype is None or slot.dtype.hasobject else self.device.upload(np.asarray(leaf))
        return following

    def _host(self, array: Any, dtype: np.dtype | None) -> Any:
        return array if dtype is None or dtype.hasobject else self.device.download(array, dtype)

    def _result(self, tree: Tree, env: dict[int, Any], host: bool) -> Any:
        """A result for the caller to keep: nothing that the program holds on to."""
        if tree.__class__ is Slot:
            result = self._host(env[tree.index], tree.dtype) if host else env[tree.index]
            return result.copy() if tree.index in self._given and hasattr(result, "copy") else result
        if isinstance(tree, list):
            return [self._result(t, env, host) for t in tree]
        if isinstance(tree, np.ndarray):
            return tree.copy() if host or tree.dtype.hasobject else self.device.upload(tree.copy())
        return tree

    def _gather(self, tree: Tree, env: dict[int, Any]) -> Any:
        """An argument of a host step: NumPy arrays, lists and objects."""
        if isinstance(tree, Slot):
            return self._host(env[tree.index], tree.dtype)
        return [self._gather(t, env) for t in tree] if isinstance(tree, list) else tree


def flatten(obj: Any, leaves: list[Any]) -> Hashable:
    """Append the tensors and opaque objects inside `obj` to `leaves`; return its structure: what a signature is made of."""
    if obj is None:
        return None
    if isinstance(obj, list):
        return ("sequence", *[flatten(x, leaves) for x in obj])
    leaves.append(obj)
    if isinstance(obj, np.ndarray | np.generic):
        return (obj.shape, obj.dtype)
    return type(obj).__name__
