"""Model: what a user holds after `load`. Names, running, saving; specialisation by input signature."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from flamert.buckets import Buckets
from flamert.differentiate import Gradients, vjp
from flamert.dtypes import FLOAT
from flamert.errors import InputError
from flamert.feeds import TensorSpec, checked, on_gpu
from flamert.graph import Graph
from flamert.origin import Origin, Traced
from flamert.params import Params
from flamert.runtime.device import Device
from flamert.runtime.program import Program, flatten

if TYPE_CHECKING:
    from flamert.profile import Profile
    from flamert.training_info import TrainingInfo

__all__ = ["Model", "Params", "TensorSpec"]

MAX_SIGNATURES = 64
"""Input signatures a model keeps programs for; the least recently used go first."""

LARGE = 1 << 20
"""Bytes of weights from which memory is freed as soon as a model goes, not when Python next looks for garbage."""


class Model:
    """An imported model on a device. Make one with `flamert.load`.

    Attributes: inputs, outputs (tuples of TensorSpec), params (name → array), device, origin.
    """

    def __init__(
        self,
        origin: Origin,
        device: Device,
        prepare: Callable[..., Graph],
        *,
        precision: str | None = None,
        allow_tf32: bool | None = None,
        deterministic: bool = False,
    ) -> None:
        self.precision, self.allow_tf32, self.deterministic = precision, allow_tf32, deterministic
        self.origin = origin
        self.device = device
        self.inputs = origin.inputs
        self.outputs = origin.outputs
        self.heads: tuple[str, ...] = ()
        """Parameters of layers that `replace_head` made."""
        self.adaptations: list[dict[str, Any]] = []
        """How the model differs from its file in structure: what was called to make it so, which `readapt` calls again."""
        self._training_info: tuple[TrainingInfo, ...] | None = None
        self._prepare = prepare
        self._cache: dict[Any, Any] = {}
        self._programs: OrderedDict[Hashable, tuple[Program, tuple[str, ...]]] = OrderedDict()
        # Nothing here refers back to the model, so that it goes when its owner lets go of it.
        drop = partial(_drop, self._programs, self._cache)
        self.params = Params(origin.weights, origin.stored, drop)
        large = sum([a.nbytes for a in origin.weights.values()]) > LARGE
        weakref.finalize(self, partial(_drop, self._programs, self._cache, large)).atexit = False
        self.gradients = Gradients()
        """What `vjp` and `value_and_grad` keep for their next calls."""
        weakref.finalize(self, self.gradients.clear).atexit = False  # called before the other one
        self._building = threading.Lock()
        self._specs = {spec.name: spec for spec in self.inputs}
        self._buckets = Buckets(self.inputs, self.outputs)
        self._all_outputs = tuple([spec.name for spec in self.outputs])

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Run the model on `inputs` (name → array; optional inputs may be left out).

        outputs: names to return, any intermediate value's too; None for all of the model's. Returns name → NumPy array (or
        list, array of str, dict for sequence, string and map types). Raises InputError where an input is missing, unknown
        or of the wrong type.
        """
        names = self._all_outputs if outputs is None else tuple(outputs)
        return dict(zip(names, self.execute(inputs, names), strict=True))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on positional inputs (in the model's order) or inputs by name; returns one output or a tuple of them.

        NumPy arrays in give NumPy arrays out. If any input is an array in GPU memory (CuPy's, or any that speaks DLPack),
        the results are CuPy arrays, and nothing passes through the host.
        """
        if len(args) > len(self.inputs):
            raise InputError(f"the model takes {len(self.inputs)} inputs, got {len(args)}")
        feeds = {spec.name: a for spec, a in zip(self.inputs, args, strict=False)}
        if twice := feeds.keys() & kwargs.keys():
            raise InputError(f"input {sorted(twice)[0]!r} is given twice")
        feeds.update(kwargs)
        host = not any([on_gpu(x) for x in feeds.values()])
        results = self.execute(feeds, self._all_outputs, host=host)
        return results[0] if len(results) == 1 else tuple(results)

    def compile(self, **shapes_or_examples: Any) -> Model:
        """Prepare and tune for these inputs now instead of when they are met a second time. Returns the model.

        Each input by name: its shape as a tuple or list of ints (made-up contents then stand in), or an example array. Give
        examples where shapes inside the model depend on an input's contents. Names that are no Python identifiers fit as
        `model.compile(**{"input.1": (1, 3, 224, 224)})`.

        Or lengths of symbolic dimensions, `model.compile(batch=[1, 8, 32])`: from then on inputs are filled up to the next of
        these lengths with copies of their last entries, and outputs cut back, so that three plans serve all batches up to 32.
        That is right where entries do not mix, as the rows of a batch do not. Raises InputError where an output lacks the
        dimension.
        """
        given = {n: x for n, x in shapes_or_examples.items() if n in self._specs}
        lengths = {n: x for n, x in shapes_or_examples.items() if n not in given}
        for symbol, x in lengths.items():
            self._buckets.add(symbol, x)
        for shapes in (*([given] if given or not lengths else []), *(self._buckets.shapes() if lengths else ())):
            self.execute({n: self._example(n, x) for n, x in shapes.items()}, self._all_outputs, hot=True)
        return self

    @property
    def signatures(self) -> int:
        """How many input signatures programs are kept for, of at most MAX_SIGNATURES."""
        return len(self._programs)

    def save(self, path: str | os.PathLike[str], *, external_data: str | bool = "auto") -> None:
        """Write the ONNX file with the current weights; names, dimensions, metadata, opsets and doc strings stay as they came.

        external_data: "auto" keeps each weight where it was, in the model file or in a data file beside it; True puts
        weights into `<name>.data`, False all into the model file. Files are replaced whole or not at all.
        Raises CheckpointError where the system refuses to write, UnsafeModel for a link in the way.
        """
        self.params.settle()
        self.origin.save(path, external_data)

    def vjp(
        self, inputs: Mapping[str, Any], cotangents: Mapping[str, Any], wrt: Sequence[str] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Outputs and vector-Jacobian products by name; see `flamert.differentiate.vjp`."""
        return vjp(self, inputs, cotangents, wrt)

    def trace(
        self,
        feeds: Mapping[str, Any],
        names: Sequence[str],
        variable: frozenset[str],
        *,
        lasting: bool = False,
        seed: int | None = None,
    ) -> Traced:
        """The model as one static graph for these feeds, with weights named in `variable` as inputs. For builders of graphs.

        lasting: it must hold for other contents of the same types too. seed: in training form, with these random numbers.
        """
        self.params.settle()
        return self.origin.trace(feeds, names, variable, lasting, seed)

    @property
    def training_info(self) -> tuple[TrainingInfo, ...]:
        """The training algorithms that the file itself holds (ONNX's `training_info`), to be run as they are written."""
        if self._training_info is None:
            from flamert.training_info import TrainingInfo

            self._training_info = tuple([TrainingInfo(self, a) for a in self.origin.algorithms])
        return self._training_info

    def add_lora(
        self, targets: str | Sequence[str], *, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, seed: int = 0
    ) -> tuple[str, ...]:
        """Adapt weights by low-rank terms: W + (alpha / rank) · B·A, of which only A and B train by default.

        targets: glob patterns of layers or weights that MatMul, Gemm, Conv or Attention multiply with; "query" also fits
        "encoder.0.query". dropout: how much of the layer's input training keeps from the term. Returns the layers' names; the
        factors are `params["<name>.lora_A.weight"]` and B. `save` writes merged weights. Add terms before making a Trainer.
        Raises InputError for a pattern that nothing fits.
        """
        from flamert.adapters import add_lora

        return add_lora(self, targets, rank=rank, alpha=alpha, dropout=dropout, seed=seed)

    def merge_lora(self) -> None:
        """Add all low-rank terms to their weights for good."""
        from flamert.adapters import merge_lora

        merge_lora(self)

    def save_lora(self, path: str | os.PathLike[str]) -> None:
        """Write the low-rank terms alone, as safetensors with PEFT's names: a file, or PEFT's two into a folder."""
        from flamert.adapters import save_lora

        save_lora(self, path)

    def load_lora(self, path: str | os.PathLike[str], *, alpha: float | None = None) -> tuple[str, ...]:
        """Put low-rank terms from a file (or folder) that `save_lora` or PEFT wrote beside the weights. Returns their names.

        alpha: where neither the file nor an adapter_config.json beside it says it. Raises CheckpointError for another's terms.
        """
        from flamert.adapters import load_lora

        return load_lora(self, path, alpha=alpha)

    def replace_head(self, output: str, features: int, *, name: str | None = None, init: str = "kaiming", seed: int = 0) -> str:
        """Let `output` be a new linear layer of width `features`, on what the last linear layer took (or on the output itself).

        What followed that layer (Softmax, Sigmoid) goes with it; other readers of `output` read the new one. name: of the
        parameters "<name>.weight" and "<name>.bias", by default that of the old layer. init: "kaiming" (as torch.nn.Linear),
        "xavier" or "zeros". Returns the name. Replace heads before making a Trainer.
        """
        from flamert.adapters import replace_head

        return replace_head(self, output, features, name=name, init=init, seed=seed)

    def follow_origin(self) -> None:
        """Take over inputs, outputs and weights of an origin that has changed."""
        self.inputs, self.outputs = self.origin.inputs, self.origin.outputs
        self._specs = {spec.name: spec for spec in self.inputs}
        self._buckets = Buckets(self.inputs, self.outputs)
        self._all_outputs = tuple([spec.name for spec in self.outputs])
        _drop(self._programs, self._cache)

    @property
    def adapted(self) -> frozenset[str]:
        """Names of the parameters that alone train by default: factors of low-rank terms and new heads; empty without terms."""
        factors = [name for term in self.origin.grafts.values() for name in (term.a, term.b)]
        return frozenset((*factors, *self.heads) if factors else ())

    def prepared(self, graph: Graph, updates: int = 0) -> Graph:
        """A graph made of this model's values, after the passes. updates: how many outputs, at their end, are new state."""
        return self._prepare(graph, True, self.device, self.derived, updates=updates)

    @property
    def derived(self) -> dict[Any, Any]:
        """What plans of this model share: uploaded, folded and packed weights."""
        return self._cache

    def spec(self, name: str) -> TensorSpec:
        """The declaration of an input; InputError where there is none of this name."""
        return self._spec(name)

    def summary(self) -> str:
        """What the model is, as a text table: inputs, outputs, parameters, ops, and what has been compiled so far."""
        from flamert.summary import summary

        return summary(self)

    def profile(self, inputs: Mapping[str, Any], repeats: int = 10) -> Profile:
        """Time every kernel call on these inputs, in the fastest of `repeats` runs; `print` it or `.save_trace(path)`."""
        from flamert.profile import profile

        self.params.settle()
        program, feeds = self._lookup(inputs, self._all_outputs)
        return profile(program, feeds, repeats)

    def execute(
        self, inputs: Mapping[str, Any], outputs: tuple[str, ...], *, host: bool = True, hot: bool = False
    ) -> list[Any]:
        """The outputs named, as a list: NumPy arrays, or with host=False as they lie on the device. hot: tune at once."""
        self.params.settle()
        if self._buckets.cover(outputs):
            inputs, had = self._buckets.widened(inputs, self.device)
            if had:
                results = self.execute(inputs, outputs, host=host, hot=hot)
                return [self._buckets.cut(name, x, had) for name, x in zip(outputs, results, strict=True)]
        # A key that is met again was checked when it was first met, so the common case costs one look-up and no checks.
        key: list[Any] = [outputs]
        for name, x in inputs.items():
            if x.__class__ is not np.ndarray:
                break
            key += (name, x.shape, x.dtype)
        else:
            found = self._programs.get(tuple(key))
            if found is not None and not self.device.remote:
                program, order = found
                return program([inputs[name] for name in order], hot, host)
        program, feeds = self._lookup(inputs, outputs)
        return program(feeds, hot, host)

    def _lookup(self, inputs: Mapping[str, Any], outputs: tuple[str, ...]) -> tuple[Program, list[Any]]:
        """The program for inputs of these types, made if it is new, and what to feed it: checked, and on the device."""
        feeds = {name: checked(self._spec(name), x, self.device) for name, x in inputs.items() if x is not None}
        key: list[Any] = [outputs]
        for name, x in feeds.items():
            key += (name, flatten(x, []), None) if isinstance(x, list | dict) else (name, x.shape, x.dtype)
        signature = tuple(key)
        with self._building:
            found = self._programs.get(signature)
            if found is None:
                self.require(feeds, outputs)
                found = self._programs[signature] = self._specialise(feeds, outputs)
                while len(self._programs) > MAX_SIGNATURES:
                    self._programs.popitem(last=False)
            else:
                self._programs.move_to_end(signature)
        program, order = found
        leaves: list[Any] = []
        for name in order:
            if isinstance(feeds[name], list | dict):
                flatten(feeds[name], leaves)
            else:
                leaves.append(feeds[name])
        upload = self.device.upload
        return program, [upload(x) if isinstance(x, np.ndarray) and not x.dtype.hasobject else x for x in leaves]

    def _specialise(self, feeds: Mapping[str, Any], outputs: tuple[str, ...]) -> tuple[Program, tuple[str, ...]]:
        like = {name: x if isinstance(x, np.ndarray | list | dict) else _stand_in(x) for name, x in feeds.items()}
        stage, slots, order = self.origin.specialise(like, outputs)
        device, cache, prepare, precision = self.device, self._cache, self._prepare, self.precision
        program = Program(stage, slots, device, lambda graph, hot: prepare(graph, hot, device, cache, precision), cache)
        return program, tuple(order)

    def _spec(self, name: str) -> TensorSpec:
        try:
            return self._specs[name]
        except KeyError:
            known = ", ".join(map(repr, self._specs)) or "none"
            raise InputError(f"invalid input name {name!r}; the model's inputs are {known}") from None

    def require(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> None:
        """Raise InputError unless all inputs that the model needs are there, and every output is one of its values."""
        missing = [
            f"{name!r} ({spec})"
            for name, spec in self._specs.items()
            if name not in feeds and name not in self.origin.optional and spec.kind != "optional"
        ]
        if missing:
            given = ", ".join(map(repr, feeds)) or "none"
            raise InputError(f"required inputs are missing: {', '.join(missing)}; given: {given}")
        if unknown := [name for name in outputs if name not in self.origin.values]:
            raise InputError(f"invalid output name {unknown[0]!r}; the model's outputs are {', '.join(self._all_outputs)}")

    def _example(self, name: str, given: Any) -> Any:
        """The array itself, or made-up contents of this shape: normal floats, since zeros flatter some kernels, and zeros."""
        if not isinstance(given, tuple | list) or not all(isinstance(d, int) for d in given):
            return given
        dtype = self._spec(name).dtype
        if dtype is None or dtype.hasobject:
            raise InputError(f"input {name!r} ({self._spec(name)}) needs an example, not a shape")
        if dtype in FLOAT:
            return np.random.default_rng(0).standard_normal(tuple(given), np.float32).astype(dtype)
        return np.zeros(tuple(given), dtype)

    def __repr__(self) -> str:
        name = self.origin.file or "of bytes"
        return f"<Model {name}: ({', '.join(self._specs)}) → ({', '.join(self._all_outputs)}) on {self.device.name}>"


def _drop(programs: dict[Any, Any], derived: dict[Any, Any], collect: bool = False) -> None:
    """Forget what was made from the weights. Graphs are cyclic: `collect` frees them and the weights they hold at once."""
    programs.clear()
    derived.clear()
    if collect:
        gc.collect()


def _stand_in(array: Any) -> np.ndarray:
    """For the importer, which looks at types alone: a NumPy array that has the type of a device array, and no memory."""
    return np.broadcast_to(np.empty((), array.dtype), array.shape)
