"""Broken and hostile files: each ends in a FlamertError, quickly and in little memory, and never in a crash or a leak."""

import glob
import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flamert as fr

pytest.importorskip("resource", reason="needs limits on memory and time")

from tests.hostile import HOSTILE, LEGAL
from tests.hostile.external import external
from tests.hostile.mutate import mutate

ERRORS = set(fr.errors.__all__)
DATA = os.path.join(os.path.dirname(onnx.__file__), "backend", "test", "data")
REAL = [
    *sorted(glob.glob(os.path.join(DATA, "simple", "*", "model.onnx"))),
    *sorted(glob.glob(os.path.join(DATA, "pytorch-*", "*", "model.onnx"))),
    *sorted(glob.glob(os.path.join(DATA, "light", "*.onnx"))),
]
SMALL = [path for path in REAL if os.path.getsize(path) < 200_000]


def program(*arguments, **streams):
    root = Path(__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, "-m", "tests.hostile", *map(str, arguments)], cwd=root, stdout=subprocess.PIPE, text=True, **streams
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """name → [outcome, message, seconds, megabytes] of the whole corpus."""
    with program(tmp_path_factory.mktemp("hostile")) as running:
        rows = [json.loads(line) for line in running.stdout]
    return {name: outcome for name, *outcome in rows}


@pytest.mark.parametrize("name", HOSTILE)
def test_is_refused(name, outcomes):
    outcome, message, seconds, megabytes = outcomes[name]
    assert outcome in ERRORS, f"{outcome}: {message}"
    assert len(message) > 10
    assert seconds < 10
    assert megabytes < 1000


@pytest.mark.parametrize("name", LEGAL)
def test_is_accepted(name, outcomes):
    outcome, message, *_ = outcomes[name]
    assert outcome == "ok", message


def test_function_bomb_is_refused_at_once(outcomes):
    assert outcomes["function_bomb"][0] == "UnsafeModel"
    assert outcomes["function_bomb"][2] < 2


@pytest.mark.parametrize("name", ["external_parent", "external_symlink", "external_hard_link", "external_fifo"])
def test_escapes_are_called_unsafe(name, outcomes):
    assert outcomes[name][0] == "UnsafeModel"


@pytest.mark.parametrize("form", ["bytes", "proto", "ir"])
def test_external_data_needs_a_folder(form, tmp_path):
    data = external(tmp_path).read_bytes()
    source = data if form == "bytes" else onnx.ModelProto.FromString(data)
    if form == "ir":
        onnx_ir = pytest.importorskip("onnx_ir")
        loaded = onnx_ir.load(external(tmp_path))
        assert fr.load(loaded, device="cpu").params["w"].tolist() == [0, 0]
        return
    with pytest.raises(fr.errors.UnsafeModel, match="path"):
        fr.load(source)


@pytest.fixture(scope="module")
def attempt():
    """path → [outcome, message, seconds, megabytes] of loading and running a model in a process of its own."""
    with program("-", stdin=subprocess.PIPE) as server:

        def ask(path):
            server.stdin.write(f"{path}\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield ask
        server.stdin.close()


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(SMALL), random=st.randoms(use_true_random=False))
def test_damaged_models_work_or_are_refused(path, random, attempt, tmp_path_factory):
    damaged = tmp_path_factory.getbasetemp() / "damaged.onnx"
    damaged.write_bytes(mutate(Path(path).read_bytes(), random))
    outcome, message, seconds, _ = attempt(damaged)
    assert outcome == "ok" or outcome in ERRORS, f"{os.path.relpath(path, DATA)}: {outcome}: {message}"
    assert seconds < 15
