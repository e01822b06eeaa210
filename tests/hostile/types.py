"""Lies about types, attributes that no op can have, and numbers that are none."""

import numpy as np
import onnx
from onnx import helper

from tests.hostile.bricks import FLOAT, INT64, floats, hostile, ints, legal, model, nodes, value, write


@hostile
def output_type_lies(folder):
    return write(folder, model(nodes(("Relu", "x", "y")), outputs=[value("y", INT64, None)]))


@hostile
def output_type_of_initializer_lies(folder):
    made = nodes(("Identity", "w", "y"))
    return write(folder, model(made, [ints("w", 1, 2)], outputs=[value("y", FLOAT, None)]))


@hostile
def input_type_lies(folder):
    return write(folder, model(nodes(("Gather", "w x", "y")), [floats("w", 1, 2)]))


@hostile
def operand_types_differ(folder):
    return write(folder, model(nodes(("Add", "x w", "y")), [ints("w", 1, 2)]))


@hostile
def input_without_type(folder):
    return write(folder, model(nodes(("Relu", "x", "y")), inputs=[onnx.ValueInfoProto(name="x")]))


@hostile
def input_type_unknown(folder):
    return write(folder, model(nodes(("Relu", "x", "y")), inputs=[value("x", 99)]))


@hostile
def axis_outside(folder):
    return write(folder, model(nodes(("Softmax", "x", "y", {"axis": 1 << 62}))))


@hostile
def axis_twice(folder):
    return write(folder, model(nodes(("Transpose", "x", "y", {"perm": [0, 0]}))))


@hostile
def upsample_by_nan(folder):
    made = nodes(("Upsample", "x", "y", {"scales": [1.0, 1.0, float("nan"), 1.0]}))
    return write(folder, model(made, inputs=[value("x", shape=(1, 1, 2, 2))], opset=7, ir=3))


@hostile
def upsample_by_infinity(folder):
    made = nodes(("Upsample", "x", "y", {"scales": [1.0, 1.0, float("inf"), 1.0]}))
    return write(folder, model(made, inputs=[value("x", shape=(1, 1, 2, 2))], opset=7, ir=3))


@hostile
def resize_by_nan(folder):
    made = [helper.make_node("Resize", ["x", "", "s"], ["y"])]
    return write(folder, model(made, [floats("s", 1, 1, np.nan, 1)], inputs=[value("x", shape=(1, 1, 2, 2))]))


@hostile
def resize_by_1e30(folder):
    made = [helper.make_node("Resize", ["x", "", "s"], ["y"])]
    return write(folder, model(made, [floats("s", 1, 1, 1e30, 1)], inputs=[value("x", shape=(1, 1, 2, 2))]))


@legal
def declared_shape_lies(folder):
    return write(folder, model(nodes(("Relu", "x", "y")), outputs=[value("y", shape=(77, 5))]))


@legal
def nan_in_attribute(folder):
    return write(folder, model(nodes(("LeakyRelu", "x", "y", {"alpha": float("nan")}))))
