"""Elementwise chains on the CPU: one pass over memory, a cache-sized block at a time."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert.graph import Node, TensorType
from flamert.ops.cpu.library import library
from flamert.ops.op import Site, kernel
from flamert.ops.pointwise import Instruction, pointwise

BLOCK = 1024
"""Elements per block, as in pointwise.h."""

OPCODES = {
    name: code
    for code, name in enumerate(
        [
            *(
                "add",
                "sub",
                "mul",
                "div",
                "maximum",
                "minimum",
                "pow",
                "less",
                "less_equal",
                "greater",
                "greater_equal",
                "equal",
            ),
            *(
                "not_equal",
                "logical_and",
                "logical_or",
                "where",
                "neg",
                "abs",
                "sqrt",
                "reciprocal",
                "exp",
                "log",
                "tanh",
                "erf",
            ),
            *(
                "sigmoid",
                "relu",
                "clip",
                "leaky_relu",
                "hard_sigmoid",
                "hard_swish",
                "swish",
                "gelu",
                "gelu_tanh",
                "elu",
                "softplus",
            ),
            *("floor", "ceil", "round", "logical_not", "sin", "cos", "copy"),
        ]
    )
}
"""The order of pointwise.h's enum."""

PARAMETERS = {"leaky_relu": ("alpha",), "hard_sigmoid": ("alpha", "beta"), "swish": ("alpha",), "elu": ("alpha",)}
"""Attributes that an instruction carries; an op with others cannot be part of a chain."""


class _Instruction(ctypes.Structure):
    _fields_ = (
        *[(name, ctypes.c_int32) for name in ("op", "to", "a", "b", "c")],
        ("f0", ctypes.c_float),
        ("f1", ctypes.c_float),
    )


class _Operand(ctypes.Structure):
    _fields_ = (("x", ctypes.c_void_p), ("outer", ctypes.c_int64), ("period", ctypes.c_int64), ("is_bool", ctypes.c_int64))


def addressing(shape: Sequence[int], result: Sequence[int]) -> tuple[int, int] | None:
    """(outer, period) such that element i of the result reads x[i // outer · period + i % period]; None where none will do.

    That covers scalars, whole tensors, and one run of broadcast axes anywhere: [N, 1, 1, C] against [N, H, W, C].
    """
    shape = (1,) * (len(result) - len(shape)) + tuple(shape)
    total = math.prod(result)
    spread = [i for i, (d, r) in enumerate(zip(shape, result, strict=True)) if d != r]
    if not spread:
        return max(total, 1), max(total, 1)
    first, last = spread[0], spread[-1]
    if any(shape[i] != 1 for i in range(first, last + 1)):
        return None
    period = math.prod(result[last + 1 :])
    outer = math.prod(result[first:]) if math.prod(result[:first]) > 1 else total
    return max(outer, 1), max(period, 1)


def elementwise(node: Node) -> bool:
    """Whether this node can be an instruction of a native chain."""
    parameters = PARAMETERS.get(node.op.name, ())
    if node.op.name not in OPCODES or not set(node.attrs) <= set(parameters) or library() is None:
        return False
    return _addressable(node)


def _addressable(node: Node) -> bool:
    """Everything is float32 or bool, and every operand is addressed by `outer` and `period`."""
    out = node.types[0]
    if out.dtype not in CARRIED or not out.size:
        return False
    return all(v is not None and v.dtype in CARRIED and addressing(v.shape, out.shape) is not None for v in node.inputs)


CARRIED = (np.dtype(np.float32), np.dtype(np.bool_))
"""Element types that a chain's operands and result may have; inside it every value is a float."""


def _suits(node: Node) -> bool:
    known = all(step.op in OPCODES for step in node.attrs["program"])
    return known and len(node.inputs) + len(node.attrs["program"]) <= 64 and _addressable(node) and library() is not None


def _registers(program: Sequence[Instruction], inputs: int) -> tuple[list[int], int]:
    """The register of every value: operands keep theirs, results take ones whose value is no longer read."""
    last = {i: s for s, step in enumerate(program) for i in step.operands}
    register = list(range(inputs))
    free: list[int] = []
    total = inputs
    for s, step in enumerate(program):
        if free:
            register.append(free.pop())
        else:
            register.append(total)
            total += 1
        # Freed after the result is placed: a kernel's result never overlays its operands.
        free += [register[i] for i in set(step.operands) if i >= inputs and last[i] == s]
    return register, total


def _workspace(node: Node) -> Sequence[TensorType]:
    lib = library()
    assert lib is not None
    registers = _registers(node.attrs["program"], len(node.inputs))[1]
    return (TensorType((lib.threads * registers * BLOCK,), np.dtype(np.float32)),)


@kernel(pointwise, "numpy", when=_suits, bind=True, contiguous=True, workspace=_workspace)
def _(site: Site, out: Any, *inputs: Any, program: Sequence[Instruction]) -> Callable[[], None]:
    lib = library()
    assert lib is not None
    register, registers = _registers(program, len(inputs))
    steps = (_Instruction * len(program))()
    for k, step in enumerate(program):
        a, b, c = (*[register[i] for i in step.operands], 0, 0)[:3]
        attrs = dict(step.attrs)
        f0, f1 = (*[float(attrs[p]) for p in PARAMETERS.get(step.op, ())], 0.0, 0.0)[:2]
        steps[k] = _Instruction(OPCODES[step.op], register[len(inputs) + k], a, b, c, f0, f1)
    operands = (_Operand * max(len(inputs), 1))()
    for k, x in enumerate(inputs):
        where = addressing(x.shape, out.shape)
        assert where is not None
        operands[k] = _Operand(x.__array_interface__["data"][0], *where, x.dtype == np.bool_)
    workers = min(lib.threads, site.work[0].size // (registers * BLOCK))
    call = lib.call(
        "pointwise",
        [out, None, None, site.work[0]],
        [out.size, len(program), len(inputs), registers, out.dtype == np.bool_, workers],
    )
    call.arguments[0].p[1], call.arguments[0].p[2] = ctypes.addressof(steps), ctypes.addressof(operands)
    call.kept = (call.kept, inputs, steps, operands)
    return call
