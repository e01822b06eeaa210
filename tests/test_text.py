"""Ops on strings: what the specification says, regular expressions as RE2 has them, and agreement with onnxruntime."""

import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import flamert as fr
from flamert.errors import FlamertError, InvalidModel, ShapeError, UnsupportedOp
from flamert.importers.regex import Regex


def strings(*items):
    return np.array(items, object)


def one_node(op, inputs, n_outputs=1, opset=21, domain="", domain_opset=1, **attributes):
    """A model of one node whose inputs have these arrays' types, and dimensions that are open."""

    def info(name, x):
        kind = TensorProto.STRING if x.dtype == object else helper.np_dtype_to_tensor_dtype(x.dtype)
        return helper.make_tensor_value_info(name, kind, [None] * x.ndim)

    names = [f"x{i}" for i in range(len(inputs))]
    outputs = [f"y{i}" for i in range(n_outputs)]
    node = helper.make_node(op, names, outputs, domain=domain, **attributes)
    graph = helper.make_graph([node], op, list(map(info, names, inputs)), [onnx.ValueInfoProto(name=n) for n in outputs])
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, domain_opset)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run(op, inputs, n_outputs=1, **how):
    model = fr.load(one_node(op, inputs, n_outputs, **how), device="cpu")
    results = list(model.run({f"x{i}": x for i, x in enumerate(inputs)}).values())
    return results[0] if n_outputs == 1 else results


def test_concatenation_broadcasts():
    got = run("StringConcat", [strings("a", "b")[:, None], strings("1", "2", "")])
    assert got.tolist() == [["a1", "a2", "a"], ["b1", "b2", "b"]]
    assert run("StringConcat", [np.array("a", object), np.array("ü", object)]).shape == ()


@pytest.mark.parametrize(
    ("attributes", "parts", "counts"),
    [
        ({}, [["a", "b", "c"], ["", "", ""]], [3, 0]),
        ({"maxsplit": 1}, [["a", "b  c "], ["", ""]], [2, 0]),
        ({"delimiter": " "}, [["", "a", "b", "", "c", ""], [""] * 6], [6, 1]),
        ({"delimiter": "b"}, [[" a ", "  c "], ["", ""]], [2, 1]),
    ],
)
def test_split(attributes, parts, counts):
    got, n = run("StringSplit", [strings(" a b  c ", "")], 2, opset=20, **attributes)
    assert got.tolist() == parts and n.tolist() == counts and n.dtype == np.int64


def test_split_of_nothing():
    got, n = run("StringSplit", [np.empty((2, 0), object)], 2, opset=20)
    assert got.shape == (2, 0, 0) and n.shape == (2, 0)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, ["Straße", "İi", "monday"]),
        ({"case_change_action": "UPPER", "stopwords": ["MONDAY"]}, ["STRAßE", "İI"]),
        ({"case_change_action": "LOWER", "stopwords": ["MONDAY"], "is_case_sensitive": 1}, ["straße", "ii", "monday"]),
        ({"case_change_action": "UPPER", "locale": "tr_TR"}, ["STRAßE", "İİ", "MONDAY"]),
        ({"stopwords": ["straße", "İİ", "ii", "Monday"]}, [""]),
    ],
)
def test_normalizer(attributes, expected):
    x = strings("Straße", "İi", "monday")
    assert run("StringNormalizer", [x], **attributes).tolist() == expected
    assert run("StringNormalizer", [x[None]], **attributes).tolist() == [expected]


def test_normalizer_takes_one_row():
    with pytest.raises(ShapeError):
        run("StringNormalizer", [strings("a", "b")[:, None]])


MATCHES = [
    ("a$\n", [], ["a\n"]),
    ("(?i)k", ["K", "\u212a"], ["x"]),
    ("(?i:ß)", ["ẞ", "ß"], ["ss"]),
    (r"\w+", ["abc_9"], ["é", ""]),
    ("(a|aa)+$", ["a" * 30], [""]),
    ("[[:alpha:]]+", ["ab"], ["1"]),
    ("[[:^digit:]x]", ["a"], ["1"]),
    (r"\pL+", ["éa"], ["é1"]),
    (r"\p{^L}", ["5"], ["a"]),
    (r"[\PN\d]+", ["a1"], ["½"]),
    ("(?P<x>a)(?<y>b)", ["ab"], []),
    ("a{,2}", ["a{,2}"], ["aa"]),
    ("a{2,3}?", ["aa", "aaa"], ["a", "aaaa"]),
    ("a{0}", [""], ["a"]),
    (r"\Qa.b\E+", ["a.b", "a.bbb"], ["axb"]),
    ("[]a-]+", ["]-a"], ["b"]),
    (r"[^\d\n]", ["b"], ["\n", "1"]),
    (".", ["日"], ["\n", "日本"]),
    ("(?s).", ["\n"], []),
    ("(?m)^a$\n^b$", ["a\nb"], ["ab"]),
    ("(a(?i)b)c", ["aBc"], ["aBC"]),
    ("(?i-s:A)b", ["ab"], ["aB"]),
    ("(?U)a+?", ["aa"], []),
    ("^*", [""], ["^"]),
    (r"\bab\b", ["ab"], []),
    (r"a.*\Bb", ["ab"], ["a b"]),
    (r"\A\x{10FFFF}\x41\101\07\z", ["\U0010ffffAA\x07"], []),
    (r"[\x00-\x{10FFFF}]", ["a"], [""]),
    ("|a", ["", "a"], ["b"]),
    ("a{x", ["a{x"], []),
]
BROKEN = ["a**", "x{2}{3}", "a{1001}", r"[a-\d]", r"\8", r"\é", "a{2,1}", "(?=a)a", "a++", "[z-a]", "(*)", "a\\", "[a", "(a"]
BROKEN += ["a)", r"\h", "(?#c)a", r"[\b]", r"\1", "x*{2}", "{2}", "(?z)", "(?i", "[[:foo:]]", "(?P<a b>c)", "(x{1000}){1000}"]


@pytest.mark.parametrize(("pattern", "matching", "others"), MATCHES)
def test_regular_expressions(pattern, matching, others):
    regex = Regex(pattern)
    assert [regex.fullmatch(s) for s in (*matching, *others)] == [True] * len(matching) + [False] * len(others)


@pytest.mark.parametrize("pattern", BROKEN)
def test_broken_regular_expressions_are_refused(pattern):
    with pytest.raises(InvalidModel):
        Regex(pattern)


@pytest.mark.parametrize("pattern", [r"\p{Greek}", r"\C"])
def test_what_regular_expressions_lack_is_said(pattern):
    with pytest.raises(UnsupportedOp):
        Regex(pattern)


def test_regular_expressions_agree_with_re2():
    ort = pytest.importorskip("onnxruntime")
    ort.set_default_logger_severity(4)
    for pattern, matching, others in MATCHES:
        x = strings(*matching, *others)
        model = one_node("RegexFullMatch", [x], pattern=pattern)
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.BOOL
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(run("RegexFullMatch", [x], pattern=pattern), session.run(None, {"x0": x})[0], pattern)


@pytest.mark.parametrize("pattern", ["(a*)*b", "(a|aa)+$", "(.*)(.*)(.*)(.*)(.*)c", "(a?){500}a{500}", "[ab]*a[ab]{12}c"])
def test_no_pattern_takes_long(pattern):
    begin = time.perf_counter()
    regex = Regex(pattern)
    assert not regex.fullmatch("ab" * 1000 + "!")
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize("seed", range(12))
def test_tfidf_agrees_with_onnxruntime(seed):
    ort = pytest.importorskip("onnxruntime")
    ort.set_default_logger_severity(4)
    rng = np.random.default_rng(seed)
    words = [f"w{i}" for i in range(5)] if seed % 2 else list(range(5))
    pool, starts, n_grams = [], [], 0
    for n in (1, 2, 3):
        starts.append(len(pool))
        grams = {tuple(int(i) for i in rng.integers(5, size=n)) for _ in range(4)}
        pool += [words[i] for gram in sorted(grams) for i in gram]
        n_grams += len(grams)
    low = int(rng.integers(1, 4))
    attributes = {
        "mode": ("TF", "IDF", "TFIDF")[seed % 3],
        "min_gram_length": low,
        "max_gram_length": int(rng.integers(low, 4)),
        "max_skip_count": int(rng.integers(4)),
        "ngram_counts": starts,
        "ngram_indexes": [int(i) for i in rng.permutation(n_grams)],
        "weights": [float(w) for w in rng.normal(size=n_grams)],
        "pool_strings" if seed % 2 else "pool_int64s": pool,
    }
    if seed % 4 > 1:
        del attributes["weights"]
    x = np.array(words, object if seed % 2 else np.int64)[rng.integers(5, size=(3, 8))]
    for tokens in (x, x[0]):
        model = one_node("TfIdfVectorizer", [tokens], **attributes)
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        got = run("TfIdfVectorizer", [tokens], **attributes)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, session.run(None, {"x0": tokens})[0], 1e-6)


def test_tfidf_refuses_a_broken_pool():
    how = {"mode": "TF", "min_gram_length": 1, "max_gram_length": 2, "max_skip_count": 0, "pool_int64s": [1, 2, 3]}
    for starts, columns in (([0, 2], [0, 1, 2]), ([0, 5], [0, 1, 2]), ([0, 1], [0]), ([0, 1], [-1, 0])):
        with pytest.raises(FlamertError):
            run("TfIdfVectorizer", [np.arange(3)], ngram_counts=starts, ngram_indexes=columns, **how)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "expected"),
    [
        ("Equal", [strings("a", "b"), strings("a")], {}, [True, False]),
        ("Reshape", [strings("a", "b"), np.array([2, 1])], {}, [["a"], ["b"]]),
        ("Transpose", [strings("a", "b")[None]], {}, [["a"], ["b"]]),
        ("Concat", [strings("a"), strings("b", "c")], {"axis": 0}, ["a", "b", "c"]),
        ("Gather", [strings("a", "b", "c"), np.array([2, 0])], {}, ["c", "a"]),
        ("Where", [np.array([True, False]), strings("a"), strings("b", "c")], {}, ["a", "c"]),
        ("Tile", [strings("a", "b"), np.array([2])], {}, ["a", "b", "a", "b"]),
        ("Expand", [strings("a"), np.array([2, 2])], {}, [["a", "a"], ["a", "a"]]),
        ("Identity", [strings("a")], {}, ["a"]),
        ("Squeeze", [strings("a", "b")[None]], {}, ["a", "b"]),
        ("Slice", [strings("a", "b", "c"), np.array([1]), np.array([3])], {}, ["b", "c"]),
        ("Cast", [strings("1.5", "-2", "NaN")], {"to": TensorProto.FLOAT}, [1.5, -2, np.nan]),
        ("Cast", [np.array([1, -2])], {"to": TensorProto.STRING}, ["1", "-2"]),
    ],
)
def test_other_ops_take_strings(op, inputs, attributes, expected):
    np.testing.assert_array_equal(run(op, inputs, **attributes), np.array(expected))
