"""CUDA C for elementwise chains over rows, several of whose operands have a number for each column, which threads keep."""

from __future__ import annotations

from collections.abc import Sequence

from flamert.ops.cuda.emit import STORED
from flamert.ops.cuda.emit_chain import THREADS, Chain, kernel_source
from flamert.ops.cuda.lay_columns import MULTIPROCESSORS

TURNS = 4
"""Rows of a thread at most, all on their way at once."""

VECTORS = 2
"""Operands with a number for each column from which it is worth it: all but the first thread of a row read them from caches,
and those have no time for them."""

BUSY = MULTIPROCESSORS * 512
"""Threads that keep a large GPU's memory busy."""

REGISTERS = 56
"""What numbers of columns and rows on their way may take of a thread."""


def banded(shape: Sequence[int], strides: Sequence[tuple[int, ...]]) -> bool:
    """Whether a chain is one over rows with enough operands that have a number for each column. strides: of operands."""
    if len(shape) != 2 or shape[0] * shape[1] >= 1 << 31:
        return False
    kinds = [s if s in ((0, 1), (0, 0)) else "whole" if s == (shape[1], 1) else "" for s in strides]
    return all(kinds) and "whole" in kinds and kinds.count((0, 1)) >= VECTORS


def turns(of: Chain, shape: Sequence[int]) -> tuple[int, int]:
    """(width, rows of a thread) for a chain of this width at most: as many as registers allow and leave enough threads."""
    width, n = of.width, shape[0] * shape[1]
    vectors = sum(of.operands[i].strides == (0, 1) for i in of.stored)
    whole = [of.operands[i].dtype.itemsize for i in of.stored if of.operands[i].strides[0]]
    rows = TURNS

    def needed(width: int) -> int:
        return vectors * width + rows * sum(max(1, width * size // 4) for size in whole)

    while rows > 1 and n // (width * rows) < BUSY:
        rows //= 2
    while width > 2 and needed(width) > REGISTERS:
        width //= 2
    return width, rows


def bands(of: Chain, rows: int) -> str:
    """The source of a kernel `bands_chain_…(pointers…, results…, length, across, step)` over so many rows for each thread.

    length: rows; across: threads of a row; step: rows from one of a thread's rows to its next. A row that is not there is
    the last one again, which is not written.
    """
    width = of.width
    c = {i: STORED[of.operands[i].dtype] for i in of.stored}
    kinds = {i: of.operands[i].strides for i in of.stored}
    whole = [i for i in of.stored if kinds[i][0]]
    lines = [
        f"const u32 i = blockIdx.x * {THREADS} + threadIdx.x;",
        "const u32 line = i / across, left = i % across * " + f"{width};",
        "if (line >= step) return;",
        *[f"Pack<{c[i]}, {width}> w{i}[{rows}];" for i in whole],
        "#pragma unroll",
        f"for (int k = 0; k < {rows}; k++) {{",
        "  const u32 row = line + k * step, at = (row < length ? row : length - 1) * across * " + f"{width} + left;",
        *[f"  w{i}[k] = *(const Pack<{c[i]}, {width}>*)(a{i} + at);" for i in whole],
        "}",
    ]
    for i in of.stored:
        if kinds[i] == (0, 1):
            lines.append(f"const Pack<{c[i]}, {width}> p{i} = *(const Pack<{c[i]}, {width}>*)(a{i} + left);")
        elif kinds[i] == (0, 0):
            lines.append(f"Pack<{c[i]}, 1> p{i}; p{i}.v[0] = a{i}[0];")
    inner = [f"const Pack<{c[i]}, {width}> p{i} = w{i}[k];" for i in whole]
    inner += of.computed({i: "v" if kinds[i][1] else "0" for i in of.stored})
    inner += [f"*(Pack<{t}, {width}>*)(o{k} + (row * across * {width} + left)) = q{k};" for k, t, _ in of.outs]
    lines += [
        "#pragma unroll",
        f"for (int k = 0; k < {rows}; k++) {{",
        "  const u32 row = line + k * step;",
        "  if (row < length) {",
    ]
    lines += [*[f"    {line}" for line in inner], "  }", "}"]
    return kernel_source(f"bands_{of.name}", [*of.pointers(), "u32 length", "u32 across", "u32 step"], lines)
