"""The command line, run as a user runs it: exit codes, one clear line for an error, JSON, files written."""

import json
import sys

import numpy as np
import onnx
import pytest

from flamert.cli import app
from tests import small


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "small.onnx"
    onnx.save(small.perceptron(), path)
    return str(path)


def runner(capsys):
    """Runs a command in this process; returns exit code, stdout, stderr."""

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app([str(a) for a in arguments], prog_name="flamert")
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


@pytest.fixture
def flamert(capsys):
    return runner(capsys)


def good(result):
    code, out, err = result
    assert code == 0, err
    return out


COMMANDS = ["info", "run", "verify", "bench", "profile", "view", "ops"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(flamert, command):
    out = good(flamert(command, "--help"))
    assert f"Example: flamert {command}" in " ".join(out.split())


def test_info(flamert, model):
    out = good(flamert("info", model))
    assert "[N, 6]" in out and "MatMul" in out
    data = json.loads(good(flamert("info", model, "--json")))
    assert data["opsets"] == {"ai.onnx": 21} and data["parameters"] == 56
    assert json.loads(good(flamert("info", "--json")))["ONNX opset"] >= 21


def test_run_reads_and_writes_files(flamert, model, tmp_path):
    x = np.ones((2, 6), np.float32)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "in.npz", other=x)
    y = np.maximum(x @ small.W + small.B, 0)
    for source in (f"@{tmp_path}/x.npy", f"@{tmp_path}/in.npz", f"@{tmp_path}/in.npz:other", json.dumps(x.tolist())):
        good(flamert("run", model, "-i", f"x={source}", "-o", tmp_path / "out.npz"))
        np.testing.assert_allclose(np.load(tmp_path / "out.npz")["y"], y, rtol=1e-5)
    good(flamert("run", model, "-i", "x=random:3,6", "--get", "sum", "-o", tmp_path / "out.npy"))
    assert np.load(tmp_path / "out.npy").shape == (3, 8)
    rows = json.loads(good(flamert("run", model, "-i", "x=random", "--dim", "N=5", "--json")))["outputs"]
    assert rows[0]["type"] == "float32[5,8]"


@pytest.mark.parametrize("against", ["onnxruntime", "reference"])
def test_verify(flamert, model, against):
    pytest.importorskip("onnxruntime")
    rows = json.loads(good(flamert("verify", model, "--against", against, "--dim", "N=4", "--json")))["outputs"]
    assert rows[0]["ok"] and rows[0]["abs"] < 1e-5
    code, out, _ = flamert("verify", model, "--against", against, "--rtol", "-1", "--atol", "-1")
    assert code == 0 or "beyond tolerance" in out


def test_verify_fails_where_outputs_differ(flamert, model, monkeypatch):
    monkeypatch.setattr("flamert.cli.verify.peer", lambda name, path: lambda feeds: {"y": np.full((1, 8), 9, np.float32)})
    code, out, _ = flamert("verify", model)
    assert code == 1 and "8 elements beyond tolerance" in out


def test_bench(flamert, model):
    pytest.importorskip("onnxruntime")
    data = json.loads(good(flamert("bench", model, "--against", "onnxruntime", "--seconds", "0.1", "--json")))
    assert [r["runtime"] for r in data["runtimes"]] == ["flamert", "onnxruntime"] and data["ratio"] > 0


def test_profile(flamert, model, tmp_path):
    assert "rectify" in good(flamert("profile", model, "--trace", tmp_path / "trace.json"))
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert json.loads(good(flamert("profile", model, "--json")))["ops"]


def test_view_needs_netron(flamert, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "netron", None)
    code, _, err = flamert("view", model)
    assert code == 1 and "pip install 'flamert[docs]'" in err


def test_ops(flamert):
    assert "Relu" in good(flamert("ops", "relu"))
    data = json.loads(good(flamert("ops", "--json")))
    assert {"Add", "Conv", "Softmax"} <= {row["operator"] for row in data["operators"]}
    assert "add" in {row["op"] for row in data["ops"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "nowhere.onnx"), "nowhere.onnx"),
        (("run", "MODEL"), "required inputs are missing: 'x'"),
        (("run", "MODEL", "-i", "z=random"), "the model's inputs are x"),
        (("run", "MODEL", "-i", "x"), "write name=@file.npy"),
        (("run", "MODEL", "-i", "x=@nowhere.npy"), "No such file"),
        (("run", "MODEL", "-i", "x=random:a,b"), "write the shape as"),
        (("run", "MODEL", "-i", "x=random:2,5"), "index 1 is 5, expected 6"),
        (("run", "MODEL", "-i", "x=random", "--dim", "N"), "write NAME=SIZE"),
        (("run", "MODEL", "-i", "x=random", "-o", "out.txt"), ".npz or .npy"),
        (("run", "MODEL", "-i", "x=random", "--device", "tpu"), "unknown device"),
        (("verify", "MODEL", "--against", "nobody"), "choose onnxruntime or reference"),
        (("run",), "Missing argument"),
        (("run", "MODEL", "--nonsense"), "--nonsense"),
        (("nonsense",), "nonsense"),
    ],
)
def test_errors_are_one_clear_line(flamert, model, arguments, said):
    code, _, err = flamert(*[model if a == "MODEL" else a for a in arguments])
    assert code != 0
    assert said in err and err.count("\n") == 1 and err.startswith("flamert: error: ")
