"""InferenceSession against onnxruntime's own: the same calls give the same answers, and errors of the same kind."""

import ctypes
import threading

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

import flamert as fr
from flamert.runtime.device import device
from tests import small

ort = pytest.importorskip("onnxruntime")

X = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
SESSIONS = [
    pytest.param(lambda m, **k: fr.InferenceSession(m, providers=["CPUExecutionProvider"], **k), id="flamert"),
    pytest.param(lambda m, **k: ort.InferenceSession(m, providers=["CPUExecutionProvider"], **k), id="onnxruntime"),
]
both = pytest.mark.parametrize("session", SESSIONS)


def typed():
    """Inputs of many declared types, straight to outputs."""
    kinds = {"f": TensorProto.FLOAT, "i": TensorProto.INT64, "b": TensorProto.BOOL, "s": TensorProto.STRING}
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds]
    inputs = {name: (kind, shape) for (name, kind), shape in zip(kinds.items(), ([2, "N"], [None], [], ["a"]), strict=True)}
    return small.model(nodes, inputs, {f"{name}_out": value for name, value in inputs.items()})


@both
def test_run(session):
    s = session(small.perceptron().SerializeToString())
    y = np.maximum(X @ small.W + small.B, 0)
    for names in (None, [], ["y"]):
        [result] = s.run(names, {"x": X})
        np.testing.assert_allclose(result, y, rtol=1e-5, atol=1e-5)


@both
def test_arguments(session):
    s = session(typed().SerializeToString())
    inputs = [(a.name, a.type, a.shape) for a in s.get_inputs()]
    assert inputs == [
        ("f", "tensor(float)", [2, "N"]),
        ("i", "tensor(int64)", [None]),
        ("b", "tensor(bool)", []),
        ("s", "tensor(string)", ["a"]),
    ]
    assert [a.name for a in s.get_outputs()] == ["f_out", "i_out", "b_out", "s_out"]
    feeds = {"f": X[:2], "i": np.arange(3), "b": np.array(True), "s": np.array(["ab", "ü"])}
    for got, name in zip(s.run(None, feeds), feeds, strict=True):
        np.testing.assert_array_equal(got, feeds[name])


@both
def test_metadata(session):
    meta = session(small.perceptron().SerializeToString()).get_modelmeta()
    assert (meta.producer_name, meta.graph_name, meta.custom_metadata_map) == ("tests", "small", {})


@both
def test_one_element_passes_for_a_scalar(session):
    s = session(small.scaled().SerializeToString())
    [y] = s.run(None, {"x": X[:, :3], "s": np.array([2], np.float32)})
    np.testing.assert_array_equal(y, X[:, :3] * 2)


@both
@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "missing"),
        ({"x": X[0]}, "nvalid rank for input"),
        ({"x": X[:, :5]}, "nvalid dimensions for input"),
        ({"x": X.astype(np.float64)}, "nexpected .*data type"),
        ({"x": X, "z": X}, "nvalid input name"),
    ],
)
def test_wrong_inputs(session, feeds, said):
    with pytest.raises(Exception, match=said):
        session(small.perceptron().SerializeToString()).run(None, feeds)


@both
def test_unknown_output(session):
    with pytest.raises(Exception, match=r"nvalid [Oo]utput [Nn]ame"):
        session(small.perceptron().SerializeToString()).run(["nope"], {"x": X})


@pytest.mark.parametrize("module", [fr, ort], ids=["flamert", "onnxruntime"])
def test_options_and_providers(module):
    options = module.SessionOptions()
    options.graph_optimization_level = module.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = module.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    data = small.perceptron().SerializeToString()
    for made in (fr.InferenceSession(data, options), fr.InferenceSession(data, sess_options=options)):
        assert made.get_session_options() is options
    with pytest.warns(UserWarning, match="NoSuchProvider"):
        s = fr.InferenceSession(data, options, providers=["NoSuchProvider", ("CPUExecutionProvider", {"a": "b"})])
    assert s.get_providers() == ["CPUExecutionProvider"]
    assert s.get_provider_options() == {"CPUExecutionProvider": {"a": "b"}}
    assert "CPUExecutionProvider" in module.get_available_providers()


@pytest.mark.parametrize("module", [fr, ort], ids=["flamert", "onnxruntime"])
def test_io_binding(module):
    s = module.InferenceSession(small.perceptron().SerializeToString(), providers=["CPUExecutionProvider"])
    expected = np.maximum(X @ small.W + small.B, 0)
    binding = s.io_binding()
    binding.bind_cpu_input("x", X)
    binding.bind_output("y")
    s.run_with_iobinding(binding)
    [y] = binding.copy_outputs_to_cpu()
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    [value] = binding.get_outputs()
    assert (value.shape(), value.data_type(), value.device_name()) == ([4, 8], "tensor(float)", "cpu")

    target = np.zeros((4, 8), np.float32)
    pointers = s.io_binding()
    pointers.bind_input("x", "cpu", 0, np.float32, X.shape, X.ctypes.data)
    pointers.bind_output("y", "cpu", 0, np.float32, target.shape, target.ctypes.data)
    s.run_with_iobinding(pointers)
    np.testing.assert_allclose(target, expected, rtol=1e-5, atol=1e-5)

    held = module.OrtValue.ortvalue_from_shape_and_type([4, 8], np.float32)
    values = s.io_binding()
    values.bind_ortvalue_input("x", module.OrtValue.ortvalue_from_numpy(X))
    values.bind_ortvalue_output("y", held)
    s.run_with_iobinding(values)
    np.testing.assert_allclose(held.numpy(), expected, rtol=1e-5, atol=1e-5)
    [result] = s.run_with_ort_values(["y"], {"x": module.OrtValue.ortvalue_from_numpy(X)})
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-5)


@both
def test_threads_may_share_a_session(session):
    s = session(small.perceptron().SerializeToString())
    failures = []

    def work(seed):
        x = np.random.default_rng(seed).standard_normal((1 + seed % 3, 6)).astype(np.float32)
        for _ in range(50):
            [y] = s.run(None, {"x": x})
            if not np.allclose(y, np.maximum(x @ small.W + small.B, 0), atol=1e-5):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4], ids=lambda d: d.__name__)
def test_narrow_types_come_and_go_as_they_are(dtype):
    """onnxruntime's binding takes none of these."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    proto = small.model([helper.make_node("Identity", ["x"], ["y"])], {"x": (kind, ["N"])}, {"y": (kind, ["N"])}, opset=21)
    x = np.arange(-4, 4).astype(dtype)
    [y] = fr.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y.astype(np.float32), x.astype(np.float32))


def test_free_dimensions_can_be_fixed():
    options = fr.SessionOptions()
    options.add_free_dimension_override_by_name("N", 4)
    s = fr.InferenceSession(small.perceptron().SerializeToString(), options)
    assert s.get_inputs()[0].shape == [4, 6]
    s.run(None, {"x": X})
    with pytest.raises(fr.errors.InputError, match="'N' was fixed to 4"):
        s.run(None, {"x": X[:2]})


def test_run_async():
    s, done, got = fr.InferenceSession(small.perceptron().SerializeToString()), threading.Event(), []
    s.run_async(None, {"x": X}, lambda results, data, error: (got.append((results, data, error)), done.set()), "mine")
    assert done.wait(10)
    [(results, data, error)] = got
    assert results[0].shape == (4, 8) and data == "mine" and error == ""


def test_an_address_is_that_of_dense_elements():
    """A large result on a GPU can be a view whose rows lie apart; who takes its address cannot know."""
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    value = fr.OrtValue(whole[:, :5], device("cpu"))
    at = np.ctypeslib.as_array((ctypes.c_float * 20).from_address(value.data_ptr()))
    np.testing.assert_array_equal(at, whole[:, :5].ravel())
    np.testing.assert_array_equal(value.numpy(), whole[:, :5])
