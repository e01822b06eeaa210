"""Weights wherever a file keeps them: as small integers with scales, in Constant nodes, in branches, in functions.

Each trains under a name of its own, and a saved file differs from the original in its tensor alone.
"""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import flamert as fr
from models.fetch import Unavailable, fetch
from models.inputs import make
from tests.small import model

FLOAT = TensorProto.FLOAT
rng = np.random.default_rng(0)
X = rng.standard_normal((5, 6)).astype(np.float32)
ENDS = {"x": (FLOAT, ["N", 6])}, {"y": (FLOAT, ["N", 8])}


def tensor(array, name):
    """A TensorProto of any element type."""
    array = np.asarray(array)
    if (array.dtype.kind in "fiu" and array.dtype.itemsize > 1) or array.dtype in (np.int8, np.uint8):
        return numpy_helper.from_array(array, name)
    kind = {"int4": TensorProto.INT4, "uint4": TensorProto.UINT4, "float8_e4m3fn": TensorProto.FLOAT8E4M3FN}[array.dtype.name]
    return helper.make_tensor(name, kind, array.shape, array.astype(np.float32).reshape(-1))


def integers(low, high, dtype, shape=(6, 8)):
    return rng.integers(low, high, shape).astype(dtype)


def scales(*shape):
    return rng.uniform(0.01, 0.03, shape).astype(np.float32)


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs.split(), [output], **attributes)


CHAINS = {
    "cast": ([node("Cast", "q", "c", to=FLOAT), node("Mul", "c s", "w")], {"q": integers(-127, 128, "i1"), "s": scales(1, 8)}),
    "turned": (
        [node("Transpose", "q", "t", perm=[1, 0]), node("Cast", "t", "c", to=FLOAT), node("Mul", "s c", "w")],
        {"q": integers(-127, 128, "i1", (8, 6)), "s": scales(1, 8)},
    ),
    "zero": (
        [node("Cast", "q", "c", to=FLOAT), node("Sub", "c z", "d"), node("Mul", "d s", "w")],
        {"q": integers(0, 256, "u1"), "z": np.float32([3.0]), "s": scales(6, 1)},
    ),
    "offset": (
        [node("Cast", "q", "c", to=FLOAT), node("Div", "c s", "d"), node("Add", "d o", "w")],
        {"q": integers(-127, 128, "i2"), "s": 1 / scales(1), "o": np.float32([0.5])},
    ),
    "linear": (
        [node("DequantizeLinear", "q s z", "w")],
        {"q": integers(0, 256, "u1"), "s": np.float32(0.02), "z": np.uint8(120)},
    ),
    "channels": (
        [node("DequantizeLinear", "q s z", "w", axis=-1)],
        {"q": integers(-127, 128, "i1"), "s": scales(8), "z": integers(-5, 5, "i1", 8)},
    ),
    "blocks": (
        [node("DequantizeLinear", "q s z", "w", axis=0, block_size=4)],
        {"q": integers(0, 16, ml_dtypes.uint4), "s": scales(2, 8), "z": integers(5, 9, ml_dtypes.uint4, (2, 8))},
    ),
    "nibbles": (
        [node("DequantizeLinear", "q s", "w", axis=1, block_size=2)],
        {"q": integers(-8, 8, ml_dtypes.int4), "s": scales(6, 4)},
    ),
    "float8": (
        [node("DequantizeLinear", "q s", "w")],
        {"q": rng.standard_normal((6, 8)).astype(ml_dtypes.float8_e4m3fn), "s": np.float32(0.05)},
    ),
    "int32": ([node("DequantizeLinear", "q s", "w")], {"q": integers(-9000, 9000, "i4"), "s": np.float32(1e-4)}),
}


def chained(name):
    nodes, tensors = CHAINS[name]
    made = model([*nodes, node("MatMul", "x w", "y")], *ENDS)
    made.graph.initializer.extend([tensor(a, n) for n, a in tensors.items()])
    return made


def parts(proto):
    """A file's tensors by name, and the file without their contents."""
    bare, found = onnx.ModelProto(), {}
    bare.CopyFrom(proto)

    def strip(graph, where):
        for t in getattr(graph, "initializer", ()):
            found[where + t.name] = numpy_helper.to_array(t)
            for field in ("raw_data", "float_data", "int32_data", "int64_data"):
                t.ClearField(field)
        for n in graph.node:
            for a in n.attribute:
                if a.type == a.TENSOR:
                    found[where + n.output[0]] = numpy_helper.to_array(a.t)
                    a.t.ClearField("raw_data")
                    a.t.ClearField("float_data")
                elif a.type == a.GRAPH:
                    strip(a.g, f"{where}{n.name}.{a.name}.")

    strip(bare.graph, "")
    for function in bare.functions:
        strip(function, f"{function.name}.")
    return found, bare


def changed(before, after):
    """Names of the tensors in which two files differ; nothing else may."""
    (a, rest), (b, others) = parts(before), parts(after)
    assert rest == others and a.keys() == b.keys()
    return {n for n in a if a[n].tobytes() != b[n].tobytes()}


def trained(proto, path, names, steps=3, feeds=None):
    """The model after some steps that these parameters take, having been saved."""
    loaded = fr.load(proto, device="cpu")
    feeds = feeds or {"x": X}
    target = np.zeros_like(loaded.run(feeds)["y"])
    trainer = fr.Trainer(loaded, "mse", fr.optim.SGD(0.5))
    assert trainer.trainable == tuple(names)
    losses = [float(trainer.step(feeds, target)) for _ in range(steps)]
    assert losses[-1] < losses[0]
    loaded.save(path)
    return loaded


def neighbours(codes):
    """Arrays of all codes that an 8-bit or smaller type has; of wider types those around the given ones."""
    if codes.dtype.name == "float8_e4m3fn":
        every = np.arange(256, dtype=np.uint8).view(codes.dtype)
        return [np.full_like(codes, c) for c in every if np.isfinite(c)]
    info = ml_dtypes.iinfo(codes.dtype)
    if codes.dtype.itemsize == 1:
        return [np.full(codes.shape, c, np.int32).astype(codes.dtype) for c in range(info.min, info.max + 1)]
    return [np.clip(codes.astype(np.int64) + d, info.min, info.max).astype(codes.dtype) for d in (-2, -1, 1, 2)]


@pytest.mark.parametrize("name", CHAINS)
def test_weights_stored_as_integers_train_and_are_rounded_when_saved(name, tmp_path):
    original = fr.load(chained(name), device="cpu")
    start, codes = original.params["w"], original.params["q"]
    assert start.dtype == np.float32 and start.size == codes.size
    np.testing.assert_allclose(original.run({"x": X})["y"], X @ start, rtol=1e-5, atol=1e-5)
    loaded = trained(chained(name), tmp_path / "out.onnx", ["w"])
    assert changed(chained(name), onnx.load(tmp_path / "out.onnx")) == {"q"}
    again = fr.load(tmp_path / "out.onnx", device="cpu")
    new, wanted = np.array(again.params["q"]), np.array(loaded.params["w"], np.float64)
    misses = abs(again.params["w"] - wanted)
    for others in neighbours(new):
        again.params["q"] = others
        assert (misses <= abs(again.params["w"] - wanted) + 1e-6).all(), "another code is nearer"
    np.testing.assert_array_equal(loaded.params["q"], codes)


@pytest.mark.parametrize("name", CHAINS)
def test_one_element_is_written_back_alone(name, tmp_path):
    loaded = fr.load(chained(name), device="cpu")
    weight = np.array(loaded.params["w"])
    before = loaded.run({"x": X})["y"]
    loaded.params["w"] = weight
    np.testing.assert_array_equal(loaded.run({"x": X})["y"], before)
    loaded.save(tmp_path / "same.onnx")
    assert changed(chained(name), onnx.load(tmp_path / "same.onnx")) == set()
    other = np.array(weight)
    other[2, 3] = other[2, 3] * 0.5 + 0.3
    loaded.params["w"] = other
    loaded.save(tmp_path / "other.onnx")
    new = fr.load(tmp_path / "other.onnx", device="cpu").params["q"]
    old = fr.load(chained(name), device="cpu").params["q"]
    assert np.argwhere(new != old).tolist() == [[3, 2] if name == "turned" else [2, 3]]


def test_integers_that_are_assigned_count_again():
    loaded = fr.load(chained("cast"), device="cpu")
    loaded.params["w"] = loaded.params["w"] * 2
    loaded.params["q"] = codes = loaded.params["q"] // 2
    expected = codes.astype(np.float32) * loaded.params["s"]
    np.testing.assert_allclose(loaded.params["w"], expected, rtol=1e-6)
    np.testing.assert_allclose(loaded.run({"x": X})["y"], X @ expected, rtol=1e-4, atol=1e-4)


def test_what_saturates_stays_at_the_end(tmp_path):
    loaded = fr.load(chained("cast"), device="cpu")
    loaded.params["w"] = loaded.params["w"] * 1000
    loaded.save(tmp_path / "out.onnx")
    codes = fr.load(tmp_path / "out.onnx", device="cpu").params["q"]
    old = fr.load(chained("cast"), device="cpu").params["q"]
    np.testing.assert_array_equal(codes[old > 0], 127)
    np.testing.assert_array_equal(codes[old < 0], -128)
    loaded.params["w"] = loaded.params["w"] * np.nan
    with pytest.raises(fr.errors.InputError, match="'w' is not finite"):
        loaded.save(tmp_path / "out.onnx")


def test_scales_can_be_trained_instead(tmp_path):
    loaded = fr.load(chained("cast"), device="cpu")
    trainer = fr.Trainer(loaded, "mse", fr.optim.SGD(0.01), trainable="s")
    trainer.step({"x": X}, np.zeros((5, 8), np.float32))
    loaded.save(tmp_path / "out.onnx")
    assert changed(chained("cast"), onnx.load(tmp_path / "out.onnx")) == {"s"}


def test_gradients_of_stored_weights():
    loaded = fr.load(chained("channels"), device="cpu")
    dy = np.ones((5, 8), np.float32)
    _, gradients = loaded.vjp({"x": X}, {"y": dy})
    assert set(gradients) == {"x", "w"}
    np.testing.assert_allclose(gradients["w"], X.T @ dy, rtol=1e-5)
    _, scales = loaded.vjp({"x": X}, {"y": dy}, wrt=["s"])
    codes, zero = (loaded.params[n].astype(np.float32) for n in "qz")
    np.testing.assert_allclose(scales["s"], (X.T @ dy * (codes - zero)).sum(0), rtol=1e-4)
    loaded.params["q"] = loaded.params["q"] // 2
    np.testing.assert_allclose(loaded.run({"x": X})["y"], X @ loaded.params["w"], rtol=1e-4, atol=1e-4)
    branches = fr.load(stored_in_a_branch(), device="cpu")
    for _ in range(2):
        _, gradients = branches.vjp({"x": X}, {"y": dy})
        np.testing.assert_allclose(gradients[f"{THEN}w"], X.T @ dy, rtol=1e-5)
        assert not gradients["w"].any()


def test_integers_that_are_no_weights_are_left_alone():
    """Codes with two readers, positions, masks without a scale, and what an input decides on."""
    tensors = {
        "twice": integers(-9, 9, "i1"),
        "plain": integers(0, 2, "u1"),
        "index": np.arange(6, dtype=np.int32),
        "free": integers(-9, 9, "i1"),
        "half": np.float32(0.5),
    }
    nodes = [
        *[node("Cast", n, f"{n}.c", to=FLOAT) for n in ("twice", "plain", "index", "free")],
        node("Mul", "twice.c half", "a"),
        node("Add", "twice.c plain.c", "b"),
        node("Mul", "index.c half", "i"),
        node("Mul", "free.c scale", "f"),
        *[node("MatMul", f"x {n}", f"{n}.y") for n in "abf"],
        node("Sum", "a.y b.y f.y", "y"),
    ]
    inputs = {**ENDS[0], "scale": (FLOAT, [])}
    made = model([*nodes, node("Add", "x i", "z")], inputs, {**ENDS[1], "z": (FLOAT, ["N", 6])}, tensors)
    loaded = fr.load(made, device="cpu")
    assert set(loaded.params) == set(tensors)


# -- elsewhere in the file --------------------------------------------------------------------------------------------


def weight(seed=0):
    return np.random.default_rng(seed).standard_normal((6, 8)).astype(np.float32)


def constant(output="w", seed=0):
    return helper.make_node("Constant", [], [output], value=numpy_helper.from_array(weight(seed)))


def branched(initializers=True):
    """Two branches, each with a weight of the same name; a condition takes one."""

    def branch(seed):
        out = [helper.make_tensor_value_info("b", FLOAT, ["N", 8])]
        tensors = [numpy_helper.from_array(weight(seed), "w")] if initializers else []
        nodes = [] if initializers else [constant(seed=seed)]
        return helper.make_graph([*nodes, node("MatMul", "x w", "b")], "branch", [], out, tensors)

    choice = helper.make_node("If", ["yes"], ["y"], name="choose", then_branch=branch(1), else_branch=branch(2))
    return model([choice], *ENDS, {"yes": np.array(True)})


def called(stored=False):
    """A function with a weight of its own, called twice."""
    body = [constant(), node("MatMul", "a w", "b")]
    if stored:
        codes = helper.make_node("Constant", [], ["q"], value=numpy_helper.from_array(integers(-99, 99, "i1")))
        scale = helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.float32(0.02)))
        body = [codes, scale, node("DequantizeLinear", "q s", "w"), node("MatMul", "a w", "b")]
    function = helper.make_function("own", "Layer", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    nodes = [helper.make_node("Layer", ["x"], [n], domain="own") for n in ("p", "r")]
    made = model([*nodes, node("Add", "p r", "y")], *ENDS, functions=[function])
    made.opset_import.append(helper.make_opsetid("own", 1))
    return made


def stored_in_a_branch():
    def branch(seed):
        out = [helper.make_tensor_value_info("b", FLOAT, ["N", 8])]
        codes = np.random.default_rng(seed).integers(-99, 99, (6, 8)).astype(np.int8)
        tensors = [numpy_helper.from_array(codes, "q"), numpy_helper.from_array(np.float32(0.02), "s")]
        return helper.make_graph([node("DequantizeLinear", "q s", "w"), node("MatMul", "x w", "b")], "branch", [], out, tensors)

    choice = helper.make_node("If", ["yes"], ["y"], name="choose", then_branch=branch(1), else_branch=branch(2))
    return model([choice], *ENDS, {"yes": np.array(True)})


THEN = "choose.then_branch."

PLACES = {
    "constant": (lambda: model([constant(), node("MatMul", "x w", "y")], *ENDS), ["w"], {"w"}),
    "branch": (branched, ["w", f"{THEN}w"], {f"{THEN}w"}),
    "constant in a branch": (lambda: branched(False), ["w", f"{THEN}w"], {f"{THEN}w"}),
    "function": (called, ["w"], {"Layer.w"}),
    "integers in a branch": (stored_in_a_branch, ["w", f"{THEN}w"], {f"{THEN}q"}),
    "integers in a function": (lambda: called(True), ["w"], {"Layer.q"}),
}


@pytest.mark.parametrize("name", PLACES)
def test_weights_train_wherever_they_are(name, tmp_path):
    build, names, touched = PLACES[name]
    rng.bit_generator.state = np.random.default_rng(5).bit_generator.state
    proto = build()
    loaded = trained(proto, tmp_path / "out.onnx", names)
    assert changed(proto, onnx.load(tmp_path / "out.onnx")) == touched
    again = fr.load(tmp_path / "out.onnx", device="cpu")
    exact = not name.startswith("integers")
    np.testing.assert_allclose(again.run({"x": X})["y"], loaded.run({"x": X})["y"], atol=1e-6 if exact else 0.2)


def test_a_real_model_with_integer_weights(tmp_path):
    try:
        path = str(fetch("ppocrv6_rec_tiny")["model"])
    except Unavailable as error:
        pytest.skip(str(error))
    feeds = {"x": make("ppocrv6_rec_tiny")[1]["x"][:1, :, :, :64]}
    loaded = fr.load(path, device="cpu")
    name = loaded.outputs[0].name
    before = loaded.run(feeds)[name]
    assert len(list(loaded.origin.stored)) == 39

    def loss(outputs, targets):
        return fr.losses.NLL()(fr.ops.reshape(fr.ops.log(outputs[name] + 1e-6), shape=before.shape[1:]), targets["target"])

    trainer = fr.Trainer(loaded, loss, fr.optim.Adam(5e-4), train_mode=False, trainable="conv2d*.w_0")
    losses = [float(trainer.step(feeds, np.arange(before.shape[1]))) for _ in range(6)]
    assert losses[-1] < losses[0]
    loaded.save(tmp_path / "tuned.onnx")
    touched = changed(onnx.load(path), onnx.load(tmp_path / "tuned.onnx"))
    assert len(touched) > 20 and all(n.endswith("_stored") for n in touched)
    again = fr.load(tmp_path / "tuned.onnx", device="cpu").run(feeds)[name]
    trained_ = loaded.run(feeds)[name]
    assert abs(again - trained_).max() < abs(trained_ - before).max()
