"""Nothing leaks: calls, loading and unloading, and ever new batch sizes leave resident memory flat. Each in its own process."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from models.fetch import Unavailable, fetch
from models.inputs import MODELS

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")

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


@pytest.mark.parametrize("name", ["silero_vad_16k_op15", "attacut_sc", "surfaces_decision_tree_classifier"])
def test_calls(name):
    check(CALLS, name, 200)


def test_load_and_unload():
    check(CYCLES, "surfaces_decision_tree_classifier", 60)


@pytest.mark.parametrize(
    "name", ["surfaces_decision_tree_classifier", pytest.param("silero_vad_16k_op15", marks=pytest.mark.slow)]
)
def test_batch_sizes(name):
    """All sizes once, then all again: more of them than a model keeps programs for."""
    check(BATCHES, name, 200)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_calls_of_every_model(name):
    check(CALLS, name, 200)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_load_and_unload_every_model(name):
    check(CYCLES, name, 200)


def test_a_leak_would_be_seen():
    grown, before = growth("kept = []\nwatch(lambda i: kept.append(np.ones(4096)), 10, 200)", "attacut_sc", 200)
    assert grown > 0.02 * before
