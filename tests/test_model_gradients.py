"""Gradients of ten real trained models: along its own direction, each agrees with differences through onnxruntime."""

import numpy as np
import onnx
import pytest

import flamert as fr
from models.fetch import Unavailable, fetch
from models.inputs import MODELS, make
from tests.placed import PLACED

ort = pytest.importorskip("onnxruntime")

TOLERANCE = {("basic_pitch_nmp", "const_fold_opt__664"): 0.15, ("basic_pitch_nmp", "const_fold_opt__655"): 0.15}
"""Relative error allowed, 1 % elsewhere: kernels of a logarithmic CQT are so ill-conditioned that engines differ by 9 %."""

STEPS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
"""How far the differences should move the loss, relative to the sum of its terms' sizes: float32 leaves noise in short steps,
kinks and curvature spoil long ones."""


NEIGHBOURS = (0.8, 0.9, 1.0, 1.1, 1.25)
"""Each step is taken in these lengths, and the mean counts: float32's rounding differs from one to the next."""


def loss_weights(outputs, seed=3):
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(y.shape).astype(y.dtype) for n, y in outputs.items() if y.dtype.kind == "f"}


class Runner:
    """The same sum of outputs through onnxruntime, at any value of one weight, which is fed as an input."""

    def __init__(self, path, name, feeds, weights, array):
        proto = onnx.load(path)
        if not any(t.name == name for t in proto.graph.initializer):  # what nodes make of stored integers
            kept = [node for node in proto.graph.node if name not in node.output]
            del proto.graph.node[:]
            proto.graph.node.extend(kept)
        self.name, self.feeds, self.weights = name, feeds, weights
        if name not in {i.name for i in proto.graph.input}:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape))
        proto.ir_version = max(proto.ir_version, 4)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.at = array

    def __call__(self, weight):
        outputs = self.session.run(list(self.weights), {**self.feeds, self.name: weight})
        return sum(float((np.float64(w) * y).sum()) for w, y in zip(self.weights.values(), outputs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_gradients(name):
    try:
        path = str(fetch(name)["model"])
    except Unavailable as error:
        pytest.skip(str(error))
    model = fr.load(path, **PLACED)
    # A recurrent layer that starts from zeros and takes one step has no use for its recurrent weights: silero's first variant.
    feeds = make(name)[int(name.startswith("silero"))]
    outputs = model.run(feeds)
    weights = loss_weights(outputs)
    size = sum(float(abs(np.float64(w) * outputs[n]).sum()) for n, w in weights.items())
    floating = [n for n, a in model.params.items() if a.dtype == np.float32]
    largest = sorted(floating, key=lambda n: -model.params[n].size)[:4]
    _, gradients = model.vjp(feeds, weights, wrt=largest)
    for weight in largest:
        gradient = gradients[weight].astype(np.float64)
        slope = np.sqrt((gradient**2).sum())
        assert np.isfinite(slope) and slope > 0, weight
        run = Runner(path, weight, feeds, weights, model.params[weight])
        errors = []
        for step in STEPS:
            ratios = []
            for rise in (step * length * size for length in NEIGHBOURS):
                up, down = (run((run.at + s * rise / slope**2 * gradient).astype(np.float32)) for s in (1, -1))
                ratios.append((up - down) / (2 * rise))
            errors.append(float(abs(np.mean(ratios) - 1)))
        assert min(errors) < TOLERANCE.get((name, weight), 0.01), f"{weight}: relative errors {errors} for steps {STEPS}"
