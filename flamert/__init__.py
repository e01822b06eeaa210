"""flamert: load, run, fine-tune and export ONNX models.

import flamert as fr
model = fr.load("model.onnx")
outputs = model.run({"input": array})

Names are imported when they are first used, so that `import flamert` costs little more than NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flamert.about import VERSION

if TYPE_CHECKING:
    from flamert import errors, ops
    from flamert.binding import IOBinding, OrtValue
    from flamert.graph import Graph, TensorType, Value
    from flamert.importers.load import load
    from flamert.model import Model, TensorSpec
    from flamert.options import ExecutionMode, GraphOptimizationLevel, RunOptions, SessionOptions
    from flamert.profile import Profile
    from flamert.session import InferenceSession, get_available_providers, get_device
    from flamert.threads import set_threads

__version__ = VERSION

_WHERE = {
    "ExecutionMode": "options",
    "Graph": "graph",
    "GraphOptimizationLevel": "options",
    "IOBinding": "binding",
    "InferenceSession": "session",
    "Model": "model",
    "OrtValue": "binding",
    "Profile": "profile",
    "RunOptions": "options",
    "SessionOptions": "options",
    "TensorSpec": "model",
    "TensorType": "graph",
    "Value": "graph",
    "errors": "errors",
    "get_available_providers": "session",
    "get_device": "session",
    "load": "importers.load",
    "ops": "ops",
    "set_threads": "threads",
}
"""Public names and the modules they live in; a name that equals its module's is the module itself."""

__all__ = [
    "ExecutionMode",
    "Graph",
    "GraphOptimizationLevel",
    "IOBinding",
    "InferenceSession",
    "Model",
    "OrtValue",
    "Profile",
    "RunOptions",
    "SessionOptions",
    "TensorSpec",
    "TensorType",
    "Value",
    "errors",
    "get_available_providers",
    "get_device",
    "load",
    "ops",
    "set_threads",
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
