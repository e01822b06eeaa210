"""Graphs whose sizes vary, and graphs with parameters, as ONNX models."""

import numpy as np
import onnx
import pytest

import flamert as fr
from flamert import graph as g
from flamert import ops
from flamert.errors import InputError
from flamert.exporters.graph import export_graph, model_proto
from flamert.graph import Graph, TensorType
from flamert.ops.evaluate import evaluate

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
ZERO = g.constant(np.zeros((), F32))


def floats(*shape, name="x"):
    return g.input(TensorType(shape, F32), name)


def dims(proto):
    return [[d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in proto.graph.output]


def kinds(proto):
    return [node.op_type for node in proto.graph.node]


def agree(build, proto, *points):
    """Under another runtime and here, the model gives what the graph for the same sizes does."""
    onnx.checker.check_model(proto, full_check=True)
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    model = fr.load(proto, device="cpu")
    rng = np.random.default_rng(0)
    for point in points:
        graph = build(**point)
        feeds = {v.node.attrs["name"]: rng.standard_normal(v.shape, "f") for v in graph.inputs}
        want = evaluate(graph.outputs, {v: feeds[v.node.attrs["name"]] for v in graph.inputs})
        for got in (session.run(None, feeds), list(model.run(feeds).values())):
            for a, b in zip(got, want, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_what_stays_and_what_is_left_need_no_shape():
    def build(batch, length):
        x = floats(batch, length, 6)
        heads = ops.transpose(ops.reshape(x, shape=(batch, length, 2, 3)), perm=(0, 2, 1, 3))
        flat = ops.reshape(x, shape=(batch * length, 6))
        wide = ops.expand(ops.reshape(x, shape=(batch, 1, length, 6)), shape=(batch, 4, length, 6))
        return Graph([x], [heads, flat, wide])

    proto = model_proto(build)
    assert dims(proto) == [["batch", 2, "length", 3], ["batch*length", 6], ["batch", 4, "length", 6]]
    assert "Shape" not in kinds(proto)
    agree(build, proto, {"batch": 1, "length": 1}, {"batch": 4, "length": 9})


def test_other_numbers_are_computed():
    table = g.constant(np.arange(64, dtype=F32).reshape(64, 1))

    def build(batch, length):
        x = floats(batch, length)
        first = ops.expand(ZERO, shape=(batch, 1))
        longer = ops.concat(first, x, axis=1)
        places = ops.slice(table, starts=(0, 0), sizes=(length + 1, 1), steps=(1, 1))
        tail = ops.slice(table, starts=(length, 0), sizes=(64 - length, 1), steps=(1, 1))
        grid = ops.expand(ZERO, shape=(2 * batch * length + 1,))
        return Graph([x], [longer + ops.reshape(places, shape=(length + 1,)), tail, grid])

    proto = model_proto(build, outputs=["a", "b", "c"])
    assert dims(proto) == [["batch", "length + 1"], ["-1*length + 64", 1], ["2*batch*length + 1"]]
    assert kinds(proto).count("Shape") == 2
    agree(build, proto, {"batch": 1, "length": 1}, {"batch": 2, "length": 3}, {"batch": 9, "length": 63})


def test_gradients_vary_too():
    def build(batch):
        x, w = floats(batch, 4), floats(4, 3, name="w")
        y = ops.tanh(ops.matmul(x, w))
        return Graph([x, w], [*fr.grad(ops.reduce_sum(y * y, axes=(0, 1)), [x, w])])

    agree(build, model_proto(build), {"batch": 1}, {"batch": 6})


def test_sizes_to_try_can_be_given():
    def build(length):
        x = floats(length)
        return Graph([x], [x + ops.slice(g.constant(np.arange(5, dtype=F32)), starts=(0,), sizes=(length,), steps=(1,))])

    with pytest.raises(fr.errors.ShapeError):
        model_proto(build)
    agree(build, model_proto(build, sizes={"length": (2, 3, 4)}), {"length": 1}, {"length": 4})
    for wrong in ((2, 3), (2, 2, 3), (1, 2, 3)):
        with pytest.raises(InputError, match="three different sizes"):
            model_proto(build, sizes={"length": wrong})
    with pytest.raises(InputError, match="no size 'width'"):
        model_proto(build, sizes={"width": (2, 3, 4)})


def one(change):
    """A function of one size: x and what `change` makes of it."""

    def build(batch):
        x = floats(batch, 2)
        with g.sourced(g.Source("thing", "there")):
            return Graph([x], [change(x, batch)])

    return build


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, n: x + g.constant(np.ones((n, 2), F32)),
            r"'there': Add takes a constant \(float32\[11, 2\] or .*expand a shorter",
        ),
        (lambda x, n: x * (1.0 / n), "'there': Mul takes a constant"),
        (lambda x, n: ops.softmax(x, axis=n % 2 - 1) if n < 7 else ops.exp(x), "'there' is Exp or Softmax"),
        (lambda x, n: ops.exp(x) if n < 7 else ops.exp(ops.exp(x)), "'there' is Exp of other operands"),
        (
            lambda x, n: ops.concat(x, ops.expand(ZERO, shape=(n, n * n)), axis=1),
            r"'there': how \[25, 49, 121\] depend on batch",
        ),
        (lambda x, n: ops.leaky_relu(x, alpha=1 / n), "'there': LeakyRelu's 'alpha' depends on batch"),
    ],
)
def test_what_cannot_vary_is_named(change, message):
    with pytest.raises(InputError, match=message):
        model_proto(one(change))


def test_a_size_comes_from_some_input():
    def build(half):
        x = floats(2 * half)
        return Graph([x], [ops.expand(ZERO, shape=(half,))])

    with pytest.raises(InputError, match="no input has a dimension of 'half'"):
        model_proto(build)


def test_parameters_become_initializers(tmp_path):
    w = np.random.default_rng(0).standard_normal((4, 3), "f")

    def build(batch):
        x = floats(batch, 4)
        p = floats(4, 3, name="layer.weight")
        return Graph([x, p], [ops.matmul(x, p) * g.constant(np.array([1, 2, 3], F32))])

    export_graph(build, tmp_path / "m.onnx", parameters={"layer.weight": w})
    proto = onnx.load(tmp_path / "m.onnx")
    assert [i.name for i in proto.graph.input] == ["x"]
    model = fr.load(tmp_path / "m.onnx", device="cpu")
    np.testing.assert_array_equal(model.params["layer.weight"], w)
    trainer = fr.Trainer(model, "mse", fr.optim.SGD(lr=0.1))
    assert trainer.trainable == ("layer.weight",)
    with pytest.raises(InputError, match="'other'"):
        model_proto(build, parameters={"other": w})
    with pytest.raises(InputError, match=r"float32\[3,4\]|float32\[3, 4\]"):
        model_proto(build, parameters={"layer.weight": w.T})
