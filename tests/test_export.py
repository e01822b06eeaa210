"""Graphs as ONNX models: every row of tests/cases under another runtime, names, constants, errors; gradients and training."""

import numpy as np
import onnx
import pytest

import flamert as fr
from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import InputError, UnsupportedOp
from flamert.exporters.graph import export_graph, model_proto
from flamert.exporters.registry import SPELLINGS
from flamert.grad import grad
from flamert.graph import Graph, TensorType
from flamert.ops.evaluate import evaluate
from flamert.testing import check_export, check_spelling, imported_back
from tests import training_models as models
from tests.cases import CASES
from tests.elsewhere import ANY, checked
from tests.placed import PLACED
from tests.small import perceptron

INEXPRESSIBLE = {"region_peaks"}
"""Ops that have no form in ONNX."""

ELSEWHERE = {
    "conv-2x3x0x5_2x3x1x3_2": "onnxruntime refuses empty images",
    "group_norm-0x6x2_6_6": "onnxruntime refuses empty batches",
    "deform_conv-0x1x4x4_2x1x2x2_0x8x3x3": "onnxruntime 1.30 refuses empty batches",
    "dropout-2x3_scalar": "onnxruntime refuses a ratio of 1",
    "max_pool-nan": "onnxruntime passes NaN over",
    "reduce_max-nan": "onnxruntime passes NaN over",
    "reduce_mean-2x0x3": "onnxruntime takes the mean of nothing for 0",
    "gru-softplus": "onnxruntime's softplus overflows",
    "whole-2": "what lies outside int32 has no defined value",
    "quantize-float8_e4m3fn-axis": "the reference rounds to float32 first",
}
"""Rows that are imported back instead."""


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{c}-{i}") for i, c in enumerate(CASES)])
def test_values(case):
    adaptive = case.op in ("region_weights", "roi_align_gradient") and not case.attrs.get("samples")
    if case.op in INEXPRESSIBLE or adaptive:
        with pytest.raises(UnsupportedOp, match="region_"):
            check_export(case)
    else:
        check_export(case, (checked, imported_back) if str(case) in ELSEWHERE else ANY)


SPELLED = [pytest.param(c, t, id=f"{c}-{t.name}-{i}") for i, c in enumerate(CASES) if c.op in SPELLINGS for t in c.dtypes]


@pytest.mark.parametrize(("case", "dtype"), SPELLED)
def test_spellings(case, dtype):
    """What ops are in others, in their own words, whether or not an exporter comes first."""
    try:
        check_spelling(case, dtype)
    except UnsupportedOp:
        pytest.skip("there is no spelling for this")


def run(proto, *arrays):
    runtime = pytest.importorskip("onnxruntime")
    onnx.checker.check_model(proto, full_check=True)
    session = runtime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([i.name for i in proto.graph.input], arrays, strict=True)))


def floats(*shape, name=""):
    return g.input(TensorType(shape, dtypes.float32), name)


def test_names_constants_and_aliases(tmp_path):
    x, y = floats(2, 3, name="x"), floats(3)
    w = np.ones(3, np.float32)
    total = x * g.constant(w) + y * g.constant(w.copy())
    same = ops.reshape(total, shape=(2, 3))
    graph = Graph([x, y], [total, same, x, g.constant(w)])
    proto = model_proto(graph, outputs=["total", "same", "x2", "w"], name="a graph")
    assert [i.name for i in proto.graph.input] == ["x", "input"]
    assert [o.name for o in proto.graph.output] == ["total", "same", "x2", "w"]
    assert [t.name for t in proto.graph.initializer] == ["constant"]
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3, np.float32)
    for got, want in zip(run(proto, a, b), (a + b, a + b, a, w), strict=True):
        np.testing.assert_array_equal(got, want)


def test_nodes_are_named_after_those_they_came_from():
    model = fr.load(perceptron(), **PLACED)
    traced = model.trace({"x": np.zeros((2, 6), np.float32)}, ("y",), frozenset(model.params))
    proto = model_proto(Graph(traced.inputs.values(), [traced.values["y"]]), outputs=["y"])
    assert [n.name for n in proto.graph.node] == ["multiply", "shift", "rectify"]
    assert {i.name for i in proto.graph.input} == {"x", "W", "b"}


@pytest.mark.parametrize("external", ["auto", True, False])
def test_large_constants(tmp_path, external):
    x = floats(64, name="x")
    w = np.random.default_rng(0).standard_normal((64, 300)).astype(np.float32)
    path = tmp_path / "large.onnx"
    export_graph(Graph([x], [ops.matmul(x, g.constant(w))]), path, external_data=external)
    assert (tmp_path / "large.onnx.data").exists() == (external is True)
    array = np.ones(64, np.float32)
    np.testing.assert_allclose(fr.load(path, **PLACED).run({"x": array})["output"], array @ w, rtol=1e-4, atol=1e-4)
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": array})[0], array @ w, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_written_is_named():
    x = floats(2)
    with pytest.raises(InputError, match="opset 5"):
        model_proto(Graph([x], [ops.exp(x)]), opset=5)
    with pytest.raises(InputError, match="2 names"):
        model_proto(Graph([x], [ops.exp(x)]), outputs=["a", "b"])
    with pytest.raises(InputError, match="'a'"):
        model_proto(Graph([x], [ops.exp(x), ops.log(x)]), outputs=["a", "a"])
    code = g.input(TensorType((2,), dtypes.int4))
    with pytest.raises(UnsupportedOp, match="opset 17"):
        model_proto(Graph([code], [ops.cast(code, to=dtypes.float32)]), opset=17)


@pytest.mark.parametrize("opset", [17, 18, 20, 21, 23])
def test_older_opsets(opset):
    """Where an op is younger than the opset, its body is written."""
    x, w = floats(2, 3, 4, name="x"), floats(4, name="w")
    y = ops.rms_norm(ops.gelu(ops.layer_norm(x, w, axis=-1)), w, axis=-1)
    y = ops.group_norm(y, *[g.constant(np.arange(1, 4, dtype=np.float32))] * 2, groups=1)
    y = ops.mish(y) + ops.reduce_max(y, axes=(1,), keepdims=True) + ops.swish(y)
    graph = Graph([x, w], [y])
    proto = model_proto(graph, opset=opset)
    assert proto.opset_import[0].version == opset
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in ((2, 3, 4), (4,))]
    [want] = evaluate([y], dict(zip(graph.inputs, arrays, strict=True)))
    np.testing.assert_allclose(run(proto, *arrays)[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [models.perceptron, models.normalized])
def test_graphs_with_gradients(make):
    model = fr.load(make(), **PLACED)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 6) if make is models.perceptron else (4, 2, 5, 5)).astype(np.float32)
    names = [n for n in model.params if n not in model.origin.statistics]
    traced = model.trace({"x": x}, ("y",), frozenset(names))
    loss = ops.reduce_mean(traced.values["y"] * traced.values["y"], axes=(0, 1))
    flows = grad(loss, [traced.inputs[n] for n in (*names, "x")])
    inputs = ["x", *names]
    graph = Graph([traced.inputs[n] for n in inputs], [loss, *flows])
    proto = model_proto(graph, outputs=["loss", *[f"grad.{n}" for n in (*names, "x")]])
    got = run(proto, x, *[model.params[n] for n in names])
    differentiated = fr.value_and_grad(model, lambda o, t: ops.reduce_mean(o["y"] * o["y"], axes=(0, 1)), [*names, "x"])
    value, want = differentiated({"x": x}, {})
    np.testing.assert_allclose(got[0], value, rtol=1e-5)
    for n, found in zip((*names, "x"), got[1:], strict=True):
        np.testing.assert_allclose(found, want[n], rtol=1e-4, atol=1e-6, err_msg=n)


def bert():
    """Two layers of BERT with a classifier on top, without Dropout, whose random numbers are every runtime's own."""
    import torch

    from tests.torch_models import bert

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = bert("eager"), torch.nn.Linear(32, 5)

        def forward(self, ids):
            return self.head(self.body(ids, (ids != 0).long())[:, 0])

    torch.manual_seed(0)
    network = Classifier()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return network, lambda rng: np.where(np.arange(9) < rng.integers(3, 10, (4, 1)), rng.integers(1, 60, (4, 9)), 0)


RUNS = [
    *[(n, "AdamW", 50) for n in ("perceptron", "convolutional")],
    pytest.param("bert", "AdamW", 50, marks=pytest.mark.slow),
    *[(n, o, 20) for n in ("transformer", "recurrent") for o in ("AdamW", "SGD")],
    *[(n, "SGD", 20) for n in ("perceptron", "convolutional")],
]
"""Networks, optimizers and steps."""


@pytest.mark.parametrize(("name", "optimizer", "steps"), RUNS)
def test_another_runtime_trains_alike(tmp_path, name, optimizer, steps):
    """onnxruntime, on the whole step as one model: the same losses, and the same weights in the end."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("torch")
    network, draw = bert() if name == "bert" else models.torch_networks()[name]
    arguments = {"AdamW": {"lr": 3e-3, "eps": 1e-5}, "SGD": {"lr": 0.05, "momentum": 0.9}}[optimizer]
    if name == "bert":  # smooth but for its ReLUs, of which it has none, and slow in float64
        rng = np.random.default_rng(0)
        batches = [(x := draw(rng), rng.integers(0, 5, len(x))) for _ in range(steps)]
    else:
        batches = models.steady(network, draw, optimizer, arguments, steps, close=steps)
    model = fr.load(models.exported(network, batches[0][0]), **PLACED)
    trainer = fr.Trainer(model, "cross_entropy", getattr(fr.optim, optimizer)(**arguments), clip_norm=1.0)
    trainer.export_training_graph(tmp_path / "step.onnx", x=batches[0][0], target=batches[0][1])
    onnx.checker.check_model(onnx.load(tmp_path / "step.onnx"), full_check=True)
    session = runtime.InferenceSession(tmp_path / "step.onnx", providers=["CPUExecutionProvider"])
    state = {i.name: trainer.state[i.name] for i in session.get_inputs() if i.name in trainer.state}
    names = [o.name for o in session.get_outputs()]
    curve = []
    for x, t in batches:
        found = dict(zip(names, session.run(None, {"x": x, "target": t, **state}), strict=True))
        state.update({n.removesuffix(".new"): a for n, a in found.items() if n.endswith(".new")})
        curve.append(float(trainer.step(x, t)))
        np.testing.assert_allclose(found["loss"], curve[-1], atol=1e-4)
    assert state["flamert/steps"] == steps
    for n in (*trainer.trainable, *model.origin.statistics):
        np.testing.assert_allclose(state[n], trainer.state[n], rtol=1e-2, atol=1e-3, err_msg=n)
