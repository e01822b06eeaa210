"""Networks exported by PyTorch's two exporters, against onnxruntime, at two sizes; and what was recognised in them."""

import warnings
from collections import Counter

import numpy as np
import pytest

import flamert as fr

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

from tests import torch_models as nets  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def normal(*shape):
    return torch.randn(shape)


def integers(high, *shape):
    return torch.randint(0, high, shape)


def padded(b, l):
    """A mask whose last row ends early."""
    mask = torch.ones(b, l, dtype=torch.long)
    mask[-1, -2:] = 0
    return mask


def cached(b, l, past):
    return integers(50, b, l), *[normal(b, 2, past, 8) for _ in range(4)]


CACHE = {f"{kind}{i}": {0: "batch", 2: "past"} for i in (0, 1) for kind in ("key", "value")}
TOKENS = {0: "batch", 1: "length"}
LLAMA = {"ids": TOKENS, **CACHE}
BERT = {"ids": TOKENS, "mask": TOKENS}, [(integers(50, 2, 7), padded(2, 7)), (integers(50, 3, 12), padded(3, 12))]
NETWORKS = {
    "resnet": (nets.ResNet, {"x": {0: "batch", 2: "height", 3: "width"}}, [(normal(2, 3, 32, 64),), (normal(3, 3, 64, 48),)]),
    "unet": (
        nets.UNet,
        {"x": {0: "batch", 2: "height"}, "time": {0: "batch"}},
        [(normal(2, 3, 16, 16), integers(900, 2)), (normal(3, 3, 32, 16), integers(900, 3))],
    ),
    "lstm": (nets.LSTMClassifier, {"ids": TOKENS}, [(integers(50, 2, 7),), (integers(50, 3, 12),)]),
    "llama": (nets.Llama, LLAMA, [cached(2, 7, 5), cached(3, 1, 9)]),
    "llama fused": (lambda: nets.Llama(fused=True), LLAMA, [cached(2, 7, 5), cached(3, 4, 9)]),
    "bert": (nets.bert, *BERT),
    "bert eager": (lambda: nets.bert("eager"), *BERT),
    "gpt2": (nets.gpt2, {"ids": TOKENS}, [(integers(50, 2, 7),), (integers(50, 3, 12),)]),
    "vit": (nets.vit, {"x": {0: "batch"}}, [(normal(2, 3, 32, 32),), (normal(3, 3, 32, 32),)]),
}
"""By name: what makes the network, its inputs with their dynamic axes, and arguments of two sizes."""

LAYERS = {
    "resnet": {},
    "unet": {"attention": 1, "group_norm": 12, "swish": 13},
    "lstm": {"lstm": 2},
    "llama": {"attention": 2, "rms_norm": 5, "swish": 2},
    "llama fused": {"attention": 2, "rms_norm": 5, "swish": 2},
    "bert": {"attention": 2, "layer_norm": 5, "gelu": 2},
    "bert eager": {"attention": 2, "layer_norm": 5, "gelu": 2},
    "gpt2": {"attention": 2, "layer_norm": 5, "gelu_tanh": 2},
    "vit": {"attention": 2, "layer_norm": 5, "gelu": 2},
}
"""How many of which ops each network has; its file may have none of them."""


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("name", NETWORKS)
def test_exported_network(name, dynamo, tmp_path):
    make, axes, sizes = NETWORKS[name]
    torch.manual_seed(0)
    path = export(make().eval(), sizes[0], axes, dynamo, tmp_path / "exported.onnx")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    model = fr.load(path, device="cpu")
    for arguments in sizes:
        feeds = {k: x.numpy() for k, x in zip(axes, arguments, strict=True)}
        expected = session.run(None, feeds)
        for _ in range(4):  # the first plan, and the one that follows when it is hot
            for (output, got), want in zip(model.run(feeds).items(), expected, strict=True):
                assert got.dtype == want.dtype
                np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5, err_msg=f"{name}: {output}")
    for program, _ in model._programs.values():
        found = sum((census(stage.plan.graph) for stage in program.stages() if stage.plan is not None), Counter())
        assert {op: found[op] for op in LAYERS[name]} == LAYERS[name]


def export(network, arguments, axes, dynamo, path):
    """The network as an ONNX file with these inputs and dynamic axes."""
    if dynamo:
        dims = [dict.fromkeys(named, torch.export.Dim.DYNAMIC) for named in axes.values()]
        options = {"dynamic_shapes": dims, "external_data": False, "verbose": False}
    else:
        options = {"dynamic_axes": axes, "opset_version": 17}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, arguments, path, dynamo=dynamo, input_names=list(axes), **options)
    return str(path)


def census(graph):
    """Ops of a prepared graph, with those inside chains and the activations of products."""
    found = Counter()
    for node in graph.nodes:
        steps = [step.op for step in node.attrs["program"]] if node.op.name == "pointwise" else [node.op.name]
        found.update([*steps, node.attrs.get("activation", "")])
    return found
