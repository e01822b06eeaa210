"""TrainingInfo: a training algorithm that an ONNX file holds beside its model, run step by step as the file says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flamert.errors import InvalidModel
from flamert.feeds import TensorSpec
from flamert.model import Model
from flamert.origin import Algorithm


class TrainingInfo:
    """One `training_info` of a model file: a graph that gives first values, and one that takes a training step.

    `initialize()` runs the first, once, before training starts; files whose initializers are ready to be used need none.
    `step(inputs)` runs the second and assigns what it computes: `model.params` hold the new weights, `state` the algorithm's
    own variables and constants (moments, a count of iterations, a rate), which may be replaced too, and `model.save` writes
    both. Make none yourself: see `Model.training_info`. A model may have several, which take turns as their user says (a
    generator and its judge).

    Attributes: inputs (TensorSpecs: the model's, then the algorithm's own), outputs (names), state (name → array),
    initialization_binding and update_binding (name of a variable → the output that it becomes).
    Source: ONNX TrainingInfoProto.
    """

    def __init__(self, model: Model, algorithm: Algorithm) -> None:
        # Of the model only parts are kept: it should go when its owner lets go of it.
        self._params, self._weights, self._file = model.params, model.origin.weights, model.origin.file
        self.outputs = algorithm.outputs
        self.state = algorithm.state
        self.initialization_binding, self.update_binding = algorithm.initial, algorithm.updated
        self._initialization, self._step = (
            Model(origin, model.device, model._prepare, allow_tf32=model.allow_tf32, deterministic=model.deterministic)
            for origin in (algorithm.initialization, algorithm.step)
        )
        self._fixed = self._constants()

    def _constants(self) -> dict[str, np.ndarray]:
        """What a step reads and does not update; its programs are made for these arrays."""
        return {n: a for held in (self._weights, self.state) for n, a in held.items() if n not in self.update_binding}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a step takes: the model's inputs and the algorithm's own."""
        return tuple([spec for spec in self._step.inputs if spec.name not in self.update_binding])

    def initialize(self) -> dict[str, np.ndarray]:
        """Run the initialization graph and assign what it gives. Returns the new values by variable.

        Raises InvalidModel where a value does not have its variable's type; then nothing has changed.
        """
        results = self._initialization.run({}, list(dict.fromkeys(self.initialization_binding.values())))
        return self._assign(self.initialization_binding, results)

    def step(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """One training step on a batch, inputs by name. Assigns all updates; returns the algorithm's outputs by name.

        Raises InvalidModel where an update does not have its variable's type; then nothing has changed.
        """
        self._params.settle()
        now = self._constants()
        if any(self._fixed.get(n) is not a for n, a in now.items()):
            self._step.follow_origin()
            self._fixed = now
        variables = {n: self._held(n) for n in self.update_binding}
        names = dict.fromkeys((*self.outputs, *self.update_binding.values()))
        results = self._step.run({**inputs, **variables}, list(names))
        self._assign(self.update_binding, results)
        return {n: results[n] for n in self.outputs}

    def _held(self, name: str) -> np.ndarray:
        return self.state[name] if name in self.state else self._params[name]

    def _assign(self, bindings: Mapping[str, str], results: Mapping[str, Any]) -> dict[str, np.ndarray]:
        new = {name: results[output] for name, output in bindings.items()}
        for name, array in new.items():
            old = self._held(name)
            if not isinstance(array, np.ndarray) or (array.shape, array.dtype) != (old.shape, old.dtype):
                found = f"{array.dtype.name}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
                wanted = f"{old.dtype.name}{list(old.shape)}"
                raise InvalidModel(f"training_info assigns {bindings[name]!r}, {found}, to {name!r}, which is {wanted}").at(
                    self._file or None
                )
        for name, array in new.items():
            if name in self.state:
                self.state[name] = array
            else:
                self._params[name] = array
        return new

    def __repr__(self) -> str:
        names = ", ".join(spec.name for spec in self.inputs)
        return f"<TrainingInfo ({names}) → ({', '.join(self.outputs)}), updates {', '.join(self.update_binding) or 'nothing'}>"
