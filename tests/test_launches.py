"""Launches of chains: over operands that lie any way, and many of one kernel as one, where that changes nothing."""

import contextlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from flamert import dtypes, ops
from flamert import graph as g
from flamert.graph import Graph, TensorType
from flamert.ops.cuda import launch as launches
from flamert.ops.cuda import pointwise
from flamert.ops.cuda.launch import Flat, Launch, extent, table_of
from flamert.ops.cuda.pointwise import elementwise, launch
from flamert.ops.pointwise import Instruction
from flamert.passes.pointwise import fuse_pointwise
from flamert.runtime.calls import chained
from flamert.runtime.device import device
from flamert.runtime.late import taken_late
from flamert.runtime.plan import Plan
from tests.emulated import Kernel, Memory

F = np.dtype(np.float32)
PROGRAM = (
    Instruction("mul", (0, 1)),
    Instruction("gelu", (3,)),
    Instruction("add", (4, 2)),
    Instruction("cast", (5,), (("to", dtypes.bfloat16),)),
)


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(pointwise, "compiled", Kernel)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(asarray=np.asarray))


def launched(inputs, outs, program=PROGRAM, results=(2, 3), literals=None):
    types = [TensorType(x.shape, x.dtype) for x in inputs]
    arrays = [[Memory(x) for x in group] for group in (outs, inputs)]
    return launch(*arrays, types, literals or [None] * len(inputs), program, results)


def wanted(a, b, c):
    from math import erf

    x = (a * b).astype(np.float64)
    y = (x * (1 + np.vectorize(erf)(x * np.sqrt(0.5))) / 2 + c).astype(np.float32)
    return y, y.astype(dtypes.bfloat16)


def drawn(*shapes):
    rng = np.random.default_rng(3)
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def check(call, outs, operands):
    call()
    y, half = wanted(*operands)
    np.testing.assert_allclose(outs[0], y, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(outs[1].astype(np.float32), half.astype(np.float32), rtol=1e-2, atol=1e-6)


def results(shape):
    return np.zeros(shape, F), np.zeros(shape, dtypes.bfloat16)


@pytest.mark.parametrize("n", [1, 3, 4, 1027])
def test_flat_chains_take_care_of_their_end(n, on_cpu):
    a, b, c = drawn(n, n, ())
    room = results(n + 8)
    outs = tuple(o[:n] for o in room)
    call = launched((a, b, c), outs)
    assert call.flat is not None
    check(call, outs, (a, b, c))
    assert not any(o[n:].any() for o in room)


# A result's shape; for each operand the order in which its axes lie in memory, or a shape that is broadcast; tiles or not.
LAYOUTS = {
    "one": ((2, 40, 64), [(0, 2, 1), (0, 1, 2), (0, 1, 2)], True),
    "odd": ((3, 35, 45), [(0, 2, 1), (0, 1, 2), [45]], True),
    "all": ((33, 66), [(1, 0), (1, 0), (1, 0)], True),
    "ways": ((17, 18, 20), [(2, 1, 0), (1, 2, 0), [17, 1, 20]], True),
    "heads": ((2, 32, 3, 16), [(0, 3, 2, 1), (0, 2, 1, 3), (0, 1, 2, 3)], True),
    "short": ((2, 32, 3), [(0, 2, 1), (0, 1, 2), (0, 1, 2)], False),
    "rows": ((9, 40, 8), [(1, 0, 2), (0, 1, 2), [40, 1]], False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_operands_that_lie_crosswise(layout, on_cpu):
    shape, orders, tiles = LAYOUTS[layout]
    lying = drawn(*[o if isinstance(o, list) else [shape[i] for i in o] for o in orders])
    operands = [x if isinstance(o, list) else x.transpose(np.argsort(o)) for x, o in zip(lying, orders, strict=True)]
    outs = results(shape)
    call = launched(operands, outs)
    assert call.flat is None and call.kernel.name.startswith("tiles_") == tiles
    check(call, outs, operands)


@pytest.mark.parametrize(("rows", "length"), [(9, 7), (5, 33), (3, 1001), (64, 4), (7, 1)])
def test_rows_of_odd_length_are_written_in_wide_accesses(rows, length, on_cpu):
    a, b, c = drawn((rows, length + 3), (rows, length + 1), (length,))
    for operands in ([a[:, :length], b[:, :length], c], [a[:, 3:], b[::-1, 1:], c[:1]]):
        room = [np.zeros(rows * length + 48, o.dtype) for o in results(())]
        at = [-r.ctypes.data % 16 // r.itemsize for r in room]
        outs = [r[i : i + rows * length].reshape(rows, length) for i, r in zip(at, room, strict=True)]
        call = launched(operands, outs)
        check(call, outs, operands)
        assert not any(r[:i].any() or r[i + rows * length :].any() for i, r in zip(at, room, strict=True))


@pytest.mark.parametrize("busy", [0, 1 << 20])
@pytest.mark.parametrize("shape", [(3, 50, 24), (1, 7, 64), (2, 33, 5)])
def test_numbers_of_columns_are_kept_for_several_rows(shape, busy, on_cpu, monkeypatch):
    monkeypatch.setattr("flamert.ops.cuda.emit_bands.BUSY", busy)
    operands, outs = drawn(shape[-1:], shape, shape[-1:]), results(shape)
    call = launched(operands, outs)
    rows = 1 if busy else 4
    assert call.kernel.name.startswith("bands_") and call.arguments[-1] == -(-shape[0] * shape[1] // rows)
    check(call, outs, operands)
    y, _ = wanted(*operands)
    launched(operands, (operands[1],), results=(2,))()
    np.testing.assert_allclose(operands[1], y, rtol=2e-6, atol=2e-6)


def test_a_result_may_lie_where_an_operand_does(on_cpu):
    a, b, c = drawn((48, 33), (33, 48), (33, 48))
    y, _ = wanted(a.T, b, c)
    call = launched((a.T, b, c), (b,), results=(2,))
    call()
    np.testing.assert_allclose(b, y, rtol=2e-6, atol=2e-6)


def test_many_are_one_with_the_same_bits(on_cpu):
    sizes = [1027, 5, 4096, 3, 20000]
    operands = [drawn(n, n, ()) for n in sizes]
    separate, together = [results(n) for n in sizes], [results(n) for n in sizes]
    for o, r in zip(operands, separate, strict=True):
        launched(o, r)()
    calls = [launched(o, r) for o, r in zip(operands, together, strict=True)]
    merged, starts = chained(calls)
    assert len(merged) == 1 and starts == [0]
    merged[0]()
    for want, got in zip(separate, together, strict=True):
        assert all(a.tobytes() == b.tobytes() for a, b in zip(want, got, strict=True))


def call(reads, writes, key="k"):
    return Launch(None, (1,), 256, (), reads, writes, Flat(key, (), 1, lambda: None, 1) if key else None)


def test_only_what_is_independent_moves_together():
    a, b, c, d, e = [(i * 100, i * 100 + 100) for i in range(5)]
    groups = Launch.groups
    assert groups([call([a], [b]), call([a], [c])]) == [[0, 1]]
    assert groups([call([a], [b]), call([b], [c])]) == [[0], [1]]
    assert groups([call([a], [b]), call([c], [b])]) == [[0], [1]]
    assert groups([call([a], [b]), call([c], [a])]) == [[0], [1]]
    assert groups([call([a, b], [b]), call([a, c], [c])]) == [[0, 1]]
    assert groups([call([a], [b]), call([a], [c], "other"), call([a], [d])]) == [[0, 2], [1]]
    assert groups([call([a], [b]), call([a], [c], "other"), call([c], [d])]) == [[0], [1], [2]]
    assert groups([call([a], [b]), call([c], [a], None), call([a], [d])]) == [[0], [1], [2]]
    assert groups([call([a], [b]), call([d], [c], None), call([a], [e])]) == [[0, 2], [1]]
    assert groups([call([], [(0, 50)]), call([], [(50, 60)]), call([(49, 50)], [d])]) == [[0, 1], [2]]


def test_groups_as_a_random_order_would_have_them():
    """Every pair of launches that depend on each other keeps its order, and members of a group do not depend at all."""
    rng = np.random.default_rng(1)

    def touch(n):
        return [(int(s), int(s) + 8) for s in rng.integers(0, 600, n)]

    def depend(a, b):
        def meet(xs, ys):
            return any(x[0] < y[1] and y[0] < x[1] for x in xs for y in ys)

        return meet(a.writes, (*b.reads, *b.writes)) or meet(a.reads, b.writes)

    for _ in range(50):
        calls = [call(touch(2), touch(1), [None, "a", "b"][rng.integers(3)]) for _ in range(40)]
        order = Launch.groups(calls)
        at = {number: i for i, group in enumerate(order) for number in group}
        assert sorted(at) == list(range(40)) and len(order) < 40
        for j in range(40):
            for i in range(j):
                assert not depend(calls[i], calls[j]) or at[i] < at[j]


def test_tables():
    x = [[Memory(np.zeros(n, F))] for n in (10, 3, 25)]
    table, owners = table_of(x, [10, 3, 25], 8)
    assert owners.tolist() == [[0, 0], [0, 1], [1, 0], [2, 0], [2, 1], [2, 2], [2, 3]]
    assert table[:, 1].tolist() == [10, 3, 25] and table[0, 0] == x[0][0].data.ptr


def updates(count):
    """As an optimizer has it: tensors of many sizes, of which some are updated another way."""
    inputs, outputs = [], []
    rate = g.input(TensorType((), F))
    for k in range(count):
        shape = [(768,), (33, 7), (64, 64), (5,)][k % 4]
        p, d = (g.input(TensorType(shape, F)) for _ in range(2))
        new = p - rate * d if k % 5 else p - rate * d * 0.5
        inputs += [p, d]
        outputs += [new, ops.cast(new, to=dtypes.bfloat16)]
    return Graph([rate, *inputs], outputs)


@pytest.mark.gpu
def test_merged_launches_give_the_same_bits():
    """Of weights that live in memory of their own, as an optimizer's do: launches that reuse memory keep their order."""
    on = device("cuda")
    graph = fuse_pointwise(updates(20), elementwise, together=True)
    given = drawn(*[v.shape for v in graph.inputs])
    plan = Plan(graph, on, hot=True, state={v: on.upload(x) for v, x in zip(graph.inputs, given, strict=True)})
    memory = on.allocate(plan.nbytes)
    whole, parts = plan._bind(memory), plan._bind(memory, chain=False)
    assert len(whole.calls) < len(parts.calls) / 2
    found = []
    for bound in (parts, whole):
        memory[...] = 0
        for call in bound.calls:
            call()
        found.append([x.get().tobytes() for x in bound.outputs])
    assert found[0] == found[1]
    for _ in range(3):
        assert [x.get().tobytes() for x in plan()] == found[0]
    assert plan.obstacle is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F, dtypes.bfloat16, np.dtype(np.float64)], ids=lambda t: t.name)
@pytest.mark.parametrize("shape", [(64, 96), (35, 45), (17, 200)])
def test_chains_over_transposed_operands(dtype, shape):
    x, y, z = g.input(TensorType(shape, dtype)), g.input(TensorType(shape[::-1], dtype)), g.input(TensorType(shape[1:], dtype))
    result = ops.cast(ops.tanh(x + ops.transpose(y, perm=(1, 0)) * z), to=F)
    graph = fuse_pointwise(Graph([x, y, z], [result]), elementwise)
    arrays = [a.astype(dtype) for a in drawn(*[v.shape for v in graph.inputs])]
    on = device("cuda")
    [got] = Plan(graph, on, hot=True)(*[on.upload(a) for a in arrays])
    a, b, c = (v.astype(np.float64) for v in arrays)
    np.testing.assert_allclose(on.download(got, F), np.tanh(a + b.T * c), rtol=1e-5, atol=1e-6)


def test_a_launch_can_write_somewhere_else(monkeypatch):
    monkeypatch.setattr(pointwise, "compiled", Kernel)
    x, y, other = (Memory(np.arange(5000, dtype=F) * k) for k in (1, 0, -1))
    program = (Instruction("exp", (0,)),)
    call = pointwise.launch([y], [x], [TensorType((5000,), F)], [None], program, (0,))
    assert call.writes_alone(y.data.ptr) and not call.writes_alone(other.data.ptr)
    x.array /= 5000
    call.onto(y.data.ptr, other)()
    np.testing.assert_allclose(other.array, np.exp(x.array), rtol=1e-6)
    assert not y.array.any()
    again = pointwise.launch([x], [x], [TensorType((5000,), F)], [None], program, (0,))
    assert not again.writes_alone(x.data.ptr), "what is read there must stay"


@pytest.mark.parametrize(("dependent", "numbers"), [(False, [0, 1]), (True, [1])])
def test_large_results_that_end_a_plan_are_made_in_order_and_read_where_they_are(dependent, numbers):
    x = g.input(TensorType((512, 1024), F))
    first = ops.exp(x)
    plan = Plan(Graph([x], [first, ops.tanh(first if dependent else x)]), device("cpu"))
    memory = plan.device.allocate(plan.nbytes)

    def array(type, at):
        return Memory(plan.device.view(memory, plan._offsets[at.storage] + at.offset, type, at.strides))

    calls = []
    for step in plan.steps:
        arrays = [array(*step.inputs[0]), array(*step.outputs[0])]
        calls.append(Launch(None, (1,), 1, tuple(arrays), *[[extent(a)] for a in arrays]))
    found = taken_late(plan.steps, calls, plan._returned(), array)
    assert [late.number for late in found] == numbers and len(calls) == 2 - len(numbers)


class Filling:
    """A call that fills what it writes with ones."""

    def __init__(self, array):
        self.array, self.writes = array, [extent(array)]

    def __call__(self):
        self.array.array[...] = 1

    def writes_alone(self, address):
        return self.array.data.ptr == address

    def reads_of(self, other):
        return False

    def onto(self, address, result):
        assert self.writes_alone(address)
        return Filling(result if isinstance(result, Memory) else Memory(result))


@pytest.mark.parametrize(("columns", "taken"), [(1001, True), (500, False)])
def test_a_large_result_can_be_most_of_what_is_made(columns, taken):
    """As the scores of an odd vocabulary are, whose product is an even one."""
    x = g.input(TensorType((512, 1024), F))
    y = ops.slice(ops.exp(x), starts=(0, 3), sizes=(512, columns), steps=(1, 1))
    plan = Plan(Graph([x], [y]), device("cpu"))
    memory = plan.device.allocate(plan.nbytes)

    def array(type, at):
        return Memory(plan.device.view(memory, plan._offsets[at.storage] + at.offset, type, at.strides))

    memory[...] = 0
    calls = [Filling(array(*plan.steps[0].outputs[0]))]
    found = taken_late(plan.steps, calls, plan._returned(), array)
    assert (len(found), len(calls)) == ((1, 0) if taken else (0, 1))
    for late in found:
        result = late.made(plan.device)
        assert result.shape == (512, columns) and result.strides == (4096, 4) and np.all(result == 1)
    assert not memory.any()


class Kernels:
    """A module whose kernels take a while to compile. current: the device of each thread."""

    def __init__(self, broken=()):
        self.broken, self.compiled, self.running, self.most = broken, [], 0, 0
        self.current, self.lock = threading.local(), threading.Lock()
        self.cuda = SimpleNamespace(runtime=SimpleNamespace(getDevice=self.device), Device=self.within)

    def device(self):
        return getattr(self.current, "index", 0)

    @contextlib.contextmanager
    def within(self, index):
        self.current.index, before = index, self.device()
        yield
        self.current.index = before

    def RawKernel(self, source, name, options):
        launched = []

        def compile():
            with self.lock:
                self.running += 1
                self.most = max(self.most, self.running)
            self.others.wait(10)
            with self.lock:
                self.running -= 1
                self.compiled.append((name, self.device()))
            if name in self.broken:
                raise ValueError(f"{name} is no C++")

        def call(grid, block, arguments):
            assert name in [n for n, _ in self.compiled], "it was launched before it was there"
            launched.append(arguments)

        call.compile, call.launched = compile, launched
        return call


def test_kernels_are_compiled_side_by_side(monkeypatch):
    kernels = Kernels(broken={"third"})
    kernels.others = threading.Barrier(3)  # each waits until the others are at it, too
    monkeypatch.setitem(sys.modules, "cupy", kernels)
    monkeypatch.setattr(launches, "_compilers", lambda: pool)
    launches.compiled.cache_clear()
    with ThreadPoolExecutor(3) as pool:
        with kernels.within(1):
            made = [launches.compiled(f"source of {name}", name) for name in ("first", "second", "third")]
        for kernel in made[:2]:
            for _ in range(2):
                kernel((1,), (32,), (7,))
        with pytest.raises(ValueError, match="third"):
            made[2]((1,), (32,), ())
        launches.settle()
    assert not launches._underway
    assert kernels.most == 3 and sorted(kernels.compiled) == [("first", 1), ("second", 1), ("third", 1)]
    assert launches.compiled("source of first", "first") is made[0]
    launches.compiled.cache_clear()


def test_what_measures_is_bound_last(monkeypatch):
    """With nothing else going on, and each call at its place all the same."""
    x = g.input(TensorType((4, 4), F))
    plan = Plan(Graph([x], [ops.tanh(ops.matmul(ops.exp(x), x))]), device("cpu"))
    for step in plan.steps:
        monkeypatch.setattr(step.kernel, "measures", step.node.op is ops.matmul)
    order = []
    monkeypatch.setattr(type(plan.device), "settle", lambda self: order.append("settled"))
    thunk = type(plan.steps[0].kernel).thunk
    monkeypatch.setattr(
        type(plan.steps[0].kernel), "thunk", lambda self, site, *a: order.append(site.node.op.name) or thunk(self, site, *a)
    )
    bound = plan._bind(plan.device.allocate(plan.nbytes), chain=False)
    assert order[-2:] == ["settled", "matmul"] and order.count("settled") == 1 and len(bound.calls) == len(plan.steps)
    array = drawn((4, 4))[0]
    bound.inputs[0][...] = array
    for call in bound.calls:
        call()
    np.testing.assert_allclose(bound.outputs[0], np.tanh(np.exp(array) @ array), rtol=1e-5)
