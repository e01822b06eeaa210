"""Other runtimes for exported models, as `check_export` takes them: onnxruntime and ONNX's reference evaluator."""

import onnx
from onnx.reference import ReferenceEvaluator

from flamert.importers.tensors import dtype_of
from flamert.testing import imported_back


def checked(proto, feeds):
    """No runtime: raises AssertionError for an invalid model."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise AssertionError(f"not a valid model: {error}\n{onnx.printer.to_text(proto)}") from error


def onnxruntime(proto, feeds):
    """None also where NumPy lacks a type to hand tensors over in."""
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
        if any(said in str(error) for said in ("NOT_IMPLEMENTED", "not currently registered", "Unsupported model IR version")):
            return None
        raise
    return list(session.run(None, dict(feeds)))


def reference(proto, feeds):
    try:
        return list(ReferenceEvaluator(proto).run(None, dict(feeds)))
    except (NotImplementedError, TypeError, RuntimeError):
        return None


ANY = (checked, onnxruntime, reference, imported_back)
"""A valid model, in the first that has its operators."""
