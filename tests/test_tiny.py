"""The heart of it in under two seconds: load, run, run again, on new shapes, on data-dependent shapes; clear errors."""

import numpy as np
import pytest

import flamert as fr
from flamert.errors import InputError
from tests import small

X = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
Y = np.maximum(X @ small.W + small.B, 0)


def test_run_gives_outputs_by_name():
    model = fr.load(small.perceptron(), device="cpu")
    for _ in range(4):
        result = model.run({"x": X})
        assert list(result) == ["y"]
        np.testing.assert_allclose(result["y"], Y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.run({"x": X[:1]})["y"], Y[:1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.run({"x": X}, ["sum"])["sum"], X @ small.W + small.B, rtol=1e-5, atol=1e-5)


def test_call_takes_positions_names_and_lists():
    model = fr.load(small.perceptron().SerializeToString(), device="cpu")
    for result in (model(X), model(x=X), model(X.tolist())):
        np.testing.assert_allclose(result, Y, rtol=1e-5, atol=1e-5)


def test_results_belong_to_the_caller():
    model = fr.load(small.perceptron(), device="cpu")
    first = model(X)
    kept = first.copy()
    model(X + 1)
    np.testing.assert_array_equal(first, kept)
    identity = fr.load(small.reshaped(), device="cpu")
    y = identity(X, np.array([4, 6]))
    y += 1
    np.testing.assert_array_equal(identity(X, np.array([4, 6])), X)


def test_shapes_that_only_data_can_tell():
    model = fr.load(small.reshaped(), device="cpu")
    for shape in ([24], [2, 12], [24], [-1, 3]):
        np.testing.assert_array_equal(model(X, np.array(shape)), X.reshape(shape))


def test_parameters_can_be_replaced():
    model = fr.load(small.perceptron(), device="cpu")
    model(X)
    model.params["W"] = np.zeros_like(small.W)
    np.testing.assert_allclose(model(X), np.broadcast_to(np.maximum(small.B, 0), Y.shape))
    with pytest.raises(fr.errors.ShapeError):
        model.params["W"] = np.zeros((2, 2), np.float32)


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "required inputs are missing: 'x'"),
        ({"x": X, "z": X}, "invalid input name 'z'"),
        ({"x": X.astype(np.float64)}, "got float64, expected float32"),
        ({"x": X[0]}, "invalid rank for input 'x': got 1"),
        ({"x": X[:, :3]}, "index 1 is 3, expected 6"),
        ({"x": [["a"] * 6]}, "unexpected data type for input 'x'"),
    ],
)
def test_errors_say_what_is_wrong(feeds, said):
    with pytest.raises(InputError, match=said.replace("[", r"\[")):
        fr.load(small.perceptron(), device="cpu").run(feeds)


def test_unknown_output():
    with pytest.raises(InputError, match="invalid output name 'nope'"):
        fr.load(small.perceptron(), device="cpu").run({"x": X}, ["nope"])


def test_compile_summary_and_profile(tmp_path):
    model = fr.load(small.perceptron(), device="cpu")
    assert model.compile(x=(4, 6)).signatures == 1
    model.compile(x=X)
    assert model.signatures == 1
    assert "MatMul" in model.summary() and "[N, 6]" in model.summary()
    profile = model.profile({"x": X})
    assert profile.seconds > 0 and any(name in str(profile) for name in ("multiply", "rectify"))
    profile.save_trace(tmp_path / "trace.json")
    assert '"ph": "X"' in (tmp_path / "trace.json").read_text()
