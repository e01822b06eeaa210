"""LSTMs on a GPU: kernels compile, whole layers and their gradients are the reference's, as emulated and on one."""

import numpy as np
import pytest

from flamert import dtypes
from flamert import graph as g
from flamert.graph import Graph, TensorType
from flamert.ops.cuda import copy, emit_lstm, lstm, reduce, shape
from flamert.ops.evaluate import apply
from flamert.ops.op import OPS, reference
from flamert.runtime.device import device
from flamert.runtime.plan import Plan
from tests import bound
from tests.emulated import Kernel
from tests.test_emit import compile_source, nvrtc

TYPES = [dtypes.float32, dtypes.float64]
SIZES = [(5, 3, 7, 33), (1, 2, 3, 4), (4, 1, 1, 2), (3, 9, 4, 16)]


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
def test_kernels_compile(dtype):
    lib, include = nvrtc()
    for some in (False, True):
        sources = emit_lstm.step(dtype, some), emit_lstm.walk(dtype, some, not some), emit_lstm.back(dtype, some)
        for source in sources:
            compile_source(lib, include, source)


def layer(sizes, direction, given, dtype):
    """Operands of a layer and of its gradient. given: how many of the optional ones there are."""
    t, b, i, h = sizes
    d = 2 if direction == "bidirectional" else 1
    rng = np.random.default_rng(0)

    def random(*shape):
        return (rng.standard_normal(shape) * 0.5).astype(dtype)

    states = [random(d, b, h), random(d, b, h)] if given == 2 else [None, None]
    operands = [random(t, b, i), random(d, 4 * h, i), random(d, 4 * h, h), random(d, 8 * h) if given else None, None, *states]
    flows = [[None, random(d, b, h)], [random(t, d, b, h)], [random(t, d, b, h), random(d, b, h), random(d, b, h)]][given]
    y = wanted("lstm", operands, direction)[0]
    return operands, [*operands[:3], y, *operands[3:], None, *flows]


def wanted(op, operands, direction):
    node = bound.node_of(op, operands, {"direction": direction})
    return apply(node, operands[: len(node.inputs)], kernel=reference(OPS[op]))


def near(results, expected, dtype):
    tolerance = 1e-4 if dtype == dtypes.float32 else 1e-11
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * (1 + np.abs(want).max()))


def multiplier(site, a, b, out, tuned):
    """NumPy's product, for operands that lie like those that it was made for."""
    lying = [(x.shape, x.strides) for x in (a, b, out)]

    def multiply(a, b, out):
        assert [(x.shape, x.strides) for x in (a, b, out)] == lying
        return lambda: np.matmul(a.array, b.array, out=out.array)

    return multiply


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("given", [0, 1, 2])
def test_layers_as_emulated(direction, given, dtype, monkeypatch):
    for module in (copy, lstm, reduce, shape):
        monkeypatch.setattr(module, "compiled", Kernel)
    monkeypatch.setattr(lstm, "multiplier", multiplier)
    for sizes in SIZES[: 4 if dtype == dtypes.float32 else 1]:
        for op, operands in zip(("lstm", "lstm_gradient"), layer(sizes, direction, given, dtype), strict=True):
            near(bound.run(op, operands, {"direction": direction}), wanted(op, operands, direction), dtype)


@pytest.mark.parametrize(("given", "taken"), [({}, True), ({"clip": 1.0}, False), ({"input_forget": True}, False)])
def test_what_the_kernels_leave_to_others(given, taken):
    for op, operands in zip(("lstm", "lstm_gradient"), layer(SIZES[0], "forward", 1, dtypes.float32), strict=True):
        assert (bound.node_of(op, operands, given).op.kernel_for(bound.node_of(op, operands, given), "cupy").bind) == taken
        at = 4 if op == "lstm" else 5
        for number, extra in ((at, np.full(3, 5)), (at + 3, np.zeros((1, 99), np.float32))):
            more = [*operands, *[None] * 12][: 12 if op == "lstm_gradient" else 8]
            more[number] = extra
            node = bound.node_of(op, more, given)
            assert node.op.kernel_for(node, "cupy").backend is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("given", [0, 1, 2])
def test_layers(direction, given, dtype):
    on = device("cuda")
    for sizes in [*SIZES, (16, 32, 64, 128)]:
        for op, operands in zip(("lstm", "lstm_gradient"), layer(sizes, direction, given, dtype), strict=True):
            present = [x for x in operands if x is not None]
            values = [None if x is None else g.input(TensorType(x.shape, x.dtype)) for x in operands]
            graph = Graph([v for v in values if v is not None], OPS[op].node(tuple(values), {"direction": direction}).outputs)
            for hot in (False, True):
                plan = Plan(graph, on, hot=hot)
                assert plan.steps[-1].kernel.backend == "cupy"
                for _ in range(3):
                    found = [on.download(y, dtype) for y in plan(*map(on.upload, present))]
                    near(found, wanted(op, operands, direction), dtype)
                assert plan.obstacle is None
