"""Copies between strided arrays on the GPU: which kernel is taken, that it compiles, and that it copies."""

import itertools

import numpy as np
import pytest

from flamert import dtypes
from flamert.ops.cuda import copy
from flamert.ops.cuda.emit_copy import UNITS, across, over_rows, plain, short, steps_of, strips, tiled
from flamert.runtime.device import device, storage
from tests.emulated import Kernel, Memory
from tests.test_emit import compile_source, nvrtc

TYPES = [np.dtype(np.bool_), dtypes.bfloat16, np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.complex128)]


def steps(size, shape, out, of, addresses=(0, 0)):
    return tuple(steps_of(size, shape, out, of, addresses))


def test_axes_merge_and_units_widen():
    assert steps(4, (2, 3, 8), (96, 32, 4), (96, 32, 4)) == (16, (12,), (1,), (1,))
    assert steps(4, (2, 3, 8), (96, 32, 4), (96, 32, 4), (0, 8)) == (8, (24,), (1,), (1,))
    heads = steps_of(2, (32, 12, 128, 64), (196608, 16384, 128, 2), (196608, 128, 1536, 2))
    assert heads == (16, (32, 12, 128, 8), (12288, 1024, 8, 1), (12288, 8, 96, 1)) and across(heads) is None
    assert steps(2, (5, 7, 3), (42, 6, 2), (6, 30, 2)) == (2, (5, 7, 3), (21, 3, 1), (3, 15, 1))
    assert steps(1, (), (), ()) == (1, (1,), (1,), (1,))


def test_what_runs_crosswise_goes_through_tiles():
    assert across(steps_of(4, (768, 3072), (3072 * 4, 4), (4, 768 * 4))) == 0
    assert across(steps_of(4, (768, 8), (32, 4), (4, 768 * 4))) is None
    pairs = steps_of(2, (64, 48, 2), (192, 4, 2), (4, 256, 2))
    assert pairs == (4, (64, 48), (48, 1), (1, 64)) and across(pairs) == 0
    nhwc = steps_of(2, (8, 64, 14, 14), (25088, 2, 1792, 128), (25088, 392, 28, 2))
    assert nhwc == (2, (8, 196, 64), (12544, 64, 1), (12544, 1, 196)) and across(nhwc) == 1


def test_short_axes_go_in_strips():
    """Weights of a convolution with channels last, turned for its data gradient, and the gradient put back; not long rows."""
    o, i = 512, 256
    weights = steps_of(2, (o, 3, 3, i), (18 * i, 6 * i, 2 * i, 2), (18 * i, 6, 2, 18))
    assert weights == (2, (o, 9, i), (9 * i, i, 1), (9 * i, 1, 9)) and short(weights) == 1
    turned = steps_of(2, (i, 3, 3, o), (18 * o, 6 * o, 2 * o, 2), (18, -6, -2, 18 * i))
    assert turned == (2, (i, 9, o), (9 * o, o, 1), (9, -1, 9 * i)) and short(turned) == 1
    back = steps_of(2, (o, i, 3, 3), (18 * i, 18, 6, 2), (18 * i, 2, 6 * i, 2 * i))
    assert back == (2, (o, i, 9), (9 * i, 9, 1), (9 * i, 1, i)) and short(back) == 2
    assert short(steps_of(2, (8, 64, 48), (64 * 96, 96, 2), (64 * 96, 2, 128))) is None
    assert short(steps_of(4, (64, 48), (48 * 4, 4), (48 * 8, 8))) is None


@pytest.mark.parametrize("size", UNITS)
def test_copies_compile(size):
    lib, include = nvrtc()
    compile_source(lib, include, plain(size, 1, 4, True))
    compile_source(lib, include, plain(size, 4, 2, False))
    for wide in (False, True):
        compile_source(lib, include, over_rows(size, wide))
    for rank in (2, 3, 5):
        compile_source(lib, include, tiled(size, rank))
        compile_source(lib, include, strips(size, rank, 9, rank == 3))


def layouts(rank):
    """(shape, order of the axes of what is copied)."""
    shape = {2: (67, 129), 3: (3, 40, 97), 4: (2, 33, 5, 64)}[rank]
    return [(shape, order) for order in itertools.permutations(range(rank))]


def arrays(shape, dtype, order):
    """An array of this shape that lies in memory in another order of axes."""
    rng = np.random.default_rng(0)
    lying = rng.integers(0, 200, [shape[i] for i in order]).astype(dtype)
    return lying.transpose(np.argsort(order))


WEIGHTS = {
    "last": ((40, 20, 3, 3), lambda x: x.transpose(0, 2, 3, 1)),
    "turned": ((40, 20, 3, 3), lambda x: x[:, :, ::-1, ::-1].transpose(1, 2, 3, 0)),
    "back": ((40, 3, 3, 20), lambda x: x.transpose(0, 3, 1, 2)),
    "image": ((2, 3, 17, 20), lambda x: x.transpose(0, 2, 3, 1)),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_go_in_strips(name, monkeypatch):
    monkeypatch.setattr(copy, "compiled", Kernel)
    shape, view = WEIGHTS[name]
    x = view(arrays(shape, dtypes.bfloat16, range(4)))
    out = np.zeros(x.shape, x.dtype)
    call = copy.copier(Memory(out), Memory(x))
    call()
    assert call.kernel.name == "strips_2" and out.tobytes() == x.tobytes()


ODD = {
    "broadcast": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "rows": lambda x: np.broadcast_to(x[:1], x.shape),
    "backwards": lambda x: x[::-1, ::-1],
    "every other": lambda x: x[::2, ::3],
    "inside": lambda x: x[1:, 3:-2],
    "across": lambda x: x.T[2:],
    "empty": lambda x: x[:0],
    "one": lambda x: x[3, 5, ...],
}


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_copies_as_emulated(rank, dtype, monkeypatch):
    monkeypatch.setattr(copy, "compiled", Kernel)
    for shape, order in layouts(rank):
        x = arrays(shape, dtype, order)
        for back in (x, x.transpose(range(rank)[::-1])):
            out = np.zeros(back.shape, dtype)
            copy.copier(Memory(out), Memory(back))()
            assert out.tobytes() == back.tobytes()
            turned = np.zeros(back.shape[::-1], dtype).transpose(range(rank)[::-1])
            copy.copier(Memory(turned), Memory(back))()
            assert turned.tobytes() == back.tobytes()


@pytest.mark.parametrize("dtype", [dtypes.bfloat16, np.dtype(np.float32)], ids=lambda t: t.name)
def test_odd_copies_as_emulated(dtype, monkeypatch):
    monkeypatch.setattr(copy, "compiled", Kernel)
    for name, view in ODD.items():
        x = view(arrays((67, 129), dtype, (0, 1)))
        out = np.zeros(x.shape, dtype)
        copy.copier(Memory(out), Memory(x))()
        assert out.tobytes() == x.tobytes(), name


@pytest.mark.parametrize("dtype", TYPES[:4], ids=lambda t: t.name)
@pytest.mark.parametrize("shape", [(1, 17), (9, 21), (3, 5, 33), (40, 16), (7, 259)])
def test_odd_rows_as_emulated(shape, dtype, monkeypatch):
    monkeypatch.setattr(copy, "compiled", Kernel)
    x = arrays((*shape[:-1], shape[-1] + 7), dtype, range(len(shape)))[..., : shape[-1]]
    room = np.zeros(x.size + 64, dtype)
    start = -room.ctypes.data % 16 // dtype.itemsize
    out = room[start : start + x.size].reshape(shape)
    call = copy.copier(Memory(out), Memory(x))
    call()
    assert out.tobytes() == x.tobytes() and not room[:start].any() and not room[start + x.size :].any()
    assert call.kernel.name.startswith("rows_copy_") == (len(x) > 1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_copies(rank, dtype):
    on = device("cuda")
    for shape, order in layouts(rank):
        lying = np.ascontiguousarray(arrays(shape, dtype, order).transpose(order))
        x = on.upload(lying).transpose(np.argsort(order).tolist())
        out = on.xp.zeros(x.shape, storage(dtype))
        on.copier(out, x)()
        assert on.download(out, dtype).tobytes() == lying.transpose(np.argsort(order)).tobytes()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("name", ODD)
def test_odd_copies(name, dtype):
    on = device("cuda")
    whole = arrays((67, 129), dtype, (0, 1))
    view = ODD[name] if "broadcast" not in name and name != "rows" else None
    on_gpu = on.upload(whole)
    if view is None:
        on_gpu = on.xp.broadcast_to(on_gpu[:, :1] if name == "broadcast" else on_gpu[:1], whole.shape)
    else:
        on_gpu = view(on_gpu)
    out = on.xp.zeros(on_gpu.shape, storage(dtype))
    on.copier(out, on_gpu)()
    assert on.download(out, dtype).tobytes() == ODD[name](whole).tobytes()
