"""Training algorithms that a file holds itself (`training_info`), against steps worked out in NumPy."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import flamert as fr
from flamert.errors import InputError, InvalidModel, UnsupportedOp
from tests.small import model

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
TRAINING = "ai.onnx.preview.training"
rng = np.random.default_rng(0)
W = rng.standard_normal((6, 2)).astype(np.float32)
B = rng.standard_normal(2).astype(np.float32)
RATE = np.float32(0.1)


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def bind(entries, **names):
    for key, output in names.items():
        entries.add(key=key, value=output)


def algorithm(nodes, inputs=(), outputs=(), state=(), name="step"):
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in dict(state).items()]
    return helper.make_graph(nodes, name, list(inputs), list(outputs), tensors)


LOSS = [
    helper.make_node("Sub", ["y", "target"], ["difference"]),
    helper.make_node("Mul", ["difference", "difference"], ["squares"]),
    helper.make_node("ReduceMean", ["squares"], ["loss"], keepdims=0),
    helper.make_node("Gradient", ["W", "b"], ["dW", "db"], domain=TRAINING, xs=["W", "b"], y="loss"),
    helper.make_node("Add", ["T", "one"], ["T.new"]),
]


def linear():
    """x W + b, without training_info."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    made = model(nodes, {"x": (FLOAT, ["N", 6])}, {"y": (FLOAT, ["N", 2])}, {"W": W, "b": B})
    made.opset_import.append(helper.make_opsetid(TRAINING, 1))
    return made


def with_momentum():
    """And its mean squared error's gradient, Momentum, and a count of iterations."""
    made, info = linear(), onnx.TrainingInfoProto()
    attributes = {"alpha": 0.9, "beta": 1.0, "norm_coefficient": 0.01, "mode": "standard"}
    operands = ["R", "T", "W", "b", "dW", "db", "V.W", "V.b"]
    results = ["W.new", "b.new", "V.W.new", "V.b.new"]
    nodes = [*LOSS, helper.make_node("Momentum", operands, results, domain=TRAINING, **attributes)]
    outputs = [value("loss", FLOAT, []), *[value(n, FLOAT, None) for n in results], value("T.new", INT64, [])]
    state = {"R": RATE, "T": np.int64(0), "one": np.int64(1), "V.W": np.zeros_like(W), "V.b": np.zeros_like(B)}
    info.algorithm.CopyFrom(algorithm(nodes, [value("target", FLOAT, ["N", 2])], outputs, state))
    bind(info.update_binding, T="T.new", W="W.new", b="b.new", **{"V.W": "V.W.new", "V.b": "V.b.new"})
    first = [
        helper.make_node("Constant", [], ["W.first"], value=numpy_helper.from_array(W * 2)),
        helper.make_node("RandomNormal", [], ["b.first"], shape=[2], seed=3.0),
        helper.make_node("Constant", [], ["T.first"], value_int=0),
    ]
    outputs = [value("W.first", FLOAT, [6, 2]), value("b.first", FLOAT, [2]), value("T.first", INT64, [])]
    info.initialization.CopyFrom(algorithm(first, (), outputs, (), "start"))
    bind(info.initialization_binding, W="W.first", b="b.first", T="T.first")
    made.training_info.append(info)
    return made


class Reference:
    """The same algorithm in float64."""

    def __init__(self, w, b):
        self.w, self.b = np.float64(w), np.float64(b)
        self.v, self.u = np.zeros_like(self.w), np.zeros_like(self.b)

    def step(self, x, target):
        difference = x @ self.w + self.b - target
        loss = (difference**2).mean()
        slope = 2 * difference / difference.size
        self.v = 0.9 * self.v + x.T @ slope + 0.01 * self.w
        self.u = 0.9 * self.u + slope.sum(0) + 0.01 * self.b
        self.w, self.b = self.w - RATE * self.v, self.b - RATE * self.u
        return loss


def batches(n=5):
    return [(rng.standard_normal((k + 3, 6)).astype(np.float32), rng.standard_normal((k + 3, 2), np.float32)) for k in range(n)]


def test_a_model_without_algorithms_has_none():
    assert fr.load(linear(), device="cpu").training_info == ()


def test_steps_are_those_that_the_file_describes(tmp_path):
    proto = with_momentum()
    loaded = fr.load(proto, device="cpu")
    (info,) = loaded.training_info
    assert [spec.name for spec in info.inputs] == ["x", "target"]
    assert info.outputs[0] == "loss" and info.update_binding["V.W"] == "V.W.new"
    assert set(loaded.params) == {"W", "b"} and set(info.state) == {"R", "T", "one", "V.W", "V.b"}
    reference = Reference(W, B)
    for i, (x, target) in enumerate(batches()):
        found = info.step({"x": x, "target": target})
        np.testing.assert_allclose(found["loss"], reference.step(np.float64(x), target), rtol=1e-5)
        np.testing.assert_allclose(loaded.params["W"], reference.w, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(info.state["V.b"], reference.u, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(loaded.run({"x": x})["y"], x @ reference.w + reference.b, rtol=1e-4, atol=1e-5)
        assert info.state["T"] == i + 1
    loaded.save(tmp_path / "out.onnx")
    again = fr.load(tmp_path / "out.onnx", device="cpu")
    x, target = batches(1)[0]
    other = again.training_info[0].step({"x": x, "target": target})
    for name, array in info.step({"x": x, "target": target}).items():
        np.testing.assert_array_equal(other[name], array)


def test_saving_changes_variables_alone(tmp_path):
    proto = with_momentum()
    loaded = fr.load(proto, device="cpu")
    loaded.save(tmp_path / "same.onnx")
    assert (tmp_path / "same.onnx").read_bytes() == proto.SerializeToString()
    loaded.training_info[0].step(dict(zip(("x", "target"), batches(1)[0], strict=True)))
    loaded.save(tmp_path / "out.onnx")
    after = onnx.load(tmp_path / "out.onnx")
    touched = set()
    for a, b in ((proto.graph, after.graph), (proto.training_info[0].algorithm, after.training_info[0].algorithm)):
        touched |= {s.name for s, t in zip(a.initializer, b.initializer, strict=True) if s != t}
        del a.initializer[:], b.initializer[:]
    assert touched == {"W", "b", "T", "V.W", "V.b"}
    assert proto == after


def test_initialization_assigns_first_values():
    loaded = fr.load(with_momentum(), device="cpu")
    (info,) = loaded.training_info
    x, target = batches(1)[0]
    info.step({"x": x, "target": target})
    assert info.state["T"] == 1
    new = info.initialize()
    assert set(new) == {"W", "b", "T"}
    np.testing.assert_array_equal(loaded.params["W"], W * 2)
    np.testing.assert_array_equal(loaded.params["b"], new["b"])
    assert info.state["T"] == 0 and not np.array_equal(new["b"], B)


def test_weights_assigned_between_steps_count():
    """Variables, and constants that the graph was specialised to."""
    proto = with_momentum()
    del proto.training_info[0].update_binding[2]  # b stays as it is
    loaded = fr.load(proto, device="cpu")
    (info,) = loaded.training_info
    (x, target), (u, goal) = batches(2)
    info.step({"x": x, "target": target})
    loaded.params["b"], loaded.params["W"] = B + 1, W
    info.state["V.W"] = np.zeros_like(W)
    info.state["R"] = np.float32(0.5)
    reference = Reference(W, B + 1)
    np.testing.assert_allclose(info.step({"x": u, "target": goal})["loss"], reference.step(np.float64(u), goal), rtol=1e-5)
    np.testing.assert_allclose(loaded.params["W"], W - 0.5 * reference.v, rtol=1e-4, atol=1e-6)


def test_several_algorithms_take_turns():
    """One moves W, the other b, each at a rate of its own that is an input."""
    made = linear()
    for name in ("W", "b"):
        info = made.training_info.add()
        nodes = [
            helper.make_node("Mul", ["y", "y"], [f"{name}.squares"]),
            helper.make_node("ReduceSum", [f"{name}.squares"], [f"{name}.loss"], keepdims=0),
            helper.make_node("Gradient", [name, "x"], [f"d{name}"], domain=TRAINING, xs=[name], zs=["x"], y=f"{name}.loss"),
            helper.make_node("Mul", [f"d{name}", "rate"], [f"{name}.step"]),
            helper.make_node("Sub", [name, f"{name}.step"], [f"{name}.new"]),
        ]
        outputs = [value(f"{name}.new", FLOAT, None), value(f"{name}.loss", FLOAT, [])]
        info.algorithm.CopyFrom(algorithm(nodes, [value("rate", FLOAT, [])], outputs))
        bind(info.update_binding, **{name: f"{name}.new"})
    loaded = fr.load(made, device="cpu")
    x = batches(1)[0][0]
    w, b = np.float64(W), np.float64(B)
    for _ in range(2):
        for info, name in zip(loaded.training_info, "Wb", strict=True):
            y = x @ w + b
            loss = info.step({"x": x, "rate": np.float32(0.01)})[f"{name}.loss"]
            np.testing.assert_allclose(loss, (y**2).sum(), rtol=1e-5)
            if name == "W":
                w = w - 0.01 * x.T @ (2 * y)
            else:
                b = b - 0.01 * (2 * y).sum(0)
    np.testing.assert_allclose(loaded.params["W"], w, rtol=1e-5)
    np.testing.assert_allclose(loaded.params["b"], b, rtol=1e-5)


def test_an_output_of_the_model_can_be_an_update():
    made = linear()
    info = made.training_info.add()
    info.algorithm.CopyFrom(algorithm([], (), (), {"last": np.zeros((3, 2), np.float32)}))
    bind(info.update_binding, last="y")
    loaded = fr.load(made, device="cpu")
    x = batches(1)[0][0]
    assert loaded.training_info[0].step({"x": x}) == {}
    np.testing.assert_allclose(loaded.training_info[0].state["last"], x @ W + B, rtol=1e-5)


def test_an_empty_algorithm_does_nothing():
    made = linear()
    made.training_info.add()
    loaded = fr.load(made, device="cpu")
    (info,) = loaded.training_info
    assert info.initialize() == {} and info.step({"x": batches(1)[0][0]}) == {}
    np.testing.assert_array_equal(loaded.params["W"], W)


def changed(change):
    made = with_momentum()
    change(made.training_info[0])
    return made


BROKEN = {
    "two outputs for one variable": (lambda i: bind(i.update_binding, W="b.new"), "twice"),
    "no such variable": (lambda i: bind(i.update_binding, nobody="W.new"), "'nobody', which is no initializer"),
    "a value that is no variable": (lambda i: bind(i.update_binding, y="W.new"), "'y', which is no initializer"),
    "no such update": (lambda i: bind(i.update_binding, R="nothing"), "'nothing', which is no output"),
    "an update that is inside": (lambda i: bind(i.update_binding, R="difference"), "'difference', which is no output"),
    "no such first value": (lambda i: bind(i.initialization_binding, R="nothing"), "'nothing', which is no output"),
    "a first value of the step": (lambda i: bind(i.initialization_binding, R="loss"), "'loss', which is no output"),
    "an initialization with an input": (lambda i: i.initialization.input.append(value("z", FLOAT, [])), "has an input, 'z'"),
    "an initialization that reads the model": (
        lambda i: i.initialization.node.add(op_type="Relu", input=["W"], output=["r"]),
        "'W' is read",
    ),
    "a name of the model again": (
        lambda i: i.algorithm.node.add(op_type="Relu", input=["y"], output=["p"]),
        "'p' is defined",
    ),
    "a weight of the model again": (
        lambda i: i.algorithm.initializer.append(numpy_helper.from_array(W, "W")),
        "'W' is defined by the model and",
    ),
    "a name that nobody defines": (lambda i: i.algorithm.node.add(op_type="Relu", input=["nobody"], output=["r"]), "'nobody'"),
    "a cycle": (
        lambda i: i.algorithm.node.extend([helper.make_node("Relu", ["r"], ["s"]), helper.make_node("Relu", ["s"], ["r"])]),
        "cycle",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_refused(name):
    change, message = BROKEN[name]
    with pytest.raises(InvalidModel, match=message):
        fr.load(changed(change), device="cpu")


def test_a_variable_is_updated_in_one_place():
    made = linear()
    for _ in range(2):
        info = made.training_info.add()
        bind(info.update_binding, b="y")
    with pytest.raises(InvalidModel, match="'b' in two places"):
        fr.load(made, device="cpu")


def test_the_model_cannot_read_its_algorithm():
    made = with_momentum()
    made.graph.node.add(op_type="Relu", input=["loss"], output=["r"])
    with pytest.raises(InvalidModel, match="'loss'"):
        fr.load(made, device="cpu")


def test_updates_of_another_type_are_refused():
    made = linear()
    bind(made.training_info.add().update_binding, b="y")
    loaded = fr.load(made, device="cpu")
    with pytest.raises(InvalidModel, match=r"assigns 'y', float32\[3,? ?2\], to 'b', which is float32\[2\]"):
        loaded.training_info[0].step({"x": batches(1)[0][0]})
    np.testing.assert_array_equal(loaded.params["b"], B)


def test_missing_inputs_are_named():
    (info,) = fr.load(with_momentum(), device="cpu").training_info
    with pytest.raises(InputError, match="'target'"):
        info.step({"x": batches(1)[0][0]})


def test_heads_that_an_algorithm_may_need_stay():
    with pytest.raises(UnsupportedOp, match="training_info"):
        fr.load(with_momentum(), device="cpu").replace_head("y", 3)
