"""CUDA C for sums over rows with elementwise ops in front of them and behind: every operand is read once."""

from __future__ import annotations

from typing import NamedTuple

from flamert import dtypes
from flamert.graph import TensorType
from flamert.ops.cuda.emit import COMPUTED, HEADER, STORED, body, literal, named
from flamert.ops.cuda.emit_reduce import LAST
from flamert.ops.cuda.lay_columns import MULTIPROCESSORS, THREADS, WARP, Layout
from flamert.ops.pointwise import Instruction

TURNS = 24
"""Parts that a thread of the last block reads at once at most."""


class ColumnOperand(NamedTuple):
    """An operand. kind: "whole", "column" (one number for each column), "row" (one for each row) or "one"."""

    type: TensorType
    kind: str
    literal: object = None


class Columns(NamedTuple):
    """A kernel: what it sums up, of which operands; what it makes of the sums.

    types: of the values of `program`; ends: of those of `finish`, where sums come first, then the `given`.
    """

    program: tuple[Instruction, ...]
    types: tuple[TensorType, ...]
    operands: tuple[ColumnOperand, ...]
    results: tuple[int, ...]
    means: tuple[bool, ...]
    kept: tuple[int, ...]
    given: tuple[ColumnOperand, ...]
    finish: tuple[Instruction, ...]
    ends: tuple[TensorType, ...]
    wanted: tuple[int, ...]
    layout: Layout

    @property
    def name(self) -> str:
        return named("columns", *[step.op for step in self.program])

    @property
    def stored(self) -> list[int]:
        """Numbers of the operands that lie in memory."""
        return [i for i, o in enumerate(self.operands) if o.literal is None]

    @property
    def ahead(self) -> list[bool]:
        """Which values are the same in every row."""
        found = [o.kind in ("column", "one") for o in self.operands]
        for step in self.program:
            found.append(all(found[i] for i in step.operands))
        return found

    @property
    def quick(self) -> bool:
        """Whether all that is computed for an element is rounded to a half type."""
        n = len(self.operands)
        halves = [self.types[k].dtype in dtypes.HALF for k in self.kept]
        for k in self.results:
            if self.types[k].dtype not in dtypes.HALF and k >= n and self.program[k - n].op == "cast":
                k = self.program[k - n].operands[0]
            halves.append(self.types[k].dtype in dtypes.HALF)
        return all(halves)

    def held(self) -> list[int]:
        """Numbers of the values that are made ahead of the rows and read among them."""
        n, ahead = len(self.operands), self.ahead
        read = {i for k, step in enumerate(self.program, n) if not ahead[k] for i in step.operands}
        read |= {*self.results, *self.kept}
        return [i for i in sorted(read) if ahead[i] and (i >= n or self.operands[i].literal is None)]


def columns_kernel(of: Columns) -> str:
    """The source of a kernel `…(operands…, given…, parts, counters, wanted…, kept…, length, inner, splits)`.

    Operands with literals are left out. parts: float, room for results · splits · inner numbers; counters: zero before every
    launch, and after it.
    """
    layout, width, results = of.layout, of.layout.width, range(len(of.results))
    parameters = [f"const {STORED[of.operands[i].type.dtype]}* a{i}" for i in of.stored]
    parameters += [f"const {STORED[o.type.dtype]}* g{i}" for i, o in enumerate(of.given) if o.literal is None]
    parameters += ["float* parts", "u32* counters"]
    parameters += [f"{STORED[of.ends[k].dtype]}* o{k}" for k in of.wanted]
    parameters += [f"{STORED[of.types[k].dtype]}* w{k}" for k in of.kept]
    parameters += ["u32 length", "u32 inner", "u32 splits"]
    lines = [
        f"const u32 beside = threadIdx.x % {layout.across} * {width}, line = threadIdx.x / {layout.across};",
        f"const u32 edge = blockIdx.x * {layout.columns}, left = edge + beside;",
        *[f"float sums{r}[{width}];" for r in results],
        "#pragma unroll",
        f"for (int v = 0; v < {width}; v++) {{ {' '.join(f'sums{r}[v] = 0;' for r in results)} }}",
        "if (left < inner) {",
        *[f"  {line}" for line in (*_ahead(of), *_rows(of))],
        "}",
        *_block(of),
        *_end(of),
    ]
    text = "\n  ".join(lines)
    head = f'extern "C" __global__ void __launch_bounds__({THREADS}) {of.name}({", ".join(parameters)})'
    return f"{HEADER}{LAST}\n{head} {{\n  {text}\n}}\n"


def _ahead(of: Columns) -> list[str]:
    """Statements that make what is the same in every row, in h0, …: one for each of a thread's columns."""
    held, width = of.held(), of.layout.width
    if not held:
        return []
    n, ahead = len(of.operands), of.ahead
    lines = [f"{COMPUTED[of.types[i].dtype]} h{i}[{width}];" for i in held]
    names = []
    inner = []
    for i, o in enumerate(of.operands):
        if o.literal is not None:
            names.append(literal(o.literal, o.type.dtype))
            continue
        names.append(f"t{i}")
        if o.kind == "column":
            pack = f"Pack<{STORED[o.type.dtype]}, {width}>"
            lines.append(f"const {pack} c{i} = *(const {pack}*)(a{i} + left);")
            inner.append(f"const {COMPUTED[o.type.dtype]} t{i} = load(c{i}.v[v]);")
        elif o.kind == "one":
            inner.append(f"const {COMPUTED[o.type.dtype]} t{i} = load(*a{i});")
    statements, known = body(of.program, of.types, names, ahead=ahead)
    inner += [s for k, s in enumerate(statements, n) if ahead[k]]
    inner += [f"h{i}[v] = {known[i]};" for i in held]
    return [*lines, "#pragma unroll", f"for (int v = 0; v < {width}; v++) {{", *[f"  {line}" for line in inner], "}"]


def _rows(of: Columns) -> list[str]:
    """Statements that add up a thread's rows."""
    width, batch = of.layout.width, of.layout.batch
    kinds = {i: of.operands[i].kind for i in of.stored}
    stored = {i: STORED[of.operands[i].type.dtype] for i in of.stored}
    lines = [
        f"const u32 step = splits * {of.layout.down};",
        "#pragma unroll 1",
        f"for (u32 i = blockIdx.y * {of.layout.down} + line; i < length; i += step * {batch}) {{",
    ]
    each = ["#pragma unroll", f"for (int k = 0; k < {batch}; k++) {{", "  const u32 row = i + k * step;"]
    # Reading the last row once more is cheaper than to read or not to: what may be read takes a register for each half.
    reads = ["  const u32 there = row < length ? row : length - 1;"]
    place = f"  const {of.layout.counter} at = ({of.layout.counter}){{}} * inner + left;"
    reads.append(place.format("there"))
    for i in of.stored:
        if kinds[i] == "whole":
            lines.append(f"  Pack<{stored[i]}, {width}> p{i}[{batch}];")
            reads.append(f"  p{i}[k] = *(const Pack<{stored[i]}, {width}>*)(a{i} + at);")
        elif kinds[i] == "row":
            lines.append(f"  {stored[i]} p{i}[{batch}];")
            reads.append(f"  p{i}[k] = a{i}[there];")
    inner = [f"Pack<{STORED[of.types[k].dtype]}, {width}> q{k};" for k in of.kept]
    inner += ["#pragma unroll", f"for (int v = 0; v < {width}; v++) {{", *[f"  {s}" for s in _element(of)], "}"]
    inner += [] if not of.kept else [place.format("row")]
    inner += [f"*(Pack<{STORED[of.types[k].dtype]}, {width}>*)(w{k} + at) = q{k};" for k in of.kept]
    made = [*each, "  if (row < length) {", *[f"    {line}" for line in inner], "  }", "}"]
    lines += [f"  {line}" for line in (*each, *reads, "}", *made)]
    return [*lines, "}"]


def _element(of: Columns) -> list[str]:
    """Statements for one element of a row."""
    n, ahead, held = len(of.operands), of.ahead, of.held()
    lines, names = [], []
    for i, o in enumerate(of.operands):
        if o.literal is not None:
            names.append(literal(o.literal, o.type.dtype))
            continue
        names.append(f"t{i}")
        if o.kind in ("whole", "row"):
            value = f"load(p{i}[k].v[v])" if o.kind == "whole" else f"load(p{i}[k])"
            lines.append(f"const {COMPUTED[o.type.dtype]} t{i} = {value};")
    lines += [f"const {COMPUTED[of.types[i].dtype]} t{i} = h{i}[v];" for i in held]
    statements, known = body(of.program, of.types, names, of.quick, ahead)
    for k in of.kept:
        if (dtype := of.types[k].dtype) in dtypes.HALF and k >= n:
            # Sums are of what others will read.
            name, _, made = statements[k - n].partition(" = ")
            statements[k - n] = f"{name} = load(Store<{STORED[dtype]}, {COMPUTED[dtype]}>::as({made[:-1]}));"
    lines += [s for k, s in enumerate(statements, n) if not ahead[k]]
    lines += [f"sums{r}[v] += {known[k]};" for r, k in enumerate(of.results)]
    for k in of.kept:
        dtype = of.types[k].dtype
        lines.append(f"q{k}.v[v] = Store<{STORED[dtype]}, {COMPUTED[dtype]}>::as({known[k]});")
    return lines


def _block(of: Columns) -> list[str]:
    """Statements that leave the block's sums in held[0 … results · columns), by way of the warps' own."""
    layout, results = of.layout, len(of.results)
    columns, warps, wide = layout.columns, THREADS // WARP, results * layout.columns
    # Every thread may leave a number in the end, too.
    lines = [f"__shared__ float held[{max(warps * wide, THREADS)}];"]
    if layout.across < WARP:
        steps = f"for (int step = {layout.across}; step < {WARP}; step *= 2)"
        lines += ["#pragma unroll", f"for (int v = 0; v < {layout.width}; v++) {{", "  #pragma unroll", f"  {steps} {{"]
        lines += [f"    sums{r}[v] += __shfl_xor_sync(0xffffffffu, sums{r}[v], step);" for r in range(results)]
        lines += ["  }", "}"]
    first = f"threadIdx.x / {WARP} * {wide} + beside"
    lines += [f"if (threadIdx.x % {WARP} < {layout.across}) {{", "  #pragma unroll"]
    lines += [f"  for (int v = 0; v < {layout.width}; v++) {{"]
    lines += [f"    held[{first} + {r * columns} + v] = sums{r}[v];" for r in range(results)]
    lines += ["  }", "}", "__syncthreads();", "float y = 0;", f"if (threadIdx.x < {wide}) {{", "  #pragma unroll"]
    lines += [f"  for (int i = 0; i < {warps}; i++) y += held[i * {wide} + threadIdx.x];", "}"]
    return [*lines, "__syncthreads();"]


def _end(of: Columns) -> list[str]:
    """Statements that leave a part for the block that comes last, or write the results."""
    layout, results = of.layout, len(of.results)
    columns, wide = layout.columns, results * layout.columns
    lines = []
    lanes = 1
    if layout.splits > 1:
        lanes = THREADS // wide
        turns = min(TURNS, -(-MULTIPROCESSORS // lanes))
        lines += [
            f"const u32 mine = threadIdx.x % {wide}, lane = threadIdx.x / {wide};",
            f"const u32 result = mine / {columns}, of = edge + mine % {columns};",
            "float* const about = parts + (u64)result * splits * inner + of;",
            "if (lane == 0 && of < inner) about[(u64)blockIdx.y * inner] = y;",
            "if (!last_of(splits, counters + blockIdx.x)) return;",
            "y = 0;",
            f"if (lane < {lanes} && of < inner) {{",
            f"  for (u32 n = lane; n < splits; n += {lanes * turns}) {{",
            f"    float some[{turns}];",
            "    #pragma unroll",
            f"    for (int k = 0; k < {turns}; k++)",
            f"      some[k] = n + k * {lanes} < splits ? __ldcg(about + (u64)(n + k * {lanes}) * inner) : 0.0f;",
            "    #pragma unroll",
            f"    for (int k = 0; k < {turns}; k++) y += some[k];",
            "  }",
            "}",
        ]
    lines += [
        f"if (threadIdx.x < {lanes * wide}) held[threadIdx.x] = y;",
        "__syncthreads();",
        "const u32 column = edge + threadIdx.x;",
        f"if (threadIdx.x >= {columns} || column >= inner) return;",
    ]
    names = []
    for r, (k, mean) in enumerate(zip(of.results, of.means, strict=True)):
        stored = STORED[of.types[k].dtype]
        lines += [f"float y{r} = 0;", "#pragma unroll"]
        lines += [f"for (int i = 0; i < {lanes}; i++) y{r} += held[i * {wide} + {r * columns} + threadIdx.x];"]
        lines += [f"const float t{r} = load(Store<{stored}, float>::as(y{r}{' / (float)length' if mean else ''}));"]
        names.append(f"t{r}")
    return [*lines, *_finish(of, names)]


def _finish(of: Columns, names: list[str]) -> list[str]:
    """Statements that make what is wanted of one column's sums."""
    lines = []
    for i, o in enumerate(of.given):
        if o.literal is not None:
            names.append(literal(o.literal, o.type.dtype))
            continue
        names.append(f"t{len(names)}")
        at = "column" if o.kind == "column" else "0"
        lines.append(f"const {COMPUTED[o.type.dtype]} {names[-1]} = load(g{i}[{at}]);")
    statements, known = body(of.finish, of.ends, names)
    lines += statements
    for k in of.wanted:
        dtype = of.ends[k].dtype
        lines.append(f"o{k}[column] = Store<{STORED[dtype]}, {COMPUTED[dtype]}>::as({known[k]});")
    return lines
