"""ONNX's own backend suite, case by case, through `flamert.onnx_backend`; expected_failures.txt lists what fails and why.

The list may only shrink: a listed case that passes fails the suite. expected_failures_gpu.txt has what fails on a GPU alone.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from flamert import onnx_backend
from flamert.runtime.program import HOT_AFTER

KINDS = ("node", "simple", "real", "pytorch-converted", "pytorch-operator")
LIST = Path(__file__).with_name("expected_failures.txt")


def expected_failures(path=LIST):
    """Case → reason, from lines `kind/name: reason`."""
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return {name.strip(): reason.strip() for name, _, reason in (line.partition(":") for line in lines if line)}


def load_cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {f"{kind}/{case.name.removeprefix('test_')}": case for kind in KINDS for case in load_model_tests(kind=kind)}


CASES = load_cases()
FAILURES = expected_failures()
FAILURES_ON_GPU = FAILURES | expected_failures(LIST.with_name("expected_failures_gpu.txt"))
RANDOM = {name for name in CASES if name.startswith("node/bernoulli")}


def rows(failures):
    """One pytest case for each of the suite, those expected to fail marked so."""
    found = []
    for name in CASES:
        if name not in RANDOM:
            marks = [pytest.mark.xfail(strict=True, reason=failures[name])] if name in failures else []
            found.append(pytest.param(name, id=name, marks=marks))
    return found


@pytest.mark.parametrize("name", rows(FAILURES))
def test_case(name):
    check(name, "CPU")


@pytest.mark.gpu
@pytest.mark.parametrize("name", rows(FAILURES_ON_GPU))
def test_case_on_gpu(name):
    check(name, "CUDA")


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_random_draws(name):
    """The suite compares draws of NumPy's generator; what can be asked of another is their distribution."""
    case = CASES[name]
    model, [(inputs, expected)] = data(case)
    prepared = onnx_backend.prepare(model, "CPU")
    draws = np.stack([np.asarray(prepared.run(inputs)[0]) for _ in range(400)])
    assert draws.dtype == expected[0].dtype and draws.shape[1:] == expected[0].shape
    assert set(np.unique(draws)) <= {0, 1}
    p = np.asarray(inputs[0], np.float64)
    if "expanded" in name:  # ONNX's function body compares the wrong way round: it draws 1 with probability 1 - p
        p = 1 - p
    if "seed" in name:
        again = onnx_backend.prepare(model, "CPU")
        np.testing.assert_array_equal(draws[0], again.run(inputs)[0])
    else:
        spread = np.sqrt(p * (1 - p) / len(draws))
        assert (np.abs(draws.astype(np.float64).mean(0) - p) <= 5 * spread + 1e-12).all()


def test_expected_failures_are_cases_with_reasons():
    assert not FAILURES_ON_GPU.keys() - CASES.keys()
    assert all(FAILURES_ON_GPU.values())


def check(name, device):
    case = CASES[name]
    model, sets = data(case)
    prepared = onnx_backend.prepare(model, device)
    halves = 2 * float(np.finfo(np.float16).eps) if device == "CUDA" else 0.0  # products round once more than NumPy's
    for inputs, expected in sets:
        compare(expected, prepared.run(inputs), case, halves)
        if "training_dropout" not in name:  # whose draws are expected of the first call alone
            for _ in range(HOT_AFTER + (device == "CUDA")):  # a GPU's hot plan records its second run, and replays it
                hot = prepared.run(inputs)
            compare(expected, hot, case, halves)


def compare(expected, found, case, halves=0.0):
    """The suite's own comparison, but for lists, whose elements it cannot compare where they have no dimension.

    halves: the least relative tolerance of float16.
    """
    assert len(found) == len(expected)
    for want, got in zip(expected, found, strict=True):
        if isinstance(want, list):
            assert isinstance(got, list)
            compare(want, got, case, halves)
        else:
            got = as_array(got)
            rtol = max(case.rtol, halves) if got.dtype == np.float16 else case.rtol
            Runner.assert_similar_outputs([want], [got], rtol=rtol, atol=case.atol)


def data(case):
    """The model of a case, and pairs of inputs and expected outputs."""
    if case.data_sets is not None:
        sets = [(list(map(as_array, inputs)), list(map(as_array, outputs))) for inputs, outputs in case.data_sets]
        return case.model, sets
    if case.url:
        return light(case)
    folder = Path(case.model_dir)
    model = onnx.load(folder / "model.onnx")
    graph = model.graph
    return model, [
        (stored(s, "input", graph.input), stored(s, "output", graph.output)) for s in sorted(folder.glob("test_data_set*"))
    ]


def light(case):
    """A well-known architecture with constant weights, on a made-up input, against stored outputs."""
    path = Path(onnx.__file__).parent.parent / case.url
    model = onnx.load(path)
    defaults = {i.name for i in model.graph.initializer}
    free = [i for i in model.graph.input if i.name not in defaults]
    inputs = [Runner.generate_dummy_data(i, seed=0, name=case.name, random=False) for i in free]
    files = [path.with_name(f"{path.stem}_output_{i}.pb") for i in range(len(model.graph.output))]
    return model, [(inputs, [from_file(f, o.type) for f, o in zip(files, model.graph.output, strict=True)])]


def stored(folder, what, infos):
    files = sorted(folder.glob(f"{what}_*.pb"), key=lambda p: int(p.stem.rpartition("_")[2]))
    return [from_file(f, info.type) for f, info in zip(files, infos, strict=False)]


def from_file(path, type):
    raw = path.read_bytes()
    if type.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(raw))
    if type.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(raw))
    return numpy_helper.to_array(onnx.TensorProto.FromString(raw))


def as_array(x):
    if isinstance(x, onnx.TensorProto):
        return numpy_helper.to_array(x)
    return np.asarray(x) if isinstance(x, np.generic) else x
