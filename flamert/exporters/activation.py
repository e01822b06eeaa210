"""Exporters of activation functions. Those that ONNX got late are left to their bodies, which every runtime can run."""

from __future__ import annotations

from flamert import ops
from flamert.exporters.registry import exporter, plain
from flamert.exporters.writer import Writer
from flamert.graph import Value

for _op, _op_type in {
    "relu": "Relu",
    "leaky_relu": "LeakyRelu",
    "thresholded_relu": "ThresholdedRelu",
    "shrink": "Shrink",
    "elu": "Elu",
    "celu": "Celu",
    "selu": "Selu",
    "sigmoid": "Sigmoid",
    "hard_sigmoid": "HardSigmoid",
    "hard_swish": "HardSwish",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "mish": "Mish",
    "gelu": "Gelu",
}.items():
    plain(ops.OPS[_op], _op_type)


@exporter(ops.gelu_tanh)
def _(to: Writer, x: Value) -> str | None:
    return to("Gelu", x, approximate="tanh")


@exporter(ops.prelu)
def _(to: Writer, x: Value, slope: Value) -> str | None:
    """ONNX's slope may not enlarge x."""
    return to("PRelu", x, slope) if ops.where.infer(ops.less.infer(x.type, x.type), x.type, slope.type) == x.type else None
