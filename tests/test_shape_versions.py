"""Ops that move elements as older opsets had them, and corners of their attributes, against plain NumPy."""

import numpy as np
import onnx
import pytest

import flamert as fr
from flamert.errors import FlamertError

f32 = np.float32
U = "u = Constant <value = float[2] {8, 9}> ()\n"
x = np.arange(24, dtype=f32).reshape(2, 3, 4)
row = np.arange(5, dtype=f32)


def ints(**named):
    """Constant nodes in ONNX's text format."""
    return "".join(f"{n} = Constant <value = int64[{len(v)}] {{{','.join(map(str, v))}}}> ()\n" for n, v in named.items())


def run(opset, nodes, *outputs, **feeds):
    dtypes = {np.dtype(f32): "float", np.dtype(np.int64): "int64", np.dtype(bool): "bool"}
    dims = {name: "[" + ",".join(map(str, a.shape)) + "]" if a.ndim else "" for name, a in feeds.items()}
    inputs = ", ".join(f"{dtypes[a.dtype]}{dims[name]} {name}" for name, a in feeds.items())
    results = ", ".join(f"float[N] {name}" for name in outputs)
    text = f'<ir_version: 8, opset_import: ["" : {opset}]>\nmain ({inputs}) => ({results}) {{ {nodes} }}'
    return list(fr.load(onnx.parser.parse_model(text), device="cpu").run(feeds).values())


EDGES = ((0, 0), (1, 2), (3, 0))
PADS = [0, 1, 3, 0, 2, 0]

ROWS = [
    (1, "y = Reshape <shape = [0, -1, 2]> (x)", x.reshape(2, 6, 2)),
    (5, ints(s=[4, 0, -1]) + "y = Reshape(x, s)", x.reshape(4, 3, 2)),
    (1, "y = Squeeze <axes = [1]> (w)", x[:, :1].reshape(2, 4)),
    (11, "y = Squeeze <axes = [-2]> (w)", x[:, :1].reshape(2, 4)),
    (13, "y = Squeeze(w)", x[:, :1].reshape(2, 4)),
    (1, "y = Unsqueeze <axes = [0, 4]> (x)", x[None, ..., None]),
    (13, ints(a=[-1, 0]) + "y = Unsqueeze(x, a)", x[None, ..., None]),
    (1, "y = Flatten <axis = 0> (x)", x.reshape(1, 24)),
    (9, "y = Flatten <axis = 3> (x)", x.reshape(24, 1)),
    (11, "y = Flatten <axis = -1> (x)", x.reshape(6, 4)),
    (1, "y = Transpose(x)", x.T),
    (1, "y = Concat(x, w)", np.concatenate([x, x[:, :1]], 1)),
    (4, "y = Concat <axis = 2> (x, x)", np.concatenate([x, x], 2)),
    (11, "y = Concat <axis = -2> (x, w)", np.concatenate([x, x[:, :1]], 1)),
    (1, "y = Slice <starts = [1, -2], ends = [9, -1], axes = [0, 2]> (x)", x[1:, :, -2:-1]),
    (10, ints(a=[-1, 1], b=[-99, 2], c=[2, 0], d=[-2, 1]) + "y = Slice(x, a, b, c, d)", x[1:2, :, ::-2]),
    (1, ints(t=[3], a=[1]) + "y = Tile(x, t, a)", np.tile(x, (1, 3, 1))),
    (6, ints(t=[2, 1, 3]) + "y = Tile(x, t)", np.tile(x, (2, 1, 3))),
    (8, ints(s=[5, 1, 3, 1]) + "y = Expand(x, s)", np.broadcast_to(x, (5, 2, 3, 4))),
    (1, f"y = Pad <paddings = {PADS}, value = 7.0> (x)", np.pad(x, EDGES, constant_values=7)),
    (2, f"y = Pad <pads = {PADS}> (x)", np.pad(x, EDGES)),
    (2, 'y = Pad <pads = [0, 2, 5, 0, 1, 7], mode = "reflect"> (x)', np.pad(x, ((0, 0), (2, 1), (5, 7)), "reflect")),
    (2, 'y = Pad <pads = [3, 0, 1, 0, 1, 0], mode = "edge"> (x)', np.pad(x, ((3, 0), (0, 1), (1, 0)), "edge")),
    (2, "y = Pad <pads = [0, -1, 2, 0, 0, -3]> (x)", np.pad(x, ((0, 0), (0, 0), (2, 0)))[:, 1:, :-3]),
    (18, ints(p=[1, 9], a=[-2]) + 'y = Pad <mode = "reflect"> (x, p, "", a)', np.pad(x, ((0, 0), (1, 9), (0, 0)), "reflect")),
    (19, ints(p=[5, 0, 0, 9], a=[2, 0]) + 'y = Pad <mode = "wrap"> (x, p, "", a)', np.pad(x, ((0, 9), (0, 0), (5, 0)), "wrap")),
    (1, ints(i=[2, 0]) + "y = Gather <axis = 1> (x, i)", x[:, [2, 0]]),
    (11, ints(i=[-1, 0]) + "y = Gather <axis = -1> (x, i)", x[..., [-1, 0]]),
    (9, ints(i=[3, 1]) + U + "y = Scatter(r, i, u)", [0, 9, 2, 8, 4]),
    (
        11,
        ints(i=[-1, 1]) + U + "y = ScatterElements <axis = -1> (r, i, u)",
        [0, 9, 2, 3, 8],
    ),
    (9, ints(d=[3], i=[1, 7]) + "v = Constant <value = float[2] {-1, 5}> ()\ny = OneHot(i, d, v)", [[-1, 5, -1], [-1, -1, -1]]),
    (13, ints(s=[]) + "y = ConstantOfShape(s)", np.zeros(())),
    (20, ints(s=[2, 0]) + "y = ConstantOfShape <value = float[1] {4}> (s)", np.zeros((2, 0))),
    (12, "y = Constant <value_floats = [1.5, 2.0]> ()", [1.5, 2]),
]


@pytest.mark.parametrize(("opset", "nodes", "want"), ROWS, ids=lambda v: v if isinstance(v, int) else None)
def test_one_output(opset, nodes, want):
    feeds = {"x": x, "w": x[:, :1], "r": row}
    (got,) = run(opset, nodes, "y", **feeds)
    want = np.asarray(want, f32)
    assert got.dtype == f32 and got.shape == want.shape
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("opset", "nodes", "sizes"),
    [
        (1, "a, b = Split <axis = 2, split = [1, 3]> (x)", (1, 3)),
        (2, "a, b = Split <axis = 2> (x)", (2, 2)),
        (11, "a, b = Split <axis = -1> (x)", (2, 2)),
        (13, ints(s=[4, 0]) + "a, b = Split <axis = -1> (x, s)", (4, 0)),
        (18, "a, b = Split <axis = 2, num_outputs = 2> (x)", (2, 2)),
        (18, ints(s=[3, 1]) + "a, b = Split <axis = 2> (x, s)", (3, 1)),
    ],
)
def test_split(opset, nodes, sizes):
    a, b = run(opset, nodes, "a", "b", x=x)
    np.testing.assert_array_equal(a, x[..., : sizes[0]])
    np.testing.assert_array_equal(b, x[..., sizes[0] :])


def test_split_with_a_shorter_last_part():
    a, b, c = run(18, "a, b, c = Split <num_outputs = 3> (r)", "a", "b", "c", r=np.arange(7, dtype=f32))
    assert (a.tolist(), b.tolist(), c.tolist()) == ([0, 1, 2], [3, 4, 5], [6])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("step", [-7, -2, -1, 1, 2, 7])
def test_slice_bounds_are_clamped(step, known):
    """A start before the first element is the first element, in either direction; as onnxruntime has it."""
    for start in (-(1 << 63), -6, -5, -1, 0, 4, 5, (1 << 63) - 1):
        for end in (-(1 << 63), -6, -5, -1, 0, 4, 5):
            first, last = start + 5 * (start < 0), end + 5 * (end < 0)
            bounds = (0, 5) if step > 0 else (0, 4)
            first = min(max(first, bounds[0]), bounds[1])
            last = min(max(last, 0 if step > 0 else -1), bounds[1])
            want = row[list(range(first, last, step))]
            rest = ints(c=[0], d=[step]) + "y = Slice(r, a, b, c, d)"
            if known:
                (got,) = run(13, ints(a=[start], b=[end]) + rest, "y", r=row)
            else:
                (got,) = run(13, rest, "y", r=row, a=np.array([start]), b=np.array([end]))
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "nodes",
    [
        ints(s=[5, 5]) + "y = Reshape(x, s)",
        ints(a=[1]) + "y = Squeeze(x, a)",
        ints(a=[0, 0]) + "y = Unsqueeze(x, a)",
        ints(a=[5]) + "y = Unsqueeze(x, a)",
        "y = Concat <axis = 3> (x, x)",
        "y = Transpose <perm = [0, 0, 1]> (x)",
        ints(s=[7]) + "y = Expand(x, s)",
        ints(s=[1, 2]) + "a, y = Split(x, s)",
        ints(p=[1, 1]) + "y = Pad(x, p)",
        ints(p=[-3, 0, 0, 0, 0, 0]) + "y = Pad(x, p)",
        ints(a=[0], b=[1], c=[0], d=[0]) + "y = Slice(x, a, b, c, d)",
        ints(t=[1, 2]) + "y = Tile(x, t)",
    ],
)
def test_what_does_not_fit_is_refused(nodes):
    with pytest.raises(FlamertError):
        run(18, nodes, "y", x=x)
