"""Convolution, pooling and image ops of older opsets, and attributes that ONNX's own cases leave out, against onnxruntime."""

import numpy as np
import onnx
import pytest
from onnx import helper

import flamert as fr
from flamert.errors import InvalidModel, ShapeError

rng = np.random.default_rng(0)


def f32(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def model(op, inputs, opset=17, outputs=1, domain="", **attrs):
    """A model of one node, whose inputs are named a, b, … (None: left out), and what to feed it."""
    names = [chr(ord("a") + i) if x is not None else "" for i, x in enumerate(inputs)]
    feeds = {n: x for n, x in zip(names, inputs, strict=True) if n}
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], domain=domain, **attrs)
    infos = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in feeds.items()]
    graph = helper.make_graph([node], "g", infos, [onnx.ValueInfoProto(name=n) for n in node.output])
    imports = [helper.make_opsetid("", opset)] + [helper.make_opsetid(domain, 1)] * bool(domain)
    return helper.make_model(graph, opset_imports=imports, ir_version=8), feeds


def run(proto, feeds):
    return list(fr.load(proto, device="cpu").run(feeds).values())


x, picture, small = f32(2, 4, 7, 6), f32(1, 2, 4, 5), f32(1, 2, 3, 3)
w, transposed = f32(6, 2, 3, 2), f32(4, 3, 3, 2)
regions = np.array([[0, 0, 5, 6], [1.5, 2.25, 4, 5.75], [-2, -1, 2, 1]], np.float32)
images = np.array([0, 1, 1])
boxes = rng.uniform(0, 1, (2, 9, 4)).astype(np.float32)
scores = rng.uniform(0, 1, (2, 3, 9)).astype(np.float32)
grid = rng.uniform(-1.5, 1.5, (1, 3, 4, 2)).astype(np.float32)


def scale(*factors):
    return np.array(factors, np.float32)


def nothing():
    return np.zeros(0, np.float32)


CROP = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 5.0}
ROI = np.array([0, 0, 0.1, -0.2, 1, 1, 0.8, 1.2], np.float32)

AGAINST_ONNXRUNTIME = {
    **{
        f"conv_{pad}_{v}": ("Conv", [x, w], v, {"auto_pad": pad, "strides": [2, 3], "group": 2})
        for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for v in (8, 11)
    },
    "conv_bias": ("Conv", [x, w, f32(6)], 11, {"pads": [1, 0, 2, 1], "dilations": [2, 1], "group": 2}),
    **{
        f"conv_transpose_{pad}": ("ConvTranspose", [x, transposed], 11, {"auto_pad": pad, "strides": [2, 2]})
        for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
    },
    "conv_transpose_shape": ("ConvTranspose", [x, transposed], 11, {"strides": [2, 2], "output_shape": [14, 11]}),
    "conv_transpose_more": (
        "ConvTranspose",
        [x, transposed],
        8,
        {"strides": [2, 3], "output_padding": [1, 2], "pads": [1, 0, 0, 1]},
    ),
    **{
        f"max_pool_{pad}": ("MaxPool", [x], 8, {"kernel_shape": [3, 2], "strides": [2, 1], "auto_pad": pad})
        for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
    },
    **{
        f"max_pool_order_{order}": (
            "MaxPool",
            [x],
            12,
            {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1], "ceil_mode": 1, "storage_order": order},
            2,
        )
        for order in (0, 1)
    },
    "max_pool_3d": ("MaxPool", [f32(1, 2, 5, 4, 5)], 10, {"kernel_shape": [2, 3, 2], "dilations": [2, 1, 2], "ceil_mode": 1}),
    **{
        f"average_pool_{counted}_{ceil}": (
            "AveragePool",
            [x],
            10,
            {"kernel_shape": [3, 3], "strides": [2, 3], "pads": [1, 1, 0, 1], "count_include_pad": counted, "ceil_mode": ceil},
        )
        for counted in (0, 1)
        for ceil in (0, 1)
    },
    "average_pool_7": ("AveragePool", [x], 7, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "lp_pool_2": ("LpPool", [x], 8, {"kernel_shape": [2, 3], "strides": [2, 2], "p": 3, "pads": [0, 1, 1, 1]}),
    "lp_pool_18": ("LpPool", [x], 18, {"kernel_shape": [2, 2], "dilations": [2, 2], "p": 1, "ceil_mode": 1}),
    "global_lp_pool": ("GlobalLpPool", [x], 8, {"p": 3}),
    "max_unpool": (
        "MaxUnpool",
        [f32(1, 1, 2, 2), np.array([[[[0, 3], [9, 14]]]])],
        9,
        {"kernel_shape": [2, 2], "strides": [2, 2]},
    ),
    "max_roi_pool": ("MaxRoiPool", [x, np.c_[images, regions].astype(np.float32)], 8, {"pooled_shape": [2, 3]}),
    **{
        f"roi_align_10_{mode}": ("RoiAlign", [x, regions, images], 10, {"mode": mode, "output_height": 2, "output_width": 3})
        for mode in ("avg", "max")
    },
    "roi_align_16": ("RoiAlign", [x, regions, images], 16, {"spatial_scale": 0.5, "output_height": 2, "sampling_ratio": 2}),
    **{
        f"upsample_7_{m}": ("Upsample", [picture], 7, {"mode": m, "scales": [1.0, 1.0, 2.0, 1.5]})
        for m in ("nearest", "linear")
    },
    **{f"upsample_9_{m}": ("Upsample", [picture, scale(1, 1, 3, 2)], 9, {"mode": m}) for m in ("nearest", "linear")},
    **{f"resize_10_{m}": ("Resize", [picture, scale(1, 1, 0.6, 2.5)], 10, {"mode": m}) for m in ("nearest", "linear")},
    **{
        f"resize_11_{m}": ("Resize", [picture, nothing(), nothing(), np.array([1, 2, 7, 3])], 11, {"mode": m})
        for m in ("nearest", "linear", "cubic")
    },
    **{
        f"resize_crop_{m}": ("Resize", [picture, ROI, None, np.array([1, 2, 6, 3])], 13, {"mode": m, **CROP})
        for m in ("nearest", "linear", "cubic")
    },
    "resize_tf_nearest": (
        "Resize",
        [picture, nothing(), scale(1, 1, 2, 1.5)],
        11,
        {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "floor"},
    ),
    "resize_integers": ("Resize", [np.arange(12, dtype=np.int32).reshape(1, 1, 3, 4), nothing(), scale(1, 1, 2, 0.5)], 13, {}),
    **{
        f"grid_{m}_{p}_{a}": ("GridSample", [picture, grid], 16, {"mode": m, "padding_mode": p, "align_corners": a})
        for m in ("bilinear", "nearest", "bicubic")
        for p in ("zeros", "border", "reflection")
        for a in (0, 1)
    },
    **{
        f"suppression_{c}": (
            "NonMaxSuppression",
            [boxes, scores, np.array([3]), scale(0.2), scale(0.3)],
            10,
            {"center_point_box": c},
        )
        for c in (0, 1)
    },
    "suppression_of_none": ("NonMaxSuppression", [boxes, scores], 11, {}),
    **{
        f"fused_{name}": ("FusedConv", [x, w], 17, {"activation": name, "activation_params": given, "group": 2})
        for name, given in (("LeakyRelu", [0.3]), ("Clip", [-0.5, 0.5]), ("HardSigmoid", [0.3, 0.4]))
    },
    "fused_relu": ("FusedConv", [x, w, f32(6)], 17, {"activation": "Relu", "group": 2}),
}


@pytest.mark.parametrize("name", AGAINST_ONNXRUNTIME)
def test_agrees_with_onnxruntime(name):
    ort = pytest.importorskip("onnxruntime")
    op, inputs, opset, attrs, *outputs = AGAINST_ONNXRUNTIME[name]
    proto, feeds = model(op, inputs, opset, *outputs, domain="com.microsoft" if op == "FusedConv" else "", **attrs)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    wanted = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)
    for got, want in zip(run(proto, feeds), wanted, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_allclose(got, want, 1e-4, 2e-5)


def test_upsample_1():
    proto, feeds = model("Upsample", [picture], 6, height_scale=2.0, width_scale=3.0)
    np.testing.assert_array_equal(run(proto, feeds)[0], picture.repeat(2, 2).repeat(3, 3))


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int32, np.int64])
def test_resized_integers_saturate(kind):
    limits = np.iinfo(kind)
    line = np.array([[[limits.max, limits.max, limits.min, limits.min]]], kind)
    for mode in ("linear", "cubic"):
        y = run(*model("Resize", [line, None, scale(1, 1, 4)], 13, mode=mode))[0]
        assert y.dtype == kind and y[0, 0, 0] > limits.max * 0.99 and y[0, 0, -1] < limits.min * 0.99 + 1


def test_channels_last():
    plain = run(*model("FusedConv", [x, w, f32(6)], domain="com.microsoft", group=2, activation="Relu"))
    assert (plain[0] >= 0).all()
    last, bias = np.ascontiguousarray(x.transpose(0, 2, 3, 1)), f32(6)
    want = run(*model("Conv", [x, w, bias], group=2, strides=[2, 1]))[0].transpose(0, 2, 3, 1)
    got = run(*model("NhwcConv", [last, w, bias], domain="com.microsoft", group=2, strides=[2, 1]))[0]
    np.testing.assert_allclose(got, want, 1e-5, 1e-5)
    z = f32(*want.shape)
    proto, feeds = model(
        "NhwcFusedConv", [last, w, bias, z], domain="com.microsoft", group=2, strides=[2, 1], activation="Tanh"
    )
    np.testing.assert_allclose(run(proto, feeds)[0], np.tanh(want + z), 1e-5, 1e-5)
    bytes_ = rng.integers(-128, 128, (1, 5, 6, 3), np.int8)
    want = run(*model("MaxPool", [bytes_.transpose(0, 3, 1, 2)], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1))[0]
    proto, feeds = model("NhwcMaxPool", [bytes_], domain="com.microsoft", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    np.testing.assert_array_equal(run(proto, feeds)[0], want.transpose(0, 2, 3, 1))


def test_conv_transpose_with_dynamic_pads():
    want = run(*model("ConvTranspose", [x, transposed], pads=[1, 0, 2, 1], strides=[2, 1]))[0]
    inputs = [x, transposed, np.array([1, 0, 2, 1])]
    got = run(*model("ConvTransposeWithDynamicPads", inputs, domain="com.microsoft", strides=[2, 1]))[0]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize(
    ("scales", "attrs"),
    [
        (scale(1, 1, 1.7, 0.66), {}),
        (scale(1, 1, 0.45, 0.7), {"antialias": 1}),
        (scale(1, 1, 2.3, 0.7), {"coordinate_transformation_mode": "tf_crop_and_resize"}),
        (scale(1, 1, 0.8, 1.3), {"coordinate_transformation_mode": "align_corners", "exclude_outside": 1}),
    ],
)
def test_gradients_flow_to_scales_and_regions_of_resize(scales, attrs, mode):
    """New sizes are rounded, so along small changes of the scales the result moves smoothly."""
    proto, feeds = model("Resize", [picture, ROI, scales], 18, mode=mode, **attrs)
    resized = fr.load(proto, device="cpu")
    seed = rng.standard_normal(next(iter(resized.run(feeds).values())).shape).astype(np.float32)
    _, flows = resized.vjp(feeds, {"y0": seed})
    for name in "bc" if "crop" in str(attrs) else "c":
        for i in range(feeds[name].size - 2, feeds[name].size):
            ends = [
                float((next(iter(resized.run({**feeds, name: feeds[name] + step}).values())) * seed).sum(dtype=np.float64))
                for step in (np.eye(feeds[name].size, dtype=np.float32)[i] * side for side in (2e-3, -2e-3))
            ]
            np.testing.assert_allclose(flows[name][i], (ends[0] - ends[1]) / 4e-3, 2e-2, 2e-2)


@pytest.mark.parametrize(
    ("error", "op", "inputs", "attrs"),
    [
        (ShapeError, "Conv", [x, f32(6, 3, 3, 3)], {}),
        (ShapeError, "Conv", [x, w], {"group": 2, "kernel_shape": [3, 3]}),
        (ShapeError, "Conv", [x, f32(6, 4, 9, 2)], {}),
        (ShapeError, "Conv", [x, w], {"group": 2, "strides": [0, 1]}),
        (ShapeError, "Conv", [x, w], {"group": 0}),
        (InvalidModel, "Conv", [x, w], {"group": 2, "auto_pad": "SOME"}),
        (ShapeError, "MaxPool", [x], {"kernel_shape": [3]}),
        (ShapeError, "MaxPool", [x[0, 0]], {"kernel_shape": [2]}),
        (ShapeError, "DepthToSpace", [x], {"blocksize": 3}),
        (ShapeError, "Resize", [picture, None, scale(1, 1, 0, 2)], {}),
        (ShapeError, "Resize", [picture, None, scale(1, 2)], {}),
        (ShapeError, "RoiAlign", [x, regions, images + 2], {}),
        (ShapeError, "Col2Im", [f32(1, 4, 5), np.array([4, 4]), np.array([2, 2])], {}),
    ],
)
def test_errors(error, op, inputs, attrs):
    with pytest.raises(error):
        run(*model(op, inputs, 18, **attrs))
