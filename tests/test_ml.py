"""Classical machine learning (ai.onnx.ml) but for trees: random models of every kind give what onnxruntime gives."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import flamert as fr
from flamert.errors import FlamertError
from tests.test_text import one_node, run, strings

ML = "ai.onnx.ml"
TRANSFORMS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT")
FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def given(**attributes):
    """Attributes without those that are empty lists, which have no type in ONNX."""
    return {k: v for k, v in attributes.items() if not (isinstance(v, list) and not v)}


def agree(op, x, outputs, version=1, undefined=(), rtol=1e-3, atol=1e-5, theirs=None, **attributes):
    """Check an op's outputs, of these ONNX types, against onnxruntime's.

    undefined: columns of the scores that are not compared. theirs: attributes that mean something else to onnxruntime.
    """
    ort = pytest.importorskip("onnxruntime")
    ort.set_default_logger_severity(4)
    node = {"inputs": [x], "n_outputs": len(outputs), "domain": ML, "domain_opset": version}
    model = one_node(op, **node, **given(**{**attributes, **(theirs or {})}))
    for info, kind in zip(model.graph.output, outputs, strict=True):
        info.type.tensor_type.elem_type = kind
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    loaded = fr.load(one_node(op, **node, **given(**attributes)), device="cpu")
    for got, want in zip(loaded.run({"x0": x}).values(), session.run(None, {"x0": x}), strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        if want.dtype.kind != "f":
            np.testing.assert_array_equal(got, want)
            continue
        got, want = got.copy(), want.copy()
        for column in undefined:
            got[:, column] = want[:, column] = 0
        np.testing.assert_allclose(got, want, rtol, atol)


def floats(rng, *shape):
    return [float(v) for v in rng.normal(size=shape).reshape(-1)]


@pytest.mark.parametrize("seed", range(30))
def test_support_vector_machines(seed):
    rng = np.random.default_rng(seed)
    n_features, n_classes = int(rng.integers(1, 6)), int(rng.integers(2, 5))
    x = (rng.normal(size=(int(rng.choice([1, 3, 20])), n_features)) * 2).astype(np.float32)
    counts = [int(n) for n in rng.integers(1, 5, n_classes)]
    n, pairs = sum(counts), n_classes * (n_classes - 1) // 2
    kernel = {
        "kernel_type": ("LINEAR", "POLY", "RBF", "SIGMOID")[seed % 4],
        "kernel_params": [0.3, 0.5, float(rng.choice([2, 3]))],
    }
    vectors = {"support_vectors": floats(rng, n, n_features), "rho": floats(rng, pairs)}
    agree(
        "SVMRegressor",
        x,
        [FLOAT],
        coefficients=floats(rng, n),
        n_supports=n,
        one_class=int(rng.random() < 0.3),
        **{**kernel, **vectors, "rho": floats(rng, 1)},
    )
    named = rng.random() < 0.3
    labels = [f"c{i}" for i in range(n_classes)] if named else [3 * i + 2 for i in range(n_classes)]
    classes = {"classlabels_strings" if named else "classlabels_ints": labels}
    calibrated = rng.random() < 0.5
    transform = str(rng.choice(TRANSFORMS))
    outputs = [STRING if named else INT64, FLOAT]
    agree(
        "SVMClassifier",
        x.astype(rng.choice([np.float32, np.float64, np.int64])),
        outputs,
        undefined=(1,) if transform == "PROBIT" and n_classes == 2 and not calibrated else (),
        rtol=5e-3,
        atol=1e-4,
        coefficients=floats(rng, n_classes - 1, n),
        vectors_per_class=counts,
        prob_a=[-abs(a) for a in floats(rng, pairs)] if calibrated else [],
        prob_b=floats(rng, pairs) if calibrated else [],
        post_transform=transform,
        **classes,
        **kernel,
        **vectors,
    )
    weights = floats(rng, n_classes, n_features)
    linear = {"coefficients": [abs(w) for w in weights] if rng.random() < 0.4 else weights, "post_transform": transform}
    agree("SVMClassifier", x, outputs, rho=[0.25], kernel_params=kernel["kernel_params"], **linear, **classes)
    agree("SVMRegressor", x, [FLOAT], coefficients=floats(rng, n_features), rho=[0.25], kernel_params=kernel["kernel_params"])


@pytest.mark.parametrize("seed", range(20))
def test_linear_models(seed):
    rng = np.random.default_rng(seed)
    n_features, n = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    x = rng.normal(size=(int(rng.choice([1, 3, 20])), n_features)).astype(np.float32)
    transform = TRANSFORMS[seed % 5]
    weights = {"coefficients": floats(rng, n, n_features), "intercepts": floats(rng, n), "post_transform": transform}
    agree("LinearRegressor", x, [FLOAT], targets=n, **weights)
    named = rng.random() < 0.5
    labels = [f"c{i}" for i in range(max(n, 2))] if named else [3 * i + 2 for i in range(max(n, 2))]
    agree(
        "LinearClassifier",
        x.astype(rng.choice([np.float32, np.float64, np.int32])),
        [STRING if named else INT64, FLOAT],
        undefined=(0, 1) if transform == "PROBIT" and n == 1 else (),
        **weights,
        **{"classlabels_strings" if named else "classlabels_ints": labels},
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32])
@pytest.mark.parametrize("shape", [(4, 3), (3,)])
def test_preparation_of_features(dtype, shape):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=shape) * 3).astype(dtype)
    agree("Scaler", x, [FLOAT], scale=floats(rng, 3), offset=floats(rng, 3))
    agree("Scaler", x, [FLOAT], scale=floats(rng, 1), offset=floats(rng, 1))
    for norm in ("MAX", "L1", "L2"):
        agree("Normalizer", x, [FLOAT], norm=norm)
    agree("FeatureVectorizer", x, [FLOAT], inputdimensions=[2])
    agree("FeatureVectorizer", x, [FLOAT], inputdimensions=[5])
    expected = (x > 1).astype(dtype)
    np.testing.assert_array_equal(run("Binarizer", [x], domain=ML, threshold=1.0), expected, strict=True)
    expected = np.stack([x, x], -1).astype(np.int64) == [1, -1]
    got = run("OneHotEncoder", [x], domain=ML, cats_int64s=[1, -1])
    np.testing.assert_array_equal(got, expected.astype(np.float32), strict=True)


def test_normalizer_leaves_zeros():
    x = np.array([[0, 0], [-3, -1]], np.float32)
    for norm in ("MAX", "L1", "L2"):
        agree("Normalizer", x, [FLOAT], norm=norm)


def test_imputer():
    x = np.array([[1, np.nan, 3], [np.nan, 5, np.nan]], np.float32)
    agree("Imputer", x, [FLOAT], imputed_value_floats=[7.0, 8.0, 9.0], replaced_value_float=float("nan"))
    agree("Imputer", x, [FLOAT], imputed_value_floats=[7.0], replaced_value_float=5.0)
    agree("Imputer", np.array([[1, -1, 3]]), [INT64], imputed_value_int64s=[7, 8, 9], replaced_value_int64=-1)
    assert run("Imputer", [np.array([1.0, 0])], domain=ML, imputed_value_floats=[2.0]).tolist() == [1, 2]


def test_features_joined_and_picked():
    x, y = np.arange(6.0).reshape(2, 3), np.arange(4.0).reshape(2, 2)
    got = run("FeatureVectorizer", [x, y], domain=ML, inputdimensions=[2, 3])
    np.testing.assert_array_equal(got, np.array([[0, 1, 0, 1, 0], [3, 4, 2, 3, 0]], np.float32), strict=True)
    assert run("ArrayFeatureExtractor", [x, np.array([[2, 0]])], domain=ML).tolist() == [[2, 0], [5, 3]]
    assert run("ArrayFeatureExtractor", [x[0], np.array([2])], domain=ML).tolist() == [[2]]
    names = strings("a", "b", "c")
    assert run("ArrayFeatureExtractor", [names, np.array([1, 1])], domain=ML).tolist() == [["b", "b"]]


NAN = float("nan")
TABLES = [
    ({"keys_strings": ["a", "b"], "values_int64s": [3, 4]}, strings("b", "x", "a"), [4, -1, 3], np.int64),
    ({"keys_int64s": [1, 2], "values_strings": ["p", "q"]}, np.array([2, 9]), ["q", "_Unused"], object),
    ({"keys_floats": [1.5, NAN], "values_strings": ["p", "q"]}, np.array([NAN, 1.5], np.float32), ["q", "p"], object),
    ({"keys_strings": ["a"], "values_floats": [0.5], "default_float": 2.0}, strings("b", "a"), [2, 0.5], np.float32),
    ({"keys_strings": ["a"], "values_strings": ["b"], "default_string": ""}, strings("b", "a"), ["", "b"], object),
    ({"keys_int64s": [7, 3], "values_floats": [0.5, 1.5]}, np.array([[3], [7]]), [[1.5], [0.5]], np.float32),
    ({"keys_floats": [0.1, NAN], "values_int64s": [1, 2]}, np.array([0.1, NAN, 5], np.float32), [1, 2, -1], np.int64),
    ({"keys_int64s": [7, 7], "values_int64s": [1, 2]}, np.array([7]), [2], np.int64),
]


@pytest.mark.parametrize(("table", "x", "expected", "dtype"), TABLES)
@pytest.mark.parametrize("version", [2, 4])
def test_label_encoder(version, table, x, expected, dtype):
    got = run("LabelEncoder", [x], domain=ML, domain_opset=version, **table)
    np.testing.assert_array_equal(got, np.array(expected, dtype), strict=True)


@pytest.mark.parametrize("key", [np.int64, np.int32, np.int16, np.float32, np.float64, object])
@pytest.mark.parametrize("value", [np.int64, np.int32, np.int16, np.float32, np.float64, object])
def test_label_encoder_of_tensors(key, value):
    keys, values, default = (np.array(v, t) for v, t in (([1, 2], key), ([3, 4], value), ([5], value)))
    as_text = np.vectorize(str, otypes=[object])
    keys, values, default = (as_text(v) if v.dtype == object else v for v in (keys, values, default))
    tensors = {"keys_tensor": keys, "values_tensor": values, "default_tensor": default}
    attributes = {name: numpy_helper.from_array(v) for name, v in tensors.items()}
    x = np.concatenate([keys, keys[:1], as_text(np.array([9])) if keys.dtype == object else np.array([9], key)])
    got = run("LabelEncoder", [x], domain=ML, domain_opset=4, **attributes)
    np.testing.assert_array_equal(got, np.concatenate([values, values[:1], default]), strict=True)


def test_old_label_encoder_and_category_mapper():
    classes = {"classes_strings": ["a", "b"]}
    assert run("LabelEncoder", [strings("b", "x")], domain=ML, **classes).tolist() == [1, -1]
    assert run("LabelEncoder", [np.array([1, 5])], domain=ML, **classes).tolist() == ["b", "_Unused"]
    table = {"cats_strings": ["a", "b"], "cats_int64s": [7, 8], "default_int64": 0, "default_string": "?"}
    assert run("CategoryMapper", [strings("b", "x")], domain=ML, **table).tolist() == [8, 0]
    assert run("CategoryMapper", [np.array([[7, 5]])], domain=ML, **table).tolist() == [["a", "?"]]


def test_one_hot_of_strings_and_of_unknown_categories():
    got = run("OneHotEncoder", [strings("b", "x")], domain=ML, cats_strings=["a", "b"])
    np.testing.assert_array_equal(got, np.array([[0, 1], [0, 0]], np.float32), strict=True)
    assert run("OneHotEncoder", [np.array([2])], domain=ML, cats_int64s=[1, 2], zeros=0).tolist() == [[0, 1]]
    for x, categories in ((strings("x"), {"cats_strings": ["a"]}), (np.array([5]), {"cats_int64s": [1]})):
        with pytest.raises(FlamertError):
            run("OneHotEncoder", [x], domain=ML, zeros=0, **categories)


def on_map(op, mapping, key, value, output, **attributes):
    """An op on a map input: what it gives here, after a check against onnxruntime where that takes such maps from Python."""
    kind = helper.make_map_type_proto(key, helper.make_tensor_type_proto(value, []))
    node = helper.make_node(op, ["x"], ["y"], domain=ML, **attributes)
    graph = helper.make_graph(
        [node], op, [helper.make_value_info("x", kind)], [helper.make_tensor_value_info("y", output, None)]
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(ML, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    got = fr.load(model, device="cpu").run({"x": mapping})["y"]
    assert got.dtype == helper.tensor_dtype_to_np_dtype(output)
    if value == FLOAT:
        ort = pytest.importorskip("onnxruntime")
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(got, session.run(None, {"x": mapping})[0], strict=True)
    return got.tolist()


@pytest.mark.parametrize(("cast_to", "output"), [("TO_FLOAT", FLOAT), ("TO_INT64", INT64), ("TO_STRING", STRING)])
def test_cast_map(cast_to, output):
    cast, pad = {FLOAT: (float, 0), INT64: (int, 0), STRING: (str, "0.f")}[output]
    dense, sparse = {"cast_to": cast_to}, {"cast_to": cast_to, "map_form": "SPARSE", "max_map": 4}
    for form in (dense, sparse):
        on_map("CastMap", {2: 1.5, 0: -3.0}, INT64, FLOAT, output, **form)
    words = {2: "15", 0: "-3"}
    assert on_map("CastMap", words, INT64, STRING, output, **dense) == [[cast("-3"), cast("15")]]
    assert on_map("CastMap", words, INT64, STRING, output, **sparse) == [[cast("-3"), pad, cast("15"), pad]]


def test_dict_vectorizer():
    words = {"string_vocabulary": ["a", "b", "c"]}
    assert on_map("DictVectorizer", {"c": 1.5, "a": 2.0, "x": 9.0}, STRING, FLOAT, FLOAT, **words) == [[2, 0, 1.5]]
    assert on_map("DictVectorizer", {"b": 1.5}, STRING, TensorProto.DOUBLE, TensorProto.DOUBLE, **words) == [[0, 1.5, 0]]
    assert on_map("DictVectorizer", {"b": 5}, STRING, INT64, INT64, **words) == [[0, 5, 0]]
    assert on_map("DictVectorizer", {2: "x"}, INT64, STRING, STRING, int64_vocabulary=[1, 2]) == [["", "x"]]


def test_zip_map_of_a_classifier():
    linear = helper.make_node(
        "LinearClassifier", ["x"], ["label", "scores"], domain=ML, coefficients=[1.0, 0, 0, 1], intercepts=[0.0, 0],
        classlabels_strings=["p", "q"],
    )  # fmt: skip
    zipped = helper.make_node("ZipMap", ["scores"], ["maps"], domain=ML, classlabels_strings=["p", "q"])
    x = helper.make_tensor_value_info("x", FLOAT, ["n", 2])
    outputs = [onnx.ValueInfoProto(name="label"), onnx.ValueInfoProto(name="maps")]
    graph = helper.make_graph([linear, zipped], "classifier", [x], outputs)
    model = fr.load(helper.make_model(graph, opset_imports=[helper.make_opsetid(ML, 1)], ir_version=10), device="cpu")
    for rows in ([[1, 2], [5, 3]], [[0, 1]], [[4, 2], [5, 3]]):
        got = model.run({"x": np.array(rows, np.float32)})
        assert got["label"].tolist() == ["q" if b > a else "p" for a, b in rows]
        assert got["maps"] == [{"p": a, "q": b} for a, b in rows]
