"""Networks of `models/`: what is built is valid ONNX, the same under another runtime at any size, and can be trained."""

import numpy as np
import onnx
import pytest

import flamert as fr
from models import command
from models.digits import digits
from models.mlp.make import CONFIGURATIONS as MLPS
from models.mlp.make import mlp
from models.resnet.make import CONFIGURATIONS as RESNETS
from models.resnet.make import resnet
from models.unet.make import CONFIGURATIONS as UNETS
from models.unet.make import unet
from models.vit.make import CONFIGURATIONS as VITS
from models.vit.make import vit

TINY = {
    "mlp": mlp(**MLPS["tiny"]),
    "resnet": resnet(**RESNETS["tiny"]),
    "vit": vit(**VITS["tiny"]),
    "unet": unet(**UNETS["tiny"]),
}


def drawn(network, batch, seed=0):
    """Inputs of a batch."""
    rng = np.random.default_rng(seed)
    shapes = {
        name: (dtype, [d if isinstance(d, int) else batch for d in dims]) for name, (dtype, dims) in network.inputs.items()
    }
    return {
        name: rng.standard_normal(shape, "f") if dtype == np.float32 else rng.integers(1, 9, shape)
        for name, (dtype, shape) in shapes.items()
    }


def stirred(model, seed=0):
    """The model with other weights: no layer starts from zero, no running statistic is 0 or 1."""
    rng = np.random.default_rng(seed)
    for name, w in model.params.items():
        if w.dtype == np.float32 and not name.startswith("/"):
            model.params[name] = (
                abs(w + 0.1 * rng.standard_normal(w.shape, "f"))
                if name.endswith("var")
                else w + 0.1 * (rng.standard_normal(w.shape, "f"))
            )
    return model


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("family", TINY)
def test_other_runtimes_agree_at_any_batch_size(tmp_path, family, opset):
    runtime = pytest.importorskip("onnxruntime")
    network, path = TINY[family], tmp_path / "tiny.onnx"
    network.save(path, opset)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    model = stirred(fr.load(path, device="cpu"))
    model.save(path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        inputs = drawn(network, batch)
        [want] = session.run(None, inputs)
        assert want.shape[0] == batch and want.std() > 1e-3
        np.testing.assert_allclose(model.run(inputs)[network.outputs[0]], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", TINY)
def test_training_lowers_the_loss(family):
    network = TINY[family]
    model = fr.load(network.proto(), device="cpu")
    inputs = drawn(network, 8)
    trainer = fr.Trainer(model, "mse" if family == "unet" else "cross_entropy", fr.optim.Adam(lr=1e-2))
    learnt = {name for name, p in network.parameters.items() if p.trains}
    assert set(trainer.trainable) == learnt
    targets = inputs["image"] if family == "unet" else np.arange(8) % 3
    before = {name: model.params[name].copy() for name in learnt}
    losses = [float(trainer.step(inputs, targets)) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    # Layers that start from zero let nothing through at first, but must not stay so. A bias of all keys no softmax can see.
    still = {name for name, w in before.items() if np.abs(model.params[name] - w).max() < 1e-3}
    assert all(name.endswith("key.bias") for name in still), still


@pytest.mark.parametrize(
    ("network", "size"),
    [
        (resnet(**RESNETS["18"]), 11_689_512),
        (resnet(**RESNETS["34"]), 21_797_672),
        (resnet(**RESNETS["50"]), 25_557_032),
        (resnet(**RESNETS["101"]), 44_549_160),
        (vit(**VITS["s16"]), 22_050_664),
        (vit(**VITS["b16"]), 86_567_656),
        (vit(**VITS["l16"]), 304_326_632),
        (unet(**UNETS["cifar"]), 35_746_307),
    ],
)
def test_sizes_are_the_published_ones(network, size):
    assert network.size == size


def test_parameters_depend_on_their_names_and_the_seed():
    one, same, other = (mlp(**MLPS["tiny"], seed=seed).initial() for seed in (3, 3, 4))
    assert list(one) == ["layer0.weight", "layer0.bias", "head.weight", "head.bias"]
    for name in one:
        np.testing.assert_array_equal(one[name], same[name])
    deeper = mlp(6, (8, 8), 3, seed=3).initial()
    np.testing.assert_array_equal(deeper["head.weight"], one["head.weight"])
    assert not np.array_equal(one["head.weight"], other["head.weight"])


TWINS = {
    "basic": {"blocks": (2, 1), "side": 32, "classes": 7},
    "bottlenecks": {"blocks": (2, 1), "deep": True, "side": 32, "classes": 7},
    "resnet50": {**RESNETS["50"], "side": 64, "classes": 1000},
    "vit": {"side": 32, "patch": 8, "width": 48, "depth": 2, "heads": 3, "classes": 7},
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name == "resnet50" else ()) for name in TWINS])
def test_torch_twins_compute_the_same(name):
    torch = pytest.importorskip("torch")
    from tests.torch_twins import ResNet, ViT

    sizes = TWINS[name]
    if name == "vit":
        network, twin = vit(**sizes), ViT(**sizes)
    else:
        network, twin = resnet(**sizes), ResNet(sizes["blocks"], sizes.get("deep", False), sizes["classes"])
    state = twin.state_dict()
    assert {n for n in state if not n.endswith("num_batches_tracked")} == network.parameters.keys()
    generator = torch.Generator().manual_seed(0)
    for name in network.parameters:
        w = state[name]
        w += 0.1 * torch.randn(w.shape, generator=generator).abs()
    twin.load_state_dict(state)
    model = fr.load(network.proto(weights={n: w.numpy() for n, w in state.items()}), device="cpu")
    [inputs] = drawn(network, 2).values()
    want = twin.eval()(torch.from_numpy(inputs)).detach().numpy()
    np.testing.assert_allclose(model(inputs), want, rtol=1e-3, atol=1e-4 * abs(want).max())


def test_files_are_made_from_the_command_line(tmp_path, monkeypatch, capsys):
    path = tmp_path / "tiny.onnx"
    monkeypatch.setattr("sys.argv", ["make.py", str(path), "--size", "tiny", "--seed", "3", "--opset", "18"])
    command.make(mlp, MLPS)
    assert capsys.readouterr().out == f"{path}: 83 parameters\n"
    proto = onnx.load(path)
    assert proto.opset_import[0].version == 18
    assert proto.SerializeToString() == mlp(**MLPS["tiny"], seed=3).proto(18).SerializeToString()


def test_drawn_digits_are_the_same_everywhere():
    pictures, labels = digits(300, 12, seed=1)
    assert pictures.shape == (300, 1, 12, 12) and pictures.dtype == np.float32 and abs(pictures).max() == 1
    again, _ = digits(300, 12, seed=1)
    np.testing.assert_array_equal(pictures, again)
    # The mean pictures of the ten digits tell most pictures apart.
    means = np.stack([pictures[labels == d].mean(0) for d in range(10)]).reshape(10, -1)
    nearest = ((pictures.reshape(300, 1, -1) - means) ** 2).sum(2).argmin(1)
    assert (nearest == labels).mean() > 0.6
