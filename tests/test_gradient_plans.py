"""Gradients of a model are planned once for each signature: what needs a new plan and what does not; threads; equal bits."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import TensorProto, helper

import flamert as fr
from flamert import ops
from flamert.differentiate import MAX_GRADIENTS
from tests import small
from tests.test_vjp import FLOAT, INT64, f32, load, node, rng


@pytest.fixture
def traces(monkeypatch):
    """One entry for each time that some model was traced."""
    seen, trace = [], fr.Model.trace
    monkeypatch.setattr(fr.Model, "trace", lambda self, *args, **kwargs: seen.append(self) or trace(self, *args, **kwargs))
    return seen


def test_a_signature_is_planned_once(traces):
    model = fr.load(small.perceptron(), device="cpu")
    for n in (3, 5, 3, 5, 3):
        x, dy = f32(n, 6), f32(n, 8)
        outputs, gradients = model.vjp({"x": x}, {"y": dy}, wrt=["x"])
        np.testing.assert_allclose(gradients["x"], dy * (outputs["y"] > 0) @ small.W.T, 1e-5, 1e-5)
    assert len(traces) == 2
    model.vjp({"x": x}, {"y": dy}, wrt=["W"])
    model.vjp({"x": x}, {"y": dy, "sum": dy}, wrt=["x"])
    assert len(traces) == len(model.gradients) == 4


def test_results_are_the_callers(traces):
    model = fr.load(small.perceptron(), device="cpu")
    feeds, cotangents = {"x": f32(3, 6)}, {"y": f32(3, 8)}
    first = model.vjp(feeds, cotangents, wrt=["x", "b", "y", "W"])
    kept = [{n: a.copy() for n, a in arrays.items()} for arrays in first]
    for a in (a for arrays in first for a in arrays.values()):
        a[...] = 7
    second = model.vjp(feeds, cotangents, wrt=["x", "b", "y", "W"])
    for got, want in zip(second, kept, strict=True):
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])
    assert len(traces) == 1 and (cotangents["y"] != 7).all()


def test_new_weights_need_a_new_plan_only_where_they_are_part_of_it(traces):
    model = fr.load(small.perceptron(), device="cpu")
    x, dy = f32(3, 6), f32(3, 8)
    for name, plans in (("W", 1), ("b", 2), ("W", 2), ("b", 3)):
        model.params[name] = model.params[name] * 2
        outputs, gradients = model.vjp({"x": x}, {"y": dy}, wrt=["W", "x"])
        W, b = model.params["W"], model.params["b"]
        np.testing.assert_allclose(outputs["y"], np.maximum(x @ W + b, 0), 1e-5, 1e-5)
        np.testing.assert_allclose(gradients["x"], dy * (outputs["y"] > 0) @ W.T, 1e-5, 1e-5)
        assert len(traces) == plans and len(model.gradients) == 1


def test_contents_that_fix_shapes_have_plans_of_their_own(traces):
    model = fr.load(small.reshaped(), device="cpu")
    for shape in ([3, 4], [12], [3, 4], [12]):
        dy = f32(*shape)
        _, gradients = model.vjp({"x": f32(2, 6), "shape": np.array(shape)}, {"y": dy})
        np.testing.assert_array_equal(gradients["x"], dy.reshape(2, 6))
    assert len(model.gradients) == 2


def test_floating_contents_that_fix_shapes_have_plans_of_their_own(traces):
    nodes = [node("Resize", "x _ scales", "y", mode="linear")]
    model = load(nodes, {"x": (FLOAT, [1, 1, 4, 4]), "scales": (FLOAT, [4])}, {"y": (FLOAT, None)})
    for scale in (2, 3, 2, 3):
        feeds = {"x": f32(1, 1, 4, 4), "scales": np.float32([1, 1, scale, scale])}
        outputs, gradients = model.vjp(feeds, {"y": np.ones((1, 1, 4 * scale, 4 * scale), np.float32)}, wrt=["x"])
        np.testing.assert_allclose(gradients["x"].sum(), 16 * scale**2, 1e-5)
        np.testing.assert_array_equal(outputs["y"], model.run(feeds)["y"])
    assert len(traces) == len(model.gradients) == 2


def test_only_so_many_signatures_are_kept(traces):
    model = fr.load(small.perceptron(), device="cpu")
    for n in (*range(1, MAX_GRADIENTS + 3), 1):
        model.vjp({"x": f32(n, 6)}, {"y": f32(n, 8)}, wrt=["x"])
        model.vjp({"x": f32(2, 6)}, {"y": f32(2, 8)}, wrt=["x"])
    assert len(model.gradients) == MAX_GRADIENTS
    assert len(traces) == MAX_GRADIENTS + 3


def test_new_layers_are_seen():
    model = fr.load(small.perceptron(), device="cpu")
    x, dy = f32(3, 6), f32(3, 8)
    model.vjp({"x": x}, {"y": dy}, wrt=["x"])
    (term,) = model.add_lora("*", rank=2)
    model.params[f"{term}.lora_B.weight"] = f32(8, 2)
    outputs, gradients = model.vjp({"x": x}, {"y": dy}, wrt=["x"])
    np.testing.assert_allclose(outputs["y"], model.run({"x": x})["y"], 1e-5, 1e-5)
    a, b = (model.params[f"{term}.lora_{f}.weight"] for f in "AB")
    W = small.W + 8 * (b @ a).T
    np.testing.assert_allclose(gradients["x"], dy * (outputs["y"] > 0) @ W.T, 1e-4, 1e-4)


def squares(outputs, targets):
    error = outputs["y"] - targets["t"]
    return ops.reduce_mean(error * error, axes=(0, 1))


def test_descent_by_hand_plans_once(traces):
    model = fr.load(small.perceptron(), device="cpu")
    x, t = f32(16, 6), np.abs(f32(16, 8))
    slopes = fr.value_and_grad(model, squares, wrt=["W", "b"])
    losses = []
    for _ in range(50):
        loss, gradients = slopes({"x": x}, {"t": t})
        losses.append(loss)
        for name, gradient in gradients.items():
            model.params[name] = model.params[name] - 0.5 * gradient
    assert losses[-1] < 0.5 * losses[0] and len(traces) == 1
    fr.value_and_grad(model, squares, wrt=["W", "b"])({"x": x}, {"t": t})
    assert len(traces) == 1
    slopes({"x": x}, {"t": t[:, :1]})
    assert len(traces) == 2


def test_threads_share_plans(traces):
    model = fr.load(small.perceptron(), device="cpu")
    cases = [({"x": f32(n, 6)}, {"y": f32(n, 8)}) for n in (3, 4) for _ in range(20)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda case: model.vjp(*case), cases))
    assert len(traces) == 2
    for case, (outputs, gradients) in zip(cases, found, strict=True):
        for got, want in zip((outputs, gradients), model.vjp(*case), strict=True):
            for name in want:
                np.testing.assert_array_equal(got[name], want[name])


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "BFLOAT16"])
def test_repeats_are_bit_equal(kind):
    """Many readers of one value, a sum over a broadcast axis, rows gathered twice: whatever adds up, adds up in one order."""
    kind = getattr(TensorProto, kind)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes = [node("Gather", "table rows", "e"), node("MatMul", "e W", "h"), node("Tanh", "h", "t"), node("Add", "t b", "s0")]
    nodes += [node("Mul", f"s{i} t", f"s{i + 1}") for i in range(9)]
    weights = {n: f32(*s).astype(dtype) for n, s in {"table": (5, 16), "W": (16, 16), "b": (16,)}.items()}
    inputs, outputs = {"rows": (INT64, ["N"])}, {"s9": (kind, ["N", 16])}
    rows, dy = rng.integers(0, 5, 300), f32(300, 16).astype(dtype)
    found = []
    for model in [load(nodes, inputs, outputs, weights) for _ in range(2)]:
        found += [model.vjp({"rows": rows}, {"s9": dy})[1] for _ in range(3)]
    for again in found[1:]:
        for name, gradient in found[0].items():
            assert gradient.dtype == dtype and gradient.astype(np.float32).any()
            assert gradient.tobytes() == again[name].tobytes(), name
