"""Results that are made again in the backward pass: the same numbers from less memory."""

import numpy as np
import pytest

import flamert as fr
from flamert.passes.recompute import recompute
from tests import training_models as models

rng = np.random.default_rng(0)


def trained(proto, x, t, again, steps=4, loss="cross_entropy"):
    trainer = fr.Trainer(fr.load(proto, device="cpu"), loss, fr.optim.AdamW(1e-2), recompute=again)
    losses = [float(trainer.step(x, t)) for _ in range(steps)]
    [[planned]] = trainer.plans._known.values()
    return losses, trainer.state.snapshot(), planned.plan


def deep():
    """Layers of a product and a GELU, written out as exporters do."""
    import onnx
    from onnx import helper

    own = np.random.default_rng(1)
    weights, nodes, x = {"half": np.float32(0.5), "one": np.float32(1), "root": np.float32(0.5**0.5)}, [], "x"
    for i in range(6):
        weights[f"w{i}"] = own.standard_normal((32, 32)).astype(np.float32) * 0.3
        nodes += [
            helper.make_node("MatMul", [x, f"w{i}"], [f"h{i}"]),
            helper.make_node("Mul", [f"h{i}", "root"], [f"s{i}"]),
            helper.make_node("Erf", [f"s{i}"], [f"e{i}"]),
            helper.make_node("Add", [f"e{i}", "one"], [f"p{i}"]),
            helper.make_node("Mul", [f"h{i}", f"p{i}"], [f"q{i}"]),
            helper.make_node("Mul", [f"q{i}", "half"], [f"a{i}"]),
        ]
        x = f"a{i}"
    float_ = onnx.TensorProto.FLOAT
    return models.built(nodes, {"x": (float_, ["N", 32])}, {x: (float_, ["N", 32])}, weights)


def test_the_same_numbers_from_less_memory():
    x, t = rng.standard_normal((512, 32)).astype(np.float32), rng.integers(0, 32, 512)
    (losses, state, kept), (others, same, again) = (trained(deep(), x, t, r) for r in (None, True))
    assert losses == others
    for name, array in state.items():
        np.testing.assert_array_equal(array, same[name], err_msg=name)
    assert again.nbytes < 0.8 * kept.nbytes and len(again.steps) > len(kept.steps)


@pytest.mark.parametrize("name", ["convolutional", "transformer", "recurrent"])
def test_networks_of_all_kinds(name):
    pytest.importorskip("torch")
    network, draw = models.torch_networks()[name]
    x, t = draw(rng), rng.integers(0, 5, 8)
    proto = models.exported(network, x)
    (losses, state, kept), (others, same, again) = (trained(proto, x, t, r) for r in (None, True))
    assert losses == others and again.nbytes <= kept.nbytes
    for key, array in state.items():
        np.testing.assert_array_equal(array, same[key], err_msg=key)


def test_without_a_backward_pass_nothing_changes():
    x, t = rng.standard_normal((8, 32)).astype(np.float32), rng.integers(0, 32, 8)
    plan = trained(deep(), x, t, None, 1)[2]
    graph = plan.graph
    assert recompute(type(graph)(graph.inputs, graph.outputs[:1]), graph.outputs[0]).outputs == graph.outputs[:1]
