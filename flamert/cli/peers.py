"""Other runtimes to compare with: onnxruntime and ONNX's reference implementation, as functions of a feed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flamert.errors import FlamertError, InputError

Runner = Callable[[Mapping[str, Any]], dict[str, Any]]


def peer(name: str, path: str, device: str = "cpu", threads: int = 0) -> Runner:
    """A runtime by name, with the model loaded: feeds → outputs by name."""
    if name == "onnxruntime":
        return _onnxruntime(path, device, threads)
    if name == "reference":
        from flamert.onnx_backend import reference

        return reference(path)
    raise InputError(f"--against {name!r}: choose onnxruntime or reference")


def _onnxruntime(path: str, device: str, threads: int) -> Runner:
    try:
        import onnxruntime
    except ImportError:
        raise InputError("onnxruntime is not installed here: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    providers = ["CPUExecutionProvider"]
    if device != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:
        raise FlamertError(f"onnxruntime cannot load {path}: {str(error).strip().splitlines()[0]}") from error
    names = [o.name for o in session.get_outputs()]

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return dict(zip(names, session.run(None, dict(feeds)), strict=True))
        except Exception as error:
            raise FlamertError(f"onnxruntime cannot run {path}: {str(error).strip().splitlines()[0]}") from error

    return run
