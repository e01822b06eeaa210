"""Reading and writing by index on a GPU: sources compile without one, order and sums are fixed, faults are told late."""

import types

import numpy as np
import pytest

import flamert as fr
from flamert import dtypes, ops
from flamert import graph as g
from flamert.errors import ShapeError
from flamert.graph import Graph, TensorType
from flamert.ops.cuda.emit import STORED
from flamert.ops.cuda.emit_scatter import FOLDS, few_source, last_source, reduce_source
from flamert.ops.cuda.gather import INDICES, WORDS, elements_source, hole, rows_of, rows_source
from flamert.ops.cuda.order import Sorting, count_source, place_source
from flamert.ops.cuda.scatter import FEW, key_of, updates_of
from flamert.ops.evaluate import evaluate
from flamert.ops.op import OPS
from flamert.ops.scatter import REDUCTIONS
from flamert.runtime.device import device
from flamert.runtime.faults import Faults
from flamert.runtime.plan import Plan
from tests import training_models as models
from tests.test_emit import compile_source, nvrtc

F32, I32, I64 = dtypes.float32, np.dtype(np.int32), np.dtype(np.int64)


def node_of(op, *types, **attrs):
    return OPS[op].node(tuple(g.input(TensorType(shape, dtype)) for shape, dtype in types), attrs)


def key(op, indices, index=I64, **attrs):
    """The key of a scatter into [6, 5, 8], and its node."""
    x = (6, 5, 8)
    shape = indices if op == "scatter_elements" else (*indices[:-1], *x[indices[-1] :])
    node = node_of(op, (x, F32), (indices, index), (shape, F32), **attrs)
    faults = types.SimpleNamespace(record=np.zeros(4, np.int64), place=lambda node, size: size)
    return key_of(node, np.empty(indices, index), faults)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("index", INDICES.values())
@pytest.mark.parametrize("word", WORDS)
def test_readers_compile(word, index, wide):
    lib, include = nvrtc()
    compile_source(lib, include, rows_source(word, index, 1 + wide, wide))
    compile_source(lib, include, elements_source(word, index, 1 + 2 * wide, wide))


@pytest.mark.parametrize("dtype", STORED, ids=lambda t: t.name)
def test_writers_compile(dtype):
    lib, include = nvrtc()
    for reduction in FOLDS:
        compile_source(lib, include, reduce_source(dtype, 16 // dtype.itemsize, reduction))
    compile_source(lib, include, last_source(dtype, 1))
    for reduction in ("none", "add"):
        compile_source(lib, include, few_source(dtype, 1, reduction, key("scatter_elements", (6, 3, 8), axis=1)))
        compile_source(lib, include, few_source(dtype, 2, reduction, key("scatter_nd", (4, 2), I32)))


def test_all_reductions_are_there():
    assert FOLDS.keys() == REDUCTIONS.keys()


def test_sorting_compiles():
    lib, include = nvrtc()
    for made in (key("scatter_elements", (2, 3, 4), I32, axis=0), key("scatter_nd", (4, 3))):
        source = count_source(f"(u32)destination(u, {made.passed})", f", {made.parameters}", made.text)
        compile_source(lib, include, source)
    for source in (count_source(), place_source(False), place_source(True)):
        compile_source(lib, include, source)


def test_rows_are_where_the_indices_say():
    """Every row's formula, against the ops themselves on numbered rows."""
    cases = [("gather", (3, 5, 2), (2, 2), {"axis": 1}), ("gather", (4, 3), (5,), {"axis": 0})]
    cases += [("gather_nd", (3, 4, 5, 2), (3, 6, 2), {"batch_dims": 1}), ("gather_nd", (4, 5, 3), (2, 2), {"batch_dims": 0})]
    rng = np.random.default_rng(0)
    for op, x, indices, attrs in cases:
        node = node_of(op, (x, F32), (indices, I64), **attrs)
        rows = rows_of(node)
        at = rng.integers(0, min(rows.sizes), indices)
        numbered = np.arange(np.prod(x), dtype=np.float32).reshape(x)
        [want] = evaluate(node.outputs, dict(zip(node.inputs, (numbered, at), strict=True)))
        flat, given = numbered.reshape(-1, rows.inner), at.reshape(-1, len(rows.sizes))
        for r, row in enumerate(want.reshape(-1, rows.inner)):
            place = r // rows.per * rows.span + int(given[r % rows.modulo] @ np.array(rows.steps))
            np.testing.assert_array_equal(flat[place], row)


def ordered(keys, sorting):
    """What the kernels do: each part is placed behind what smaller digits, and parts before it with the same, take."""
    keys, order = keys.copy(), np.arange(sorting.n)
    for turn in range(sorting.passes):
        n, part, shift, mask = map(int, sorting.numbers(turn))
        digits = (keys >> shift) & mask
        parts = [digits[i : i + part] for i in range(0, n, part)]
        counts = np.array([np.bincount(p, minlength=256) for p in parts])
        starts = np.cumsum(counts.sum(0)) - counts.sum(0) + np.cumsum(counts, 0) - counts
        to = np.empty(n, np.int64)
        for b, p in enumerate(parts):
            for i, d in enumerate(p):
                to[b * part + i] = starts[b, d]
                starts[b, d] += 1
        keys[to], order[to] = keys.copy(), order.copy()
    return keys, order


@pytest.mark.parametrize(("n", "rows"), [(40, 7), (5000, 50257), (3000, 1 << 20), (1, 1), (2500, 255), (2500, 256)])
def test_the_sort_is_stable(n, rows):
    sorting = Sorting(n, rows.bit_length())
    assert sorting.blocks * sorting.part >= n > (sorting.blocks - 1) * sorting.part
    assert sorting.passes * sorting.digit >= sorting.bits and sorting.digit <= 8
    rng = np.random.default_rng(0)
    keys = rng.integers(0, rows, n).astype(np.uint32)
    keys[rng.random(n) < 0.1] = 0xFFFFFFFF
    keys[rng.random(n) < 0.4] = rows // 2
    got, order = ordered(keys, sorting)
    want = np.argsort(keys, kind="stable")
    np.testing.assert_array_equal(order, want)
    np.testing.assert_array_equal(got, keys[want])


def test_chunks_grow_with_the_root():
    def seen(n):
        return updates_of(node_of("scatter_nd", ((50_000, 8), F32), ((n, 1), I64), ((n, 8), F32)))

    for n in (1, 33, 4096, 32_768, 1 << 20):
        found = seen(n)
        assert found.chunks * found.chunk >= n and found.chunk & (found.chunk - 1) == 0
    assert (seen(4096).chunk, seen(32_768).chunk, seen(1 << 20).chunk) == (32, 64, 512)


def reduced(keys, order, updates, y, chunk):
    """What `reduce` and `join` do, one chunk after the other: whole runs, heads and tails of others, and these together."""
    heads, tails = {}, {}
    starts = range(0, len(keys), chunk)
    for first in starts:
        last = min(first + chunk, len(keys))
        for key in dict.fromkeys(keys[first:last].tolist()):
            at = first + np.flatnonzero(keys[first:last] == key)
            total = updates[order[at]].sum(0)
            if at[0] == first and first and keys[first - 1] == key:
                heads[first] = total
            elif at[-1] == last - 1 and last < len(keys) and keys[last] == key:
                tails[first] = y[key] + total
            else:
                y[key] += total
    for first, total in tails.items():
        key = keys[first + chunk]
        y[key] = total + sum(heads[i] for i in starts if i > first and keys[i] == key)


@pytest.mark.parametrize("repeats", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 16, 17, 500])
def test_runs_are_put_together(n, repeats):
    rng = np.random.default_rng(0)
    keys, updates, y = rng.integers(0, 40, n), rng.integers(-9, 9, (n, 3)), rng.integers(-9, 9, (40, 3))
    keys[rng.random(n) < repeats] = 7
    order, want = np.argsort(keys, kind="stable"), y.copy()
    np.add.at(want, keys, updates)
    reduced(keys[order], order, updates, y, 16)
    np.testing.assert_array_equal(y, want)


def test_what_is_read_out_of_range():
    assert np.isnan(np.array([hole(F32)]).view(np.float32)).all()
    assert np.isnan(np.array([hole(dtypes.bfloat16)]).view(dtypes.bfloat16).astype(np.float32)).all()
    assert hole(I64) == hole(np.dtype(np.bool_)) == 0


class Pretended:
    """As much of CuPy as faults need."""

    class cuda:
        class Device:
            def __init__(self, index):
                pass

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def synchronize(self):
                pass

        class alloc_pinned_memory(bytearray):
            ptr = 0

    class Array(np.ndarray):
        def set(self, contents):
            self[...] = contents

        def get(self):
            return np.array(self)

    @classmethod
    def empty(cls, n, dtype):
        return np.empty(n, dtype).view(cls.Array)


def test_faults_are_told_once_and_as_on_the_cpu():
    faults = Faults(Pretended, 0)
    node = node_of("gather", ((5, 2), F32), ((3,), I64), axis=0)
    other = node_of("gather", ((9, 2), F32), ((3,), I64), axis=0)
    number = faults.place(node, 5)
    assert faults.place(node, 5) == number != faults.place(other, 9)
    faults.check()
    for low, high, told in ((5, 7, "index 7 is outside a dimension of 5"), (-6, 7, "index -6 is outside a dimension of 5")):
        faults.record[:3] = number, low, high
        assert not faults.found
        faults._flag[0] = 1
        with pytest.raises(ShapeError, match=rf"{told} \[at .*gather\(float32\[5,2\]"):
            faults.check()
        faults.check()


def random_case(rng, dtype):
    """An op, its operands (indices second) and attributes."""

    def drawn(shape):
        x = rng.standard_normal(shape) * 4
        return (np.abs(x) if dtype.kind == "u" else x).astype(dtype)

    def indices(shape, size):
        at = rng.integers(-size, size, shape)
        at[rng.random(shape) < rng.choice([0, 0.5, 1])] = rng.integers(-size, size)
        return at.astype(rng.choice([I32, I64]))

    op = rng.choice(["gather", "gather_elements", "gather_nd", "scatter_elements", "scatter_nd"])
    rows, inner = int(rng.choice([1, 7, 300, 40_000])), int(rng.choice([1, 3, 8, 24]))
    n = int(rng.choice([1, 5, FEW, FEW + 1, 70, 2100]))
    if op == "gather":
        return op, [drawn((2, rows, inner)), indices((n,), rows)], {"axis": 1}
    if op == "gather_nd":
        return op, [drawn((2, rows, inner)), np.stack([indices((n,), 2), indices((n,), rows)], -1)], {}
    if op == "gather_elements":
        return op, [drawn((3, rows, 4)), indices((2, n, 4), rows)], {"axis": 1}
    reduction = {"reduction": str(rng.choice(["none", "add", "add", *FOLDS]))}
    if op == "scatter_elements":
        return op, [drawn((3, rows, 4)), indices((2, n, 4), rows), drawn((2, n, 4))], {"axis": 1, **reduction}
    return op, [drawn((rows, inner)), indices((n, 1), rows), drawn((n, inner))], reduction


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("dtype", STORED, ids=lambda t: t.name)
def test_random_cases(dtype, seed):
    rng, on = np.random.default_rng(seed), device("cuda")
    for _ in range(5):
        op, arrays, attrs = random_case(rng, dtype)
        node = node_of(op, *[(x.shape, x.dtype) for x in arrays], **attrs)
        plan = Plan(Graph(node.inputs, node.outputs), on, hot=True)
        assert plan.steps[-1].kernel.backend == "cupy"
        [want] = evaluate(node.outputs, dict(zip(node.inputs, arrays, strict=True)))
        results = [on.download(plan(*map(on.upload, arrays))[0], dtype) for _ in range(5)]
        assert plan.obstacle is None and len({r.tobytes() for r in results}) == 1
        if attrs.get("reduction") in ("add", "mul") and dtype in dtypes.STANDARD_FLOAT:
            tolerance = {2: 2e-2, 4: 2e-4, 8: 1e-12}[dtype.itemsize]
            np.testing.assert_allclose(results[0].astype(float), want.astype(float), rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(results[0], want)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F32, dtypes.bfloat16], ids=lambda t: t.name)
@pytest.mark.parametrize("hot", [0.0, 0.9, 1.0])
def test_an_embedding_gradient_is_the_same_twenty_times(dtype, hot):
    """Into zeros, with a padding token that is most of the batch."""
    rng, on = np.random.default_rng(0), device("cuda")
    at = rng.integers(0, 30_522, 8192)
    at[rng.random(8192) < hot] = 3
    dy = rng.standard_normal((8192, 64)).astype(dtype)
    zeros = ops.expand(g.constant(np.zeros((), dtype)), shape=(30_522, 64))
    indices, updates = g.input(TensorType((8192, 1), I64)), g.input(TensorType(dy.shape, dtype))
    plan = Plan(Graph([indices, updates], [ops.scatter_nd(zeros, indices, updates, reduction="add")]), on, hot=True)
    given = on.upload(at[:, None]), on.upload(dy)
    results = [on.download(plan(*given)[0], dtype) for _ in range(20)]
    assert len({r.tobytes() for r in results}) == 1
    want = np.zeros((30_522, 64))
    np.add.at(want, at, dy.astype(float))
    error = 1e-2 if dtype in dtypes.HALF else 1e-4
    np.testing.assert_allclose(results[0].astype(float), want, rtol=error, atol=error * 10)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [FEW, 500])
def test_in_place(n):
    """Where the destination is not read any more it is written into."""
    rng, on = np.random.default_rng(0), device("cuda")
    x, at, dy = rng.standard_normal((50, 16)), rng.integers(-50, 50, (n, 1)), rng.standard_normal((n, 16))
    arrays = [x.astype(np.float32), at, dy.astype(np.float32)]
    given = [g.input(TensorType(a.shape, a.dtype)) for a in arrays]
    graph = Graph(given, [ops.scatter_nd(ops.exp(given[0]), *given[1:], reduction="add")])
    [want] = evaluate(graph.outputs, dict(zip(given, arrays, strict=True)))
    plan = Plan(graph, on, hot=True)
    for _ in range(4):
        np.testing.assert_allclose(on.download(plan(*map(on.upload, arrays))[0], F32), want, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_nothing_to_do():
    on = device("cuda")
    x, none = np.ones((3, 2), np.float32), np.zeros((0,), np.int64)
    for op, arrays, attrs in (
        ("gather", [x, none], {"axis": 0}),
        ("gather", [x[:0], none], {"axis": 0}),
        ("scatter_nd", [x, none.reshape(0, 1), x[:0]], {"reduction": "add"}),
        ("scatter_elements", [x, none.reshape(0, 2), x[:0]], {"axis": 0}),
    ):
        node = node_of(op, *[(a.shape, a.dtype) for a in arrays], **attrs)
        [want] = evaluate(node.outputs, dict(zip(node.inputs, arrays, strict=True)))
        [got] = Plan(Graph(node.inputs, node.outputs), on)(*map(on.upload, arrays))
        np.testing.assert_array_equal(on.download(got, F32), want)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(20))
def test_indices_out_of_range_are_told_and_do_no_harm(seed):
    rng, on = np.random.default_rng(seed), device("cuda")
    op, arrays, attrs = random_case(rng, F32)
    node = node_of(op, *[(x.shape, x.dtype) for x in arrays], **attrs)
    plan = Plan(Graph(node.inputs, node.outputs), on, hot=True)
    good = on.download(plan(*map(on.upload, arrays))[0], F32)
    wrong = arrays[1].copy()
    wrong.reshape(-1)[[0, -1]] = 1 << 20, -(1 << 21)
    with pytest.raises(ShapeError) as on_cpu:
        evaluate(node.outputs, dict(zip(node.inputs, [arrays[0], wrong, *arrays[2:]], strict=True)))
    for _ in range(4):
        with pytest.raises(ShapeError) as told:
            on.download(plan(*map(on.upload, [arrays[0], wrong, *arrays[2:]]))[0], F32)
        if op != "gather_nd":  # there the first axis is as good as the last
            assert str(told.value).partition(" [")[0] == str(on_cpu.value).partition(" [")[0]
        assert op in str(told.value)
        np.testing.assert_array_equal(on.download(plan(*map(on.upload, arrays))[0], F32), good)


@pytest.mark.gpu
def test_a_trainer_takes_no_step_by_a_wrong_class():
    """The fault is raised where the loss is read; training goes on as if that batch had not been."""
    trainers = [
        fr.Trainer(fr.load(models.perceptron(), device="cuda"), "cross_entropy", fr.optim.AdamW(1e-2), clip_norm=1.0)
        for _ in range(2)
    ]
    for i, (x, t) in enumerate(models.rows(8)):
        if i % 3 == 2:
            with pytest.raises(ShapeError, match="index 7"):
                float(trainers[0].step(x, t + 7 - t.max()))
        assert len({float(trainer.step(x, t)) for trainer in trainers}) == 1
    trainers[0].step(x, t + 7 - t.max())
    with pytest.raises(ShapeError, match="index 7"):
        trainers[0].check()
    trainers[0].check()
    for name, array in trainers[0].weights().items():
        np.testing.assert_array_equal(array, trainers[1].weights()[name])
