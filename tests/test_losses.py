"""Losses and their gradients against torch."""

import numpy as np
import pytest

from flamert import graph as g
from flamert import losses
from flamert.errors import InputError, ShapeError
from flamert.grad import grad
from flamert.graph import TensorType
from flamert.ops.evaluate import evaluate

rng = np.random.default_rng(0)


def floats(*shape):
    return rng.standard_normal(shape)


def labels(high, *shape):
    return rng.integers(0, high, shape)


def chances(*shape):
    p = rng.random(shape)
    return p / p.sum(1, keepdims=True)


WEIGHT = [0.5, 1.0, 2.0, 0.1, 1.5]
ROWS = [
    (losses.CrossEntropy(), "cross_entropy", {}, floats(6, 5), labels(5, 6)),
    (losses.CrossEntropy(label_smoothing=0.2), "cross_entropy", {"label_smoothing": 0.2}, floats(6, 5, 3), labels(5, 6, 3)),
    (losses.CrossEntropy(ignore_index=2), "cross_entropy", {"ignore_index": 2}, floats(6, 5), np.array([0, 2, 1, 2, 4, 3])),
    (losses.CrossEntropy(WEIGHT), "cross_entropy", {"weight": WEIGHT}, floats(6, 5), labels(5, 6)),
    (
        losses.CrossEntropy(WEIGHT, reduction="sum"),
        "cross_entropy",
        {"weight": WEIGHT, "reduction": "sum"},
        floats(6, 5),
        labels(5, 6),
    ),
    (losses.CrossEntropy(label_smoothing=0.1), "cross_entropy", {"label_smoothing": 0.1}, floats(4, 5), chances(4, 5)),
    (losses.NLL(), "nll_loss", {}, floats(6, 5), labels(5, 6)),
    (losses.MSE(), "mse_loss", {}, floats(4, 3), floats(4, 3)),
    (losses.L1("sum"), "l1_loss", {"reduction": "sum"}, floats(4, 3), floats(4, 3)),
    (losses.Huber(0.7), "huber_loss", {"delta": 0.7}, floats(8, 3), floats(8, 3)),
    (losses.BCEWithLogits(), "binary_cross_entropy_with_logits", {}, floats(4, 3) * 20, rng.random((4, 3))),
    (
        losses.BCEWithLogits([2.0, 0.5, 1.0]),
        "binary_cross_entropy_with_logits",
        {"pos_weight": [2.0, 0.5, 1.0]},
        floats(4, 3),
        rng.random((4, 3)),
    ),
    (losses.KLDiv(), "kl_div", {"reduction": "batchmean"}, np.log(chances(4, 5)), chances(4, 5)),
    (
        losses.KLDiv("sum", True),
        "kl_div",
        {"reduction": "sum", "log_target": True},
        np.log(chances(4, 5)),
        np.log(chances(4, 5)),
    ),
]


def ours(loss, x, t):
    prediction, target = (g.input(TensorType(a.shape, a.dtype)) for a in (x, t))
    value = loss(prediction, target)
    return evaluate([value, *grad(value, [prediction])], {prediction: x, target: t})


@pytest.mark.parametrize(("loss", "name", "arguments", "x", "t"), ROWS)
def test_equals_torch(loss, name, arguments, x, t):
    torch = pytest.importorskip("torch")
    arguments = {k: torch.tensor(v, dtype=torch.float64) if isinstance(v, list) else v for k, v in arguments.items()}
    theirs = torch.from_numpy(x).requires_grad_()
    value = getattr(torch.nn.functional, name)(theirs, torch.from_numpy(t), **arguments)
    value.backward()
    got, slope = ours(loss, x, t)
    np.testing.assert_allclose(got, value.item(), rtol=1e-6)
    np.testing.assert_allclose(slope, theirs.grad.numpy(), rtol=1e-5, atol=1e-9)


def test_ctc_equals_torch():
    torch = pytest.importorskip("torch")
    x = floats(3, 7, 4)
    t = np.array([[1, 1, 2], [3, 2, -1], [1, -1, -1]])
    theirs = torch.from_numpy(x).requires_grad_()
    lengths = torch.tensor([3, 2, 1])
    value = torch.nn.functional.ctc_loss(
        theirs.log_softmax(2).transpose(0, 1), torch.from_numpy(np.maximum(t, 0)), torch.tensor([7] * 3), lengths
    )
    value.backward()
    from flamert import ops

    prediction, target = (g.input(TensorType(a.shape, a.dtype)) for a in (x, t))
    loss = losses.CTC()(ops.log_softmax(prediction, axis=2), target)
    got, slope = evaluate([loss, *grad(loss, [prediction])], {prediction: x, target: t})
    np.testing.assert_allclose(got, value.item(), rtol=1e-6)
    np.testing.assert_allclose(slope, theirs.grad.numpy(), rtol=1e-5, atol=1e-8)


def test_cosine_and_info_nce():
    torch = pytest.importorskip("torch")
    x, t = floats(4, 6), floats(4, 6)
    a, b = torch.from_numpy(x), torch.from_numpy(t)
    np.testing.assert_allclose(
        ours(losses.Cosine(), x, t)[0], (1 - torch.nn.functional.cosine_similarity(a, b)).mean().item(), rtol=1e-6
    )
    logits = torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T / 0.5
    np.testing.assert_allclose(
        ours(losses.InfoNCE(0.5), x, t)[0], torch.nn.functional.cross_entropy(logits, torch.arange(4)).item(), rtol=1e-6
    )


def test_mistakes_are_named():
    with pytest.raises(ShapeError):
        ours(losses.MSE(), floats(2, 3), floats(3, 2))
    with pytest.raises(ShapeError):
        ours(losses.CrossEntropy(), floats(2, 3), labels(3, 5))
    with pytest.raises(InputError):
        losses.by_name("hinge")
    assert isinstance(losses.by_name("cross_entropy"), losses.CrossEntropy)
