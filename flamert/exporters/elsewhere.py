"""Exported models under other runtimes, for tests: onnxruntime, ONNX's reference evaluator, and back through the importer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from flamert.importers.tensors import dtype_of


def run_elsewhere(proto: onnx.ModelProto, arrays: Sequence[Any], runtimes: Sequence[str]) -> tuple[str, list[Any]]:
    """Check a model, and run it in the first of `runtimes` that has all its operators: which that was, and the results.

    runtimes: "onnxruntime", "reference" (ONNX's), "flamert". Raises AssertionError for an invalid model, or if none has them.
    """
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise AssertionError(f"not a valid model: {error}\n{onnx.printer.to_text(proto)}") from error
    feeds = {info.name: array for info, array in zip(proto.graph.input, arrays, strict=True)}
    for runtime in runtimes:
        results = _RUNTIMES[runtime](proto, feeds)
        if results is not None:
            return runtime, results
    raise AssertionError(f"none of {', '.join(runtimes)} has all operators of this model")


def _with_flamert(proto: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[Any]:
    from flamert.importers.load import load

    return list(load(proto, device="cpu").run(feeds).values())


def _with_reference(proto: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[Any] | None:
    from onnx.reference import ReferenceEvaluator

    try:
        return list(ReferenceEvaluator(proto).run(None, dict(feeds)))
    except (NotImplementedError, TypeError, RuntimeError):
        return None


def _with_onnxruntime(proto: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[Any] | None:
    """None where it lacks an operator in these types, or NumPy a type to hand tensors over in."""
    try:
        import onnxruntime as ort
    except ImportError:
        return None
    ends = [dtype_of(info.type.tensor_type.elem_type) for info in (*proto.graph.input, *proto.graph.output)]
    if any(dtype.isbuiltin != 1 for dtype in ends):
        return None
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if "NOT_IMPLEMENTED" in str(error) or "not currently registered" in str(error):
            return None
        raise
    return list(session.run(None, dict(feeds)))


_RUNTIMES = {"onnxruntime": _with_onnxruntime, "reference": _with_reference, "flamert": _with_flamert}
