"""Names, order, attributes and versions that no model may have."""

import numpy as np
from onnx import helper, numpy_helper

from tests.hostile.bricks import add_weight, hostile, legal, model, nodes, value, write


@hostile
def cycle(folder):
    return write(folder, model(nodes(("Add", "x b", "a"), ("Relu", "a", "b"), ("Relu", "b", "y"))))


@hostile
def cycle_of_one(folder):
    return write(folder, model(nodes(("Add", "x y", "y"))))


@hostile
def cycle_through_branch(folder):
    inner = helper.make_graph(nodes(("Relu", "y", "z")), "b", [], [value("z", shape=None)])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    condition = numpy_helper.from_array(np.array(True), "c")
    return write(folder, model([branch], [condition]))


@hostile
def name_undefined(folder):
    return write(folder, model(nodes(("Add", "x ghost", "y"))))


@hostile
def name_undefined_in_branch(folder):
    inner = helper.make_graph(nodes(("Relu", "ghost", "z")), "b", [], [value("z", shape=None)])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    return write(folder, model([branch], [numpy_helper.from_array(np.array(True), "c")]))


@hostile
def initializer_missing(folder):
    proto = add_weight(raw_data=b"\0" * 8)
    del proto.graph.initializer[:]
    return write(folder, proto)


@hostile
def output_undefined(folder):
    return write(folder, model(nodes(("Relu", "x", "z"))))


@hostile
def output_written_twice(folder):
    return write(folder, model(nodes(("Relu", "x", "y"), ("Neg", "x", "y"))))


@hostile
def output_hides_input(folder):
    return write(folder, model(nodes(("Relu", "x", "x"), ("Relu", "x", "y"))))


@hostile
def input_twice(folder):
    return write(folder, model(nodes(("Relu", "x", "y")), inputs=[value("x"), value("x")]))


@hostile
def initializer_twice(folder):
    proto = add_weight(raw_data=b"\0" * 8)
    proto.graph.initializer.append(proto.graph.initializer[0])
    return write(folder, proto)


@hostile
def attribute_twice(folder):
    node = helper.make_node("Transpose", ["x"], ["y"], perm=[0])
    node.attribute.append(node.attribute[0])
    return write(folder, model([node]))


@hostile
def attribute_unknown(folder):
    return write(folder, model(nodes(("Relu", "x", "y", {"speed": 11}))))


@hostile
def attribute_of_wrong_type(folder):
    return write(folder, model(nodes(("Transpose", "x", "y", {"perm": "01"}))))


@hostile
def too_many_inputs(folder):
    return write(folder, model(nodes(("Relu", "x x x", "y"))))


@hostile
def no_inputs(folder):
    return write(folder, model(nodes(("Add", "", "y"))))


@hostile
def too_many_outputs(folder):
    return write(folder, model(nodes(("Relu", "x", "y z"))))


@hostile
def opset_from_the_future(folder):
    return write(folder, model(nodes(("Relu", "x", "y")), opset=999))


@hostile
def opset_zero(folder):
    return write(folder, model(nodes(("Relu", "x", "y")), opset=0))


@hostile
def opset_missing(folder):
    proto = model(nodes(("Relu", "x", "y")))
    del proto.opset_import[:]
    return write(folder, proto)


@hostile
def opset_twice(folder):
    proto = model(nodes(("Relu", "x", "y")))
    proto.opset_import.add(domain="ai.onnx", version=7)
    return write(folder, proto)


@hostile
def ir_from_the_future(folder):
    return write(folder, model(nodes(("Relu", "x", "y")), ir=99))


@hostile
def ir_missing(folder):
    proto = model(nodes(("Relu", "x", "y")))
    proto.ClearField("ir_version")
    return write(folder, proto)


@hostile
def domain_unknown(folder):
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="com.nobody")
    return write(folder, model([node], domains=["com.nobody"]))


@hostile
def domain_not_imported(folder):
    return write(folder, model([helper.make_node("Relu", ["x"], ["y"], domain="com.nobody")]))


@hostile
def op_unknown(folder):
    return write(folder, model(nodes(("Frobnicate", "x", "y"))))


@legal
def unsorted(folder):
    return write(folder, model(nodes(("Relu", "b", "y"), ("Neg", "a", "b"), ("Abs", "x", "a"))))


@legal
def opset_of_unused_domain(folder):
    return write(folder, model(nodes(("Relu", "x", "y")), domains=["com.nobody"]))


@legal
def opset_one_by_default(folder):
    proto = model(nodes(("Relu", "x", "y", {"consumed_inputs": [0]})), ir=2)
    del proto.opset_import[:]
    return write(folder, proto)


@legal
def attribute_without_type(folder):
    node = helper.make_node("Transpose", ["x"], ["y"], perm=[0])
    data = model([node]).SerializeToString()
    return write(folder, data.replace(b"\xa0\x01\x07", b"\xa0\x01\x00"))
