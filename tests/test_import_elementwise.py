"""Elementwise nodes that ONNX's suite has no case for: legacy versions, strings, and the com.microsoft activations."""

import numpy as np
import onnx
import pytest
from onnx import helper

from flamert.errors import FlamertError
from flamert.importers import load

X = np.linspace(-3, 3, 24).astype(np.float32).reshape(2, 3, 4)


def run(op_type, opset, *inputs, outputs=1, domain="", **attributes):
    """One node as a model of this opset, on these arrays."""
    names = [f"x{i}" for i in range(len(inputs))]
    results = [f"y{i}" for i in range(outputs)]
    kinds = [onnx.TensorProto.STRING if x.dtype == object else helper.np_dtype_to_tensor_dtype(x.dtype) for x in inputs]
    infos = [helper.make_tensor_value_info(n, k, x.shape) for n, k, x in zip(names, kinds, inputs, strict=True)]
    node = helper.make_node(op_type, names, results, domain=domain, **attributes)
    graph = helper.make_graph([node], "one", infos, [onnx.ValueInfoProto(name=r) for r in results])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = load(helper.make_model(graph, opset_imports=opsets, ir_version=8), device="cpu")
    found = model.run(dict(zip(names, inputs, strict=True)))
    return found[results[0]] if outputs == 1 else [found[r] for r in results]


@pytest.mark.parametrize(
    ("op_type", "function"), [("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply), ("Div", np.divide)]
)
@pytest.mark.parametrize("opset", [1, 6])
def test_arithmetic_with_a_broadcast_axis(op_type, function, opset):
    b = np.float32([1, 2, 4])
    np.testing.assert_array_equal(run(op_type, opset, X, b, axis=1, broadcast=1), function(X, b[:, None]))


def test_prelu_by_channel():
    slope = np.float32([0.5, 0.25, 2])
    np.testing.assert_array_equal(run("PRelu", 6, X, slope), np.where(X < 0, X * slope[:, None], X))


def test_consumed_inputs_are_ignored():
    np.testing.assert_array_equal(run("Relu", 1, X, consumed_inputs=[0]), np.maximum(X, 0))


@pytest.mark.parametrize(("opset", "bounds"), [(1, {"min": -1.0}), (6, {"max": 0.5}), (6, {"min": -1.0, "max": 0.5})])
def test_clip_with_attributes(opset, bounds):
    np.testing.assert_array_equal(run("Clip", opset, X, **bounds), np.clip(X, bounds.get("min"), bounds.get("max")))


def test_clip_in_half_precision_has_no_default_bounds():
    x = np.float16([np.inf, -np.inf, 1])
    np.testing.assert_array_equal(run("Clip", 6, x), x)


def test_cast_to_a_named_type():
    y = run("Cast", 1, X, to="INT32")
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, np.trunc(X))


@pytest.mark.parametrize(("op_type", "base", "exponent"), [("Pow", np.int32, np.float32), ("Pow", np.float32, np.int64)])
def test_pow_of_two_types(op_type, base, exponent):
    a, b = np.array([1, 2, 3, 4], base), np.array([2, 0, 3, 1], exponent)
    y = run(op_type, 15, a, b)
    assert y.dtype == base
    np.testing.assert_array_equal(y, [1, 1, 27, 4])


@pytest.mark.parametrize(
    ("to", "texts", "expected"),
    [
        (onnx.TensorProto.FLOAT, ["1.5", "-INF", "NaN", "1e3"], np.float32([1.5, -np.inf, np.nan, 1000])),
        (onnx.TensorProto.INT64, ["9007199254740993", "-7"], np.int64([9007199254740993, -7])),
        (onnx.TensorProto.UINT64, ["18446744073709551615"], np.uint64([18446744073709551615])),
    ],
)
def test_cast_from_strings(to, texts, expected):
    y = run("Cast", 13, np.array(texts, object), to=to)
    assert y.dtype == expected.dtype
    np.testing.assert_array_equal(y, expected)


def test_cast_of_text_that_is_no_number():
    with pytest.raises(FlamertError, match="no such number"):
        run("Cast", 13, np.array(["one"], object), to=onnx.TensorProto.FLOAT)


def test_cast_to_strings():
    y = run("Cast", 13, np.float32([0.1, 314.15926, -2]), to=onnx.TensorProto.STRING)
    np.testing.assert_array_equal(y, np.array(["0.1", "314.15927", "-2.0"], object))


def test_comparison_and_choice_of_strings():
    a, b = np.array(["x", "y", "z"], object), np.array(["x", "q", "z"], object)
    np.testing.assert_array_equal(run("Equal", 19, a, b), [True, False, True])
    np.testing.assert_array_equal(run("Where", 16, np.array([True, False, True]), a, b), ["x", "q", "z"])


def test_dropout_before_opset_7_drops_unless_it_tests():
    y, mask = run("Dropout", 6, np.ones(2000, np.float32), outputs=2, ratio=0.25)
    np.testing.assert_allclose(mask.mean(), 0.75, atol=0.06)
    np.testing.assert_allclose(y, mask / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(run("Dropout", 6, X, is_test=1), X)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "expected"),
    [
        ("QuickGelu", [X], {}, X * sigmoid(1.702 * X)),
        ("QuickGelu", [X], {"alpha": 2.0}, X * sigmoid(2 * X)),
        ("FastGelu", [X], {}, 0.5 * X * (1 + np.tanh(0.797885 * X + 0.035677 * X**3))),
        ("FastGelu", [X - 1, np.ones(4, np.float32)], {}, 0.5 * X * (1 + np.tanh(0.797885 * X + 0.035677 * X**3))),
    ],
)
def test_microsoft_activations(op_type, inputs, attributes, expected):
    y = run(op_type, 17, *inputs, domain="com.microsoft", **attributes)
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=1e-6)


def test_microsoft_gelus_agree():
    bias = np.float32([1, 2, 3, 4])
    biased = run("BiasGelu", 17, X, bias, domain="com.microsoft")
    np.testing.assert_array_equal(biased, run("Gelu", 17, X + bias, domain="com.microsoft"))


def test_matmul_integer_to_float():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (3, 8)).astype(np.uint8), rng.integers(-128, 128, (8, 5)).astype(np.int8)
    scales, zeros = [np.float32(0.5), rng.random(5, np.float32)], [np.uint8(9), rng.integers(-9, 9, 5).astype(np.int8)]
    y = run("MatMulIntegerToFloat", 17, a, b, *map(np.asarray, scales), *map(np.asarray, zeros), domain="com.microsoft")
    expected = (a.astype(np.float64) - 9) @ (b.astype(np.float64) - zeros[1]) * 0.5 * scales[1]
    np.testing.assert_allclose(y, expected, rtol=1e-5)
