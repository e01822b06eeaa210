"""Gradients of whole models: what may be asked for, what is zero, what is refused; control flow; weights wherever they lie."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import flamert as fr
from flamert import ops
from tests import small
from tests.placed import PLACED

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
rng = np.random.default_rng(5)


def f32(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def node(op, inputs, outputs, **attrs):
    """Names apart by spaces; "_" is an absent one."""
    given = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(op, given, outputs.split(), name=f"{op}-{outputs.split()[0]}", **attrs)


def subgraph(nodes, inputs, outputs, initializers=None):
    infos = [[helper.make_tensor_value_info(n, *t) for n, t in values.items()] for values in (inputs, outputs)]
    tensors = [numpy_helper.from_array(a, n) for n, a in (initializers or {}).items()]
    return helper.make_graph(nodes, "inner", *infos, tensors)


def load(*args, **kwargs):
    return fr.load(small.model(*args, **kwargs), **PLACED)


def differences(model, feeds, cotangents, name, step=1e-2):
    """Central differences by a parameter or input, in every element. Exact where the model is at most quadratic in it."""
    x = model.params[name] if name in model.params else feeds[name]
    slopes = np.zeros(x.shape)

    def loss(at, by):
        moved = x.copy()
        moved[at] += by
        if name in model.params:
            model.params[name] = moved
            outputs = model.run(feeds, list(cotangents))
            model.params[name] = x
        else:
            outputs = model.run({**feeds, name: moved}, list(cotangents))
        return sum(float((np.float64(c) * outputs[n]).sum()) for n, c in cotangents.items())

    for at in np.ndindex(x.shape):
        slopes[at] = (loss(at, step) - loss(at, -step)) / (2 * step)
    return slopes


def check(model, feeds, names, cotangents=None):
    cotangents = cotangents or {o.name: f32(*y.shape) for o, y in zip(model.outputs, model.run(feeds).values(), strict=True)}
    outputs, gradients = model.vjp(feeds, cotangents, wrt=names)
    for name, want in model.run(feeds).items():
        np.testing.assert_allclose(outputs[name], want, 1e-5, 1e-6)
    assert list(gradients) == list(names)
    for name in names:
        np.testing.assert_allclose(gradients[name], differences(model, feeds, cotangents, name), 2e-3, 2e-3, err_msg=name)
    return gradients


# -- names --------------------------------------------------------------------------------------------------------------


def test_all_floating_by_default_and_intermediates_by_name():
    model = fr.load(small.perceptron(), **PLACED)
    x, dy = f32(3, 6), f32(3, 8)
    outputs, gradients = model.vjp({"x": x}, {"y": dy})
    assert gradients.keys() == {"x", "W", "b"}
    through = dy * (outputs["y"] > 0)
    np.testing.assert_allclose(gradients["W"], x.T @ through, 1e-5, 1e-5)
    np.testing.assert_allclose(gradients["b"], through.sum(0), 1e-5, 1e-5)
    np.testing.assert_allclose(gradients["x"], through @ small.W.T, 1e-5, 1e-5)
    _, inner = model.vjp({"x": x}, {"y": dy}, wrt=["sum", "product", "y"])
    np.testing.assert_array_equal(inner["sum"], through)
    np.testing.assert_array_equal(inner["product"], through)
    np.testing.assert_array_equal(inner["y"], dy)


def test_cotangents_of_intermediates_add_up():
    model = fr.load(small.perceptron(), **PLACED)
    x, dy, ds = f32(3, 6), f32(3, 8), f32(3, 8)
    outputs, both = model.vjp({"x": x}, {"y": dy, "sum": ds}, wrt=["x"])
    assert outputs.keys() == {"y", "sum"}
    parts = [model.vjp({"x": x}, {n: c}, wrt=["x"])[1]["x"] for n, c in (("y", dy), ("sum", ds))]
    np.testing.assert_allclose(both["x"], parts[0] + parts[1], 1e-5, 1e-5)
    assert not model.vjp({"x": x}, {}, wrt=["x"])[1]["x"].any()


def test_what_is_not_reached_has_gradient_zero():
    nodes = [node("Mul", "x s", "y"), node("Exp", "z", "w"), node("Floor", "x", "v")]
    kinds = {"x": (FLOAT, [2]), "z": (FLOAT, [3])}
    outputs = {"y": (FLOAT, [2]), "w": (FLOAT, [3]), "v": (FLOAT, [2])}
    model = load(nodes, kinds, outputs, {"s": f32(2), "idle": f32(4)})
    feeds = {"x": f32(2), "z": f32(3)}
    _, gradients = model.vjp(feeds, {"y": f32(2), "v": f32(2)})
    assert gradients["s"].any() and gradients["x"].any()
    assert gradients["z"].shape == (3,) and not gradients["z"].any()
    assert gradients["idle"].shape == (4,) and not gradients["idle"].any()
    assert not model.vjp(feeds, {"v": f32(2)}, wrt=["x"])[1]["x"].any()


def test_names_and_types_that_there_are_not():
    model = fr.load(small.reshaped(), **PLACED)
    feeds = {"x": f32(2, 6), "shape": np.array([3, 4])}
    with pytest.raises(fr.errors.FlamertError, match="nothing"):
        model.vjp(feeds, {"y": f32(3, 4)}, wrt=["nothing"])
    with pytest.raises(fr.errors.FlamertError, match="nowhere"):
        model.vjp(feeds, {"nowhere": f32(1)}, wrt=["x"])
    with pytest.raises(fr.errors.ShapeError, match="'y'"):
        model.vjp(feeds, {"y": f32(12)}, wrt=["x"])
    with pytest.raises(fr.errors.NoGradient, match="'shape' is int64"):
        model.vjp(feeds, {"y": f32(3, 4)}, wrt=["shape"])


def test_integer_inputs_that_fix_shapes():
    model = fr.load(small.reshaped(), **PLACED)
    for shape in ([3, 4], [12], [2, 2, 3]):
        dy = f32(*shape)
        outputs, gradients = model.vjp({"x": f32(2, 6), "shape": np.array(shape)}, {"y": dy})
        assert outputs["y"].shape == tuple(shape) and gradients.keys() == {"x"}
        np.testing.assert_array_equal(gradients["x"], dy.reshape(2, 6))


def test_weights_that_fix_shapes():
    nodes = [node("Cast", "dims", "shape", to=INT64), node("Reshape", "x shape", "y")]
    model = load(nodes, {"x": (FLOAT, [6])}, {"y": (FLOAT, None)}, {"dims": np.array([3, 2], np.float32)})
    feeds = {"x": f32(6)}
    check(model, feeds, ["x"])
    assert not model.vjp(feeds, {"y": f32(3, 2)})[1]["dims"].any()
    with pytest.raises(fr.errors.NoGradient, match="'dims'"):
        model.vjp(feeds, {"y": f32(3, 2)}, wrt=["dims"])


def test_value_and_grad():
    model = fr.load(small.perceptron(), **PLACED)

    def loss(outputs, targets):
        error = outputs["y"] - targets["t"]
        return ops.reduce_mean(error * error, axes=(0, 1))

    x, t = f32(4, 6), f32(4, 8)
    value, gradients = fr.value_and_grad(model, loss, wrt=["W", "x"])({"x": x}, {"t": t})
    y = model.run({"x": x})["y"]
    assert value == pytest.approx(float(((y - t) ** 2).mean()), rel=1e-5)
    _, want = model.vjp({"x": x}, {"y": 2 * (y - t) / y.size}, wrt=["W", "x"])
    for name, gradient in want.items():
        np.testing.assert_allclose(gradients[name], gradient, 1e-5, 1e-6)
    with pytest.raises(fr.errors.ShapeError, match="one number"):
        fr.value_and_grad(model, lambda outputs, targets: outputs["y"])({"x": x}, {"t": t})


# -- control flow -------------------------------------------------------------------------------------------------------


def branching():
    """x · w or x · x · v, by a condition."""
    then = subgraph([node("Mul", "x w", "a")], {}, {"a": (FLOAT, [2])})
    other = subgraph([node("Mul", "x v", "p"), node("Mul", "p x", "b")], {}, {"b": (FLOAT, [2])})
    nodes = [node("If", "flag", "y", then_branch=then, else_branch=other)]
    inputs = {"x": (FLOAT, [2]), "flag": (BOOL, [])}
    return load(nodes, inputs, {"y": (FLOAT, [2])}, {"w": f32(2), "v": f32(2)})


@pytest.mark.parametrize("flag", [True, False])
def test_branches(flag):
    gradients = check(branching(), {"x": f32(2), "flag": np.array(flag)}, ["x", "w", "v"])
    assert gradients["w"].any() == flag and gradients["v"].any() != flag


def undecided():
    """−x where the sum of x is negative, else 3 x."""
    then = subgraph([node("Neg", "x", "a")], {}, {"a": (FLOAT, [2])})
    other = subgraph([node("Mul", "x three", "b")], {}, {"b": (FLOAT, [2])})
    nodes = [
        node("ReduceSum", "x", "total", keepdims=0),
        node("Less", "total zero", "flag"),
        node("If", "flag", "y", then_branch=then, else_branch=other),
    ]
    return load(nodes, {"x": (FLOAT, [2])}, {"y": (FLOAT, [2])}, {"zero": np.float32(0), "three": np.float32(3)})


def test_a_branch_that_floating_data_chooses():
    """The gradient is that of the branch taken, and is made anew for data that takes another."""
    model, dy = undecided(), f32(2)
    for x, slope in ([-3, 1], -1), ([3, -1], 3), ([-3, 1], -1), ([1, 1], 3):
        feeds = {"x": np.float32(x)}
        outputs, gradients = model.vjp(feeds, {"y": dy}, wrt=["x"])
        np.testing.assert_array_equal(gradients["x"], slope * dy)
        np.testing.assert_array_equal(outputs["y"], model.run(feeds)["y"])


def test_training_refuses_branches_that_floating_data_chooses():
    with pytest.raises(fr.errors.NoGradient, match="If node 'If-y'"):
        undecided().trace({"x": f32(2)}, ["y"], frozenset(), lasting=True)


def test_what_floating_data_picks():
    """Distinct values, and the places of those that are not zero: where each comes from is fixed, what it is moves."""
    nodes = [node("Unique", "x", "u"), node("Mul", "u u", "y"), node("Relu", "x", "r"), node("NonZero", "r", "at")]
    nodes += [node("Transpose", "at", "rows"), node("GatherND", "x rows", "p"), node("Mul", "p p", "z")]
    model = load(nodes, {"x": (FLOAT, [5])}, {"y": (FLOAT, None), "z": (FLOAT, None)})
    for x, first in ([3, -1, 3, 2, -1], [1, 3, 0]), ([0, 5, 4, -3, 2], [3, 0, 4, 2, 1]):
        x = np.float32(x)
        outputs, gradients = model.vjp({"x": x}, {"y": np.ones(len(first), np.float32)}, wrt=["x"])
        want = np.zeros(5)
        want[first] = 2 * x[first]
        np.testing.assert_array_equal(gradients["x"], want)
        np.testing.assert_array_equal(outputs["y"], np.unique(x) ** 2)
        positive = np.ones((x > 0).sum(), np.float32)
        np.testing.assert_array_equal(model.vjp({"x": x}, {"z": positive}, wrt=["x"])[1]["x"], np.where(x > 0, 2 * x, 0))


def test_ends_of_a_range():
    nodes = [node("Range", "start limit step", "r"), node("Mul", "r r", "y")]
    scalars = {n: (FLOAT, []) for n in ("start", "limit", "step")}
    model = load(nodes, scalars, {"y": (FLOAT, None)})
    feeds = {"start": np.float32(0.5), "limit": np.float32(3.2), "step": np.float32(1)}
    outputs, gradients = model.vjp(feeds, {"y": np.ones(3, np.float32)})
    np.testing.assert_allclose(outputs["y"], [0.25, 2.25, 6.25])
    assert {n: a.item() for n, a in gradients.items()} == {"start": 9, "limit": 0, "step": 13}


def looping(turns, stop=None):
    """state ← state · w + x, at most `turns` times (None: no limit), until the count reaches `stop`. Scans what it passes."""
    nodes = [node("Mul", "s w", "p"), node("Add", "p x", "next"), node("Identity", "next", "seen")]
    nodes += [node("Identity", "go", "on")] if stop is None else [node("Add", "i one", "j"), node("Less", "j stop", "on")]
    inner = {"i": (INT64, []), "go": (BOOL, []), "s": (FLOAT, [2])}
    body = subgraph(nodes, inner, {"on": (BOOL, []), "next": (FLOAT, [2]), "seen": (FLOAT, [2])})
    weights = {"w": f32(2), "start": f32(2), "one": np.int64(1)}
    inputs = {"x": (FLOAT, [2])}
    if turns == "fed":
        inputs["turns"] = (INT64, [])
    elif turns is not None:
        weights["turns"] = np.int64(turns)
    if stop == "fed":
        inputs["stop"] = (INT64, [])
    elif stop is not None:
        weights["stop"] = np.int64(stop)
    outputs = {"last": (FLOAT, [2]), "all": (FLOAT, None)}
    return load([node("Loop", f"{'_' if turns is None else 'turns'} _ start", "last all", body=body)], inputs, outputs, weights)


@pytest.mark.parametrize(("turns", "stop", "made"), [(1, None, 1), (3, None, 3), (9, 3, 3), (None, 3, 3), (2, 5, 2)])
def test_loops_of_known_length(turns, stop, made):
    model = looping(turns, stop)
    feeds = {"x": f32(2)}
    assert model.run(feeds)["all"].shape == (made, 2)
    check(model, feeds, ["x", "w", "start"])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_loops_of_a_length_that_is_fed(count):
    check(looping("fed"), {"x": f32(2), "turns": np.array(count)}, ["x", "w", "start"])
    check(looping(None, "fed"), {"x": f32(2), "stop": np.array(count)}, ["x", "w", "start"])


def test_a_loop_without_a_turn():
    feeds = {"x": f32(2), "turns": np.array(0)}
    _, gradients = looping("fed").vjp(feeds, {"last": np.ones(2, np.float32)}, wrt=["start", "x"])
    assert gradients["start"].tolist() == [1, 1] and not gradients["x"].any()


def test_long_loops_are_unrolled_for_gradients_and_very_long_ones_refused():
    model = looping(1500)
    assert model.vjp({"x": f32(2)}, {"last": f32(2)}, wrt=["x"])[1]["x"].shape == (2,)
    with pytest.raises(fr.errors.NoGradient, match="1000000 turns"):
        looping(1_000_000).vjp({"x": f32(2)}, {"last": f32(2)}, wrt=["x"])


def test_a_loop_that_data_ends():
    """x is doubled until its sum reaches a limit; the turns made are those that the gradient goes back through."""
    nodes = [node("Mul", "s w", "next"), node("ReduceSum", "next", "total", keepdims=0), node("Less", "total limit", "on")]
    inner = {"i": (INT64, []), "go": (BOOL, []), "s": (FLOAT, [2])}
    body = subgraph(nodes, inner, {"on": (BOOL, []), "next": (FLOAT, [2])})
    weights = {"w": np.array([2, 2], np.float32), "limit": np.float32(9)}
    model = load([node("Loop", "_ _ x", "y", body=body)], {"x": (FLOAT, [2])}, {"y": (FLOAT, [2])}, weights)
    for x, turns in ([1, 1], 3), ([4, 4], 1), ([0.3, 0.3], 4):
        feeds, dy = {"x": np.float32(x)}, f32(2)
        _, gradients = model.vjp(feeds, {"y": dy}, wrt=["x", "w"])
        np.testing.assert_allclose(gradients["x"], dy * 2**turns, 1e-5)
        np.testing.assert_allclose(gradients["w"], dy * x * turns * 2 ** (turns - 1), 1e-5)


def test_scan():
    nodes = [node("Mul", "s w", "p"), node("Add", "p e", "next"), node("Mul", "next next", "seen")]
    body = subgraph(nodes, {"s": (FLOAT, [2]), "e": (FLOAT, [2])}, {"next": (FLOAT, [2]), "seen": (FLOAT, [2])})
    nodes = [node("Scan", "start x", "last all", body=body, num_scan_inputs=1, scan_input_directions=[1])]
    outputs = {"last": (FLOAT, [2]), "all": (FLOAT, None)}
    model = load(nodes, {"x": (FLOAT, [3, 2])}, outputs, {"start": f32(2), "w": f32(2)})
    check(model, {"x": f32(3, 2)}, ["x", "start"])


# -- weights wherever they lie --------------------------------------------------------------------------------------------


def hidden():
    """Weights in a Constant node, in both branches of an If under one name, and in a function."""
    branches = [
        subgraph([node(op, "x w", out)], {}, {out: (FLOAT, [2])}, {"w": f32(2)}) for op, out in (("Mul", "a"), ("Sub", "b"))
    ]
    nodes = [
        node("Constant", "", "c", value=numpy_helper.from_array(f32(2))),
        node("Constant", "", "half", value=numpy_helper.from_array(np.float32(0.5))),
        node("If", "flag", "chosen", then_branch=branches[0], else_branch=branches[1]),
        node("Mul", "chosen c", "p"),
        node("Mul", "p half", "q"),
        helper.make_node("Shift", ["q"], ["y"], domain="local"),
    ]
    body = [node("Constant", "", "by", value=numpy_helper.from_array(f32(2))), node("Add", "v by", "z")]
    function = helper.make_function("local", "Shift", ["v"], ["z"], body, [helper.make_opsetid("", 21)])
    proto = small.model(nodes, {"x": (FLOAT, [2]), "flag": (BOOL, [])}, {"y": (FLOAT, [2])})
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    return proto


def test_weights_in_constants_branches_and_functions(tmp_path):
    model = fr.load(hidden(), **PLACED)
    assert set(model.params) == {"c", "w", "If-chosen.then_branch.w", "by"}
    for flag in (True, False):
        feeds = {"x": f32(2), "flag": np.array(flag)}
        gradients = check(model, feeds, ["c", "w", "If-chosen.then_branch.w", "by", "x"])
        assert gradients["w"].any() != flag and gradients["If-chosen.then_branch.w"].any() == flag
    for name in list(model.params):
        model.params[name] = f32(2)
    model.save(tmp_path / "model.onnx")
    again = fr.load(tmp_path / "model.onnx", **PLACED)
    for name, array in model.params.items():
        np.testing.assert_array_equal(again.params[name], array)
    for flag in (True, False):
        feeds = {"x": f32(2), "flag": np.array(flag)}
        np.testing.assert_array_equal(again.run(feeds)["y"], model.run(feeds)["y"])


def test_a_function_called_twice_sums_its_weights_gradients():
    proto = hidden()
    del proto.graph.node[-1]
    for a, b in (("q", "r"), ("r", "y")):
        proto.graph.node.append(helper.make_node("Shift", [a], [b], domain="local"))
    model = fr.load(proto, **PLACED)
    _, gradients = model.vjp({"x": f32(2), "flag": np.array(True)}, {"y": np.ones(2, np.float32)}, wrt=["by"])
    assert gradients["by"].tolist() == [2, 2]


# -- ONNX's Gradient ------------------------------------------------------------------------------------------------------


def differentiated(nodes, inputs, outputs, initializers=None):
    proto = small.model(nodes, inputs, outputs, initializers)
    proto.opset_import.append(helper.make_opsetid("ai.onnx.preview.training", 1))
    return fr.load(proto, **PLACED)


def gradient(inputs, outputs, **attrs):
    outputs = ["" if o == "_" else o for o in outputs.split()]
    return helper.make_node("Gradient", inputs.split(), outputs, domain="ai.onnx.preview.training", **attrs)


CUBE = [node("Mul", "x x", "h"), node("Mul", "h w", "p"), node("Mul", "p x", "y")]
"""y = w · x³, by way of h = x²."""
VECTOR = (FLOAT, [2])


def test_gradient_node_by_inputs_weights_and_intermediates():
    nodes = [
        *CUBE,
        gradient("x w", "dx dw", xs=["x", "w"], y="y"),
        gradient("x w", "_ dw2", xs=["x", "w"], y="y"),
        gradient("h x", "dh part", xs=["h", "x"], y="y"),
    ]
    model = differentiated(nodes, {"x": VECTOR}, dict.fromkeys(("dx", "dw", "dw2", "dh", "part"), VECTOR), {"w": f32(2)})
    x, w = f32(2), model.params["w"]
    got = model.run({"x": x})
    want = {"dx": 3 * w * x**2, "dw": x**3, "dw2": x**3, "dh": w * x, "part": w * x**2}
    for name, expected in want.items():
        np.testing.assert_allclose(got[name], expected, 1e-5, 1e-6, err_msg=name)


def test_gradient_node_elsewhere():
    """At other values than the graph's own: of h, and of x with w as a bystander."""
    nodes = [*CUBE, gradient("z w", "dx", xs=["x"], zs=["w"], y="y"), gradient("z", "dh", xs=["h"], y="y")]
    model = differentiated(nodes, {"x": VECTOR, "z": VECTOR}, {"dx": VECTOR, "dh": VECTOR}, {"w": f32(2)})
    x, z, w = f32(2), f32(2), model.params["w"]
    got = model.run({"x": x, "z": z})
    np.testing.assert_allclose(got["dx"], 3 * w * z**2, 1e-5, 1e-6)
    np.testing.assert_allclose(got["dh"], w * x, 1e-5, 1e-6)


def test_gradient_of_gradient():
    nodes = [*CUBE, gradient("x", "dx", xs=["x"], y="y"), gradient("x w", "d2x dxdw", xs=["x", "w"], y="dx")]
    model = differentiated(nodes, {"x": VECTOR}, {"d2x": VECTOR, "dxdw": VECTOR}, {"w": f32(2)})
    x, w = f32(2), model.params["w"]
    got = model.run({"x": x})
    np.testing.assert_allclose(got["d2x"], 6 * w * x, 1e-5, 1e-6)
    np.testing.assert_allclose(got["dxdw"], 3 * x**2, 1e-5, 1e-6)
    _, third = model.vjp({"x": x}, {"d2x": np.ones(2, np.float32)}, wrt=["x"])
    np.testing.assert_allclose(third["x"], 6 * w, 1e-5, 1e-6)


def test_gradient_node_that_cannot_be():
    nodes = [*CUBE, gradient("x w", "dx", xs=["x"], y="y")]
    with pytest.raises(fr.errors.InvalidModel, match="2 inputs"):
        differentiated(nodes, {"x": VECTOR}, {"dx": VECTOR}, {"w": f32(2)}).run({"x": f32(2)})
    with pytest.raises(fr.errors.InvalidModel, match="nowhere"):
        differentiated([*CUBE, gradient("x", "dx", xs=["x"], y="nowhere")], {"x": VECTOR}, {"dx": VECTOR}, {"w": f32(2)})
