"""Tensors whose dimensions, types and contents contradict one another."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.hostile.bricks import add_weight, floats, hostile, ints, legal, model, nodes, write


@hostile
def dims_gigantic(folder):
    return write(folder, add_weight(dims=[1 << 40], raw_data=b"\0" * 40))


@hostile
def dims_overflow(folder):
    return write(folder, add_weight(dims=[1 << 32, 1 << 32], raw_data=b""))


@hostile
def dims_overflow_to_fit(folder):
    return write(folder, add_weight(dims=[1 << 62, 4, 2], raw_data=b"\0" * 8))


@hostile
def dims_overflow_beside_zero(folder):
    return write(folder, add_weight(dims=[0, 1 << 62, 1 << 62], raw_data=b""))


@hostile
def dims_negative(folder):
    return write(folder, add_weight(dims=[-2], raw_data=b"\0" * 8))


@hostile
def dims_both_negative(folder):
    return write(folder, add_weight(dims=[-1, -2], raw_data=b"\0" * 8))


@hostile
def dims_too_many(folder):
    return write(folder, add_weight(dims=[1] * 100, raw_data=b"\0" * 4))


@hostile
def raw_data_short(folder):
    return write(folder, add_weight(raw_data=b"\0" * 7))


@hostile
def raw_data_long(folder):
    return write(folder, add_weight(raw_data=b"\0" * 12))


@hostile
def raw_data_long_and_large(folder):
    return write(folder, add_weight(raw_data=b"\0" * 100_000))


@hostile
def float_data_short(folder):
    return write(folder, add_weight(float_data=[1.0]))


@hostile
def raw_data_of_strings(folder):
    return write(folder, add_weight(data_type=TensorProto.STRING, raw_data=b"\0" * 16))


@hostile
def raw_data_of_many_strings(folder):
    return write(folder, add_weight(data_type=TensorProto.STRING, dims=[1000], raw_data=b"\1" * 8000))


@hostile
def data_missing(folder):
    return write(folder, add_weight())


@hostile
def data_type_unknown(folder):
    return write(folder, add_weight(data_type=99, raw_data=b"\0" * 8))


@hostile
def data_type_undefined(folder):
    return write(folder, add_weight(data_type=0, raw_data=b"\0" * 8))


def sparse(values, indices, dims):
    made = helper.make_sparse_tensor(floats("w", *values), indices, dims)
    made.values.name = "w"
    proto = add_weight(raw_data=b"\0" * 8)
    del proto.graph.initializer[:]
    proto.graph.sparse_initializer.append(made)
    return proto


@hostile
def sparse_index_outside(folder):
    return write(folder, sparse([1.0], ints("i", 7), [2]))


@hostile
def sparse_index_negative(folder):
    return write(folder, sparse([1.0], ints("i", -1), [2]))


@hostile
def sparse_row_outside(folder):
    indices = numpy_helper.from_array(np.array([[0, 5]], np.int64), "i")
    return write(folder, sparse([1.0], indices, [2, 2]))


@hostile
def sparse_counts_differ(folder):
    return write(folder, sparse([1.0, 2.0], ints("i", 0), [2]))


@hostile
def sparse_gigantic(folder):
    return write(folder, sparse([1.0], ints("i", 0), [1 << 40]))


@legal
def no_elements(folder):
    return write(folder, model(nodes(("Concat", "x w", "y", {"axis": 0})), [floats("w")]))


@legal
def sparse_initializer(folder):
    return write(folder, sparse([1.0], ints("i", 1), [2]))
