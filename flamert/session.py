"""InferenceSession with onnxruntime's signatures, so that a program changes runtimes by changing an import."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flamert import options
from flamert.binding import IOBinding, OrtValue
from flamert.errors import DeviceError, InputError
from flamert.feeds import TensorSpec
from flamert.importers.load import load
from flamert.options import SessionOptions
from flamert.runtime.device import device

PROVIDERS = {"CUDAExecutionProvider": "cuda", "CPUExecutionProvider": "cpu"}
"""onnxruntime's names for the devices here, the preferred one first."""


def get_available_providers() -> list[str]:
    """The execution providers that sessions can use on this machine, the preferred one first."""
    return [name for name, where in PROVIDERS.items() if where == "cpu" or _has(where)]


def get_device() -> str:
    """What sessions run on by default: "GPU" if there is one that can be used, else "CPU"."""
    return "GPU" if _has("cuda") else "CPU"


def _has(where: str) -> bool:
    try:
        device(where)
    except DeviceError:
        return False
    return True


class NodeArg(NamedTuple):
    """An input or output: name, type as in "tensor(float)", and shape with a str or None for each symbolic dimension."""

    name: str
    type: str
    shape: list[int | str | None]


class ModelMetadata(NamedTuple):
    """What `get_modelmeta` returns."""

    producer_name: str
    graph_name: str
    domain: str
    description: str
    graph_description: str
    version: int
    custom_metadata_map: dict[str, str]


class InferenceSession:
    """A loaded model, used as onnxruntime's class of that name.

    path_or_bytes: path, bytes or `onnx.ModelProto`. sess_options: `SessionOptions`, onnxruntime's or the one here.
    providers: names, or (name, options) pairs, the preferred first; None for all there are. CUDA's option `device_id`
    chooses the GPU, and `use_tf32`, "0" or "1", whether products of float32 may round their operands to TF32 (not given:
    those of convolutions only, as `load` has it). The model itself is `session.model`.
    """

    def __init__(
        self,
        path_or_bytes: Any,
        sess_options: Any = None,
        providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        self._options = sess_options if sess_options is not None else SessionOptions()
        options.apply(self._options)
        self._providers = _resolved(providers, provider_options)
        first, settings = next(iter(self._providers.items()))
        where = PROVIDERS[first] if first == "CPUExecutionProvider" else f"cuda:{int(settings.get('device_id', 0))}"
        deterministic = bool(getattr(self._options, "use_deterministic_compute", False))
        tf32 = bool(int(settings["use_tf32"])) if "use_tf32" in settings else None
        self.model = load(path_or_bytes, device=where, allow_tf32=tf32, deterministic=deterministic)
        self._source = path_or_bytes
        self._output_names = tuple(spec.name for spec in self.model.outputs)
        self._free = dict(getattr(self._options, "free_dimensions", {}))
        self._about = self.model.origin.about()

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None) -> list[Any]:
        """The outputs named (all, if None or empty) for these inputs, as a list in that order.

        Raises InputError where an input is missing, unknown, or of the wrong type or rank.
        """
        if self._free:
            self._check_free(input_feed)
        names = tuple(output_names) if output_names else self._output_names
        feed = {k: v.value if isinstance(v, OrtValue) else v for k, v in input_feed.items()}
        return self.model.execute(feed, names)

    def run_async(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        callback: Callable[[list[Any], Any, str], Any],
        user_data: Any,
        run_options: Any = None,
    ) -> None:
        """Run in a thread of its own, then call `callback(results, user_data, error message)`."""
        import threading

        def work() -> None:
            try:
                results, error = self.run(output_names, input_feed, run_options), ""
            except Exception as problem:
                results, error = [], str(problem)
            callback(results, user_data, error)

        threading.Thread(target=work, daemon=True).start()

    def run_with_ort_values(
        self, output_names: Sequence[str] | None, input_dict_ort_values: Mapping[str, OrtValue], run_options: Any = None
    ) -> list[OrtValue]:
        """As `run`, from OrtValues to OrtValues on the session's device."""
        names = tuple(output_names) if output_names else self._output_names
        feed = {k: v.value for k, v in input_dict_ort_values.items()}
        return [OrtValue(r, self.model.device) for r in self.model.execute(feed, names, host=False)]

    def io_binding(self) -> IOBinding:
        """A new binding of inputs and outputs, to be filled and given to `run_with_iobinding`."""
        return IOBinding(self)

    def run_with_iobinding(self, iobinding: IOBinding, run_options: Any = None) -> None:
        """Run on what is bound; results are in the binding."""
        iobinding.run()

    def get_inputs(self) -> list[NodeArg]:
        """The inputs that `run` takes, those with a default left out."""
        return [self._argument(s) for s in self.model.inputs if s.name not in self.model.origin.optional]

    def get_overridable_initializers(self) -> list[NodeArg]:
        """Inputs that have a default in the file."""
        return [self._argument(s) for s in self.model.inputs if s.name in self.model.origin.optional]

    def get_outputs(self) -> list[NodeArg]:
        """The outputs that `run` gives."""
        return [self._argument(s) for s in self.model.outputs]

    def get_modelmeta(self) -> ModelMetadata:
        """What the file says of itself."""
        about = self._about
        return ModelMetadata(
            about.producer, about.graph, about.domain, about.doc, about.graph_doc, about.version, dict(about.metadata)
        )

    def get_providers(self) -> list[str]:
        """The providers in use, the preferred one first; the CPU's is always last."""
        return list(self._providers)

    def get_provider_options(self) -> dict[str, dict[str, Any]]:
        """The options of each provider in use."""
        return {name: dict(settings) for name, settings in self._providers.items()}

    def get_session_options(self) -> Any:
        """The options the session was made with."""
        return self._options

    def set_providers(self, providers: Any = None, provider_options: Any = None) -> None:
        """Load the model again for other providers."""
        self.__init__(self._source, self._options, providers, provider_options)  # type: ignore[misc]

    def disable_fallback(self) -> None:
        """Accepted: there is no silent fallback to another provider."""

    def enable_fallback(self) -> None:
        """Accepted: there is no silent fallback to another provider."""

    def _argument(self, spec: TensorSpec) -> NodeArg:
        shape = [self._free.get(d, d) if isinstance(d, str) else d for d in spec.shape or ()]
        return NodeArg(spec.name, self._about.types.get(spec.name, "undefined"), shape)

    def _check_free(self, input_feed: Mapping[str, Any]) -> None:
        for spec in self.model.inputs:
            for i, d in enumerate(spec.shape or ()):
                if isinstance(d, str) and d in self._free and spec.name in input_feed:
                    got = np.shape(input_feed[spec.name])
                    if i < len(got) and got[i] != self._free[d]:
                        raise InputError(f"input {spec.name!r}: dimension {d!r} was fixed to {self._free[d]}, got {list(got)}")


def _resolved(providers: Any, provider_options: Any) -> dict[str, Mapping[str, Any]]:
    """Provider name → options, in order of preference; unknown names are left out with a warning, the CPU comes last."""
    available = get_available_providers()
    if providers is None:
        return {name: {} for name in available}
    chosen: dict[str, Mapping[str, Any]] = {}
    for i, entry in enumerate(providers):
        name, settings = (entry, {}) if isinstance(entry, str) else entry
        if provider_options and i < len(provider_options):
            settings = provider_options[i]
        if name in available:
            chosen.setdefault(name, settings or {})
        else:
            warnings.warn(
                f"Specified provider '{name}' is not in available provider names. "
                f"Available providers: '{', '.join(available)}'",
                UserWarning,
                stacklevel=3,
            )
    chosen.setdefault("CPUExecutionProvider", {})
    return chosen
