"""Elementwise chains on the CPU: one pass over memory, a cache-sized block at a time."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert.graph import Node, TensorType
from flamert.ops.cpu.library import library
from flamert.ops.op import Site, kernel
from flamert.ops.pointwise import Instruction, pointwise, pointwise_many

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
        *[(name, ctypes.c_int32) for name in ("op", "to", "a", "b", "c", "scalars")],
        ("f0", ctypes.c_float),
        ("f1", ctypes.c_float),
    )


class _Operand(ctypes.Structure):
    _fields_ = (("x", ctypes.c_void_p), *[(name, ctypes.c_int64) for name in ("outer", "period", "inner", "is_bool")])


class _Result(ctypes.Structure):
    _fields_ = (("y", ctypes.c_void_p), ("is_bool", ctypes.c_int64))


@functools.lru_cache(4096)
def addressing(shape: Sequence[int], result: Sequence[int]) -> tuple[int, int, int] | None:
    """(outer, period, inner) such that with j = i // inner element i of the result reads x[j // outer · period + j % period].

    That covers scalars, whole tensors, and one run of broadcast axes anywhere and another one at the end: [N, 1, 1, C] and
    [1, C, 1, 1] against [N, …, …, …]. None where none will do.
    """
    shape = (1,) * (len(result) - len(shape)) + tuple(shape)
    kept = len(result)
    while kept and shape[kept - 1] == 1:
        kept -= 1
    for end in (len(result), kept):
        where = _one_run(shape[:end], result[:end])
        if where is not None:
            return (*where, math.prod(result[end:]))
    return None


def _one_run(shape: Sequence[int], result: Sequence[int]) -> tuple[int, int] | None:
    """(outer, period) as above with inner 1, where there is one run of broadcast axes at most."""
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
    """Everything is float32 or bool, and every operand is addressed as `addressing` says."""
    out = node.types[0]
    if any([t.dtype not in CARRIED for t in node.types]) or not out.size:
        return False
    return all(v is not None and v.dtype in CARRIED and addressing(v.shape, out.shape) is not None for v in node.inputs)


CARRIED = (np.dtype(np.float32), np.dtype(np.bool_))
"""Element types that a chain's operands and result may have; inside it every value is a float."""


def _suits(node: Node) -> bool:
    known = all(step.op in OPCODES for step in node.attrs["program"])
    return known and len(node.inputs) + len(node.attrs["program"]) <= 64 and _addressable(node) and library() is not None


def _registers(program: Sequence[Instruction], inputs: int) -> tuple[list[int], int]:
    """The register of every value: operands keep theirs, results take ones whose value is no longer read."""
    last = {inputs + s: s for s in range(len(program))}
    last |= {i: s for s, step in enumerate(program) for i in step.operands}
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
    return (TensorType((lib.threads * _scratch(node.attrs["program"], len(node.inputs), len(node.types)),), CARRIED[0]),)


def _scratch(program: Sequence[Instruction], inputs: int, results: int) -> int:
    """Floats that one worker needs at most: a result that takes an operand's place may keep a register to the end."""
    return (_registers(program, inputs)[1] + 2 * results) * BLOCK


@kernel(pointwise, "numpy", when=_suits, bind=True, contiguous=True, workspace=_workspace)
def _(site: Site, out: Any, *inputs: Any, program: Sequence[Instruction]) -> Callable[[], None]:
    return _bound(site, (out,), inputs, program, (len(program) - 1,))


@kernel(pointwise_many, "numpy", when=_suits, bind=True, contiguous=True, workspace=_workspace)
def _(site: Site, out: Any, *inputs: Any, program: Sequence[Instruction], results: Sequence[int]) -> Callable[[], None]:
    return _bound(site, out if isinstance(out, tuple) else (out,), inputs, program, results)


def _bound(
    site: Site, outs: Sequence[Any], inputs: Sequence[Any], program: Sequence[Instruction], returned: Sequence[int]
) -> Callable[[], None]:
    lib = library()
    assert lib is not None
    places = [addressing(x.shape, outs[0].shape) for x in inputs]
    instructions, registers = _assembled(program, returned, inputs, outs)
    steps = (_Instruction * len(instructions))(*instructions)
    operands = (_Operand * max(len(inputs), 1))()
    for k, (x, where) in enumerate(zip(inputs, places, strict=True)):
        assert where is not None
        operands[k] = _Operand(x.__array_interface__["data"][0], *where, x.dtype == np.bool_)
    made = (_Result * len(outs))(*[_Result(y.__array_interface__["data"][0], y.dtype == np.bool_) for y in outs])
    workers = min(lib.threads, site.work[0].size // _scratch(program, len(inputs), len(outs)))
    call = lib.call(
        "pointwise",
        [None, None, None, site.work[0]],
        [outs[0].size, len(steps), len(inputs), registers, len(outs), workers],
    )
    tables: tuple[ctypes.Array[Any], ...] = (made, steps, operands)
    for k, table in enumerate(tables):
        call.arguments[0].p[k] = ctypes.addressof(table)
    call.kept = (call.kept, outs, inputs, steps, operands, made)
    return call


def _assembled(
    program: Sequence[Instruction], returned: Sequence[int], inputs: Sequence[Any], outs: Sequence[Any]
) -> tuple[list[_Instruction], int]:
    """The program as the kernel takes it, and how many registers it uses.

    A returned value is made in its result, unless an operand that is still to be read lies there; then it moves at the end.
    """
    register, registers = _registers(program, len(inputs))
    last = {i: s for s, step in enumerate(program) for i in step.operands}
    ends = {}
    moves = []
    for k, (s, y) in enumerate(zip(returned, outs, strict=True)):
        where = y.__array_interface__["data"][0]
        there = [i for i, x in enumerate(inputs) if x.__array_interface__["data"][0] == where]
        number = len(inputs) + s
        if number in ends or any(last.get(i, -1) > s for i in there):
            if number not in ends:
                register[number] = registers
                registers += 1
            moves.append((number, k))
        else:
            ends[number] = k
    for number, k in ends.items():
        register[number] = registers + k
    single = {i for i, x in enumerate(inputs) if x.size == 1}
    steps = []
    for k, step in enumerate(program):
        a, b, c = (*[register[i] for i in step.operands], 0, 0)[:3]
        attrs = dict(step.attrs)
        f0, f1 = (*[float(attrs[p]) for p in PARAMETERS.get(step.op, ())], 0.0, 0.0)[:2]
        scalars = sum(1 << at for at, i in enumerate(step.operands) if i in single)
        steps.append(_Instruction(OPCODES[step.op], register[len(inputs) + k], a, b, c, scalars, f0, f1))
    steps += [_Instruction(OPCODES["copy"], registers + k, register[number], 0, 0, 0, 0.0, 0.0) for number, k in moves]
    return steps, registers
