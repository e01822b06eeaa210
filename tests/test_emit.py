"""Emitted CUDA kernels: every op that a chain may hold compiles (no GPU needed), and gives what the op's reference gives."""

import ctypes
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from flamert import dtypes
from flamert import graph as g
from flamert.graph import OPERATORS, Graph, TensorType
from flamert.ops.cuda.emit import EXPRESSIONS, HEADER, MOST, PARAMETERS, Operand, expressible, merged, named
from flamert.ops.cuda.emit_bands import banded, bands
from flamert.ops.cuda.emit_chain import Chain, by_tiles, chain, over_table
from flamert.ops.cuda.pointwise import value_types
from flamert.ops.evaluate import evaluate
from flamert.ops.pointwise import Instruction
from flamert.passes.pointwise import fuse_pointwise
from flamert.runtime.device import device
from flamert.runtime.plan import Plan
from tests.emulated import emulated

ATTRIBUTES = {"alpha": 0.3, "beta": 0.4}
TYPES = (np.dtype(np.float32), dtypes.float16, dtypes.bfloat16, np.dtype(np.float64), np.dtype(np.int64), np.dtype(np.bool_))


def instruction(name, dtype):
    """An op on operands 0, 1, … of this type, and their types; None where a chain does not take it."""
    op = OPERATORS[name]
    types = [TensorType((2, 3, 8), np.dtype(np.bool_) if name == "where" and i == 0 else dtype) for i in range(op.required)]
    attrs = {k: ATTRIBUTES[k] for k in sorted(PARAMETERS.get(name, ()))}
    try:
        result = op.infer(*types, **attrs)
    except Exception:
        return None
    if not expressible(name, attrs, [t.dtype for t in types], result.dtype):
        return None
    return Instruction(name, tuple(range(op.required)), tuple(attrs.items())), types


def casts():
    for of in TYPES:
        for to in TYPES:
            if of != to and expressible("cast", {}, [of], to):
                yield Instruction("cast", (0,), (("to", to),)), [TensorType((2, 3, 8), of)]


SINGLE = [(f"{n}-{t.name}", found) for n in EXPRESSIONS for t in TYPES if (found := instruction(n, t)) is not None]
SINGLE += [(f"cast-{types[0].dtype.name}-{dict(step.attrs)['to'].name}", (step, types)) for step, types in casts()]


def test_most_ops_can_be_in_a_chain():
    assert {name.partition("-")[0] for name, _ in SINGLE} == {*EXPRESSIONS, "cast"}


def nvrtc():
    """NVIDIA's run-time compiler and its headers, of the wheels or of an installed toolkit."""
    folders = [Path(p) for spec in [importlib.util.find_spec("nvidia")] if spec for p in spec.submodule_search_locations]
    folders += [Path("/usr/local/cuda")]
    libraries = [f for folder in folders for f in sorted(folder.rglob("libnvrtc.so.1[23]*"))]
    headers = [f.parent for folder in folders for f in sorted(folder.rglob("cuda_fp16.h"))]
    if not libraries or not headers:
        pytest.skip("needs nvidia-cuda-nvrtc and nvidia-cuda-runtime")
    return ctypes.CDLL(str(libraries[0])), headers[0]


def compile_source(lib, include, source):
    """Raises AssertionError with the compiler's words."""
    program = ctypes.c_void_p()
    assert lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"chain.cu", 0, None, None) == 0
    options = [b"-arch=sm_90", b"-std=c++17", f"-I{include}".encode()]
    status = lib.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetProgramLog(program, log)
    lib.nvrtcDestroyProgram(ctypes.byref(program))
    assert status == 0, f"{log.value.decode()}\n{source}"


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
def test_all_ops_compile(dtype):
    """All on operands of one type, each with the next, in one source."""
    lib, include = nvrtc()
    found = [item for _, item in SINGLE if item[1][-1].dtype == dtype]
    sources = []
    for step, types in found:
        types = value_types((step,), types)
        operands = [Operand(t.dtype, (2, 1)) for t in types[:-1]]
        sources.append(chain(Chain((step,), types, operands, (0,), 2, 4 if types[-1].dtype.itemsize <= 4 else 2, False)))
    head = sources[0].partition('extern "C"')[0]
    bodies = [s.removeprefix(head).replace(" chain_", f" chain{i}_") for i, s in enumerate(sources)]
    compile_source(lib, include, head + "\n".join(bodies))


@pytest.mark.parametrize("strides", [(0, 1), (2, 0), (2, 2), (0, 0)])
@pytest.mark.parametrize("wide", [False, True])
def test_every_layout_compiles(strides, wide):
    lib, include = nvrtc()
    f = np.dtype(np.float32)
    program = (Instruction("mul", (0, 1)), Instruction("add", (3, 2)))
    types = value_types(program, [TensorType((4, 8), f)] * 3)
    operands = [Operand(f, (2, 1)), Operand(f, strides), Operand(f, (0, 0), np.float32("inf"))]
    compile_source(lib, include, chain(Chain(program, types, operands, (0, 1), 2, 4, wide)))
    compile_source(lib, include, chain(Chain(program, types, operands, (0, 1), 2, 4, wide, over=True)))
    if not wide:
        compile_source(lib, include, by_tiles(Chain(program, types, operands, (0, 1), 2, 4, wide), [0]))


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), dtypes.bfloat16])
def test_kernels_that_keep_numbers_of_columns_compile(dtype):
    lib, include = nvrtc()
    program = (Instruction("mul", (0, 1)), Instruction("add", (4, 2)), Instruction("maximum", (5, 3)))
    types = value_types(program, [TensorType((4096, 8), dtype), *[TensorType((8,), dtype)] * 2, TensorType((), dtype)])
    strides = [(8, 1), (0, 1), (0, 1), (0, 0)]
    assert banded((4096, 8), strides)
    of = Chain(program, types, [Operand(dtype, s) for s in strides], (0, 2), 2, 4, False)
    for rows in (1, 4):
        compile_source(lib, include, bands(of, rows))


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("wide", [False, True])
def test_kernels_over_tables_compile(width, wide):
    lib, include = nvrtc()
    f = np.dtype(np.float32)
    program = (Instruction("mul", (0, 1)), Instruction("cast", (2,), (("to", dtypes.bfloat16),)))
    types = value_types(program, [TensorType((64,), f), TensorType((), f)])
    of = Chain(program, types, [Operand(f, (1,)), Operand(f, (0,))], (0, 1), 1, width, wide)
    compile_source(lib, include, chain(of))
    compile_source(lib, include, over_table(of))


def test_quick_functions_are_precise_enough_for_halves():
    call = emulated(
        HEADER
        + """
extern "C" __global__ void quick(const float* x, float* erf, float* logistic) {
  const u32 i = blockIdx.x * 256 + threadIdx.x;
  erf[i] = quick_erf(x[i]);
  logistic[i] = quick_logistic(x[i]);
}
"""
    )
    x = np.linspace(-12, 12, 1 << 14).astype(np.float32)
    x[:4] = np.inf, -np.inf, np.nan, -0.0
    erf, logistic = np.zeros_like(x), np.zeros_like(x)
    call((64,), 256, x, erf, logistic)
    want = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(erf, want, rtol=0, atol=2e-6)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(logistic, 1 / (1 + np.exp(-x.astype(np.float64))), rtol=2e-6)


def test_halves_are_computed_quickly_and_floats_precisely():
    def text(dtype, *program):
        types = value_types(program, [TensorType((64,), dtype)])
        return chain(Chain(program, types, [Operand(dtype, (1,))], (len(program) - 1,), 1, 1, False)).partition("extern")[2]

    for op in ("gelu", "sigmoid", "swish"):
        attrs = (("alpha", 1.0),) if op == "swish" else ()
        assert "quick_" in text(dtypes.bfloat16, Instruction(op, (0,), attrs))
        assert "quick_" not in text(np.dtype(np.float32), Instruction(op, (0,), attrs))
    alone, summed = Instruction("erf", (0,)), Instruction("add", (1, 0))
    assert "quick_" not in text(dtypes.float16, alone) and "quick_erf(" in text(dtypes.float16, alone, summed)


def test_names_say_what_is_computed():
    assert named("chain", "add", "gelu", "add") == "chain_add_gelu"
    assert len(named("rows", *EXPRESSIONS)) <= MOST


def test_axes_merge_where_all_operands_allow_it():
    assert merged((2, 1, 3, 4), [(12, 12, 4, 1), (12, 12, 4, 1)]) == ((24,), ((1,), (1,)))
    assert merged((2, 3, 4), [(12, 4, 1), (0, 0, 1)]) == ((6, 4), ((4, 1), (0, 1)))
    assert merged((2, 3, 4), [(12, 4, 1), (1, 0, 0)]) == ((2, 12), ((12, 1), (1, 0)))
    assert merged((1, 1), [(1, 1)]) == ((1,), ((0,),))


def drawn(types, rng):
    arrays = []
    for t in types:
        x = rng.standard_normal(t.shape) * 3
        x.flat[:3] = np.nan, np.inf, 0.0
        arrays.append((np.nan_to_num(x, posinf=2) if t.dtype.kind in "ib" else x).astype(t.dtype))
    return arrays


@pytest.mark.gpu
@pytest.mark.parametrize(("step", "types"), [item for _, item in SINGLE], ids=[name for name, _ in SINGLE])
def test_chains_of_one(step, types):
    rng = np.random.default_rng(0)
    shapes = [(2, 3, 8), (3, 1), (8,)]
    inputs = [g.input(TensorType(s, t.dtype)) for s, t in zip(shapes, types, strict=False)]
    result = OPERATORS[step.op](*inputs, **dict(step.attrs))
    check(Graph(inputs, [result]), drawn([v.type for v in inputs], rng))


def check(graph, arrays):
    on = device("cuda")
    fused = fuse_pointwise(graph, lambda node: node.op.name not in ("input", "constant"))
    assert any(node.op.name == "pointwise" for node in fused.nodes)
    [want] = evaluate(graph.outputs, dict(zip(graph.inputs, arrays, strict=True)))
    plan = Plan(fused, on, hot=True)
    for _ in range(3):
        [got] = plan(*[on.upload(x) for x in arrays])
        got = on.download(got, want.dtype)
        if want.dtype in dtypes.STANDARD_FLOAT:
            rtol = {2: 1e-2, 4: 2e-6, 8: 1e-14}[want.dtype.itemsize]
            np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=rtol)
        else:
            np.testing.assert_array_equal(got, want)
    assert plan.obstacle is None


@pytest.mark.gpu
def test_long_chains_with_strided_operands():
    rng = np.random.default_rng(1)
    f = np.dtype(np.float32)
    x, y, z = (g.input(TensorType(s, f)) for s in ((4, 6, 16), (6, 4, 16), (16, 1, 6)))
    from flamert import ops

    result = ops.gelu(x + ops.transpose(y, perm=(1, 0, 2))) * ops.transpose(z, perm=(1, 2, 0)) + 0.5
    check(Graph([x, y, z], [ops.cast(ops.tanh(result), to=dtypes.bfloat16)]), drawn([v.type for v in (x, y, z)], rng))
