"""CUDA C kernels around elementwise chains: over strided operands, over tables of contiguous ones, and by tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flamert import dtypes
from flamert.graph import TensorType
from flamert.ops.cuda.emit import COMPUTED, HEADER, STORED, Operand, body, decomposed, literal, named
from flamert.ops.pointwise import Instruction

THREADS = 256

TURNS = 4
"""Accesses of a thread to each tensor, in a kernel over a table."""

STRIP = 4
"""Elements for each thread where accesses are narrow: fewer do not keep memory busy."""

SIDE = 32
"""Elements along both sides of a tile."""


class Chain(NamedTuple):
    """A chain as its kernels need it.

    types: of operands and results. results: numbers of the instructions whose results are wanted. rank: merged axes. width:
    elements that a thread takes along the innermost axis. wide: 64-bit indices.
    """

    program: Sequence[Instruction]
    types: Sequence[TensorType]
    operands: Sequence[Operand]
    results: Sequence[int]
    rank: int
    width: int
    wide: bool
    over: bool = False
    """Whether a thread's elements may go on in the next row: rows are odd, their results lie one behind the other."""

    @property
    def name(self) -> str:
        return named("chain", *[step.op for step in self.program])

    @property
    def stored(self) -> list[int]:
        """Numbers of the operands that lie in memory."""
        return [i for i, o in enumerate(self.operands) if o.literal is None]

    @property
    def outs(self) -> list[tuple[int, str, str]]:
        """(number, type in memory, type it is computed in) of each result."""
        found = [(k, self.types[len(self.operands) + k].dtype) for k in self.results]
        return [(k, STORED[dtype], COMPUTED[dtype]) for k, dtype in found]

    @property
    def counter(self) -> str:
        """The type of elements' numbers."""
        return "u64" if self.wide else "u32"

    @property
    def flat(self) -> bool:
        """Whether every operand is contiguous, or one element."""
        return self.rank == 1 and all(self.operands[i].strides[0] <= 1 for i in self.stored)

    @property
    def strip(self) -> int:
        """Elements that a thread takes apart from each other, where it cannot take neighbours."""
        return STRIP if self.width == 1 and not self.flat else 1

    @property
    def rounded(self) -> bool:
        """Whether all floats in memory are of half types, so that some precision in between does not matter."""
        memory = [self.operands[i].dtype for i in self.stored] + [
            self.types[len(self.operands) + k].dtype for k in self.results
        ]
        exact = {np.dtype(np.float32), np.dtype(np.float64)}
        return not exact.intersection(memory) and any(d in dtypes.HALF for d in memory)

    def pointers(self) -> list[str]:
        """Declarations of operands and results."""
        operands = [f"const {STORED[self.operands[i].dtype]}* a{i}" for i in self.stored]
        return operands + [f"{c}* o{k}" for k, c, _ in self.outs]

    def computed(self, at: dict[int, str]) -> list[str]:
        """A loop over `width` elements that computes packs of results q0, … of packs of operands p0, …, read at [at]."""
        lines = [f"Pack<{c}, {self.width}> q{k};" for k, c, _ in self.outs]
        lines += ["#pragma unroll", f"for (int v = 0; v < {self.width}; v++) {{"]
        lines += [f"  const {COMPUTED[self.operands[i].dtype]} t{i} = load(p{i}.v[{at[i]}]);" for i in self.stored]
        names = [f"t{i}" if o.literal is None else literal(o.literal, o.dtype) for i, o in enumerate(self.operands)]
        statements, names = body(self.program, self.types, names, self.rounded)
        n = len(self.operands)
        lines += [f"  {s}" for s in statements]
        lines += [f"  q{k}.v[v] = Store<{c}, {inner}>::as({names[n + k]});" for k, c, inner in self.outs]
        return [*lines, "}"]


def kernel_source(name: str, parameters: Sequence[str], lines: Sequence[str], before: str = "") -> str:
    """A kernel of these statements."""
    text = "\n  ".join(lines)
    head = f'extern "C" __global__ void __launch_bounds__({THREADS}) {name}({", ".join(parameters)})'
    return f"{HEADER}{before}\n{head} {{\n  {text}\n}}\n"


def chain(of: Chain) -> str:
    """The source of a kernel `chain_…(pointers…, results…, n, lengths…, strides…)` that computes one chain on n elements.

    A thread reads all that it needs before it writes, so that a result may lie where an operand does.
    """
    index, rank, width = of.counter, of.rank, of.width
    parameters = [*of.pointers(), f"{index} n", *[f"{index} d{k}" for k in range(1, rank)]]
    parameters += [f"long long s{i}_{k}" for i in of.stored for k in range(rank) if of.operands[i].strides[k] and not of.flat]
    lines = [f"const {index} i = (blockIdx.x * ({index}){THREADS} + threadIdx.x) * {width};", "if (i >= n) return;"]
    if of.flat:
        return kernel_source(of.name, parameters, [*lines, *_flat(of)])
    if of.over:
        return kernel_source(of.name, parameters, [*lines, *_over_rows(of)])
    read = [*decomposed("i", index, rank), *[line for i in of.stored for line in _loading(i, of.operands[i], rank, width)]]
    made = of.computed({i: "v" if of.operands[i].strides[-1] else "0" for i in of.stored})
    made += [f"*(Pack<{c}, {width}>*)(o{k} + i) = q{k};" for k, c, _ in of.outs]
    return kernel_source(of.name, parameters, [*lines, *read, *made] if of.strip == 1 else _strip(of, read, made))


def _over_rows(of: Chain) -> list[str]:
    """Statements for elements i, i + 1, … of two axes, perhaps of two rows: stores are wide, if not loads."""
    width, index = of.width, of.counter
    each = ["#pragma unroll", f"for (int v = 0; v < {width}; v++) if (v < left) {{"]
    each += [f"  const {index} next = x1 + v >= d1, y0 = x0 + next, y1 = x1 + v - (next ? d1 : 0);"]
    for i in of.stored:
        steps = {k: kind for k, kind in enumerate(of.operands[i].strides) if kind}
        place = " + ".join(f"y{k}" if kind == 1 else f"y{k} * s{i}_{k}" for k, kind in steps.items()) or "0"
        each.append(f"  p{i}.v[v] = a{i}[{place}];")
    return [
        f"const {index} left = n - i;",
        *decomposed("i", index, 2),
        *[f"Pack<{STORED[of.operands[i].dtype]}, {width}> p{i};" for i in of.stored],
        *[*each, "}"],
        *of.computed(dict.fromkeys(of.stored, "v")),
        *_stores(of),
    ]


def _stores(of: Chain) -> list[str]:
    """Statements that write as many of a thread's results as there are left."""
    packs = [f"*(Pack<{c}, {of.width}>*)(o{k} + i) = q{k};" for k, c, _ in of.outs]
    rest = " ".join(f"o{k}[i + v] = q{k}.v[v];" for k, _, _ in of.outs)
    few = f'_Pragma("unroll") for (int v = 0; v < {of.width}; v++) if (v < left)'
    return [f"if (left >= {of.width}) {{ {' '.join(packs)} }} else {{ {few} {{ {rest} }} }}"]


def _strip(of: Chain, read: Sequence[str], made: Sequence[str]) -> list[str]:
    """Statements for several elements that lie far from each other: all are on their way before the first is needed."""
    types = {i: f"Pack<{STORED[of.operands[i].dtype]}, 1>" for i in of.stored}
    each = [f"for (int k = 0; k < {STRIP}; k++) {{", f"  const {of.counter} i = first + k * {THREADS};", "  if (i < n) {"]
    return [
        f"const {of.counter} first = blockIdx.x * ({of.counter}){THREADS * STRIP} + threadIdx.x;",
        *[f"{types[i]} held{i}[{STRIP}];" for i in of.stored],
        "#pragma unroll",
        *each,
        *[f"    {line}" for line in (*read, *[f"held{i}[k] = p{i};" for i in of.stored])],
        "  }",
        "}",
        "#pragma unroll",
        *each,
        *[f"    {line}" for line in (*[f"const {types[i]} p{i} = held{i}[k];" for i in of.stored], *made)],
        "  }",
        "}",
    ]


def over_table(of: Chain) -> str:
    """The source of a kernel `many_chain_…(table, owners)` that computes a flat chain on many tensors.

    table: for each the addresses of operands and results, and n. owners: for each block a row of the table, and the block's
    number there. What a thread does is what it does in `chain`.
    """
    before = "\nstruct Entry { " + "; ".join([*of.pointers(), "u64 n"]) + "; };"
    lines = ["const uint2 owner = owners[blockIdx.x];", "const Entry entry = table[owner.x];"]
    for pointer in of.pointers():
        lines.append(f"{pointer} = entry.{pointer.rpartition(' ')[2]};")
    lines += [
        f"const {of.counter} n = entry.n;",
        f"{of.counter} i = (owner.y * ({of.counter}){TURNS * THREADS} + threadIdx.x) * {of.width};",
        "#pragma unroll 1",
        f"for (int turn = 0; turn < {TURNS} && i < n; turn++, i += {THREADS * of.width}) {{",
        *[f"  {line}" for line in _flat(of)],
        "}",
    ]
    return kernel_source(f"many_{of.name}", ["const Entry* table", "const uint2* owners"], lines, before)


def _flat(of: Chain) -> list[str]:
    """Statements for elements i, i + 1, … of contiguous tensors: all at once, or as many as there are left."""
    width, dense = of.width, {i: of.operands[i].strides[0] == 1 for i in of.stored}
    of_type = {i: STORED[of.operands[i].dtype] for i in of.stored}
    lines = [f"Pack<{of_type[i]}, {width if dense[i] else 1}> p{i};" for i in of.stored]
    lines += [f"p{i}.v[0] = a{i}[0];" for i in of.stored if not dense[i]]
    compute = of.computed({i: "v" if dense[i] else "0" for i in of.stored})
    loads = [f"p{i} = *(const Pack<{of_type[i]}, {width}>*)(a{i} + i);" for i in of.stored if dense[i]]
    stores = [f"*(Pack<{c}, {width}>*)(o{k} + i) = q{k};" for k, c, _ in of.outs]
    if width == 1:
        return [*lines, *loads, *compute, *stores]
    few = f'_Pragma("unroll") for (int v = 0; v < {width}; v++) if (v < left)'
    some = [f"p{i}.v[v] = a{i}[i + v];" for i in of.stored if dense[i]]
    lines.append(f"const {of.counter} left = n - i;")
    lines.append(f"if (left >= {width}) {{ {' '.join(loads)} }} else {{ {few} {{ {' '.join(some)} }} }}")
    return [*lines, *compute, *_stores(of)]


def _loading(i: int, operand: Operand, rank: int, width: int) -> list[str]:
    """Statements that read what a thread needs of one operand: one element, neighbours at once, or one by one."""
    c = STORED[operand.dtype]
    place = _place(i, operand, range(rank))
    if not operand.strides[-1]:
        return [f"Pack<{c}, 1> p{i}; p{i}.v[0] = a{i}[{place}];"]
    if operand.strides[-1] == 1:
        return [f"const Pack<{c}, {width}> p{i} = *(const Pack<{c}, {width}>*)(a{i} + {place});"]
    reads = f"for (int v = 0; v < {width}; v++) p{i}.v[v] = a{i}[{place} + v * s{i}_{rank - 1}];"
    return [f"Pack<{c}, {width}> p{i};", "#pragma unroll", reads]


def _place(i: int, operand: Operand, axes: Sequence[int]) -> str:
    return " + ".join(f"x{k} * s{i}_{k}" for k in axes if operand.strides[k]) or "0"


def by_tiles(of: Chain, crosswise: Sequence[int]) -> str:
    """The source of a kernel `tiles_chain_…(pointers…, results…, lengths…, strides…, results' strides…)`.

    The last axis is dense in results, the one before it in the `crosswise` operands, which a block reads along it, a tile of
    shared memory each. lengths of all axes; strides of each operand along those that it moves with.
    """
    rank, width = of.rank, of.width
    outer, last = rank - 2, rank - 1
    parameters = [*of.pointers(), *[f"u32 d{k}" for k in range(rank)]]
    parameters += [f"long long s{i}_{k}" for i in of.stored for k in range(rank) if of.operands[i].strides[k]]
    parameters += [f"long long y{k}" for k in range(rank)]
    size = {i: of.operands[i].dtype.itemsize for i in crosswise}
    lines = [
        f"__shared__ {STORED[of.operands[i].dtype]} tile{i}[{SIDE}][{SIDE + max(1, 4 // size[i])}];" for i in crosswise
    ] + [
        f"const u32 columns = (d{last} + {SIDE - 1}) / {SIDE}, rows = (d{outer} + {SIDE - 1}) / {SIDE};",
        f"const u32 right = blockIdx.x % columns * {SIDE}, down = blockIdx.x / columns % rows * {SIDE};",
        "const u32 group = blockIdx.x / columns / rows;",
        *(decomposed("group", "u32", outer) if outer else []),
        f"const u32 lane = threadIdx.x % {SIDE}, line = threadIdx.x / {SIDE};",
        "#pragma unroll",
        f"for (u32 k = line; k < {SIDE}; k += {THREADS // SIDE}) if (down + lane < d{outer} && right + k < d{last}) {{",
        f"  const u32 x{outer} = down + lane, x{last} = right + k;",
        *[f"  tile{i}[k][lane] = a{i}[{_place(i, of.operands[i], range(rank))}];" for i in crosswise],
        "}",
        "__syncthreads();",
        "#pragma unroll",
        f"for (u32 k = threadIdx.x * {width}; k < {SIDE * SIDE}; k += {THREADS * width}) {{",
        f"  const u32 below = k / {SIDE}, beside = k % {SIDE};",
        f"  const u32 x{outer} = down + below, x{last} = right + beside;",
        f"  if (x{outer} >= d{outer} || x{last} >= d{last}) continue;",
    ]
    inner: list[str] = []
    for i in of.stored:
        if i in crosswise:
            inner.append(f"Pack<{STORED[of.operands[i].dtype]}, {width}> p{i};")
            inner += ["#pragma unroll", f"for (int v = 0; v < {width}; v++) p{i}.v[v] = tile{i}[beside + v][below];"]
        else:
            inner += _loading(i, of.operands[i], rank, width)
    inner += of.computed({i: "v" if of.operands[i].strides[-1] else "0" for i in of.stored})
    at = " + ".join(f"x{k} * y{k}" for k in range(rank))
    inner += [f"*(Pack<{c}, {width}>*)(o{k} + {at}) = q{k};" for k, c, _ in of.outs]
    return kernel_source(f"tiles_{of.name}", parameters, [*lines, *[f"  {line}" for line in inner], "}"])
