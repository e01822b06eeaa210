"""What cuBLASLt is told of products, by a library that only listens: how they lie, what they end with, and what is kept."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

from flamert import dtypes
from flamert.ops.cuda import cublaslt, linear
from flamert.ops.cuda.tuning import Choices
from flamert.ops.op import Site
from tests.bound import Array, node_of, zeros

NAMES = {"MatmulDesc": {3: "transa", 4: "transb", 7: "epilogue", 8: "bias"}, "MatmulPreference": {1: "workspace"}}
NAMES["MatmulPreference"] |= {5: "a", 6: "b", 7: "c", 8: "d"}
"""Attributes of cublasLt.h by number."""


class Listening:
    """A library that has two algorithms for everything, and notes what it is told. refused: epilogues that it has none for.

    sums: what algorithms leave in a product's first element.
    """

    def __init__(self, refused=()):
        self.sums = {}
        self.refused, self.told, self.launched, self.kinds, self.factors = refused, [], [], [], []

    def __getattr__(self, name):
        kind = name.removeprefix("cublasLt").removesuffix("SetAttribute")
        if kind in NAMES and name.endswith("SetAttribute"):
            return lambda where, key, value, size: self._note(NAMES[kind][key], value._obj.value)
        return lambda *arguments: 0

    def _note(self, name, value):
        if name == "transa":
            self.told.append({})
        self.told[-1][name] = value
        return 0

    def cublasLtMatrixLayoutCreate(self, layout, kind, *sizes):
        self.kinds.append(kind)
        return 0

    def cublasLtMatmulAlgoGetHeuristic(self, *arguments):
        *_, found, count = arguments
        if self.told[-1].get("epilogue") in self.refused:
            return 15
        for number in range(2):
            found[number].algorithm[0] = number + 1
        count._obj.value = 2
        return 0

    def cublasLtMatmul(self, *arguments):
        self.factors.append(arguments[2]._obj.value)
        self.launched.append((arguments[10].value, arguments[12]._obj.algorithm[0]))
        if self.launched[-1][1] in self.sums:
            ctypes.c_float.from_address(arguments[10].value).value = self.sums[self.launched[-1][1]]
        return 0


@pytest.fixture
def library(monkeypatch, tmp_path):
    found = Listening()
    monkeypatch.setattr(cublaslt, "_library", lambda: found)
    monkeypatch.setattr(cublaslt, "_handle", lambda device: None)
    monkeypatch.setattr(linear, "version", lambda: 1)
    found.choices = Choices(tmp_path / "choices.jsonl")
    monkeypatch.setattr(linear, "choices", lambda *_: found.choices)
    monkeypatch.setattr(linear, "fastest", lambda calls: [call() for call in calls] and len(calls) - 1)
    return found


def memory(*shape, skipped=0, dtype=np.float32):
    """An array that begins so many bytes behind where 256 of them do."""
    held = np.zeros(512 + skipped + int(np.prod(shape)) * np.dtype(dtype).itemsize, np.uint8)
    start = -held.__array_interface__["data"][0] % 256 + skipped
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return held[start : start + size].view(dtype).reshape(shape)


class Xp:
    """As much of an array module as binding needs."""

    empty = zeros = staticmethod(zeros)
    cuda = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=0))

    @staticmethod
    def full(n, number, dtype):
        return Array(np.full(n, number, dtype))

    @staticmethod
    def broadcast_to(x, shape):
        return Array(np.broadcast_to(x.array, shape))


def bind(op, inputs, out, attrs=None, *, hot=True, deterministic=False, tf32=False):
    """The call that a plan would make."""
    node = node_of(op, inputs, attrs or {})
    kernel = node.op.kernel_for(node, "cupy", hot=hot)
    assert kernel is not None and kernel.run.__module__ == linear.__name__
    work = tuple([Array(memory(*t.shape, dtype=t.dtype)) for t in kernel.workspace(node)])
    device = SimpleNamespace(index=0, deterministic=deterministic, allow_tf32=tf32)
    site = Site(Xp, node, work, device=device)
    return kernel.run(site, Array(out), *map(Array, inputs), **node.attrs)


def test_alignment_is_what_addresses_have(library):
    for skipped, want in ((0, 256), (16, 16), (4, 4), (192, 64)):
        a, b, out = memory(8, 16, skipped=skipped), memory(16, 8), memory(8, 8, skipped=32)
        bind("matmul", [a, b], out)
        # cuBLASLt is given our second operand first.
        assert {n: library.told[-1][n] for n in "abcd"} == {"a": 256, "b": want, "c": 32, "d": 32}
    assert len(library.choices.made) == 4, "algorithms for the one need not be any for the other"


GELU = {"activation": "gelu_tanh"}


def halves(**attrs):
    a, b, bias = (memory(*s, dtype=dtypes.bfloat16) for s in ((8, 16), (16, 8), (8,)))
    return ["linear", [a, b, bias], memory(8, 8, dtype=dtypes.bfloat16), attrs]


@pytest.mark.parametrize(("refused", "wanted"), [((), [36, 4]), ((36,), [36, 4])])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_product_ends_with_its_bias_and_activation(library, monkeypatch, refused, wanted, deterministic):
    library.refused, behind = refused, []
    monkeypatch.setattr(linear, "_activated", lambda out, activation: lambda: behind.append(activation))
    op, inputs, out, attrs = halves(**GELU)
    call = bind(op, inputs, out, attrs, deterministic=deterministic)
    assert [told["epilogue"] for told in library.told] == wanted
    assert all(told["bias"] == inputs[2].__array_interface__["data"][0] for told in library.told)
    library.launched.clear()
    behind.clear()
    call()
    fused = deterministic and not refused
    assert library.launched == [(out.__array_interface__["data"][0], 1 if deterministic else 2)]
    assert behind == ([] if fused else ["gelu_tanh"])


def test_choices_tell_activations_apart_and_are_found_again(library, monkeypatch):
    monkeypatch.setattr(linear, "_activated", lambda out, activation: lambda: None)
    for attrs in ({}, GELU):
        op, inputs, out, given = halves(**attrs)
        bind(op, inputs, out, given)
    assert len(library.choices.made) == 2
    monkeypatch.setattr(linear, "fastest", None)
    library.choices = Choices(library.choices.path)
    for attrs in ({}, GELU):
        op, inputs, out, given = halves(**attrs)
        library.launched.clear()
        bind(op, inputs, out, given)()
        assert [algorithm for _, algorithm in library.launched] == [2]


@pytest.mark.parametrize("batched", [False, True])
def test_a_product_can_write_elsewhere(library, monkeypatch, batched):
    moved = []

    class Finish:
        def __init__(self, out):
            self.out = out

        def __call__(self):
            moved.append(self.out.data.ptr)

        def onto(self, address, result):
            assert address == self.out.data.ptr
            return Finish(result)

    monkeypatch.setattr(linear, "_activated", lambda out, activation: Finish(out))
    library.refused = (36,)
    a, b, bias = (memory(*s, dtype=dtypes.bfloat16) for s in ((2, 8, 16) if batched else (8, 16), (16, 8), (8,)))
    out, other = (memory(*a.shape[:-1], 8, dtype=dtypes.bfloat16) for _ in range(2))
    call = bind("linear", [a, b, bias], out, GELU)
    at, to = (x.__array_interface__["data"][0] for x in (out, other))
    assert call.writes_alone(at) and not call.writes_alone(to)
    readers = [bind("matmul", [x, b.T], memory(*x.shape[:-1], 16, dtype=dtypes.bfloat16)) for x in (other, out)]
    assert not call.reads_of(call)
    assert [r.reads_of(call) for r in readers] == [False, True]
    library.launched.clear()
    moved.clear()
    call.onto(at, Array(other))()
    assert [where for where, _ in library.launched] == [to] and moved == [to]


def test_a_product_of_halves_can_be_written_wider(library):
    a, b = (memory(*s, dtype=dtypes.float16) for s in ((8, 16), (16, 8)))
    for op, out, attrs, kind in (("matmul", dtypes.float16, {}, 2), ("wide_matmul", dtypes.float32, {"to": dtypes.float32}, 0)):
        library.kinds.clear()
        bind(op, [a, b], memory(8, 8, dtype=out), attrs)
        assert library.kinds == [2, 2, kind]
    assert len(library.choices.made) == 2
    bias = memory(8)
    bind("wide_matmul", [a, b, bias], memory(8, 8), {"to": dtypes.float32, "scale": 0.25})()
    assert library.factors[-1] == 0.25 and library.told[-1]["bias"] == bias.__array_interface__["data"][0]
    node = node_of("wide_matmul", [a, b], {"to": dtypes.float64})
    assert node.op.kernel_for(node, "cupy", hot=True) is None


UP, DOWN = 16 * (1 + 2**-9), 16.0
"""Sums of sixteen products whose operands were rounded up, and cut off."""


@pytest.mark.parametrize(("sums", "tried"), [({1: UP, 2: DOWN}, [1]), ({1: DOWN, 2: UP}, [2]), ({1: DOWN, 2: DOWN}, [1, 2])])
def test_algorithms_that_cut_operands_off_are_left_out(library, monkeypatch, sums, tried):
    """Where there are others; without a bias among what they are judged by."""
    library.sums = sums
    a, b, bias = memory(8, 16), memory(16, 8), memory(8)
    there = bias.__array_interface__["data"][0]
    calls = []
    monkeypatch.setattr(linear, "fastest", lambda found: calls.extend(found) or len(found) - 1)
    bind("linear", [a, b, bias], memory(8, 8), {}, tf32=True)
    [told] = [t for t in library.told if "bias" in t][:1]
    assert told["bias"] == there
    library.launched.clear()
    for call in calls[: len(tried)]:
        call()
    assert [algorithm for _, algorithm in library.launched] == tried
    library.told.clear()
    library.told.append({})
    bind("linear", [a, b, bias], memory(8, 8), {})
    assert len(library.choices.made) == 2, "what was measured of others does not count"


def test_a_bias_is_set_aside_and_comes_back(library):
    bias = memory(8)
    lies = cublaslt.Matrix(8, 8, 8, False, 0)
    product = cublaslt.Product(lies, lies, 1, dtypes.float32, tf32=True, device=0, bias=bias.__array_interface__["data"][0])
    was = library.told[-1]["bias"]
    with product.without_bias(Xp):
        assert library.told[-1]["bias"] != was
    assert library.told[-1]["bias"] == was


def test_what_cannot_be_tried_for_want_of_memory_is_not(library, monkeypatch):
    def full(*arguments):
        raise MemoryError

    monkeypatch.setattr(Xp, "full", full)
    library.sums = {1: DOWN, 2: UP}
    tried = []
    monkeypatch.setattr(linear, "fastest", lambda calls: tried.extend(calls) or 0)
    bind("matmul", [memory(8, 16), memory(16, 8)], memory(8, 8), tf32=True)
    assert len(tried) >= 2
