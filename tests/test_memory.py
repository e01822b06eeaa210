"""Nothing leaks: calls, loading and unloading, and ever new batch sizes leave resident memory flat. Each in its own process.

And what a device has too little memory for says so, and spoils nothing else.
"""

import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest

import flamert as fr
from flamert import graph as g
from flamert import ops
from flamert.errors import OutOfMemory
from flamert.graph import Graph, TensorType
from flamert.runtime.device import Host, device
from flamert.runtime.plan import Plan
from models.fetch import Unavailable, fetch
from models.inputs import MODELS

ROOT = Path(__file__).parents[1]
resident = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
FLOAT = np.dtype(np.float32)

PRELUDE = """
import ctypes, gc, re, sys
import numpy as np
import flamert as fr
from models.inputs import make

def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator merely keeps for later is no leak
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1])

def watch(turn, warm, turns):
    for i in range(warm):
        turn(i)
    before = resident()
    for i in range(warm, warm + turns):
        turn(i)
    print("growth", resident() - before, "of", before)
"""

CALLS = """
model = fr.load(path, device="cpu")
feeds = make(name)[0]
watch(lambda i: model.run(feeds), 20, turns)
"""

CYCLES = """
feeds = make(name)[0]
watch(lambda i: fr.load(path, device="cpu").run(feeds), 60, turns)
"""

BATCHES = """
model = fr.load(path, device="cpu")
feeds = make(name)[0]
axis = {s.name: next((i for i, d in enumerate(s.shape) if not isinstance(d, int)), None) for s in model.inputs}
def turn(i):
    n = 1 + i * 7 % turns
    model.run({key: a if axis[key] is None else np.repeat(a.take([0], axis[key]), n, axis[key]) for key, a in feeds.items()})
watch(turn, turns, turns)
"""


def growth(script, name, turns):
    """Kilobytes that resident memory grew by, and what it was before."""
    try:
        path = fetch(name)["model"]
    except Unavailable as error:
        pytest.skip(str(error))
    code = f"{PRELUDE}\nname, path, turns = {name!r}, {str(path)!r}, {turns}\n{script}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, before = map(int, re.search(r"growth (-?\d+) of (\d+)", done.stdout).groups())
    return grown, before


def check(script, name, turns):
    grown, before = growth(script, name, turns)
    assert grown < 0.02 * before, f"{grown} kB more than {before} kB after {turns} turns"


@resident
@pytest.mark.parametrize("name", ["silero_vad_16k_op15", "attacut_sc", "surfaces_decision_tree_classifier"])
def test_calls(name):
    check(CALLS, name, 200)


@resident
def test_load_and_unload():
    check(CYCLES, "surfaces_decision_tree_classifier", 60)


@resident
@pytest.mark.parametrize(
    "name", ["surfaces_decision_tree_classifier", pytest.param("silero_vad_16k_op15", marks=pytest.mark.slow)]
)
def test_batch_sizes(name):
    """All sizes once, then all again: more of them than a model keeps programs for."""
    check(BATCHES, name, 200)


@resident
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_calls_of_every_model(name):
    check(CALLS, name, 200)


@resident
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_load_and_unload_every_model(name):
    check(CYCLES, name, 200)


@resident
def test_a_leak_would_be_seen():
    grown, before = growth("kept = []\nwatch(lambda i: kept.append(np.ones(4096)), 10, 200)", "attacut_sc", 200)
    assert grown > 0.02 * before


class Cramped(Host):
    """A device of so many bytes. Like CuPy it raises a MemoryError where they do not do."""

    name = "cramped"

    def __init__(self, nbytes):
        self.left = nbytes

    def allocate(self, nbytes):
        if nbytes > self.left:
            raise MemoryError(f"Out of memory allocating {nbytes} bytes")
        self.left -= nbytes
        memory = super().allocate(nbytes)
        weakref.finalize(memory, self.give_back, nbytes)
        return memory

    def give_back(self, nbytes):
        self.left += nbytes


def sums(n):
    """Of the rows of an outer product, which is what takes memory."""
    x, y = (g.input(TensorType(shape, FLOAT), "x") for shape in ((n, 1), (1, n)))
    with g.sourced(g.Source("MatMul", "outer")):
        product = ops.matmul(x, y)
    return Graph([x, y], [ops.reduce_sum(product, axes=(1,))])


def fed(n):
    return np.full((n, 1), 1 / n, np.float32), np.arange(n, dtype=np.float32)[None]


def test_a_plan_that_does_not_fit_names_its_largest_buffers():
    on = Cramped(1 << 20)
    with pytest.raises(OutOfMemory, match=r"MatMul node 'outer'") as caught:
        Plan(sums(1024), on)
    assert re.match(r"an arena of \S+ MiB does not fit on cramped: of its .* are free\. Largest", str(caught.value))
    assert "4 MiB, float32[1024,1024], MatMul node 'outer': matmul(float32[1024,1], float32[1,1024])" in str(caught.value)
    assert Plan(sums(16), on)(*fed(16))[0].shape == (16,)


def test_plans_take_memory_that_others_merely_keep():
    on = Cramped(12 << 20)
    plans = [Plan(sums(1024), on) for _ in range(2)]
    wanted = plans[0](*fed(1024))[0]
    for _ in range(2):
        for plan in plans:
            np.testing.assert_array_equal(plan(*fed(1024))[0], wanted)
    del plan, plans
    assert on.left == 12 << 20


def outer(on):
    """A model that multiplies a column by a row, of any lengths."""
    info = onnx.helper.make_tensor_value_info
    inputs = [info("x", 1, ["n", 1]), info("y", 1, [1, "m"])]
    node = onnx.helper.make_node("MatMul", ["x", "y"], ["z"], name="outer")
    graph = onnx.helper.make_graph([node], "g", inputs, [info("z", 1, ["n", "m"])])
    return fr.load(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), device=on)


@pytest.mark.gpu
def test_a_gpu_that_is_too_small_says_so_and_goes_on():
    model = outer("cuda")
    n = 1 << 20
    with pytest.raises(OutOfMemory, match="Largest buffers: 4 TiB") as caught:
        model.run({"x": np.ones((n, 1), np.float32), "y": np.ones((1, n), np.float32)})
    assert "outer" in str(caught.value) and "float32[1048576,1048576]" in str(caught.value)
    for _ in range(4):
        found = model.run({"x": np.full((3, 1), 2, np.float32), "y": np.ones((1, 5), np.float32)})["z"]
        np.testing.assert_array_equal(found, np.full((3, 5), 2, np.float32))


@pytest.mark.gpu
def test_an_upload_that_does_not_fit_says_so():
    on = device("cuda")
    on.reclaim()
    ballast = on.allocate(on.room()[0] - (1 << 30))
    array = np.ones((1 << 9, 1 << 20), np.float32)
    with pytest.raises(OutOfMemory, match=r"float32\[512,1048576\] of 2 GiB does not fit on cuda:0: of its "):
        on.upload(array)
    del ballast
    assert on.upload(array).shape == array.shape


@pytest.mark.gpu
def test_plans_on_a_gpu_take_memory_that_others_merely_keep():
    on = device("cuda")
    on.reclaim()
    ballast = on.allocate(on.room()[0] - (4 << 30))
    try:
        n = 24 << 10  # of 2.25 GiB
        plans = [Plan(sums(n), on, hot=True) for _ in range(2)]
        x, y = map(on.upload, fed(n))
        wanted = plans[0](x, y)[0].get()
        for _ in range(3):
            for plan in plans:
                np.testing.assert_array_equal(plan(x, y)[0].get(), wanted)
    finally:
        del ballast
        on.reclaim()
