"""State that graphs read and overwrite: device arrays by name, and drafts of graphs over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flamert import graph as g
from flamert.errors import OutOfMemory
from flamert.graph import Graph, TensorType, Value
from flamert.limits import readable
from flamert.model import Model
from flamert.passes.budget import Budget
from flamert.passes.recompute import recompute
from flamert.runtime.device import Device
from flamert.runtime.plan import Plan
from flamert.runtime.shortage import TooLarge

Again = bool | int
"""What is made again in a backward pass: nothing, what is cheap, or what it takes to fit into so many bytes."""

TRIES = 4
"""Plans that are tried for a number of bytes."""


class State:
    """Arrays that live on a device for as long as training goes on, by name. Plans are bound to them, so they stay the same
    arrays and only their contents change."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.types: dict[str, TensorType] = {}
        self.arrays: dict[str, Any] = {}

    def add(self, name: str, array: Any) -> None:
        """A new array with these contents."""
        array = np.asarray(array)
        self.types[name] = TensorType(array.shape, array.dtype)
        if array.size > 1 and not any(array.strides):  # one number everywhere, which goes to a GPU as that
            self.arrays[name] = self.device.filled(array.shape, self.device.upload(array[(slice(1),) * array.ndim]))
        else:
            self.arrays[name] = self.device.owned(self.device.upload(array, lasting=True))

    def __getitem__(self, name: str) -> np.ndarray:
        """A copy of an array's contents, on the host."""
        return np.array(self.device.download(self.arrays[name], self.types[name].dtype))

    def __setitem__(self, name: str, contents: Any) -> None:
        self.arrays[name][...] = self.device.upload(np.asarray(contents, self.types[name].dtype), lasting=True)

    def __contains__(self, name: object) -> bool:
        return name in self.types

    def __iter__(self) -> Iterator[str]:
        return iter(self.types)

    def snapshot(self) -> dict[str, np.ndarray]:
        """The contents of all arrays."""
        return {name: self[name] for name in self}

    def load(self, contents: Mapping[str, np.ndarray]) -> None:
        """Overwrite arrays; types must fit."""
        for name, array in contents.items():
            self[name] = array


class Draft:
    """A graph being written over state: graph inputs that stand for arrays, and what becomes of them."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._inputs: dict[str, Value] = {}
        self._updates: dict[str, Value] = {}

    def read(self, name: str) -> Value:
        """What the array holds before the step."""
        if name not in self._inputs:
            self._inputs[name] = g.input(self.state.types[name], name)
        return self._inputs[name]

    def write(self, name: str, value: Value) -> None:
        """What the array holds after the step. Must be newly computed: no Value of `read` itself."""
        assert value.type == self.state.types[name], f"{name} is {self.state.types[name]}, not {value.type}"
        self._updates[name] = value

    @property
    def written(self) -> tuple[str, ...]:
        """Names of the arrays that change, in order."""
        return tuple(self._updates)

    def graph(self, inputs: Sequence[Value], outputs: Sequence[Value]) -> Graph:
        """The function of `inputs` and all that is read, which gives `outputs` and all that is written, in these orders."""
        return Graph([*inputs, *self._inputs.values()], [*outputs, *self._updates.values()])

    def plan(self, model: Model, inputs: Sequence[Value], outputs: Sequence[Value], *, again: Again = False) -> Plan:
        """The plan that takes `inputs`, returns `outputs` and does the writing.

        again: whether cheap results on the way to the first output are made again where the rest reads them, not kept; or how
        many bytes the plan may take, for which as little as possible is made again. Raises OutOfMemory where that is too few.
        """
        graph = model.prepared(self.graph(inputs, outputs), len(self._updates))
        arrays = self.state.arrays
        state = {value: arrays[name] for name, value in self._inputs.items()}
        updates = {len(outputs) + i: arrays[name] for i, name in enumerate(self._updates)}

        def planned(graph: Graph, most: int | None = None) -> Plan:
            return Plan(graph, model.device, cache=model.derived, hot=True, state=state, updates=updates, most=most)

        if again is True or not again:
            return planned(recompute(graph, graph.outputs[0]) if again else graph)
        return _within(Budget(graph, graph.outputs[0], state, len(updates), model.device.backend), again, planned)


def _within(budget: Budget, nbytes: int, planned: Callable[[Graph, int], Plan]) -> Plan:
    """The plan that takes no more than so many bytes. What it takes besides results, scratch and gaps, is known afterwards."""
    aim, least = nbytes, None
    for turn in range(TRIES):
        choice = budget.within(aim if turn < TRIES - 1 else 0)
        try:
            return planned(budget.graph(choice), nbytes)
        except TooLarge as large:
            least = large if least is None or large.nbytes < least.nbytes else least
            if choice.nbytes > aim:
                break  # there is nothing more to make again
            aim = int(0.98 * choice.nbytes * nbytes / large.nbytes)
    assert least is not None
    raise OutOfMemory(
        f"a training step does not fit into recompute={readable(nbytes)}: it takes {readable(least.nbytes)} with all that "
        f"can be made again. Allow more, or take smaller batches. Largest buffers: {least.buffers}"
    )
