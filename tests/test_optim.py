"""Optimizers against torch over 20 steps, schedules against their formulas, clipping, groups."""

import math

import numpy as np
import pytest

from flamert import graph as g
from flamert import optim
from flamert.errors import InputError
from flamert.graph import TensorType
from flamert.ops.evaluate import evaluate

ROWS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    ("Adam", {"lr": 0.02}),
    ("Adam", {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1, "amsgrad": True}),
    ("AdamW", {"lr": 0.02, "weight_decay": 0.2}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.01, "initial_accumulator_value": 0.1}),
    ("RMSprop", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.1}),
    ("Adamax", {"lr": 0.01, "weight_decay": 0.1}),
    ("NAdam", {"lr": 0.01, "weight_decay": 0.1}),
    ("RAdam", {"lr": 0.01, "weight_decay": 0.1}),
    ("Adafactor", {"lr": 0.05, "weight_decay": 0.1}),
]


def descend(optimizer, start, target, steps):
    """`steps` updates of float64 arrays on the loss Σ (p − target)² · weights, by evaluating the emitted ops."""
    out = []
    for k, (p, t) in enumerate(zip(start, target, strict=True)):
        options = optimizer.options(f"p{k}")
        state = optimizer.init(TensorType(p.shape, p.dtype), options)
        for i in range(steps):
            value, grad = g.input(TensorType(p.shape, p.dtype)), g.input(TensorType(p.shape, p.dtype))
            held = {n: g.input(TensorType(a.shape, a.dtype)) for n, a in state.items()}
            step = g.constant(np.float32(i + 1))
            lr = optimizer.schedule(f"p{k}").value(g.constant(np.float32(i)))
            new, kept = optimizer.update(value, grad, held, lr, step, options)
            feeds = {value: p, grad: 2 * (p - t), **{held[n]: state[n] for n in state}}
            p, *rest = evaluate([new, *kept.values()], feeds)
            state = dict(zip(kept, rest, strict=True))
        out.append(p)
    return out


@pytest.mark.parametrize(("name", "arguments"), ROWS, ids=lambda x: x if isinstance(x, str) else ",".join(x))
def test_equals_torch(name, arguments):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start, target = ([rng.standard_normal(s) for s in ((3, 4), (5,))] for _ in range(2))
    params = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in start]
    theirs = getattr(torch.optim, name)(params, **arguments)
    for _ in range(20):
        theirs.zero_grad()
        sum(((p - torch.from_numpy(t)) ** 2).sum() for p, t in zip(params, target, strict=True)).backward()
        theirs.step()
    ours = descend(getattr(optim, name)(**arguments), start, target, 20)
    for p, q in zip(ours, params, strict=True):
        np.testing.assert_allclose(p, q.detach().numpy(), rtol=1e-6, atol=1e-6)


def test_lion_and_lamb_by_hand():
    p, t = np.array([1.0, -2.0]), np.array([0.0, 0.0])
    (lion,) = descend(optim.Lion(lr=0.1, weight_decay=0.5), [p], [t], 1)
    np.testing.assert_allclose(lion, p * 0.95 - 0.1 * np.sign(p), rtol=1e-6)
    (lamb,) = descend(optim.LAMB(lr=0.1), [p], [t], 1)
    np.testing.assert_allclose(lamb, p - 0.1 * np.linalg.norm(p) / math.sqrt(2) * np.sign(p), rtol=1e-5)


def test_schedules():
    assert optim.linear(1.0, 10, 0.5)(5) == pytest.approx(0.75)
    assert optim.cosine(1.0, 10)(5) == pytest.approx(0.5)
    assert optim.cosine(1.0, 10, 0.1)(99) == pytest.approx(0.1)
    assert [optim.step(1.0, 3, 0.5)(t) for t in (0, 2, 3, 6)] == pytest.approx([1, 1, 0.5, 0.25])
    assert optim.exponential(2.0, 0.9)(3) == pytest.approx(2 * 0.9**3)
    assert optim.polynomial(1.0, 10, 2.0)(5) == pytest.approx(0.25)
    warm = optim.warmup_cosine(1.0, 4, 12)
    assert [warm(t) for t in (0, 2, 4, 8, 12)] == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-6)


@pytest.mark.parametrize("t", [0, 10, 29, 50, 99])
def test_one_cycle_equals_torch(t):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=100, cycle_momentum=False)
    for _ in range(t):
        optimizer.step()
        schedule.step()
    assert optim.one_cycle(0.1, 100)(t) == pytest.approx(schedule.get_last_lr()[0], rel=1e-3, abs=1e-8)


def test_clipping():
    grads = [g.constant(np.array([3.0, 0.0], np.float32)), g.constant(np.array([[4.0]], np.float32))]
    assert float(evaluate([optim.global_norm(grads)])[0]) == pytest.approx(5)
    clipped = evaluate(optim.clip_by_global_norm(grads, 1.0))
    assert [c.max() for c in clipped] == pytest.approx([0.6, 0.8], rel=1e-5)
    np.testing.assert_array_equal(evaluate(optim.clip_by_global_norm(grads, 10.0))[0], [3, 0])


def test_groups_and_exclusions():
    optimizer = optim.AdamW(1e-3, groups=[{"params": "head.*", "lr": 1e-2}], no_decay=["*.bias"])
    assert optimizer.options("head.weight")["lr"] == 1e-2
    assert optimizer.options("body.weight")["lr"] == 1e-3
    assert optimizer.options("head.bias")["weight_decay"] == 0
    with pytest.raises(InputError):
        optim.SGD(groups=[{"params": "*", "beta": 1}])
    with pytest.raises(InputError):
        optim.SGD(-1.0)
