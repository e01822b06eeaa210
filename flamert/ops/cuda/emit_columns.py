"""CUDA C for sums over rows with elementwise ops in front of them: every operand is read once, and nothing else is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flamert.graph import TensorType
from flamert.ops.cuda.emit import COMPUTED, HEADER, STORED, body, literal, named
from flamert.ops.cuda.emit_reduce import LANES, LAST, THREADS, Layout
from flamert.ops.cuda.emit_rows import REDUCERS
from flamert.ops.pointwise import Instruction

MANY = 3
"""Whole operands from which a thread has fewer accesses on their way at once."""


class ColumnOperand(NamedTuple):
    """An operand. kind: "whole", "column" (one number for each column), "row" (one for each row) or "one"."""

    type: TensorType
    kind: str
    literal: object = None


class Columns(NamedTuple):
    """A kernel: what it sums up, of which operands. size: bytes of the largest whole operand's elements."""

    program: tuple[Instruction, ...]
    types: tuple[TensorType, ...]
    operands: tuple[ColumnOperand, ...]
    results: tuple[int, ...]
    means: tuple[bool, ...]
    layout: Layout
    size: int

    @property
    def name(self) -> str:
        return named("columns", *[step.op for step in self.program])


def columns_kernel(of: Columns) -> str:
    """The source of a kernel `…(operands…, parts, counters, results…, length, inner, chunk, splits)`.

    Operands with literals are left out. parts: float, room for results · splits · inner numbers; counters: zero before every
    launch, and after it.
    """
    layout, width = of.layout, of.layout.width
    across = layout.across(of.size)
    down, columns = THREADS // across, across * width
    stored = [i for i, o in enumerate(of.operands) if o.literal is None]
    batch = 2 if sum(o.kind == "whole" for o in of.operands) >= MANY else 4
    outs = [STORED[of.types[k].dtype] for k in of.results]
    parameters = [f"const {STORED[of.operands[i].type.dtype]}* a{i}" for i in stored]
    parameters += ["float* parts", "u32* counters", *[f"{c}* o{r}" for r, c in enumerate(outs)]]
    parameters += ["u64 length", "u64 inner", "u64 chunk", "u32 splits"]
    over = f"over_rows<Sum, {columns}, {THREADS // columns}>"
    lines = [
        f"__shared__ float held[{down}][{columns}];",
        f"const u32 beside = threadIdx.x % {across} * {width}, line = threadIdx.x / {across};",
        f"const u64 part = blockIdx.y, left = blockIdx.x * (u64){columns} + beside;",
        "const u64 first = part * chunk, last = first + chunk < length ? first + chunk : length;",
        *[f"float sums{r}[{width}];" for r in range(len(of.results))],
        "#pragma unroll",
        f"for (int v = 0; v < {width}; v++) {{ {' '.join(f'sums{r}[v] = 0;' for r in range(len(of.results)))} }}",
        "if (left < inner) {",
        *[f"  {line}" for line in _loop(of, stored, batch, down)],
        "}",
        f"const u64 column = blockIdx.x * (u64){columns} + threadIdx.x;",
        f"const bool mine = threadIdx.x < {columns} && column < inner;",
    ]
    for r in range(len(of.results)):
        lines += [
            "#pragma unroll",
            f"for (int v = 0; v < {width}; v++) held[line][beside + v] = sums{r}[v];",
            "__syncthreads();",
            f"float y{r} = {over}({down}, 0.0f, [&](u32 r, u32 c) {{ return held[r][c]; }});",
            "__syncthreads();",
        ]
    lines += _end(of, outs, columns)
    text = "\n  ".join(lines)
    head = f'extern "C" __global__ void __launch_bounds__({THREADS}) {of.name}({", ".join(parameters)})'
    return f"{HEADER}{REDUCERS}{LAST}{LANES}\n{head} {{\n  {text}\n}}\n"


def _loop(of: Columns, stored: Sequence[int], batch: int, down: int) -> list[str]:
    """Statements that add up a thread's rows."""
    width = of.layout.width
    kinds = {i: of.operands[i].kind for i in stored}
    packs = {i: f"Pack<{STORED[of.operands[i].type.dtype]}, {width}>" for i in stored}
    lines = [f"const {packs[i]} c{i} = *(const {packs[i]}*)(a{i} + left);" for i in stored if kinds[i] == "column"]
    lines += [f"const {COMPUTED[of.operands[i].type.dtype]} s{i} = load(*a{i});" for i in stored if kinds[i] == "one"]
    lines.append(f"for (u64 i = first + line; i < last; i += {down * batch}) {{")
    for i in stored:
        if kinds[i] == "whole":
            lines.append(f"  {packs[i]} p{i}[{batch}];")
        elif kinds[i] == "row":
            lines.append(f"  {STORED[of.operands[i].type.dtype]} p{i}[{batch}];")
    lines += ["  #pragma unroll", f"  for (int k = 0; k < {batch}; k++) {{", f"    const u64 row = i + k * {down};"]
    lines.append("    if (row < last) {")
    for i in stored:
        if kinds[i] == "whole":
            lines.append(f"      p{i}[k] = *(const {packs[i]}*)(a{i} + row * inner + left);")
        elif kinds[i] == "row":
            lines.append(f"      p{i}[k] = a{i}[row];")
    lines += ["    }", "  }", "  #pragma unroll", f"  for (int k = 0; k < {batch}; k++)", f"    if (i + k * {down} < last) {{"]
    lines += ["      #pragma unroll", f"      for (int v = 0; v < {width}; v++) {{"]
    names = []
    for i, o in enumerate(of.operands):
        c = COMPUTED[o.type.dtype]
        if o.literal is not None:
            names.append(literal(o.literal, o.type.dtype))
            continue
        names.append(f"t{i}")
        value = {"whole": f"load(p{i}[k].v[v])", "row": f"load(p{i}[k])", "column": f"load(c{i}.v[v])", "one": f"s{i}"}[o.kind]
        lines.append(f"        const {c} t{i} = {value};")
    statements, known = body(of.program, of.types, names)
    lines += [f"        {s}" for s in statements]
    lines += [f"        sums{r}[v] += {known[k]};" for r, k in enumerate(of.results)]
    return [*lines, "      }", "    }", "}"]


def _end(of: Columns, outs: Sequence[str], columns: int) -> list[str]:
    """Statements that write the results, or a part for the block that comes last."""
    layout = of.layout
    lines = []
    if layout.splits > 1:
        each = range(len(outs))
        lanes = THREADS // columns
        lines += [f"if (mine) parts[({r} * splits + part) * inner + column] = y{r};" for r in each]
        lines += [
            "if (!last_of(splits, counters + blockIdx.x)) return;",
            f"const u32 beneath = threadIdx.x % {columns}, lane = threadIdx.x / {columns};",
            f"const u64 of = blockIdx.x * (u64){columns} + beneath;",
            *[f"y{r} = 0;" for r in each],
            # All results at once, so that their reads are on their way together.
            "if (of < inner) {",
            "  #pragma unroll 8",
            f"  for (u32 n = lane; n < splits; n += {lanes}) {{",
            *[f"    y{r} += __ldcg(parts + ({r} * splits + n) * inner + of);" for r in each],
            "  }",
            "}",
        ]
        for r in each:
            lines += [
                f"held[lane][beneath] = y{r};",
                "__syncthreads();",
                f"if (lane == 0) for (u32 i = 1; i < {lanes}; i++) y{r} += held[i][beneath];",
                "__syncthreads();",
            ]
    for r, (c, mean) in enumerate(zip(outs, of.means, strict=True)):
        scale = f" / (float){layout.length}" if mean else ""
        lines.append(f"if (mine) o{r}[column] = Store<{c}, float>::as(y{r}{scale});")
    return lines
