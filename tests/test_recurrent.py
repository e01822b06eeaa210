"""RNN, GRU and LSTM as models: options that the suite leaves out, against onnxruntime; and the quantized LSTM."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from flamert import onnx_backend

ort = pytest.importorskip("onnxruntime")
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
T, B, I, H = 5, 3, 4, 6


def model_of(op, inputs, weights, outputs, opset=14, domain="", **attrs):
    """A model of one node; `inputs` and `weights` together are its operands in order, None where left out."""
    node = helper.make_node(op, [k if v is not None else "" for k, v in inputs.items()], outputs, domain=domain, **attrs)
    given = {k: v for k, v in inputs.items() if v is not None}
    graph = helper.make_graph(
        [node],
        "layer",
        [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in given.items()
            if k not in weights
        ],
        [helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, None) for o in outputs],
        [onnx.numpy_helper.from_array(given[k], k) for k in weights],
    )
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=8), {k: v for k, v in given.items() if k not in weights}


def both(model, feeds):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx_backend.prepare(model).run(list(feeds.values())), session.run(None, feeds)


def layer(op, seed, sides=1, peepholes=False):
    rng = np.random.default_rng(seed)
    g = GATES[op]
    shapes = {"X": (T, B, I), "W": (sides, g * H, I), "R": (sides, g * H, H), "B": (sides, 2 * g * H)}
    operands = {k: rng.uniform(-1, 1, s).astype(np.float32) for k, s in shapes.items()}
    operands["lens"] = np.array([2, T, 3], np.int32)
    for k in ("h", "c") if op == "LSTM" else ("h",):
        operands[k] = rng.uniform(-1, 1, (sides, B, H)).astype(np.float32)
    if peepholes:
        operands["P"] = rng.uniform(-1, 1, (sides, 3 * H)).astype(np.float32)
    return operands


OPTIONS = [
    *[(op, {"clip": 0.3}) for op in GATES],
    *[(op, {"direction": "reverse", "clip": 0.5}) for op in GATES],
    *[(op, {"direction": "bidirectional"}) for op in GATES],
    ("GRU", {"linear_before_reset": 1, "direction": "bidirectional"}),
    ("LSTM", {"input_forget": 1, "direction": "bidirectional"}),
    ("RNN", {"activations": ["LeakyRelu"]}),
    ("GRU", {"activations": ["HardSigmoid", "Softsign"], "activation_alpha": [0.3], "activation_beta": [0.4]}),
    (
        "LSTM",
        {
            "activations": ["HardSigmoid", "Affine", "Elu"],
            "activation_alpha": [0.3, 0.7, 0.5],
            "activation_beta": [0.4, 0.1],
        },
    ),
]


@pytest.mark.parametrize(("op", "attrs"), OPTIONS, ids=str)
@pytest.mark.parametrize("peepholes", [False, True])
def test_options(op, attrs, peepholes):
    if peepholes and op != "LSTM":
        pytest.skip("only LSTM has peepholes")
    operands = layer(op, 0, 2 if attrs.get("direction") == "bidirectional" else 1, peepholes)
    outputs = ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2]
    model, feeds = model_of(op, operands, ("W", "R", "B"), outputs, hidden_size=H, **attrs)
    for got, want in zip(*both(model, feeds), strict=True):
        np.testing.assert_allclose(got, want, 1e-5, 1e-6)


@pytest.mark.parametrize("op", GATES)
def test_batch_major_layout(op):
    operands = layer(op, 1)
    outputs = ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2]
    model, feeds = model_of(op, operands, (), outputs, hidden_size=H)
    y, *states = onnx_backend.prepare(model).run(list(feeds.values()))
    turned = {k: v.swapaxes(0, 1) if k in "Xhc" else v for k, v in operands.items()}
    model, feeds = model_of(op, turned, (), outputs, hidden_size=H, layout=1)
    y_turned, *states_turned = onnx_backend.prepare(model).run(list(feeds.values()))
    np.testing.assert_array_equal(y_turned, y.transpose(2, 0, 1, 3))
    for turned_state, state in zip(states_turned, states, strict=True):
        np.testing.assert_array_equal(turned_state, state.swapaxes(0, 1))


@pytest.mark.parametrize("per_gate", [False, True])
def test_quantized_lstm(per_gate):
    """Weights keep to 7 bits: on processors without 8-bit dot products onnxruntime saturates sums of larger ones."""
    rng = np.random.default_rng(2)
    operands = {k: v for k, v in layer("LSTM", 2).items() if k != "lens"}
    scale, zero = (
        np.full((1, 4 * H) if per_gate else (1,), 0.01, np.float32),
        np.zeros((1, 4 * H) if per_gate else (1,), np.int8),
    )
    inputs = {
        "X": operands["X"],
        "W": rng.integers(-63, 64, (1, I, 4 * H)).astype(np.int8),
        "R": rng.integers(-63, 64, (1, H, 4 * H)).astype(np.int8),
        "B": operands["B"],
        "lens": None,
        "h": operands["h"],
        "c": operands["c"],
        "P": None,
        **{"Ws": scale, "Wz": zero, "Rs": scale * 2, "Rz": zero},
    }
    weights = ("W", "R", "B", "Ws", "Wz", "Rs", "Rz")
    model, feeds = model_of("DynamicQuantizeLSTM", inputs, weights, ["Y", "Y_h", "Y_c"], domain="com.microsoft", hidden_size=H)
    for got, want in zip(*both(model, feeds), strict=True):
        np.testing.assert_allclose(got, want, 1e-4, 1e-5)
