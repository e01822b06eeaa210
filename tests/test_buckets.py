"""Lengths that a model is prepared for: what lies between them is filled up, and nobody sees it."""

import numpy as np
import onnx
import pytest

import flamert as fr
from flamert.errors import InputError

FLOAT = onnx.TensorProto.FLOAT


def proto(outputs=("y",)):
    """y = relu(x · w) over [batch, length, 4]; m its mean over all."""
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["h"]),
        onnx.helper.make_node("Relu", ["h"], ["y"]),
        onnx.helper.make_node("ReduceMean", ["y"], ["m"], keepdims=0),
    ]
    shapes = {"y": ["batch", "length", 3], "m": []}
    graph = onnx.helper.make_graph(
        nodes,
        "rows",
        [onnx.helper.make_tensor_value_info("x", FLOAT, ["batch", "length", 4])],
        [onnx.helper.make_tensor_value_info(n, FLOAT, shapes[n]) for n in outputs],
        [onnx.numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 3), np.float32), "w")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


def drawn(batch, length=5):
    return np.random.default_rng(batch).standard_normal((batch, length, 4), np.float32)


def test_three_plans_serve_all_batches():
    model, plain = fr.load(proto(), device="cpu"), fr.load(proto(), device="cpu")
    assert model.compile(batch=[8, 1, 4], length=5) is model and model.signatures == 3
    for n in range(1, 9):
        x = drawn(n)
        y = model(x)
        np.testing.assert_allclose(y, plain(x), rtol=1e-6)
        assert y.shape == (n, 5, 3) and y.base is None
        np.testing.assert_array_equal(model.run({"x": x})["y"], y)
    assert model.signatures == 3
    model(drawn(9))
    assert model.signatures == 4, "longer ones are planned as they come"


def test_several_dimensions_at_once():
    model = fr.load(proto(), device="cpu").compile(batch=[2, 4], length=[3, 6])
    assert model.signatures == 4
    for shape in ((1, 1), (3, 6), (4, 2), (2, 3)):
        x = drawn(*shape)
        np.testing.assert_allclose(model(x), fr.load(proto(), device="cpu")(x), rtol=1e-6)
    assert model.signatures == 4
    assert model(np.zeros((0, 3, 4), np.float32)).shape == (0, 3, 3)


def test_other_outputs_are_computed_as_they_come():
    model = fr.load(proto(), device="cpu").compile(batch=[4], length=5)
    x = drawn(3)
    np.testing.assert_allclose(model.run({"x": x}, ["m"])["m"], model(x).mean(), rtol=1e-5)


def test_mistakes_are_named():
    model = fr.load(proto(), device="cpu")
    with pytest.raises(InputError, match="'batches' is neither an input nor a dimension"):
        model.compile(batches=[1, 2])
    for wrong in ([], [0], [1.5], "many", True):
        with pytest.raises(InputError, match="positive integers"):
            model.compile(batch=wrong)
    with pytest.raises(InputError, match=r"length=\[…\]"):
        model.compile(batch=[1, 2])
    with pytest.raises(InputError, match="output 'm' has no dimension 'batch'"):
        fr.load(proto(("y", "m")), device="cpu").compile(batch=[1, 2])


@pytest.mark.gpu
def test_arrays_on_the_gpu_stay_there():
    cupy = pytest.importorskip("cupy")
    model = fr.load(proto(), device="cuda", allow_tf32=False).compile(batch=[1, 8], length=5)
    x = drawn(3)
    y = model(cupy.asarray(x))
    assert isinstance(y, cupy.ndarray) and model.signatures == 2
    np.testing.assert_allclose(y.get(), fr.load(proto(), device="cpu")(x), rtol=1e-5, atol=1e-6)
