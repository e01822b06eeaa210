"""ONNX's backend interface: lets ONNX's own test suite, and any tool that speaks it, drive flamert."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep

from flamert.errors import FlamertError
from flamert.importers import load
from flamert.model import Model


class PreparedModel(BackendRep):
    """A loaded model; `run` takes inputs in the model's order."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """inputs: a sequence in the model's order, or one array. Returns the outputs in order."""
        if isinstance(inputs, np.ndarray) or not isinstance(inputs, Sequence):
            inputs = [inputs]
        results = self.model.run({spec.name: x for spec, x in zip(self.model.inputs, inputs, strict=False)})
        return tuple(results[o.name] for o in self.model.outputs)


class FlamertBackend(Backend):
    """See the functions of this module, which are its class methods."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> PreparedModel:
        """Load a model for "CPU", "CUDA" or "CUDA:1". kwargs: of `load`; float32 is not TF32 unless they say so."""
        return PreparedModel(load(model, device=device.lower(), **{"allow_tf32": False, **kwargs}))

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        """Load a model and run it once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Run one node on arrays. opset_version: of the node's domain, the newest by default."""
        arrays = [np.asarray(x) for x in inputs]
        names = [n for n in node.input if n]
        infos = [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in zip(names, arrays, strict=True)
        ]
        outputs = [onnx.ValueInfoProto(name=n) for n in node.output if n]
        graph = onnx.helper.make_graph([node], "node", infos, outputs)
        version = kwargs.get("opset_version") or onnx.defs.onnx_opset_version()
        opset = onnx.helper.make_opsetid(node.domain, version if not node.domain else kwargs.get("opset_version") or 1)
        return cls.run_model(onnx.helper.make_model(graph, opset_imports=[opset]), arrays, device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether models can be prepared for this device here."""
        from flamert.errors import DeviceError
        from flamert.runtime.device import device as named

        try:
            named(device.lower())
        except DeviceError:
            return False
        return True


def reference(path: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """ONNX's own reference implementation with a model loaded, to compare with: feeds → outputs by name."""
    from onnx.reference import ReferenceEvaluator

    try:
        evaluator = ReferenceEvaluator(path)
    except Exception as error:
        raise FlamertError(f"ONNX's reference implementation cannot load {path}: {error}") from error

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return dict(zip(evaluator.output_names, evaluator.run(None, dict(feeds)), strict=True))
        except Exception as error:
            raise FlamertError(f"ONNX's reference implementation cannot run {path}: {error}") from error

    return run


prepare = FlamertBackend.prepare
run_model = FlamertBackend.run_model
run_node = FlamertBackend.run_node
supports_device = FlamertBackend.supports_device
