"""State that graphs read and overwrite: device arrays by name, and drafts of graphs over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flamert import graph as g
from flamert.graph import Graph, TensorType, Value
from flamert.model import Model
from flamert.passes.recompute import recompute
from flamert.runtime.device import Device
from flamert.runtime.plan import Plan


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
            self.arrays[name] = self.device.owned(self.device.upload(array))

    def __getitem__(self, name: str) -> np.ndarray:
        """A copy of an array's contents, on the host."""
        return np.array(self.device.download(self.arrays[name], self.types[name].dtype))

    def __setitem__(self, name: str, contents: Any) -> None:
        self.arrays[name][...] = self.device.upload(np.asarray(contents, self.types[name].dtype))

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

    def plan(self, model: Model, inputs: Sequence[Value], outputs: Sequence[Value], *, thrifty: bool = False) -> Plan:
        """The plan that takes `inputs`, returns `outputs` and does the writing.

        thrifty: cheap results on the way to the first output are made again where the rest reads them, not kept.
        """
        graph = model.prepared(self.graph(inputs, outputs), len(self._updates))
        if thrifty:
            graph = recompute(graph, graph.outputs[0])
        arrays = self.state.arrays
        state = {value: arrays[name] for name, value in self._inputs.items()}
        updates = {len(outputs) + i: arrays[name] for i, name in enumerate(self._updates)}
        return Plan(graph, model.device, cache=model.derived, hot=True, state=state, updates=updates)
