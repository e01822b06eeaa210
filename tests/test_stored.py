"""Graphs that were kept are the ones that were made, and only of equal graphs, devices and code."""

import os
import pickle

import numpy as np
import pytest

import flamert as fr
import flamert.kept
from flamert import dtypes, ops
from flamert.graph import Graph, TensorType, constant, input, show, sourced
from flamert.graph import Source as Where
from flamert.kept import MOST, Kept
from flamert.ops.evaluate import evaluate
from flamert.ops.op import composite
from flamert.passes import pipeline, stored
from flamert.runtime.device import Host
from tests.test_builders import TINY, drawn, stirred
from tests.test_gpu_passes import Elsewhere, squares
from tests.test_updates import OPTIMIZERS, step_graph

F32 = np.dtype(np.float32)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FLAMERT_CACHE", str(tmp_path))
    monkeypatch.setattr(stored, "KEEPS", True)
    return tmp_path / "graphs"


class Makes:
    """What is made of a graph, and how often."""

    def __init__(self, make):
        self.make, self.count = make, 0

    def __call__(self):
        self.count += 1
        return self.make()


def chain(number=2.0, name="x"):
    x = input(TensorType((2, 3), F32), name)
    with sourced(Where("Mul", "m", "a.onnx")):
        return Graph([x], [ops.exp(x * number)])


def found(graph, *about, make=None):
    """(the graph that comes of it, whether it was made)."""
    made = Makes(make or (lambda: graph))
    return stored.stored(graph, made, *about), bool(made.count)


@pytest.mark.parametrize("name", TINY)
def test_a_step_that_was_kept_is_the_one_that_was_made(name):
    network = TINY[name]
    (graph, updates), (again, _) = (step_graph(network, OPTIMIZERS["fp16"]) for _ in range(2))

    def make(of):
        return lambda: pipeline.prepare(of, True, Elsewhere, {}, updates=updates)

    made, first = found(graph, make=make(graph))
    kept, second = found(again, make=make(again))
    assert first and not second
    assert show(kept) == show(made)
    assert [n.source for n in kept.nodes] == [n.source for n in made.nodes]
    assert kept.inputs == again.inputs
    feeds = [np.random.default_rng(0).integers(0, 2, v.shape).astype(v.dtype) for v in graph.inputs]
    results = [evaluate(g.outputs, dict(zip(g.inputs, feeds, strict=True))) for g in (made, kept)]
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_differs_is_made_anew():
    assert found(chain())[1]
    assert not found(chain())[1]
    assert found(chain(3.0))[1]
    assert found(chain(-0.0))[1] and found(chain(0.0))[1]
    assert found(chain(), "another device")[1]
    x = input(TensorType((2, 3), F32))
    assert found(Graph([x, input(TensorType((2, 3), F32))], [ops.exp(x)]))[1]
    y = input(TensorType((2, 3), F32))
    assert found(Graph([y, x], [ops.exp(x)]))[1]


def test_the_code_is_part_of_the_key(monkeypatch):
    assert found(chain())[1]
    monkeypatch.setattr(stored, "_code", lambda: "changed")
    assert found(chain())[1]


def test_the_code_is_told_by_its_files():
    stored._code.cache_clear()
    first = stored._code()
    path = stored.__file__
    about = os.stat(path)
    try:
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1_000_000))
        stored._code.cache_clear()
        assert stored._code() != first
    finally:
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
        stored._code.cache_clear()
    assert stored._code() == first


def test_kernels_that_others_add_are_part_of_the_key():
    assert found(chain())[1]
    kernel = ops.exp.kernels[0]
    ops.exp.kernels.append(kernel)
    try:
        assert found(chain())[1]
    finally:
        ops.exp.kernels.pop()
    assert not found(chain())[1]


def test_constants_are_compared_by_all_that_is_in_them(cache):
    def of(array):
        x = input(TensorType(array.shape, array.dtype))
        return Graph([x], [ops.add(x, constant(array))])

    a, b = np.zeros((3, 2000), np.float32), np.zeros((3, 2000), np.float32)
    b[1, 1000] = 1
    assert found(of(a))[1] and found(of(b))[1]
    (kept, made) = found(of(b))
    assert not made
    np.testing.assert_array_equal(evaluate(kept.outputs, {kept.inputs[0]: a})[0], b)
    broadcast = np.broadcast_to(np.float32(7), (300, 400))
    assert found(of(broadcast))[1]
    assert max(path.stat().st_size for path in cache.iterdir()) < 30_000
    (kept, made) = found(of(np.full((300, 400), 7, np.float32)))
    assert not made
    np.testing.assert_array_equal(kept.outputs[0].node.inputs[1].constant, broadcast)
    c = np.arange(4).astype(dtypes.bfloat16)
    assert found(of(c))[1] and not found(of(c))[1]


def test_large_constants_are_not_looked_through(monkeypatch):
    monkeypatch.setattr(stored, "MOST_BYTES", 3)
    assert found(chain())[1] and found(chain())[1]
    x = input(TensorType((4,), np.dtype(np.int8)))
    for _ in range(2):
        made, new = found(Graph([x], [x]), make=lambda: Graph([x], [constant(np.zeros(4, np.int8))]))
        assert new and made.outputs[0].constant is not None


def test_ops_of_others_are_not_kept():
    @composite(name="test_stored_double")
    def double(x):
        return x + x

    try:
        x = input(TensorType((2,), F32))
        assert found(Graph([x], [double(x)]))[1] and found(Graph([x], [double(x)]))[1]
    finally:
        ops.OPS.pop("test_stored_double")


def test_damaged_files_cost_themselves_alone(cache):
    graph = chain()
    assert found(graph)[1]
    [path] = cache.iterdir()
    whole = path.read_bytes()
    for broken in (whole[:-1], b"", whole[:40], whole + b"x", bytes([whole[0] ^ 1]) + whole[1:]):
        path.write_bytes(broken)
        assert found(graph)[1]
        assert path.read_bytes() == whole


def test_a_file_can_name_nothing_but_parts_of_graphs(cache):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(cache / "harm"),)

    graph = chain()
    assert found(graph)[1]
    kept = Kept("graphs")
    key = {}
    Kept.find, find = (lambda self, name: key.setdefault("is", name) and None), Kept.find
    try:
        found(graph)
    finally:
        Kept.find = find
    kept.add(key["is"], pickle.dumps(Harm()))
    assert found(graph)[1]
    assert not (cache / "harm").exists()


def test_a_folder_that_cannot_be_written_costs_nothing_else(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLAMERT_CACHE", str(tmp_path / "file"))
    assert found(chain())[1] and found(chain())[1]


def test_old_files_make_room(cache, monkeypatch):
    kept = Kept("graphs")
    for i in range(MOST + 3):
        kept.add(str(i), b"x")
        os.utime(kept._file(str(i)), (i, i))
    assert len(list(cache.iterdir())) == MOST
    assert kept.find("0") is None and kept.find(str(MOST + 2)) == b"x"
    monkeypatch.setattr(flamert.kept, "ROOM", 100)
    kept.add("large", b"x" * 60)
    assert {path.stat().st_size for path in cache.iterdir()} == {32 + 60}


def test_a_plan_of_a_kept_graph_trains_alike(monkeypatch, cache):
    """On a device of this machine that is said to tune."""
    monkeypatch.setattr(Host, "tunes", True)
    feeds = drawn(TINY["vit"], 2)
    losses, kept = [], []
    for _ in range(2):
        trainer = fr.Trainer(stirred(fr.load(TINY["vit"].proto(), device="cpu")), squares, fr.optim.Adam(0.01))
        losses.append([float(trainer.step(feeds)) for _ in range(3)])
        kept.append({path.name for path in cache.iterdir()})
    assert losses[0] == losses[1]
    assert kept[0] == kept[1] != set()


@pytest.mark.gpu
def test_a_second_process_on_a_gpu_makes_no_graph(monkeypatch):
    made = []
    make = pipeline._prepared
    monkeypatch.setattr(pipeline, "_prepared", lambda *args: made.append(1) or make(*args))
    feeds, losses, counts = drawn(TINY["vit"], 2), [], []
    for _ in range(2):
        made.clear()
        model = stirred(fr.load(TINY["vit"].proto(), device="cuda", deterministic=True))
        trainer = fr.Trainer(model, squares, fr.optim.Adam(0.01), precision="bf16")
        losses.append([float(trainer.step(feeds)) for _ in range(4)])
        counts.append(len(made))
    assert losses[0] == losses[1]
    assert counts[0] > counts[1] == 0
