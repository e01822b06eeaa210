"""Model: what a user holds after `load`. Names, parameters, running, saving; specialisation by input signature."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from flamert.errors import InputError, ShapeError
from flamert.graph import Graph
from flamert.runtime.device import Device
from flamert.runtime.program import Program, Slot, Stage, flatten

MAX_SIGNATURES = 64
"""Input signatures a model keeps programs for; the least recently used go first."""


class TensorSpec(NamedTuple):
    """A model input or output. A symbolic dimension is its name, an unnamed one None.

    dtype: NumPy (or ml_dtypes) element type; strings are `object`. For sequences, optionals and maps it is that of the
    elements, and `kind` says so ("tensor", "sequence", "optional", "map"). shape is None where the rank is unknown.
    """

    name: str
    dtype: np.dtype | None
    shape: tuple[int | str | None, ...] | None
    kind: str = "tensor"


class Origin(Protocol):
    """Where a model's graphs come from: the importer behind the scenes."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: dict[str, np.ndarray]
    optional: frozenset[str]
    file: str

    def specialise(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> tuple[Stage, list[Slot], list[str]]:
        """The first stage for inputs of these types, the slots of the inputs' leaves, and the names of the inputs in order."""


class Params(MutableMapping[str, np.ndarray]):
    """A model's parameters: name in the file → array. Assigning replaces the array; shape and dtype must stay."""

    def __init__(self, arrays: dict[str, np.ndarray], changed: Callable[[], None]) -> None:
        self._arrays = arrays
        self._changed = changed

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __setitem__(self, name: str, array: Any) -> None:
        old = self._arrays.get(name)
        if old is None:
            raise InputError(f"the model has no parameter {name!r}")
        array = np.asarray(array)
        if array.shape != old.shape or array.dtype != old.dtype:
            raise ShapeError(
                f"parameter {name!r} is {old.dtype.name}{list(old.shape)}, not {array.dtype.name}{list(array.shape)}"
            )
        self._arrays[name] = np.array(array)
        self._changed()

    def __delitem__(self, name: str) -> None:
        raise InputError("parameters cannot be removed")

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"<{len(self)} parameters>"


class Model:
    """An imported model on a device. Make one with `flamert.load`.

    Attributes: inputs, outputs (tuples of TensorSpec), params (name → array), device.
    """

    def __init__(self, origin: Origin, device: Device, prepare: Callable[[Graph, bool, Device], Graph]) -> None:
        self.origin = origin
        self.device = device
        self.inputs = origin.inputs
        self.outputs = origin.outputs
        self.params = Params(origin.weights, self._drop_derived)
        self._prepare = prepare
        self._cache: dict[Any, Any] = {}
        self._programs: OrderedDict[Hashable, tuple[Program, list[str]]] = OrderedDict()
        self._specs = {spec.name: spec for spec in self.inputs}

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Run the model on `inputs` (name → array; optional inputs may be left out).

        outputs: names to return, any intermediate value's too; None for all of the model's. Returns name → NumPy array (or
        list, array of str, dict for sequence, string and map types). Raises InputError where an input is missing, unknown
        or of the wrong type.
        """
        names = tuple(outputs) if outputs is not None else tuple([o.name for o in self.outputs])
        results = self._run(inputs, names)
        return {name: self._to_host(r) for name, r in zip(names, results, strict=True)}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on positional inputs (in the model's order) or inputs by name; returns one output or a tuple of them."""
        if len(args) > len(self.inputs):
            raise InputError(f"the model takes {len(self.inputs)} inputs, got {len(args)}")
        feeds = {spec.name: a for spec, a in zip(self.inputs, args, strict=False)}
        if twice := feeds.keys() & kwargs.keys():
            raise InputError(f"input {sorted(twice)[0]!r} is given twice")
        feeds.update(kwargs)
        results = [self._to_host(r) for r in self._run(feeds, tuple([o.name for o in self.outputs]))]
        return results[0] if len(results) == 1 else tuple(results)

    def _run(self, inputs: Mapping[str, Any], outputs: tuple[str, ...]) -> list[Any]:
        feeds = {name: self._checked(name, x) for name, x in inputs.items() if x is not None}
        leaves: list[Any] = []
        key = (outputs, tuple([(name, flatten(x, leaves)) for name, x in feeds.items()]))
        found = self._programs.get(key)
        if found is None:
            self._check_complete(feeds)
            found = self._programs[key] = self._specialise(feeds, outputs)
            while len(self._programs) > MAX_SIGNATURES:
                self._programs.popitem(last=False)
        else:
            self._programs.move_to_end(key)
        program, order = found
        if order != list(feeds):
            leaves = []
            for name in order:
                flatten(feeds[name], leaves)
        upload = self.device.upload
        return program([upload(x) if isinstance(x, np.ndarray) and not x.dtype.hasobject else x for x in leaves])

    def _specialise(self, feeds: Mapping[str, Any], outputs: tuple[str, ...]) -> tuple[Program, list[str]]:
        stage, slots, order = self.origin.specialise(feeds, outputs)
        device = self.device
        return Program(stage, slots, device, lambda graph, hot: self._prepare(graph, hot, device), self._cache), order

    def _checked(self, name: str, x: Any) -> Any:
        """An input as an array (or list) of the declared type; InputError where it does not fit."""
        spec = self._specs.get(name)
        if spec is None:
            raise InputError(f"the model has no input {name!r}; it has {', '.join(map(repr, self._specs))}")
        if spec.kind != "tensor":
            return _structured(spec, x)
        array = x if isinstance(x, np.ndarray) else np.asarray(x)
        if array.dtype != spec.dtype:
            array = _converted(spec, array, x)
        if spec.shape is not None:
            if len(spec.shape) != array.ndim:
                raise InputError(
                    f"input {name!r} has rank {len(spec.shape)} {_shown(spec)}, got an array of shape {list(array.shape)}"
                )
            for want, got in zip(spec.shape, array.shape, strict=True):
                if want.__class__ is int and want != got:
                    raise InputError(f"input {name!r} is {_shown(spec)}, got an array of shape {list(array.shape)}")
        return array

    def _check_complete(self, feeds: Mapping[str, Any]) -> None:
        for name, spec in self._specs.items():
            if name not in feeds and name not in self.origin.optional and spec.kind != "optional":
                raise InputError(f"input {name!r} {_shown(spec)} is missing")

    def _to_host(self, result: Any) -> Any:
        if isinstance(result, list):
            return [self._to_host(r) for r in result]
        if isinstance(result, np.ndarray) or not hasattr(result, "__dlpack__"):
            return result
        return self.device.download(result, result.dtype)

    def _drop_derived(self) -> None:
        self._programs.clear()
        self._cache.clear()


def _structured(spec: TensorSpec, x: Any) -> Any:
    """A sequence, optional or map input."""
    if isinstance(x, list | tuple):
        return [_structured(spec, e) for e in x]
    if isinstance(x, dict):
        return x
    return np.asarray(x)


def _converted(spec: TensorSpec, array: np.ndarray, given: Any) -> np.ndarray:
    """Python numbers take the declared type, and strings any form NumPy has; arrays of another type are an error."""
    if spec.dtype is None or (spec.dtype.hasobject and array.dtype.kind in "OUST"):
        return array.astype(object)
    if not hasattr(given, "dtype"):
        return np.asarray(given, spec.dtype)
    raise InputError(
        f"input {spec.name!r} is {_shown(spec)}, got an array of {array.dtype.name}; convert it with .astype({spec.dtype.name!r})"
    )


def _shown(spec: TensorSpec) -> str:
    shape = "of any shape" if spec.shape is None else "[" + ", ".join("?" if d is None else str(d) for d in spec.shape) + "]"
    return f"{spec.dtype.name if spec.dtype is not None else spec.kind}{shape}"
