"""ONNX's function bodies: each op that has one gives the suite's results through its body too, at every opset that has it."""

from __future__ import annotations

import functools
import warnings
from collections import defaultdict

import numpy as np
import onnx
import pytest
from onnx import defs
from onnx.backend.test.loader import load_model_tests

import flamert.importers.importer as importer
from flamert import dtypes, onnx_backend
from flamert.importers.registry import find
from flamert.testing import TOLERANCE


def versions_with_body():
    """(domain, op type) → the versions whose schema has a function body."""
    found = defaultdict(list)
    for schema in defs.get_all_schemas_with_history():
        if schema.has_function or schema.has_context_dependent_function:
            found[schema.domain, schema.name].append(schema.since_version)
    return dict(found)


VERSIONS = versions_with_body()
RANDOM = {("", "Bernoulli")}


@functools.cache
def cases():
    """(domain, op type) → the suite's one-node cases of that op, as pairs of model and data."""
    found = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        suite = load_model_tests(kind="node")
    for case in suite:
        if case.data_sets and len(case.model.graph.node) == 1:
            node = case.model.graph.node[0]
            found[node.domain, node.op_type].append((case.model, case.data_sets[0]))
    return found


def at_opset(model, domain, version):
    """The model at another version of a domain, or None where its op did not exist in this form then."""
    relabelled = onnx.ModelProto()
    relabelled.CopyFrom(model)
    for opset in relabelled.opset_import:
        if opset.domain == domain:
            opset.version = version
    try:
        onnx.shape_inference.infer_shapes(relabelled, check_type=True, strict_mode=True)
        onnx.checker.check_model(relabelled)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
        return None
    return relabelled


def as_array(x):
    return onnx.numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else x


def same(found, expected):
    """Equal types, and values within what the suite allows; half types, which a body rounds at each step, within a bit more."""
    for got, want in zip(found, expected, strict=True):
        if isinstance(want, list):
            same(got, want)
            continue
        got, want = np.asarray(got), np.asarray(want)
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        rtol, atol = TOLERANCE[want.dtype] if want.dtype in dtypes.HALF else (1e-3, 1e-7)
        if want.dtype == object:
            np.testing.assert_array_equal(got, want)
        else:
            np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol, atol)


@pytest.mark.parametrize(("domain", "op_type"), sorted(VERSIONS.keys() - RANDOM))
def test_body(domain, op_type, monkeypatch):
    monkeypatch.setattr(importer, "find", lambda d, o, v: None if (d, o) == (domain, op_type) else find(d, o, v))
    done = 0
    for model, (inputs, expected) in cases()[domain, op_type]:
        for version in VERSIONS[domain, op_type]:
            if relabelled := at_opset(model, domain, version):
                same(onnx_backend.prepare(relabelled).run(list(map(as_array, inputs))), list(map(as_array, expected)))
                done += 1
    assert done


def test_body_of_a_random_op(monkeypatch):
    """Bernoulli's body gives 1 where a uniform number is above p: with probability 1 − p, unlike the op, which is converted."""
    monkeypatch.setattr(importer, "find", lambda d, o, v: None if (d, o) == ("", "Bernoulli") else find(d, o, v))
    p = np.linspace(0, 1, 5).astype(np.float32).repeat(4000)
    node = onnx.helper.make_node("Bernoulli", ["p"], ["y"])
    (y,) = onnx_backend.run_node(node, [p])
    np.testing.assert_allclose(y.reshape(5, -1).mean(1), 1 - np.linspace(0, 1, 5), atol=0.05)


def test_outputs_that_the_node_leaves_out():
    """A body need not compute them; naming them later must still work."""
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    labels = np.array([0, 2])
    for outputs in (["loss"], ["loss", "log_prob"]):
        node = onnx.helper.make_node("SoftmaxCrossEntropyLoss", ["x", "labels"], outputs)
        log_prob = x - np.log(np.exp(x).sum(1, keepdims=True))
        found = onnx_backend.run_node(node, [x, labels])
        np.testing.assert_allclose(found[0], -log_prob[[0, 1], labels].mean(), rtol=1e-5)
        if len(found) > 1:
            np.testing.assert_allclose(found[1], log_prob, rtol=1e-4, atol=1e-6)
