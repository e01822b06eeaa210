"""Small models that ask for terabytes, endless loops, or elements that are not there."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.hostile.bricks import INT64, floats, hostile, ints, model, nodes, value, write


@hostile
def constant_of_4_tib(folder):
    return write(folder, model(nodes(("ConstantOfShape", "s", "y")), [ints("s", 1 << 40)]))


@hostile
def constant_of_4_tib_reduced(folder):
    made = nodes(("ConstantOfShape", "s", "big"), ("ReduceSum", "big", "one"), ("Add", "x one", "y"))
    return write(folder, model(made, [ints("s", 1 << 40)]))


@hostile
def expand_to_1_tib(folder):
    return write(folder, model(nodes(("Expand", "x s", "y")), [ints("s", 1 << 37, 2)]))


@hostile
def expand_and_reduce(folder):
    made = nodes(("Expand", "x s", "big"), ("Exp", "big", "e"), ("ReduceSum", "e", "y"))
    return write(folder, model(made, [ints("s", 1 << 37, 2)]))


@hostile
def expand_overflow(folder):
    return write(folder, model(nodes(("Expand", "x s", "y")), [ints("s", 1 << 40, 1 << 40, 2)]))


@hostile
def range_of_1e33(folder):
    limits = [numpy_helper.from_array(np.array(v, np.float64), n) for n, v in (("a", 0), ("b", 1e33), ("d", 1))]
    return write(folder, model(nodes(("Range", "a b d", "y")), limits, outputs=[value("y", TensorProto.DOUBLE, None)]))


@hostile
def range_of_nan(folder):
    limits = [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("a", 0), ("b", np.nan), ("d", 1))]
    return write(folder, model(nodes(("Range", "a b d", "y")), limits))


@hostile
def range_without_step(folder):
    limits = [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("a", 0), ("b", 5), ("d", 0))]
    return write(folder, model(nodes(("Range", "a b d", "y")), limits, outputs=[value("y", INT64, None)]))


@hostile
def tile_bomb(folder):
    return write(folder, model(nodes(("Tile", "x r", "y")), [ints("r", 1 << 50)]))


@hostile
def concat_bomb(folder):
    made = [helper.make_node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(50)]
    made = nodes(("Relu", "x", "c0")) + made + nodes(("Relu", "c50", "y"))
    return write(folder, model(made))


@hostile
def pad_bomb(folder):
    return write(folder, model(nodes(("Pad", "x p", "y")), [ints("p", 1 << 60, 1 << 60)]))


@hostile
def pad_negative(folder):
    return write(folder, model(nodes(("Pad", "x p", "y")), [ints("p", -5, -5)]))


@hostile
def one_hot_bomb(folder):
    made = nodes(("OneHot", "i d v", "y"))
    return write(folder, model(made, [ints("i", 0), ints("d", 1 << 45), floats("v", 0, 1)]))


@hostile
def loop_of_2_to_63_trips(folder):
    body = helper.make_graph(
        nodes(("Identity", "go", "on"), ("Add", "a a", "b")),
        "body",
        [value("i", INT64, ()), value("go", TensorProto.BOOL, ()), value("a")],
        [value("on", TensorProto.BOOL, ()), value("b")],
    )
    trips = [numpy_helper.from_array(np.array((1 << 63) - 1, np.int64), "m"), numpy_helper.from_array(np.array(True), "c")]
    return write(folder, model([helper.make_node("Loop", ["m", "c", "x"], ["y"], body=body)], trips))


@hostile
def loop_that_collects_2_to_63(folder):
    body = helper.make_graph(
        nodes(("Identity", "go", "on"), ("Identity", "x", "b")),
        "body",
        [value("i", INT64, ()), value("go", TensorProto.BOOL, ())],
        [value("on", TensorProto.BOOL, ()), value("b")],
    )
    trips = [numpy_helper.from_array(np.array((1 << 63) - 1, np.int64), "m"), numpy_helper.from_array(np.array(True), "c")]
    return write(folder, model([helper.make_node("Loop", ["m", "c"], ["y"], body=body)], trips))


@hostile
def gather_outside(folder):
    return write(folder, model(nodes(("Gather", "x i", "y")), [ints("i", 99)]))


@hostile
def gather_before(folder):
    return write(folder, model(nodes(("Gather", "x i", "y")), [ints("i", -99)]))


@hostile
def gather_elements_outside(folder):
    return write(folder, model(nodes(("GatherElements", "x i", "y")), [ints("i", 1 << 40)]))


@hostile
def gather_nd_outside(folder):
    return write(folder, model(nodes(("GatherND", "x i", "y")), [ints("i", 77)]))


@hostile
def scatter_outside(folder):
    return write(folder, model(nodes(("ScatterElements", "x i u", "y")), [ints("i", 1 << 33), floats("u", 1)]))


@hostile
def scatter_nd_outside(folder):
    indices = numpy_helper.from_array(np.array([[1 << 33]], np.int64), "i")
    return write(folder, model(nodes(("ScatterND", "x i u", "y")), [indices, floats("u", 1)]))


@hostile
def slice_without_step(folder):
    made = nodes(("Slice", "x a b a s", "y"))
    return write(folder, model(made, [ints("a", 0), ints("b", 2), ints("s", 0)]))


@hostile
def reshape_of_other_size(folder):
    return write(folder, model(nodes(("Reshape", "x s", "y")), [ints("s", 3)]))


@hostile
def reshape_negative(folder):
    return write(folder, model(nodes(("Reshape", "x s", "y")), [ints("s", -1, -1)]))


@hostile
def reshape_overflow(folder):
    return write(folder, model(nodes(("Reshape", "x s", "y")), [ints("s", 1 << 62, 1 << 62, 2)]))


@hostile
def split_that_does_not_add_up(folder):
    return write(folder, model(nodes(("Split", "x s", "y z")), [ints("s", 5, 9)]))


@hostile
def topk_of_too_many(folder):
    return write(folder, model(nodes(("TopK", "x k", "y z")), [ints("k", 1 << 40)]))


def conv(**attributes):
    weight = numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")
    return model(nodes(("Conv", "x w", "y", attributes)), [weight], inputs=[value("x", shape=(1, 1, 8, 8))])


@hostile
def conv_without_stride(folder):
    return write(folder, conv(strides=[0, 0]))


@hostile
def conv_of_negative_stride(folder):
    return write(folder, conv(strides=[-1, -1]))


@hostile
def conv_of_no_dilation(folder):
    return write(folder, conv(dilations=[0, -3]))


@hostile
def conv_of_gigantic_pads(folder):
    return write(folder, conv(pads=[1 << 40] * 4))


@hostile
def conv_of_negative_pads(folder):
    return write(folder, conv(pads=[-(1 << 40)] * 4))


@hostile
def conv_of_no_groups(folder):
    return write(folder, conv(group=0))


@hostile
def conv_of_negative_groups(folder):
    return write(folder, conv(group=-7))


@hostile
def conv_kernel_shape_lies(folder):
    return write(folder, conv(kernel_shape=[30, 30]))


@hostile
def pool_without_kernel(folder):
    made = nodes(("MaxPool", "x", "y", {"kernel_shape": [0, 0]}))
    return write(folder, model(made, inputs=[value("x", shape=(1, 1, 8, 8))]))


@hostile
def pool_of_gigantic_kernel(folder):
    made = nodes(("MaxPool", "x", "y", {"kernel_shape": [1 << 40, 1 << 40]}))
    return write(folder, model(made, inputs=[value("x", shape=(1, 1, 8, 8))]))
