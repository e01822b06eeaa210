"""The gradient of an op is that of its body: ONNX's functions, at every opset that has them, and our own composites."""

import numpy as np
import onnx
import pytest

import flamert as fr
import flamert.importers.importer as importer
from flamert import dtypes
from flamert import graph as g
from flamert.grad import grad
from flamert.grad.registry import RULES
from flamert.importers.registry import find
from flamert.ops import OPS
from flamert.ops.evaluate import evaluate
from flamert.ops.op import expand
from tests.cases import CASES
from tests.test_functions import RANDOM, VERSIONS, as_array, at_opset, cases
from tests.test_gradient_closure import node_of

CONSTANTS = 1e-6
TOLERANCES = {
    "Attention": CONSTANTS,
    "CausalConvWithState": CONSTANTS,
    "Gelu": CONSTANTS,
    "HardSigmoid": CONSTANTS,
    "HardSwish": CONSTANTS,
    "LeakyRelu": CONSTANTS,
    "LinearAttention": CONSTANTS,
    "ReduceL2": CONSTANTS,
}
"""Where more than 1e-10 is allowed in float64: ONNX's bodies have constants, or a step, in float32 there."""

SINGLE = {"Celu", "FlexAttention", "LayerNormalization", "MeanVarianceNormalization"}
"""Their bodies, or the functions they hold, are for float32 alone."""

WITHOUT = {
    "BlackmanWindow",
    "DynamicQuantizeLinear",
    "GreaterOrEqual",
    "HammingWindow",
    "HannWindow",
    "LessOrEqual",
    "Range",
    "SequenceMap",
}
"""Their inputs or outputs are integers, codes or sequences, or decide on shapes: there is no gradient to compare."""

BENT = {"to_code", "from_code", "whole"}
"""Composites that pass gradients straight through the rounding in their bodies."""


def in_double(model):
    """The model with float64 in the place of float32."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for info in (*wide.graph.input, *wide.graph.output):
        if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            info.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    (node,) = wide.graph.node
    names = {"Attention": "softmax_precision", "RMSNormalization": "stash_type", "GroupNormalization": "stash_type"}
    name = names.get(node.op_type)
    if name in onnx.defs.get_schema(node.op_type, wide.opset_import[0].version, node.domain).attributes:
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, onnx.TensorProto.DOUBLE)])
    return wide


def fed(model, inputs, dtype):
    """Inputs by name, floating ones in `dtype` and a little off, since gradients at kinks are a matter of taste."""
    rng = np.random.default_rng(1)
    feeds = {}
    for info, x in zip(model.graph.input, map(as_array, inputs), strict=False):
        floating = getattr(x, "dtype", None) == np.float32
        feeds[info.name] = x.astype(dtype) + rng.uniform(1e-3, 2e-3, x.shape).astype(dtype) if floating else x
    return feeds


def slopes(model, feeds, dtype):
    """Gradients by all inputs of this type, of all outputs of this type, where these are finite."""
    loaded = fr.load(model, device="cpu")
    rng = np.random.default_rng(0)
    outputs = {n: y for n, y in loaded.run(feeds).items() if y.dtype == dtype}
    cotangents = {n: np.where(np.isfinite(y), rng.standard_normal(y.shape), 0).astype(dtype) for n, y in outputs.items()}
    wrt = [n for n, x in feeds.items() if x.dtype == dtype]
    return loaded.vjp(feeds, cotangents, wrt)[1] if wrt and cotangents else {}


def agree(found, expected, rtol):
    """Equal, but for NaN where a body divides 0 by 0 (queries that see no key); ours are finite there."""
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        assert np.isfinite(found[name]).all(), name
        want = np.where(np.isnan(want), found[name], want)
        np.testing.assert_allclose(found[name], want, 0, rtol * max(1e-3, np.abs(want).max(initial=0)), err_msg=name)


TRIED = sorted((domain, op_type) for domain, op_type in VERSIONS.keys() - RANDOM if op_type not in WITHOUT)


@pytest.mark.parametrize(("domain", "op_type"), TRIED)
def test_functions_of_onnx(domain, op_type, monkeypatch):
    dtype, rtol = (np.float32, 2e-4) if op_type in SINGLE else (np.float64, TOLERANCES.get(op_type, 1e-10))
    compared = 0
    for model, (inputs, _) in cases()[domain, op_type]:
        for version in VERSIONS[domain, op_type]:
            relabelled = at_opset(model, domain, version)
            if relabelled is None:
                continue
            relabelled = relabelled if op_type in SINGLE else in_double(relabelled)
            feeds = fed(relabelled, inputs, dtype)
            found = slopes(relabelled, feeds, dtype)
            with monkeypatch.context() as patch:
                patch.setattr(importer, "find", lambda d, o, v: None if (d, o) == (domain, op_type) else find(d, o, v))
                agree(found, slopes(relabelled, feeds, dtype), rtol)
            compared += len(found)
    assert compared


def test_functions_without_gradients_are_only_these():
    assert {op_type for _, op_type in VERSIONS} >= WITHOUT | SINGLE | TOLERANCES.keys()


OWN = [
    pytest.param(c, id=f"{c}-{i}")
    for i, c in enumerate(CASES)
    if c.gradient and c.op in RULES and OPS[c.op].body and not OPS[c.op].random and c.op not in BENT
]


@pytest.mark.parametrize("case", OWN)
def test_composites_of_our_own(case):
    """A rule beside a body is there for precision or speed, and changes nothing."""
    node = node_of(case)
    arrays = [np.asarray(x) for v, x in zip(node.inputs, case.inputs, strict=False) if v is not None]
    at = {v: x.astype(v.dtype) for v, x in zip([v for v in node.inputs if v is not None], arrays, strict=True)}
    wrt = [v for v in at if v.dtype == dtypes.float64]
    rng = np.random.default_rng(0)
    both = []
    for results in (node.outputs, expand(node)):
        floating = [v for v in results if v.dtype == dtypes.float64]
        rng = np.random.default_rng(0)
        flows = grad(floating, wrt, [g.constant(rng.standard_normal(v.shape)) for v in floating])
        values = iter(evaluate([f for f in flows if f is not None], at))
        both.append(
            {str(i): np.zeros(v.shape) if f is None else next(values) for i, (v, f) in enumerate(zip(wrt, flows, strict=True))}
        )
    agree(*both, 1e-10)
