"""Batches frozen to 1: several examples at once give what each gives alone, or the node in the way is named."""

import io
import warnings
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import flamert as fr
from flamert.errors import InputError, UnsupportedOp
from models.fetch import Unavailable, fetch
from tests.small import model

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
rng = np.random.default_rng(0)


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs.split(), outputs.split(), name=f"{kind}.{outputs.split()[0]}", **attributes)


def shaped(*sizes):
    return np.array(sizes, np.int64)


def drawn(spec, axis):
    """An example for an input: its batch axis is 1, what varies is 21."""
    shape = [1 if i == axis else d if isinstance(d, int) else 21 for i, d in enumerate(spec.shape)]
    if spec.dtype.kind == "i":
        return rng.integers(0, 19, shape).astype(spec.dtype)
    return rng.standard_normal(shape).astype(spec.dtype)


def check(proto, tmp_path, *, free=True, axes=None, among=None, n=3, tolerance=1e-5):
    """Free the batch, and compare n examples at once with each alone, here and (the saved file) in another runtime.

    axes: of the batch by input, by default 0 for all. among: axes of the outputs, by default 0; None: they are the same for
    all examples.
    """
    frozen = fr.load(proto, device="cpu")
    freed = fr.load(proto, device="cpu", free_batch=free)
    axes = axes or {spec.name: 0 for spec in frozen.inputs}
    examples = [{s.name: drawn(s, axes.get(s.name)) for s in frozen.inputs} for _ in range(n)]
    for spec in frozen.inputs:
        if spec.name not in axes:
            for example in examples:
                example[spec.name] = examples[0][spec.name]
    alone = [frozen.run(x) for x in examples]
    together = {k: np.concatenate([x[k] for x in examples], axes[k]) if k in axes else x for k, x in examples[0].items()}
    found = freed.run(together)
    freed.save(tmp_path / "freed.onnx")
    again = fr.load(tmp_path / "freed.onnx", device="cpu")
    assert again.inputs == freed.inputs and again.outputs == freed.outputs
    for spec in freed.inputs:
        if spec.name in axes:
            assert isinstance(spec.shape[axes[spec.name]], str)
    for spec, name in zip(freed.outputs, found, strict=True):
        axis = (among or {}).get(name, 0)
        if axis is None:
            np.testing.assert_allclose(found[name], alone[0][name], tolerance, tolerance)
            continue
        join = np.stack if found[name].ndim > alone[0][name].ndim else np.concatenate
        np.testing.assert_allclose(found[name], join([y[name] for y in alone], axis), tolerance, tolerance)
        if spec.shape is not None:
            assert isinstance(spec.shape[axis], str), spec
    for name, array in freed.run(examples[0]).items():
        np.testing.assert_allclose(array.reshape(-1), alone[0][name].reshape(-1), tolerance, tolerance)
    elsewhere(tmp_path / "freed.onnx", together, found)
    return freed


def elsewhere(path, feeds, expected):
    try:
        import onnxruntime
    except ImportError:
        return
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for name, array in zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True):
        np.testing.assert_allclose(expected[name], array, 1e-3, 1e-4)


def weights(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def net(nodes, shape=(1, 4, 6), tensors=None, out=None, opset=17, more=None):
    """A model of x, whose output y is declared with this shape."""
    inputs = {"x": (FLOAT, list(shape)), **(more or {})}
    return model(nodes, inputs, {"y": (FLOAT, out)}, tensors, opset)


R = "y"
GOOD = {
    "flat": ([node("Reshape", "x s", R)], {"s": shaped(1, -1)}),
    "flat, in numbers": ([node("Reshape", "x s", R)], {"s": shaped(1, 24)}),
    "rows": ([node("Reshape", "x s", R)], {"s": shaped(-1, 6)}),
    "rows and back": (
        [node("Reshape", "x s", "r"), node("Softmax", "r", "m", axis=1), node("Reshape", "m t", R)],
        {"s": shaped(-1, 6), "t": shaped(1, -1, 6)},
    ),
    "heads": (
        [
            node("Reshape", "x s", "h"),
            node("Transpose", "h", "t", perm=[0, 2, 1, 3]),
            node("Reshape", "t u", "f"),
            node("Transpose", "f", "g", perm=[0, 2, 1]),
            node("MatMul", "f g", "p"),
            node("Reshape", "p v", R),
        ],
        {"s": shaped(1, -1, 2, 3), "u": shaped(2, -1, 3), "v": shaped(1, 2, 4, 4)},
    ),
    "zeros": ([node("Reshape", "x s", R)], {"s": shaped(0, 2, -1, 6)}),
    "one more axis": ([node("Reshape", "x s", R)], {"s": shaped(1, 1, 4, 6)}),
    "a shape that is computed": (
        [
            node("Shape", "x", "s"),
            node("Gather", "s i", "b"),
            node("Concat", "b c", "t", axis=0),
            node("Reshape", "x t", R),
        ],
        {"i": shaped(0), "c": shaped(-1)},
    ),
    "flattened": ([node("Flatten", "x", R)], {}),
    "a table row in front": ([node("Concat", "c x", R, axis=1)], {"c": weights(1, 1, 6)}),
    "added": ([node("Add", "x c", R)], {"c": weights(1, 4, 6)}),
    "expanded": ([node("Unsqueeze", "x a", "u"), node("Expand", "u s", R)], {"a": shaped(1), "s": shaped(1, 5, 4, 6)}),
    "by its own shape": (
        [
            node("Shape", "x", "s"),
            node("Equal", "s m", "e"),
            node("Where", "e o s", "w"),
            node("Expand", "c w", "z"),
            node("Add", "x z", R),
        ],
        {"m": shaped(-1, -1, -1), "o": shaped(1, 1, 1), "c": weights(1, 1, 1)},
    ),
    "zeros of its shape": (
        [node("Shape", "x", "s"), node("ConstantOfShape", "s", "z"), node("Concat", "x z", R, axis=2)],
        {},
    ),
    "the whole of it": ([node("Slice", "x a b c", R)], {"a": shaped(0, 1), "b": shaped(1, 3), "c": shaped(0, 1)}),
    "a part of the rest": ([node("Slice", "x a b c", R)], {"a": shaped(1), "b": shaped(3), "c": shaped(1)}),
    "one of the rest": ([node("Gather", "x i", R, axis=1)], {"i": np.array(-1)}),
    "product": ([node("MatMul", "x w", R)], {"w": weights(6, 3)}),
    "from the left": ([node("MatMul", "w x", R)], {"w": weights(3, 4)}),
    "einsum": ([node("Einsum", "x w", R, equation="bij,jk->bik")], {"w": weights(6, 3)}),
    "norm": ([node("LayerNormalization", "x w", R)], {"w": weights(6)}),
    "mean": ([node("ReduceMean", "x", R, axes=[1, 2], keepdims=0)], {}),
    "split": ([node("Split", "x", "a b", axis=1), node("Sub", "a b", R)], {}),
    "padded": ([node("Pad", "x p", R)], {"p": shaped(0, 1, 0, 0, 0, 2)}),
    "repeated": ([node("Tile", "x p", R)], {"p": shaped(1, 2, 1)}),
    "enlarged": ([node("Resize", "x r r s", R)], {"r": np.zeros(0, np.float32), "s": shaped(1, 8, 12)}),
    "dropped axes": ([node("Unsqueeze", "x a", "u"), node("Squeeze", "u", "q"), node("Relu", "q", R)], {"a": shaped(2)}),
}


@pytest.mark.parametrize("name", GOOD)
def test_several_examples_are_as_each_alone(name, tmp_path):
    nodes, tensors = GOOD[name]
    check(net(nodes, tensors=tensors), tmp_path)


BAD = {
    "softmax over examples": ([node("Softmax", "x", "y", axis=0)], {}, "Softmax .* mix"),
    "mean over all": ([node("ReduceMean", "x", "y")], {}, "ReduceMean .* reduces the axis of the batch"),
    "one example": ([node("Gather", "x i", "y", axis=0)], {"i": np.array(0)}, "Gather .* single examples"),
    "no batch axis": ([node("Squeeze", "x a", "y")], {"a": shaped(0)}, "Squeeze .* drops the axis of the batch"),
    "behind a squeeze": (
        [node("Squeeze", "x", "q"), node("MatMul", "q w", "y")],
        {"w": weights(6, 2)},
        "MatMul",
    ),
    "one for each": ([node("Add", "x c", "y")], {"c": weights(5, 4, 6)}, "Add .*'c' has other sizes"),
    "side by side": ([node("Concat", "x x", "y", axis=0)], {}, "Concat .* mix"),
    "against itself": (
        [node("Transpose", "x", "t", perm=[1, 0, 2]), node("Add", "x t", "y")],
        {},
        "Add .* different axes",
    ),
    "positions": (
        [node("NonZero", "x", "n"), node("Cast", "n", "y", to=FLOAT)],
        {},
        "cannot be followed|nothing is known",
    ),
    "counted": (
        [node("Shape", "x", "s"), node("Cast", "s", "c", to=FLOAT), node("ReduceSum", "c", "r"), node("Mul", "x r", "y")],
        {},
        "ReduceSum .* nothing is known",
    ),
    "numbered": (
        [
            node("Shape", "x", "s"),
            node("Gather", "s i", "n"),
            node("Range", "z n o", "r"),
            node("Cast", "r", "f", to=FLOAT),
            node("Add", "x f", "y"),
        ],
        {"i": np.array(0), "z": np.array(0), "o": np.array(1)},
        "Range",
    ),
    "turned inside out": (
        [node("Transpose", "x", "t", perm=[1, 0, 2]), node("Reshape", "t s", "y")],
        {"s": shaped(3, 8)},
        "Reshape .* in front of the batch axis",
    ),
    "repeated": ([node("Tile", "x p", "y")], {"p": shaped(2, 1, 1)}, "Tile .* repeats the axis"),
    "a table for each": ([node("Einsum", "x w", "y", equation="bij,bjk->bik")], {"w": weights(1, 6, 2)}, "Einsum"),
    "sums over examples": ([node("Einsum", "x w", "y", equation="bij,jk->ik")], {"w": weights(6, 2)}, "Einsum .* sums"),
    "unknown": ([node("Det", "x", "y")], {}, "Det .* nothing is known"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_node_in_the_way_is_named(name):
    nodes, tensors, message = BAD[name]
    shape = (1, 6, 6) if name == "unknown" else (1, 4, 6)
    with pytest.raises(UnsupportedOp, match=message):
        fr.load(net(nodes, shape, tensors), device="cpu", free_batch=True)


def test_control_flow_and_functions_are_in_the_way():
    branch = helper.make_graph([node("Relu", "x", "b")], "branch", [], [helper.make_tensor_value_info("b", FLOAT, None)])
    choice = helper.make_node("If", ["c"], ["y"], name="choose", then_branch=branch, else_branch=branch)
    made = net([choice], tensors={"c": np.array(True)})
    with pytest.raises(UnsupportedOp, match="'choose' is in the way: a graph inside it reads 'x'"):
        fr.load(made, device="cpu", free_batch=True)
    made = net([helper.make_node("Own", ["x"], ["y"], domain="own", name="call")])
    opsets = [helper.make_opsetid("", 17)]
    made.functions.append(helper.make_function("own", "Own", ["a"], ["b"], [node("Relu", "a", "b")], opsets))
    made.opset_import.append(helper.make_opsetid("own", 1))
    with pytest.raises(UnsupportedOp, match="'call' is in the way: it calls a function"):
        fr.load(made, device="cpu", free_batch=True)


def test_sizes_that_vary_stay_free(tmp_path):
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s i", "l"),
        node("Concat", "o l h", "t", axis=0),
        node("Reshape", "x r", "rows"),
        node("MatMul", "rows w", "m"),
        node("Reshape", "m t", R),
    ]
    tensors = {"i": shaped(1), "o": shaped(1), "h": shaped(-1), "r": shaped(-1, 6), "w": weights(6, 4)}
    freed = check(net(nodes, (1, "length", 6), tensors, [1, "length", 4]), tmp_path)
    assert freed.inputs[0].shape == ("N", "length", 6) and freed.outputs[0].shape == ("N", "length", 4)


def test_what_holds_all_rows_is_declared_so(tmp_path):
    nodes = [node("Reshape", "x s", R)]
    freed = check(net(nodes, (1, "length", 6), {"s": shaped(-1, 6)}, ["length", 6]), tmp_path)
    assert freed.outputs[0].shape == ("N*length", 6)


def test_states_and_other_inputs(tmp_path):
    """A sequence-major layer with a state that is an input, a state that is a constant, and a scale that is no batch's."""
    tensors = {"W": weights(1, 12, 6), "R": weights(1, 12, 3), "c": weights(1, 1, 3)}
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R", "", "", "h", "c"], ["a", "last"], hidden_size=3),
        node("Squeeze", "a one", "q"),
        node("Mul", "q scale", R),
    ]
    more = {"h": (FLOAT, [1, 1, 3]), "scale": (FLOAT, [])}
    made = net(nodes, (5, 1, 6), {**tensors, "one": shaped(1)}, more=more)
    made.graph.output.append(helper.make_tensor_value_info("last", FLOAT, [1, 1, 3]))
    with pytest.raises(UnsupportedOp, match=r"LSTM .* has the batch at another axis"):
        fr.load(made, device="cpu", free_batch=True)
    axes = {"x": 1, "h": 1}
    check(made, tmp_path, free=axes, axes=axes, among={"y": 1, "last": 1})


def test_files_from_before_opset_13(tmp_path):
    nodes = [
        node("Unsqueeze", "x", "u", axes=[0]),
        node("Slice", "u", "v", axes=[0, 1, 2], starts=[0, 0, 1], ends=[1, 1, 4]),
        node("Squeeze", "v", "q", axes=[0]),
        node("Reshape", "q", R, shape=[1, 18]),
    ]
    check(net(nodes, opset=4), tmp_path)


def test_what_is_free_already_stays_as_it_is(tmp_path):
    made = net([node("Relu", "x", R)], ("N", 4, 6))
    fr.load(made, device="cpu", free_batch=True).save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == made.SerializeToString()


def test_only_what_must_change_changes(tmp_path):
    nodes = [node("MatMul", "x w", "p"), node("Reshape", "p s", R)]
    made = net(nodes, tensors={"w": weights(6, 3), "s": shaped(1, -1)}, out=[1, 12])
    made.graph.value_info.append(helper.make_tensor_value_info("p", FLOAT, [1, 4, 3]))
    made.graph.node[0].doc_string, made.producer_name = "a product", "tests"
    fr.load(made, device="cpu", free_batch=True).save(tmp_path / "out.onnx")
    after = onnx.load(tmp_path / "out.onnx")
    assert after.graph.node[0] == made.graph.node[0] and after.producer_name == "tests"
    assert [n.op_type for n in after.graph.node] == ["MatMul", "Constant", "Reshape"]
    assert [t.name for t in after.graph.initializer] == ["w"]
    assert after.graph.value_info[0].type.tensor_type.shape.dim[0].dim_param == "N"
    onnx.checker.check_model(after, full_check=True)


def test_axes_that_inputs_do_not_have():
    for axes in ({"z": 0}, {"x": 5}):
        with pytest.raises(InputError, match="no input"):
            fr.load(net([node("Relu", "x", R)]), device="cpu", free_batch=axes)


def test_freed_models_train(tmp_path):
    tensors = {"w": weights(24, 3), "s": shaped(1, -1)}
    freed = fr.load(
        net([node("Reshape", "x s", "f"), node("MatMul", "f w", R)], tensors=tensors), device="cpu", free_batch=True
    )
    trainer = fr.Trainer(freed, "cross_entropy", fr.optim.SGD(0.1))
    x, t = weights(8, 4, 6), rng.integers(0, 3, 8)
    losses = [float(trainer.step({"x": x}, t)) for _ in range(20)]
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("name", ["aecmos_b", "attacut_sc"])
def test_real_models(name, tmp_path):
    try:
        path = str(fetch(name)["model"])
    except Unavailable as error:
        pytest.skip(str(error))
    axes = {"aecmos_b": {"input": 0, "h0": 1}, "attacut_sc": {"input": 0}}[name]
    freed = check(path, tmp_path, axes=axes, tolerance=1e-4)
    shape = freed.outputs[0].shape
    assert shape == {"aecmos_b": ("batch_size", 2), "attacut_sc": ("N*seq_len",)}[name]


# -- every op of ONNX's own suite


def arrays_of(case):
    """A case's inputs by name, those apart that an exporter would have made constants; None where they are no tensors."""
    data, fixed = {}, {}
    for info, x in zip(case.model.graph.input, case.data_sets[0][0], strict=False):
        array = numpy_helper.to_array(x) if isinstance(x, TensorProto) else x
        if not isinstance(array, np.ndarray):
            return None
        constant = array.dtype == object or (array.dtype.kind in "iub" and array.size <= 16 and array.ndim <= 1)
        (fixed if constant else data)[info.name] = array
    return (data, fixed) if data else None


def choices(data):
    """Which inputs may have a batch, and at which axis: the first one alone, and with all that have the same size there."""
    first, *_ = data
    found = {}
    for axis, size in enumerate(data[first].shape[:3]):
        shifts = {n: a.ndim - data[first].ndim + axis for n, a in data.items()}
        for axes in (
            {first: axis},
            {n: axis for n, a in data.items() if a.ndim > axis and a.shape[axis] == size},
            {n: at for n, at in shifts.items() if at >= 0 and data[n].shape[at] == size},
        ):
            found[tuple(sorted(axes.items()))] = axes if size else None
    return [axes for axes in found.values() if axes]


def cut_down(case, data, fixed, axes):
    """The case's model for a single example, and examples to run it on, each with other numbers."""
    made = onnx.ModelProto()
    made.CopyFrom(case.model)
    infos = [info for info in made.graph.input if info.name not in fixed]
    del made.graph.input[:]
    for info in infos:
        if info.name in axes:
            info.type.tensor_type.shape.dim[axes[info.name]].dim_value = 1
    made.graph.input.extend(infos)
    made.graph.initializer.extend([numpy_helper.from_array(a, n) for n, a in fixed.items()])
    for info in made.graph.output:
        info.type.tensor_type.ClearField("shape")
    examples = []
    for i in range(3):
        parts = {n: a.take([i % a.shape[axes[n]]], axes[n]) if n in axes else a for n, a in data.items()}
        shuffled = {n: rng.permutation(a.reshape(-1)).reshape(a.shape) if i and n in axes else a for n, a in parts.items()}
        examples.append(shuffled)
    return made, examples


def same(found, alone):
    """Whether a result holds those of single examples side by side along some axis, or is one that all examples share."""
    wide = [np.asarray(a, np.float64) for a in alone]
    joined = [np.concatenate(wide, k) for k in range(wide[0].ndim)] + [np.stack(wide, k) for k in range(wide[0].ndim + 1)]
    if all(np.array_equal(w, wide[0], equal_nan=True) for w in wide):
        joined.append(wide[0])
    found = np.asarray(found, np.float64)
    return any(found.shape == j.shape and np.allclose(found, j, 1e-3, 1e-4, equal_nan=True) for j in joined)


@pytest.mark.slow
def test_what_is_accepted_is_right():
    """Whatever op, whichever of its inputs have a batch, and at whichever axis: the result is right, or the node is refused."""
    from onnx.backend.test.case.node import collect_testcases

    right, tried = 0, Counter()
    for case in collect_testcases(None):
        arrays = arrays_of(case) if case.model is not None and "expanded" not in case.name else None
        tried.update([case.model.graph.node[0].op_type] if arrays else [])
        if arrays and tried[case.model.graph.node[0].op_type] > 8:
            continue
        for axes in choices(arrays[0]) if arrays else ():
            try:
                made, examples = cut_down(case, *arrays, axes)
                frozen, freed = (fr.load(made, device="cpu", free_batch=axes if free else False) for free in (0, 1))
                alone = [frozen.run(x) for x in examples]
            except (fr.errors.FlamertError, IndexError):
                continue
            merged = {n: np.concatenate([x[n] for x in examples], axes[n]) for n in axes}
            for name, array in freed.run({**examples[0], **merged}).items():
                assert same(array, [y[name] for y in alone]), f"{case.name}: {axes}, output {name}"
            right += 1
    assert right > 500


# -- what torch exports without dynamic axes


def networks():
    torch = pytest.importorskip("torch")
    from torch import nn

    class Convolutional(nn.Module):
        def __init__(self, view):
            super().__init__()
            self.conv, self.norm, self.head, self.view = (
                nn.Conv2d(3, 4, 3, padding=1),
                nn.BatchNorm2d(4),
                nn.Linear(64, 5),
                view,
            )

        def forward(self, x):
            y = nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
            return self.head(y.view(1, -1) if self.view else y.flatten(1))

    class Transformer(nn.Module):
        """With a class token; `folded` puts heads and batch into one axis."""

        def __init__(self, folded, d=16, h=4):
            super().__init__()
            self.h, self.folded = h, folded
            self.token, self.places = nn.Parameter(torch.randn(1, 1, d)), nn.Parameter(torch.randn(1, 9, d))
            self.qkv, self.out, self.norm = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.LayerNorm(d)

        def forward(self, x):
            b, l, d = x.shape
            x = torch.cat([self.token.expand(b, -1, -1), x], 1) + self.places
            l += 1
            q, k, v = (t.view(1, -1, self.h, d // self.h).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
            if self.folded:
                q, k, v = (t.reshape(b * self.h, l, d // self.h) for t in (q, k, v))
            y = torch.softmax(q @ k.transpose(-1, -2) * 0.5, -1) @ v
            if self.folded:
                y = y.view(b, self.h, l, d // self.h)
            x = x + self.out(y.transpose(1, 2).reshape(1, l, d))
            return x.reshape(-1, d).relu().view(b, l, d)[:, 0]

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(20, 8)
            self.lstm = nn.LSTM(8, 8, batch_first=True, bidirectional=True, num_layers=2)
            self.head = nn.Linear(16, 3)

        def forward(self, ids):
            y, (h, _) = self.lstm(self.words(ids))
            return self.head(y[:, -1]), h

    torch.manual_seed(0)
    image, sequence = torch.randn(1, 3, 8, 8), torch.randn(1, 8, 16)
    return {
        "convolutional": (Convolutional(False), image),
        "convolutional, by view": (Convolutional(True), image),
        "transformer": (Transformer(False), sequence),
        "transformer, heads in the batch": (Transformer(True), sequence),
        "recurrent": (Recurrent(), torch.randint(0, 20, (1, 7))),
    }


NAMES = ("convolutional", "convolutional, by view", "transformer", "transformer, heads in the batch", "recurrent")


@pytest.mark.parametrize("name", NAMES)
def test_torch_exports(name, tmp_path):
    network, example = networks()[name]
    import torch

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = ["y", "h"] if name == "recurrent" else ["y"]
        torch.onnx.export(
            network.eval(), (example,), buffer, dynamo=False, opset_version=17, input_names=["x"], output_names=names
        )
    freed = check(buffer.getvalue(), tmp_path, among={"h": 1}, tolerance=1e-4)
    assert freed.inputs[0].shape[0] == "N"
