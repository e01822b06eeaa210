"""flamert: load, run, fine-tune and export ONNX models.

import flamert as fr
model = fr.load("model.onnx")
outputs = model.run({"input": array})
"""

from __future__ import annotations

from flamert import errors
from flamert.importers import load
from flamert.model import Model, TensorSpec

__all__ = ["Model", "TensorSpec", "errors", "load"]
__version__ = "0.1.0"
