"""Elementwise chains on the GPU: one kernel for each, made by the emitter and compiled when it is first needed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

import numpy as np

from flamert.graph import OPERATORS, Node, TensorType
from flamert.ops.cuda.emit import Operand, chain, expressible, merged
from flamert.ops.op import Site, kernel
from flamert.ops.pointwise import Instruction, pointwise, pointwise_many

THREADS = 256
VECTOR_BYTES = 16
"""The widest access there is."""


def elementwise(node: Node) -> bool:
    """Whether this node can be an instruction of an emitted chain."""
    out = node.types[0]
    if node.op.random or len(node.types) != 1 or not out.size or any(v is None for v in node.inputs):
        return False
    return expressible(node.op.name, node.attrs, [v.dtype for v in node.inputs if v is not None], out.dtype)


def value_types(program: Sequence[Instruction], inputs: Sequence[TensorType]) -> list[TensorType]:
    """The types of a chain's operands and of every instruction's result."""
    types = list(inputs)
    for step in program:
        op: Any = OPERATORS[step.op]
        types.append(op.infer(*[types[i] for i in step.operands], **dict(step.attrs)))
    return types


def _suits(node: Node) -> bool:
    types = value_types(node.attrs["program"], [v.type for v in node.inputs if v is not None])
    return node.types[0].size > 0 and all(
        expressible(step.op, dict(step.attrs), [types[i].dtype for i in step.operands], type.dtype)
        for step, type in zip(node.attrs["program"], types[len(node.inputs) :], strict=True)
    )


@functools.lru_cache(1024)
def compiled(source: str, name: str) -> Any:
    """A kernel, compiled when it is first launched, unless its code is on disk."""
    import cupy

    return cupy.RawKernel(source, name, ("-std=c++17", "--ftz=false"))


@kernel(pointwise, "cupy", when=_suits, bind=True)
def _(site: Site, out: Any, *inputs: Any, program: tuple[Instruction, ...]) -> Callable[[], None]:
    return _bound(site, (out,), inputs, program, (len(program) - 1,))


@kernel(pointwise_many, "cupy", when=_suits, bind=True)
def _(site: Site, out: Any, *inputs: Any, program: tuple[Instruction, ...], results: tuple[int, ...]) -> Callable[[], None]:
    return _bound(site, out if isinstance(out, tuple) else (out,), inputs, program, results)


def _bound(
    site: Site, outs: Sequence[Any], inputs: Sequence[Any], program: tuple[Instruction, ...], results: tuple[int, ...]
) -> Callable[[], None]:
    operands = [v for v in site.node.inputs if v is not None]
    return launch(outs, inputs, [v.type for v in operands], [known(v) for v in operands], program, results)


def launch(
    outs: Sequence[Any],
    inputs: Sequence[Any],
    given: Sequence[TensorType],
    literals: Sequence[Any],
    program: tuple[Instruction, ...],
    results: tuple[int, ...],
) -> Callable[[], None]:
    """The launch of a chain's kernel.

    outs: arrays for the instructions numbered `results`, contiguous. inputs: arrays of any strides, of types `given`; one may
    be an array of `outs`. literals: for each the only element, where that is known, or None.
    """
    out = outs[0]
    types = value_types(program, given)
    stored = [literal is None for literal in literals]
    loop = merged(out.shape, [*[_strides(x, out.shape) for x in inputs], _strides(out, out.shape)])
    strides = loop.strides[:-1]
    arrays = list(compress(inputs, stored))
    width = _width(loop.shape[-1], list(zip(arrays, compress(strides, stored), strict=True)), outs)
    operands = [
        # A stride's size is an argument; that it is 0 or 1 is part of the source.
        Operand(type.dtype, tuple(1 if i == len(s) - 1 and d == 1 else 2 * (d != 0) for i, d in enumerate(s)), literal)
        for type, s, literal in zip(types, strides, literals, strict=False)
    ]
    wide = out.size >= 1 << 31
    run = compiled(chain(program, types, operands, results, len(loop.shape), width, wide), "chain")
    index = np.uint64 if wide else np.uint32
    arguments = [*arrays, *outs, index(out.size), *[index(d) for d in loop.shape[1:]]]
    arguments += [np.int64(d) for s in compress(strides, stored) for d in s if d]
    blocks = math.ceil(out.size / (width * THREADS))
    return functools.partial(run, (blocks,), (THREADS,), tuple(arguments))


def known(value: Any) -> Any:
    """The only element of a constant that has just one."""
    constant = value.constant
    return constant.reshape(-1)[0] if constant is not None and constant.size == 1 else None


def _strides(x: Any, shape: Sequence[int]) -> tuple[int, ...]:
    """Elements from one to the next along each axis of the result; 0 where x is broadcast."""
    lead = (0,) * (len(shape) - x.ndim)
    return (*lead, *[0 if d == 1 else s // x.itemsize for d, s in zip(x.shape, x.strides, strict=True)])


def _width(innermost: int, operands: Sequence[tuple[Any, tuple[int, ...]]], outs: Sequence[Any]) -> int:
    """Elements that a thread takes: as many as the widest access holds, if rows and addresses allow it."""
    vectors = [(x, s) for x, s in operands if s[-1] == 1] + [(x, ()) for x in outs]
    width = VECTOR_BYTES // max(x.itemsize for x, _ in vectors)
    while width > 1:
        fits = innermost % width == 0
        for x, s in vectors:
            fits = fits and x.data.ptr % (width * x.itemsize) == 0 and all(d % width == 0 for d in s[:-1])
        if fits:
            break
        width //= 2
    return width
