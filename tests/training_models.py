"""Small models to train, written in ONNX, and their twins in PyTorch."""

import copy
import io
import warnings

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def built(nodes, inputs, outputs, weights, opset=21):
    """A ModelProto. inputs, outputs: name → (element type, shape)."""
    infos = [[helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in ends.items()] for ends in (inputs, outputs)]
    tensors = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    return helper.make_model(
        helper.make_graph(nodes, "trained", *infos, tensors), opset_imports=[helper.make_opsetid("", opset)], ir_version=10
    )


def perceptron(drops=False, features=6, hidden=8, classes=3, seed=0):
    """Two layers; with `drops` a Dropout between them, in the form that inference has."""
    rng = np.random.default_rng(seed)
    weights = {
        "a.weight": rng.standard_normal((features, hidden), np.float32) * 0.5,
        "a.bias": np.zeros(hidden, np.float32),
        "b.weight": rng.standard_normal((hidden, classes), np.float32) * 0.5,
        "b.bias": np.zeros(classes, np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "a.weight", "a.bias"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="rectify"),
        helper.make_node("Gemm", ["d" if drops else "r", "b.weight", "b.bias"], ["y"], name="second"),
    ]
    if drops:
        ratio = numpy_helper.from_array(np.float32(0.3))
        nodes[2:2] = [
            helper.make_node("Constant", [], ["ratio"], value=ratio),
            helper.make_node("Dropout", ["r", "ratio"], ["d"], name="drop"),
        ]
    return built(nodes, {"x": (FLOAT, ["N", features])}, {"y": (FLOAT, ["N", classes])}, weights)


def normalized(opset=21):
    """A convolution, a BatchNormalization in the form that inference has, and a mean over the image."""
    rng = np.random.default_rng(0)
    weights = {
        "conv.weight": rng.standard_normal((4, 2, 3, 3), np.float32) * 0.3,
        "norm.weight": np.ones(4, np.float32),
        "norm.bias": np.zeros(4, np.float32),
        "norm.mean": np.zeros(4, np.float32),
        "norm.var": np.ones(4, np.float32),
        "head.weight": rng.standard_normal((4, 3), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Identity", ["norm.mean"], ["same.mean"]),
        helper.make_node("BatchNormalization", ["c", "norm.weight", "norm.bias", "same.mean", "norm.var"], ["n"], momentum=0.8),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "head.weight"], ["y"]),
    ]
    return built(nodes, {"x": (FLOAT, ["N", 2, "H", "W"])}, {"y": (FLOAT, ["N", 3])}, weights, opset)


def rows(n=40, batch=8, features=6, classes=3, seed=1):
    """Batches whose classes can be learnt."""
    rng = np.random.default_rng(seed)
    rule = rng.standard_normal((features, classes))
    x = rng.standard_normal((n, batch, features)).astype(np.float32)
    return [(a, (a @ rule).argmax(1)) for a in x]


def exported(network, example):
    """A torch module as ONNX with its weights as they are and its BatchNormalization nodes in the form of inference."""
    import torch

    buffer = io.BytesIO()
    network.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.from_numpy(example),),
            buffer,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
        )
    proto = onnx.load_from_string(buffer.getvalue())
    for node in proto.graph.node:
        if node.op_type == "BatchNormalization":
            kept = [a for a in node.attribute if a.name != "training_mode"]
            del node.attribute[:], node.output[1:]
            node.attribute.extend(kept)
    return proto


def torch_networks():
    """name → (module, how to draw an example, how many classes)."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        """A transformer block on embedded words."""

        def __init__(self, size=32, heads=4):
            super().__init__()
            self.heads = heads
            self.words = nn.Embedding(50, size)
            self.norm1, self.qkv, self.out = nn.LayerNorm(size), nn.Linear(size, 3 * size), nn.Linear(size, size)
            self.norm2, self.up, self.down = nn.LayerNorm(size), nn.Linear(size, 4 * size), nn.Linear(4 * size, size)
            self.head = nn.Linear(size, 5)

        def forward(self, ids):
            x = self.words(ids)
            b, l, d = x.shape
            q, k, v = (
                t.view(b, l, self.heads, d // self.heads).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1)
            )
            y = torch.softmax(q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5, dim=-1) @ v
            x = x + self.out(y.transpose(1, 2).reshape(b, l, d))
            return self.head((x + self.down(F.gelu(self.up(self.norm2(x))))).mean(1))

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(50, 16)
            self.lstm, self.head = nn.LSTM(16, 16, batch_first=True, bidirectional=True), nn.Linear(32, 5)

        def forward(self, ids):
            return self.head(self.lstm(self.words(ids))[0].mean(1))

    torch.manual_seed(0)
    perceptron = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5))
    convolutional = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    )
    return {
        "perceptron": (perceptron, lambda r: r.standard_normal((8, 16), "f")),
        "convolutional": (convolutional, lambda r: r.standard_normal((8, 3, 16, 16), "f")),
        "transformer": (Block(), lambda r: r.integers(0, 50, (8, 12))),
        "recurrent": (Recurrent(), lambda r: r.integers(0, 50, (8, 12))),
    }


def torch_curve(network, batches, optimizer, arguments, double=False, moved=None):
    """PyTorch's losses on the way, with gradients clipped to a norm of 1. The network itself stays as it is.

    double: in float64. moved: seed of noise, a millionth of each weight, that is put on them first.
    """
    import torch

    torch.set_num_threads(1)  # these networks are too small to be shared
    network = copy.deepcopy(network).train()
    network = network.double() if double else network
    if moved is not None:
        noise = torch.Generator().manual_seed(moved)
        with torch.no_grad():
            for p in network.parameters():
                p.mul_(1 + 1e-6 * torch.randn(p.shape, generator=noise, dtype=p.dtype))
    descent = getattr(torch.optim, optimizer)(network.parameters(), **arguments)
    curve = []
    for x, t in batches:
        x = torch.from_numpy(x.astype(np.float64) if double and x.dtype.kind == "f" else x)
        descent.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(x), torch.from_numpy(t))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        descent.step()
        curve.append(loss.item())
    return np.array(curve)


def steady(network, draw, optimizer, arguments, steps, close=20):
    """The first random batches on which this training is a question with an answer: PyTorch's own curve in float64 hardly
    changes (10⁻⁵ up to step `close`, 5·10⁻³ in the end) where weights begin a millionth apart, more than float32 rounds them.

    With ReLUs it often is none: an element that is zero but for rounding falls on either side, and two runs part from there.
    """
    for seed in range(30):
        rng = np.random.default_rng(seed)
        batches = [(x := draw(rng), rng.integers(0, 5, len(x))) for _ in range(steps)]
        curve = torch_curve(network, batches, optimizer, arguments, double=True)
        others = (torch_curve(network, batches, optimizer, arguments, double=True, moved=i) for i in range(10))
        aparts = (abs(other - curve) / curve for other in others)
        if all(apart[:close].max() < 1e-5 and apart.max() < 5e-3 for apart in aparts):
            return batches
    raise AssertionError("no batches on which training could be compared")
