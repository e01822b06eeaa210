"""Low-rank terms beside weights, and new last layers: what they compute, what trains, what files hold."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import flamert as fr
from flamert import safetensors
from flamert.adapters import readapt
from flamert.errors import CheckpointError, InputError
from tests import training_models as models
from tests.placed import PLACED

rng = np.random.default_rng(0)


def floats(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def everything(opset=21):
    """Weights of all kinds: a convolution, one in groups, Gemm both ways, MatMul, and a weight that two nodes read."""
    own = np.random.default_rng(1)

    def floats(*shape):
        return own.standard_normal(shape).astype(np.float32)

    weights = {
        "stem.weight": floats(4, 2, 3, 3),
        "stem.bias": floats(4),
        "groups.weight": floats(4, 2, 1, 1),
        "a.weight": floats(6, 4),
        "b.weight": floats(6, 5),
        "onnx::MatMul_7": floats(5, 5),
        "tied": floats(5, 5),
        "head.weight": floats(3, 5),
        "head.bias": floats(3),
    }
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight", "stem.bias"], ["c"], pads=[1, 0, 1, 0], strides=[2, 1]),
        helper.make_node("Conv", ["c", "groups.weight"], ["g"], group=2),
        helper.make_node("GlobalAveragePool", ["g"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "a.weight"], ["a"], transB=1, alpha=0.5),
        helper.make_node("Gemm", ["a", "b.weight"], ["b"]),
        helper.make_node("MatMul", ["b", "onnx::MatMul_7"], ["m"], name="/encoder/query/MatMul"),
        helper.make_node("MatMul", ["m", "tied"], ["t"]),
        helper.make_node("MatMul", ["t", "tied"], ["u"]),
        helper.make_node("Gemm", ["u", "head.weight", "head.bias"], ["y"], transB=1),
        helper.make_node("Softmax", ["y"], ["s"]),
    ]
    ends = {"y": (models.FLOAT, ["N", 3]), "s": (models.FLOAT, ["N", 3])}
    return models.built(nodes, {"x": (models.FLOAT, ["N", 2, "H", "W"])}, ends, weights, opset)


NAMES = ("stem", "groups", "a", "b", "encoder.query", "tied", "head")
X = floats(3, 2, 6, 5)


def adapted(**options):
    model = fr.load(everything(), **PLACED)
    model.add_lora("*", rank=2, alpha=6, **options)
    return model


def moved(model):
    """The model with factors that are not at their start."""
    for name in model.adapted:
        model.params[name] = floats(*model.params[name].shape) * 0.3
    return model


def test_terms_start_at_nothing_and_merge_to_the_same():
    plain = fr.load(everything(), **PLACED).run({"x": X})
    model = adapted()
    assert {n.removesuffix(".lora_A.weight") for n in model.adapted if ".lora_A." in n} == set(NAMES)
    for name, want in plain.items():
        np.testing.assert_allclose(model.run({"x": X})[name], want, rtol=1e-5, atol=1e-6)
    before = moved(model).run({"x": X})
    assert np.abs(before["y"] - plain["y"]).max() > 0.01
    stem = model.params["stem.weight"].copy()
    model.merge_lora()
    assert not model.adapted and not any("lora" in n for n in model.params)
    assert np.abs(model.params["stem.weight"] - stem).max() > 0.01
    for name, want in before.items():
        np.testing.assert_allclose(model.run({"x": X})[name], want, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="no low-rank"):
        model.merge_lora()


def test_the_file_has_merged_weights(tmp_path):
    model = moved(adapted())
    want = model.run({"x": X})
    model.save(tmp_path / "merged.onnx")
    saved = onnx.load(tmp_path / "merged.onnx")
    onnx.checker.check_model(saved, full_check=True)
    assert [n.op_type for n in saved.graph.node] == [n.op_type for n in everything().graph.node]
    for name, array in fr.load(tmp_path / "merged.onnx", **PLACED).run({"x": X}).items():
        np.testing.assert_allclose(array, want[name], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(model.run({"x": X})["y"], want["y"])


def test_terms_go_to_a_file_and_come_back(tmp_path):
    model = moved(adapted())
    want = model.run({"x": X})["y"]
    model.save_lora(tmp_path / "terms.safetensors")
    arrays, _ = safetensors.read(tmp_path / "terms.safetensors")
    assert arrays["base_model.model.encoder.query.lora_A.weight"].shape == (2, 5)
    assert arrays["base_model.model.a.lora_B.weight"].shape == (6, 2)
    assert arrays["base_model.model.stem.lora_A.weight"].shape == (2, 2, 3, 3)
    assert arrays["base_model.model.stem.lora_B.weight"].shape == (4, 2, 1, 1)
    fresh = fr.load(everything_like(model), **PLACED)
    assert set(fresh.load_lora(tmp_path / "terms.safetensors")) == set(NAMES)
    np.testing.assert_allclose(fresh.run({"x": X})["y"], want, rtol=1e-5, atol=1e-6)
    fresh.load_lora(tmp_path / "terms.safetensors")
    (tmp_path / "peft").mkdir()
    model.save_lora(tmp_path / "peft")
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["lora_alpha"] == 6
    fresh = fr.load(everything_like(model), **PLACED)
    fresh.load_lora(tmp_path / "peft")
    np.testing.assert_allclose(fresh.run({"x": X})["y"], want, rtol=1e-5, atol=1e-6)


def everything_like(model):
    """The same model with the same weights, without terms."""
    proto = everything()
    for t in proto.graph.initializer:
        t.CopyFrom(numpy_helper.from_array(model.params[t.name], t.name))
    return proto


def test_files_that_do_not_fit_are_refused(tmp_path):
    from flamert.files import write_files

    def written(arrays):
        write_files(str(tmp_path), {"bad": [safetensors.contents(arrays, {})]})
        return tmp_path / "bad"

    model = fr.load(everything(), **PLACED)
    a, b = floats(2, 4), floats(6, 2)
    good = {"base_model.model.a.lora_A.weight": a, "base_model.model.a.lora_B.weight": b}
    for arrays, why in (
        (good, "alpha"),
        ({"base_model.model.nowhere.lora_A.weight": a}, "nowhere"),
        ({"base_model.model.a.lora_A.weight": a}, "do not fit"),
        ({"something": a}, "no factor"),
        ({**good, "base_model.model.a.lora_B.weight": floats(5, 2)}, "do not fit"),
    ):
        with pytest.raises(CheckpointError, match=why):
            model.load_lora(written(arrays))
    assert not model.adapted
    assert model.load_lora(written(good), alpha=4) == ("a",)
    with pytest.raises(InputError, match="nothing-like-this"):
        model.add_lora("nothing-like-this")
    with pytest.raises(InputError, match="dropout"):
        fr.load(everything(), **PLACED).add_lora("tied", dropout=0.1)


def test_patterns_fit_names_and_their_ends():
    model = fr.load(everything(), **PLACED)
    assert model.add_lora(["query", "?.weight"]) == ("encoder.query", "a", "b")
    with pytest.raises(InputError, match="already"):
        model.add_lora("query")


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_terms_train_alone(tmp_path, dropout):
    proto = models.perceptron()
    model = fr.load(proto, **PLACED)
    model.add_lora(["a", "b"], rank=4, alpha=8, dropout=dropout)
    trainer = fr.Trainer(model, "cross_entropy", fr.optim.AdamW(2e-2))
    assert set(trainer.trainable) == {f"{n}.lora_{f}.weight" for n in "ab" for f in "AB"}
    before = model.params["a.weight"].copy()
    curve = [float(trainer.step(x, t)) for _ in range(5) for x, t in models.rows()]
    assert np.mean(curve[-20:]) < 0.6 * np.mean(curve[:5])
    np.testing.assert_array_equal(model.params["a.weight"], before)
    trainer.export(tmp_path / "tuned.onnx")
    x, t = models.rows()[0]
    tuned = fr.load(tmp_path / "tuned.onnx", **PLACED)
    np.testing.assert_allclose(tuned.run({"x": x})["y"], model.run({"x": x})["y"], rtol=1e-4, atol=1e-5)
    trainer.export_training_graph(tmp_path / "step.onnx", x=x, target=t)
    onnx.checker.check_model(onnx.load(tmp_path / "step.onnx"), full_check=True)


def test_gradients_are_those_of_the_merged_weight():
    model = moved(adapted())
    names = sorted(model.adapted)
    _, got = model.vjp({"x": X}, {"y": np.ones((3, 3), np.float32)}, wrt=[*names, "a.weight"])
    scale = 3.0
    dw = got["a.weight"]
    np.testing.assert_allclose(got["a.lora_B.weight"], scale * dw @ model.params["a.lora_A.weight"].T, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got["a.lora_A.weight"], scale * model.params["a.lora_B.weight"].T @ dw, rtol=1e-3, atol=1e-4)


def test_a_new_head(tmp_path):
    model = fr.load(everything(), **PLACED)
    features = model.run({"x": X}, ["u"])["u"]
    assert model.replace_head("y", 7) == "head"
    assert model.params["head.weight"].shape == (7, 5) and model.params["head.bias"].shape == (7,)
    assert model.outputs[0].shape[-1] == 7
    want = features @ model.params["head.weight"].T + model.params["head.bias"]
    found = model.run({"x": X})
    np.testing.assert_allclose(found["y"], want, rtol=1e-4, atol=1e-4)
    assert found["s"].shape == (3, 7)
    trainer = fr.Trainer(model, "cross_entropy", fr.optim.AdamW(1e-3), trainable="head.*")
    trainer.step(X, np.array([0, 5, 6]))
    trainer.export(tmp_path / "new.onnx")
    saved = onnx.load(tmp_path / "new.onnx")
    saved.graph.output[1].type.tensor_type.shape.dim[1].Clear()
    onnx.checker.check_model(saved, full_check=True)
    assert len(saved.graph.initializer) == len(everything().graph.initializer)
    tuned = fr.load(tmp_path / "new.onnx", **PLACED)
    np.testing.assert_allclose(tuned.run({"x": X})["y"], model.run({"x": X})["y"], rtol=1e-5, atol=1e-5)


def test_a_head_goes_with_what_follows_it():
    model = fr.load(everything(), **PLACED)
    model.replace_head("s", 2, name="fresh", init="zeros")
    found = model.run({"x": X})
    assert found["y"].shape == (3, 3) and not found["s"].any() and found["s"].shape == (3, 2)


def in_parts(shifted):
    """A softmax over a Gemm as JAX's exporter writes it: exp(x − max x) / Σ, spread by Reshape and Expand."""
    weights = {
        "w": floats(4, 6),
        "b": floats(4),
        "least": np.float32(-1e9),
        "columns": np.array([-1, 1]),
        "ones": np.array([1]),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["logits"], transB=1),
        helper.make_node("ReduceMax", ["logits", "ones"], ["top"], keepdims=0),
        helper.make_node("Max", ["least", "top"], ["bounded"]),
        helper.make_node("Reshape", ["bounded", "columns"], ["column"]),
        helper.make_node("Shape", ["logits"], ["size"]),
        helper.make_node("Expand", ["column", "size"], ["spread"]),
        helper.make_node("Sub", ["logits", "spread"], ["shifted"]),
        helper.make_node("Exp", ["shifted" if shifted else "logits"], ["power"]),
        helper.make_node("ReduceSum", ["power", "ones"], ["total"], keepdims=1),
        helper.make_node("Div", ["power", "total"], ["y"]),
    ]
    nodes = nodes if shifted else [nodes[0], *nodes[7:]]
    return models.built(nodes, {"x": (models.FLOAT, ["N", 6])}, {"y": (models.FLOAT, ["N", 4])}, weights, 18)


@pytest.mark.parametrize("shifted", [True, False])
def test_a_softmax_in_parts_goes_with_the_head(shifted, tmp_path):
    model = fr.load(in_parts(shifted), **PLACED)
    assert model.replace_head("y", 3, name="fresh") == "fresh"
    x = floats(2, 6)
    want = x @ model.params["fresh.weight"].T + model.params["fresh.bias"]
    np.testing.assert_allclose(model.run({"x": x})["y"], want, rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "new.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "new.onnx").graph.node] == ["Gemm"]


def test_division_by_another_sum_is_no_softmax():
    proto = in_parts(False)
    proto.graph.node[2].input[0] = "logits"
    model = fr.load(proto, **PLACED)
    model.replace_head("y", 3)
    assert model.params["head.weight"].shape == (4, 3)


def test_a_head_whose_weight_is_stored_as_integers(tmp_path):
    weights = {"codes": rng.integers(-100, 100, (6, 4)).astype(np.int8), "scale": np.float32(0.01), "rows": np.array([-1, 4])}
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Reshape", ["m", "rows"], ["r"]),
        helper.make_node("Softmax", ["r"], ["y"]),
    ]
    model = fr.load(
        models.built(nodes, {"x": (models.FLOAT, ["N", 6])}, {"y": (models.FLOAT, ["N", 4])}, weights), device="cpu"
    )
    model.replace_head("y", 3, name="fresh")
    assert set(model.params) == {"fresh.weight", "fresh.bias"}
    x = floats(2, 6)
    want = x @ model.params["fresh.weight"] + model.params["fresh.bias"]
    np.testing.assert_allclose(model.run({"x": x})["y"], want, rtol=1e-5, atol=1e-6)
    fr.Trainer(model, "cross_entropy", fr.optim.SGD(1e-2)).step(x, np.array([0, 2]))
    model.save(tmp_path / "new.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "new.onnx"), full_check=True)


def test_weights_that_branches_read_too_get_no_term():
    def branch(*nodes):
        return helper.make_graph(nodes, "branch", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)])

    inside = branch(helper.make_node("MatMul", ["h", "w"], ["z"]))
    outside = branch(helper.make_node("Identity", ["h"], ["z"]))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("If", ["c"], ["y"], then_branch=inside, else_branch=outside),
    ]
    ends = {"x": (TensorProto.FLOAT, ["N", 4]), "c": (TensorProto.BOOL, [])}
    proto = models.built(nodes, ends, {"y": (TensorProto.FLOAT, ["N", 4])}, {"w": floats(4, 4)})
    with pytest.raises(InputError, match="fits 'w'"):
        fr.load(proto, **PLACED).add_lora("w")


def test_a_head_behind_a_backbone(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    proto = models.built(nodes, {"x": (TensorProto.FLOAT, ["N", 6])}, {"y": (TensorProto.FLOAT, ["N", 6])}, {})
    model = fr.load(proto, **PLACED)
    assert model.replace_head("y", 4) == "head"
    x = floats(2, 6)
    want = np.maximum(x, 0) @ model.params["head.weight"] + model.params["head.bias"]
    np.testing.assert_allclose(model.run({"x": x})["y"], want, rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "headed.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "headed.onnx"), full_check=True)
    np.testing.assert_allclose(fr.load(tmp_path / "headed.onnx", **PLACED).run({"x": x})["y"], want, rtol=1e-5, atol=1e-6)
    model.add_lora("head")
    assert model.adapted == {"head.lora_A.weight", "head.lora_B.weight", "head.weight", "head.bias"}
    with pytest.raises(InputError, match="'z'"):
        model.replace_head("z", 4)
    with pytest.raises(InputError, match="before low-rank"):
        model.replace_head("y", 4)


def test_a_model_gets_the_structure_of_another():
    model = fr.load(everything(), **PLACED)
    model.replace_head("y", 2, name="fresh")
    model.add_lora(["a", "stem"], rank=3, alpha=5)
    twin = fr.load(everything(), **PLACED)
    readapt(twin, json.loads(json.dumps(model.adaptations)))
    assert set(twin.params) == set(model.params) and twin.adapted == model.adapted and twin.outputs == model.outputs
    for name in model.params:
        twin.params[name] = model.params[name]
    np.testing.assert_array_equal(twin.run({"x": X})["y"], model.run({"x": X})["y"])
    model.merge_lora()
    with pytest.raises(CheckpointError, match="merged before"):
        readapt(fr.load(everything(), **PLACED), model.adaptations)
    for unfit in (
        {"call": "replace_head", "output": "nowhere", "features": 2, "name": "x"},
        {"call": "add_lora", "layers": ["nowhere"], "rank": 1, "alpha": 1, "dropout": 0},
        {"call": "replace_head", "size": 2},
        {"call": "sing"},
    ):
        with pytest.raises(CheckpointError):
            readapt(fr.load(everything(), **PLACED), [unfit])
