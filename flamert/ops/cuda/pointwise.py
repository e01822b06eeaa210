"""Elementwise chains on the GPU: one kernel for each, made by the emitter and compiled when it is first needed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any, NamedTuple

import numpy as np

from flamert.graph import OPERATORS, Node, TensorType
from flamert.ops.cast import cast_many
from flamert.ops.cuda.emit import Loop, Operand, expressible, merged
from flamert.ops.cuda.emit_bands import banded, bands, turns
from flamert.ops.cuda.emit_chain import SIDE, THREADS, TURNS, Chain, by_tiles, chain, over_table
from flamert.ops.cuda.emit_copy import TILED
from flamert.ops.cuda.launch import Flat, Launch, compiled, extent
from flamert.ops.op import Site, kernel
from flamert.ops.pointwise import Instruction, pointwise, pointwise_many

VECTOR_BYTES = 16
"""The widest access there is."""

MOST_TILES = 4
"""Operands that a chain reads through shared memory, of which a block has 48 KiB. Further ones are read across."""


def elementwise(node: Node) -> bool:
    """Whether this node can be an instruction of an emitted chain."""
    out = node.types[0]
    if node.op.random or len(node.types) != 1 or not out.size or any(v is None for v in node.inputs):
        return False
    return expressible(node.op.name, node.attrs, [v.dtype for v in node.inputs if v is not None], out.dtype)


def value_types(program: Sequence[Instruction], inputs: Sequence[TensorType]) -> list[TensorType]:
    """The types of a chain's operands and of every instruction's result."""
    return list(_inferred(tuple(program), tuple(inputs)))


@functools.lru_cache(4096)
def _inferred(program: tuple[Instruction, ...], inputs: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    """Once for all parameters of one shape, and for each of those who ask."""
    types = list(inputs)
    for step in program:
        op: Any = OPERATORS[step.op]
        types.append(op.infer(*[types[i] for i in step.operands], **dict(step.attrs)))
    return tuple(types)


def _suits(node: Node) -> bool:
    types = value_types(node.attrs["program"], [v.type for v in node.inputs if v is not None])
    return node.types[0].size > 0 and all(
        expressible(step.op, dict(step.attrs), [types[i].dtype for i in step.operands], type.dtype)
        for step, type in zip(node.attrs["program"], types[len(node.inputs) :], strict=True)
    )


@kernel(pointwise, "cupy", when=_suits, bind=True)
def _(site: Site, out: Any, *inputs: Any, program: tuple[Instruction, ...]) -> Callable[[], None]:
    return _bound(site, (out,), inputs, program, (len(program) - 1,))


@kernel(pointwise_many, "cupy", when=_suits, bind=True)
def _(site: Site, out: Any, *inputs: Any, program: tuple[Instruction, ...], results: tuple[int, ...]) -> Callable[[], None]:
    return _bound(site, out if isinstance(out, tuple) else (out,), inputs, program, results)


def _casts(node: Node) -> bool:
    to = node.types[0].dtype
    return all(v is not None and v.type.size and expressible("cast", {}, [v.dtype], to) for v in node.inputs)


@kernel(cast_many, "cupy", when=_casts, bind=True)
def _(site: Site, out: Any, *inputs: Any, to: np.dtype) -> Callable[[], None]:
    """One launch for all tensors that begin and end where wide accesses can be made, and one each for others."""
    outs = out if isinstance(out, tuple) else (out,)
    program = (Instruction("cast", (0,), (("to", to),)),)
    types = [v.type for v in site.node.inputs if v is not None]
    launches = [launch([y], [x], [t], [None], program, (0,)) for y, x, t in zip(outs, inputs, types, strict=True)]
    groups = [[launches[i] for i in numbers] for numbers in Launch.groups(launches)]
    calls = [Launch.chain(group) if len(group) > 1 else group[0] for group in groups]

    def run() -> None:
        for call in calls:
            call()

    return run


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
) -> Launch:
    """The launch of a chain's kernel.

    outs: arrays for the instructions numbered `results`, contiguous. inputs: arrays of any strides, of types `given`; one may
    be an array of `outs`. literals: for each the only element, where that is known, or None.
    """
    out = outs[0]
    types = value_types(program, given)
    stored = [literal is None for literal in literals]
    loop = merged(out.shape, [*[_strides(x, out.shape) for x in inputs], _strides(out, out.shape)])
    arrays = list(compress(inputs, stored))
    found = _Found(program, types, literals, results, arrays, list(outs), list(compress(loop.strides[:-1], stored)), stored)
    dense = _crosswise(loop, found.strides)
    if dense is not None:
        return _by_tiles(found, loop, dense)
    if banded(loop.shape, found.strides) and loop.strides[-1] == (loop.shape[1], 1):
        return _by_bands(found, loop)
    n, rank = out.size, len(loop.shape)
    flat = rank == 1 and all(s[0] in (0, 1) for s in found.strides)
    width = _width(loop.shape[-1], list(zip(arrays, found.strides, strict=True)), outs, flat)
    wide = n >= 1 << 31
    index = np.uint64 if wide else np.uint32
    odd = rank == 2 and width == 1 and all(s[1] in (0, 1) for s in found.strides)
    over = _width_of_results(outs) if odd else 1
    over = over if over <= loop.shape[-1] else 1
    of = found.chain(rank, max(width, over), wide)._replace(over=over > 1)
    width = of.width
    source = chain(of)
    arguments = [*arrays, *outs, index(n), *[index(d) for d in loop.shape[1:]]]
    arguments += [] if flat else [np.int64(d) for s in found.strides for d in s if d]
    blocks = math.ceil(n / (width * of.strip * THREADS))
    joins = None
    if flat:
        joins = Flat(source, (*arrays, *outs), n, functools.partial(_over_table, of), TURNS * THREADS * width)
    return found.launch(compiled(source, of.name), blocks, arguments, joins)


def _over_table(of: Chain) -> Any:
    return compiled(over_table(of), f"many_{of.name}")


class _Found(NamedTuple):
    """What a chain is to be launched on. strides: of each array, in elements along the merged axes."""

    program: tuple[Instruction, ...]
    types: Sequence[TensorType]
    literals: Sequence[Any]
    results: tuple[int, ...]
    arrays: list[Any]
    outs: list[Any]
    strides: list[tuple[int, ...]]
    stored: list[bool]

    def chain(self, rank: int, width: int, wide: bool) -> Chain:
        """The kernel. A stride's size is an argument; that it is 0 or 1 is part of the source."""
        steps = iter(self.strides)
        operands = []
        for type, literal, stored in zip(self.types, self.literals, self.stored, strict=False):
            along = next(steps) if stored else (0,) * rank
            kinds = tuple(1 if i == rank - 1 and d == 1 else 2 * (d != 0) for i, d in enumerate(along))
            operands.append(Operand(type.dtype, kinds, literal))
        return Chain(self.program, self.types, operands, self.results, rank, width, wide)

    def launch(self, kernel: Any, blocks: int, arguments: Sequence[Any], joins: Flat | None = None) -> Launch:
        reads, writes = [extent(x) for x in self.arrays], [extent(x) for x in self.outs]
        return Launch(kernel, (blocks,), THREADS, tuple(arguments), reads, writes, joins)


def _crosswise(loop: Loop, strides: Sequence[tuple[int, ...]]) -> int | None:
    """The axis along which most of the operands lie that do not lie along the last one, if tiles are worth it; else None."""
    last = len(loop.shape) - 1
    long = [k for k in range(last) if loop.shape[k] >= TILED]
    along = [k for s in strides if s[last] not in (0, 1) for k in long if s[k] == 1]
    if not along or loop.shape[last] < TILED or math.prod(loop.shape) >= 1 << 31:
        return None
    return max(along, key=along.count)


def _by_tiles(found: _Found, loop: Loop, dense: int) -> Launch:
    """A chain whose operands lie crosswise, some along the last axis and some along the `dense` one."""
    rank = len(loop.shape)
    order = [k for k in range(rank - 1) if k != dense] + [dense, rank - 1]
    shape, *strides, to = (tuple(group[k] for k in order) for group in (loop.shape, *found.strides, loop.strides[-1]))
    found = found._replace(strides=strides)
    tiles = [i for i, s in enumerate(strides) if s[-1] not in (0, 1) and s[-2] == 1][:MOST_TILES]
    others = [(x, s) for i, (x, s) in enumerate(zip(found.arrays, strides, strict=True)) if i not in tiles]
    width = min(4, _width(shape[-1], others, found.outs))
    of = found.chain(rank, width, wide=False)
    numbers = [of.stored[i] for i in tiles]
    blocks = math.prod([*shape[:-2], -(-shape[-2] // SIDE), -(-shape[-1] // SIDE)])
    arguments = [*found.arrays, *found.outs, *map(np.uint32, shape)]
    arguments += [np.int64(d) for s in strides for d in s if d] + [np.int64(d) for d in to]
    return found.launch(compiled(by_tiles(of, numbers), f"tiles_{of.name}"), blocks, arguments)


def _by_bands(found: _Found, loop: Loop) -> Launch:
    """A chain over rows, several of whose operands have a number for each column."""
    length, inner = loop.shape
    width = _width(inner, list(zip(found.arrays, found.strides, strict=True)), found.outs)
    of = found.chain(2, width, wide=False)
    width, rows = turns(of, loop.shape)
    of = of._replace(width=width)
    across, step = inner // width, -(-length // rows)
    arguments = [*found.arrays, *found.outs, np.uint32(length), np.uint32(across), np.uint32(step)]
    return found.launch(compiled(bands(of, rows), f"bands_{of.name}"), -(-across * step // THREADS), arguments)


def known(value: Any) -> Any:
    """The only element of a constant that has just one."""
    constant = value.constant
    return constant.reshape(-1)[0] if constant is not None and constant.size == 1 else None


def _strides(x: Any, shape: Sequence[int]) -> tuple[int, ...]:
    """Elements from one to the next along each axis of the result; 0 where x is broadcast."""
    lead = (0,) * (len(shape) - x.ndim)
    return (*lead, *[0 if d == 1 else s // x.itemsize for d, s in zip(x.shape, x.strides, strict=True)])


def _width_of_results(outs: Sequence[Any]) -> int:
    """Elements of each result that fit into the widest access, where its address allows that."""
    width = VECTOR_BYTES // max(x.itemsize for x in outs)
    while any(x.data.ptr % (width * x.itemsize) for x in outs):
        width //= 2
    return width


def _width(innermost: int, operands: Sequence[tuple[Any, tuple[int, ...]]], outs: Sequence[Any], flat: bool = False) -> int:
    """Elements that a thread takes: as many as the widest access holds, if rows and addresses allow it.

    flat: there is one row only, and its kernel takes care of where it ends.
    """
    vectors = [(x, s) for x, s in operands if s[-1] == 1] + [(x, ()) for x in outs]
    width = VECTOR_BYTES // max(x.itemsize for x, _ in vectors)
    while width > 1:
        fits = flat or innermost % width == 0
        for x, s in vectors:
            fits = fits and x.data.ptr % (width * x.itemsize) == 0 and all(d % width == 0 for d in s[:-1])
        if fits:
            break
        width //= 2
    return width
