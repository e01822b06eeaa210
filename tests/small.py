"""Small ONNX models that several tests run."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
W = rng.standard_normal((6, 8), np.float32)
B = rng.standard_normal(8, np.float32)


def model(nodes, inputs, outputs, initializers=None, opset=21, **kwargs):
    """A ModelProto. inputs, outputs: name → (element type, shape)."""
    infos = [
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in values.items()]
        for values in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(a, name) for name, a in (initializers or {}).items()]
    graph = helper.make_graph(nodes, "small", *infos, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10, **kwargs)


def perceptron():
    """relu(x W + b), with the batch symbolic."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["product"], name="multiply"),
        helper.make_node("Add", ["product", "b"], ["sum"], name="shift"),
        helper.make_node("Relu", ["sum"], ["y"], name="rectify"),
    ]
    ends = {"x": (TensorProto.FLOAT, ["N", 6])}, {"y": (TensorProto.FLOAT, ["N", 8])}
    return model(nodes, *ends, {"W": W, "b": B}, producer_name="tests")


def scaled():
    """x · s + t, where s is declared a scalar."""
    nodes = [helper.make_node("Mul", ["x", "s"], ["p"]), helper.make_node("Identity", ["p"], ["y"])]
    inputs = {"x": (TensorProto.FLOAT, ["N", 3]), "s": (TensorProto.FLOAT, [])}
    return model(nodes, inputs, {"y": (TensorProto.FLOAT, ["N", 3])})


def reshaped():
    """x in the shape that `shape` holds: only data can tell."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    inputs = {"x": (TensorProto.FLOAT, ["N", 6]), "shape": (TensorProto.INT64, ["rank"])}
    return model(nodes, inputs, {"y": (TensorProto.FLOAT, None)})
