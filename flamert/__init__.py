"""flamert: load, run, fine-tune and export ONNX models.

import flamert as fr
model = fr.load("model.onnx")
outputs = model.run({"input": array})

What loading and running a model takes is imported at once, the rest when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flamert.about import VERSION
from flamert.importers.load import load

if TYPE_CHECKING:
    from flamert import errors, losses, metrics, ops, optim
    from flamert.binding import IOBinding, OrtValue
    from flamert.differentiate import value_and_grad
    from flamert.exporters.graph import export_graph
    from flamert.grad import grad
    from flamert.grad.registry import gradient
    from flamert.graph import Graph, TensorType, Value
    from flamert.model import Model, TensorSpec
    from flamert.options import ExecutionMode, GraphOptimizationLevel, RunOptions, SessionOptions
    from flamert.profile import Profile
    from flamert.session import InferenceSession, get_available_providers, get_device
    from flamert.threads import set_threads
    from flamert.trainer import Trainer
    from flamert.training.data import Batches
    from flamert.training.fit import Callback, EarlyStopping
    from flamert.training.history import History

__version__ = VERSION

_WHERE = {
    "Batches": "training.data",
    "Callback": "training.fit",
    "EarlyStopping": "training.fit",
    "ExecutionMode": "options",
    "Graph": "graph",
    "GraphOptimizationLevel": "options",
    "History": "training.history",
    "IOBinding": "binding",
    "InferenceSession": "session",
    "Model": "model",
    "OrtValue": "binding",
    "Profile": "profile",
    "RunOptions": "options",
    "SessionOptions": "options",
    "TensorSpec": "model",
    "TensorType": "graph",
    "Trainer": "trainer",
    "Value": "graph",
    "errors": "errors",
    "export_graph": "exporters.graph",
    "get_available_providers": "session",
    "get_device": "session",
    "grad": "grad",
    "gradient": "grad.registry",
    "losses": "losses",
    "metrics": "metrics",
    "ops": "ops",
    "optim": "optim",
    "set_threads": "threads",
    "value_and_grad": "differentiate",
}
"""Public names and the modules they live in; a name that equals its module's is the module itself."""

__all__ = [
    "Batches",
    "Callback",
    "EarlyStopping",
    "ExecutionMode",
    "Graph",
    "GraphOptimizationLevel",
    "History",
    "IOBinding",
    "InferenceSession",
    "Model",
    "OrtValue",
    "Profile",
    "RunOptions",
    "SessionOptions",
    "TensorSpec",
    "TensorType",
    "Trainer",
    "Value",
    "errors",
    "export_graph",
    "get_available_providers",
    "get_device",
    "grad",
    "gradient",
    "load",
    "losses",
    "metrics",
    "ops",
    "optim",
    "set_threads",
    "value_and_grad",
]


def __getattr__(name: str) -> Any:
    try:
        where = _WHERE[name]
    except KeyError:
        raise AttributeError(f"module 'flamert' has no attribute {name!r}") from None
    module = importlib.import_module(f"flamert.{where}")
    found = module if where == name else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
