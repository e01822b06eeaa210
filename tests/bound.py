"""Kernels for GPUs bound to arrays in host memory, and run as `tests.emulated` runs CUDA C."""

from types import SimpleNamespace

import numpy as np

from flamert import graph as g
from flamert.graph import TensorType
from flamert.ops.op import OPS, Site
from flamert.testing import TOLERANCE, expected_of
from tests.emulated import Memory


class Array(Memory):
    """What a binding asks of an array on a GPU, slices among it."""

    def __init__(self, array):
        super().__init__(array)
        self.nbytes = array.nbytes

    def __getitem__(self, where):
        return Array(self.array[(*where, ...) if isinstance(where, tuple) else (where, ...)])

    def __float__(self):
        return float(self.array)

    def __len__(self):
        return len(self.array)

    def reshape(self, *shape):
        return Array(self.array.reshape(*shape, copy=False))

    @property
    def T(self):
        return Array(self.array.T)

    def transpose(self, perm):
        return Array(self.array.transpose(perm))


def zeros(shape, dtype):
    return Array(np.zeros(shape, dtype))


CUDA = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=0))
XP = SimpleNamespace(zeros=zeros, empty=zeros, cuda=CUDA)
FAULTS = SimpleNamespace(record=np.zeros(4, np.int64), place=lambda node, size: size)


def node_of(op, inputs, attrs):
    return OPS[op].node(tuple(None if x is None else g.input(TensorType(x.shape, x.dtype)) for x in inputs), attrs)


def run(op, inputs, attrs, outs=None, tf32=None):
    """Results of the kernel that a GPU is given for this op, called twice. Modules' `compiled` must be patched already.

    outs: arrays for the results, where they matter. tf32: what the device allows.
    """
    node = node_of(op, inputs, attrs)
    kernel = node.op.kernel_for(node, "cupy", hot=True)
    assert kernel is not None and kernel.backend == "cupy" and kernel.bind
    inputs = [np.ascontiguousarray(x) if x is not None and kernel.wants_dense(i) else x for i, x in enumerate(inputs)]
    work = kernel.workspace(node) if kernel.workspace is not None else ()
    site = Site(
        XP,
        node,
        tuple(Array(np.full(t.shape, 7).astype(t.dtype)) for t in work),
        device=SimpleNamespace(faults=FAULTS, allow_tf32=tf32, index=0),
    )
    outs = [np.full(t.shape, 7).astype(t.dtype) for t in node.types] if outs is None else outs
    held = [Array(x) for x in outs]
    operands = [None if x is None else Array(x) for x in inputs]
    call = kernel.run(site, held[0] if len(held) == 1 else tuple(held), *operands, **node.attrs)
    call()
    once = [x.copy() for x in outs]
    call()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(once, outs, strict=True))
    return outs


def check(case, dtype):
    """One row of a table in one element type, on the kernel for GPUs; False where there is none that takes it."""
    inputs = [None if x is None else np.asarray(x) for x in case.inputs]
    inputs = [x.astype(dtype) if x is not None and x.dtype == np.float32 else x for x in inputs]
    node = node_of(case.op, inputs, case.attrs)
    kernel = node.op.kernel_for(node, "cupy", hot=True)
    if kernel is None or kernel.backend != "cupy":
        return False
    found = run(case.op, inputs, case.attrs)
    for got, want, type in zip(found, expected_of(case, inputs), node.types, strict=True):
        rtol, atol = case.tolerance or TOLERANCE.get(type.dtype, (0, 0))
        wide = np.float64 if rtol else type.dtype
        np.testing.assert_allclose(got.astype(wide), np.asarray(want).astype(wide), rtol, atol, err_msg=str(case))
    return True
