"""CUDA C for elementwise ops and reductions over rows: a row is read once, and what is needed again stays in registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flamert import dtypes
from flamert.graph import TensorType
from flamert.ops.cuda.emit import COMPUTED, HEADER, STORED, decomposed, expression, literal, named
from flamert.ops.cuda.row_plan import Shape, schedule
from flamert.ops.pointwise import Instruction
from flamert.ops.rows import REDUCTIONS

REGISTER_FILE = 1 << 16
"""Registers of a multiprocessor."""

EARLY = 256
"""Bytes that a thread has on their way at once at most. Nor are they more than half of its registers."""

REDUCERS = """
struct Sum { template <typename T> static __device__ __forceinline__ T of(T a, T b) { return a + b; } };
struct Greatest { template <typename T> static __device__ __forceinline__ T of(T a, T b) { return greatest(a, b); } };
struct Least { template <typename T> static __device__ __forceinline__ T of(T a, T b) { return least(a, b); } };
template <typename F, int THREADS, typename T> __device__ __forceinline__ T over_row(T x) {
  #pragma unroll
  for (int step = 16; step; step /= 2) x = F::of(x, __shfl_xor_sync(0xffffffffu, x, step));
  if (THREADS > 32) {
    __shared__ T parts[32];
    const unsigned first = threadIdx.x / THREADS * (THREADS / 32);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = parts[first];
    #pragma unroll
    for (int i = 1; i < THREADS / 32; i++) x = F::of(x, parts[first + i]);
  }
  return x;
}
"""

FOLDS = {
    "reduce_sum": ("Sum", "{} + {}", "0"),
    "reduce_mean": ("Sum", "{} + {}", "0"),
    "reduce_max": ("Greatest", "greatest({}, {})", "-__int_as_float(0x7f800000)"),
    "reduce_min": ("Least", "least({}, {})", "__int_as_float(0x7f800000)"),
}
"""How the numbers of a row become one: across threads, within one, and what to start from."""


class RowOperand(NamedTuple):
    """An input. along: whether it has an element for each of a row. steps: whether it moves with each merged axis of rows."""

    type: TensorType
    along: bool
    steps: tuple[bool, ...]
    literal: object = None


def rows_kernel(
    program: Sequence[Instruction],
    types: Sequence[TensorType],
    operands: Sequence[RowOperand],
    results: Sequence[int],
    rank: int,
    shape: Shape,
    sums: Sequence[int] = (),
) -> str:
    """The source of a kernel `rows_…(pointers…, results…, n, lengths…, strides…)` for n rows. types: of all values.

    sums: values to be added up over rows. What each block has of them goes to one more argument behind the results, float
    parts[len(sums)][blocks][length], which `totals_kernel` puts together.

    rank: merged axes of rows; lengths of all but the outermost are given, and of each operand the strides, in elements, along
    those that it moves with.
    """
    return _Kernel(program, types, operands, results, shape, sums).source(rank)


def rows_name(program: Sequence[Instruction]) -> str:
    """What the kernel of a program is called."""
    return named("rows", *[step.op for step in program])


class _Kernel:
    """What is known of a kernel while it is written. Values go by number; their C names are t0, t1, …, or literals."""

    def __init__(
        self,
        program: Sequence[Instruction],
        types: Sequence[TensorType],
        operands: Sequence[RowOperand],
        results: Sequence[int],
        shape: Shape,
        sums: Sequence[int],
    ) -> None:
        self.program, self.types, self.operands, self.shape, self.sums = program, types, operands, shape, sums
        self.plan = schedule(program, [o.along for o in operands], results, sums)
        self.first = len(operands)
        self.results = [(k, self.first + k) for k in results]
        self.stored = [STORED[t.dtype] for t in types]
        self.computed = [COMPUTED[t.dtype] for t in types]
        self.names = [f"t{i}" if o.literal is None else literal(o.literal, o.type.dtype) for i, o in enumerate(operands)]
        self.names += [f"t{self.first + k}" for k in range(len(program))]

    def source(self, rank: int) -> str:
        shape = self.shape
        read = [i for i, o in enumerate(self.operands) if o.literal is None]
        # To know that results lie elsewhere lets the compiler load vectors early, for which there are no registers beside sums.
        apart = "" if self.sums else " __restrict__"
        parameters = [f"const {self.stored[i]}*{apart} a{i}" for i in read]
        parameters += [f"{self.stored[i]}* o{k}" for k, i in self.results] + ["float* parts"] * bool(self.sums) + ["u32 n"]
        parameters += [f"u32 d{k}" for k in range(1, rank)]
        parameters += [f"long long s{i}_{k}" for i in read for k in range(rank) if self.operands[i].steps[k]]
        lines = [f"const u32 lane = threadIdx.x % {shape.threads}, group = threadIdx.x / {shape.threads};"]
        if self.sums:
            lines += self.walk(self.row(read, rank))
        else:
            lines += [f"const u32 row = blockIdx.x * {shape.rows}u + group;", "if (row >= n) return;", *self.row(read, rank)]
        inner = "\n  ".join(lines)
        name = rows_name(self.program)
        bounds = f"{shape.threads * shape.rows}, {shape.beside}"
        head = f'extern "C" __global__ void __launch_bounds__({bounds}) {name}({", ".join(parameters)})'
        return f"{HEADER}{REDUCERS}\n{head} {{\n  {inner}\n}}\n"

    def row(self, read: Sequence[int], rank: int) -> list[str]:
        """Statements for one row."""
        shape, plan = self.shape, self.plan
        lines = decomposed("row", "u32", rank)
        for i in read:
            place = " + ".join(f"x{k} * s{i}_{k}" for k in range(rank) if self.operands[i].steps[k]) or "0"
            lines.append(f"const {self.stored[i]}* b{i} = a{i} + {place};")
            if not self.operands[i].along:
                lines.append(f"const {self.computed[i]} t{i} = load(b{i}[0]);")
        lines += [f"{self.computed[i]} v{i}[{shape.each}];" for i in plan.kept]
        lines += self.numbers(0)
        for at in range(plan.passes):
            lines += [*self.over_the_row(at), *self.numbers(at + 1)]
        for k, i in self.results:
            if not plan.full[i]:
                lines.append(f"if (lane == 0{self.alive}) o{k}[row] = {self.rounded(i)};")
        return lines

    @property
    def alive(self) -> str:
        """What a store asks for besides where a block goes over many rows, the last time perhaps over fewer than it could."""
        return " && live" if self.sums else ""

    def walk(self, row: Sequence[str]) -> list[str]:
        """Statements that go over a block's rows, and then put together what its threads have added up."""
        shape, width = self.shape, self.shape.width
        each = range(len(self.sums))
        lines = [f"float w{j}[{shape.each}];" for j in each]
        lines += ["#pragma unroll", f"for (int i = 0; i < {shape.each}; i++) {{ {' '.join(f'w{j}[i] = 0;' for j in each)} }}"]
        lines.append(f"for (u32 first = blockIdx.x * {shape.rows}u; first < n; first += gridDim.x * {shape.rows}u) {{")
        # All threads of a block go the same way: where there is no row left for them they take the last one and leave no trace.
        lines += ["  const bool live = first + group < n;", "  const u32 row = live ? first + group : n - 1;"]
        lines += [*[f"  {line}" for line in row], "}"]
        lines.append(f"__shared__ Pack<float, {width}> held[{shape.rows}][{shape.length // width}];")
        for j in each:
            lines += ["#pragma unroll", f"for (int turn = 0; turn < {shape.turns}; turn++) {{"]
            lines.append(f"  const u32 at = turn * {shape.threads} + lane;")
            lines.append(f"  if (at < {shape.length // width}u) {{")
            lines += [
                "    #pragma unroll",
                f"    for (int v = 0; v < {width}; v++) held[group][at].v[v] = w{j}[turn * {width} + v];",
            ]
            lines += ["  }", "}", "__syncthreads();"]
            lines.append(f"for (u32 c = threadIdx.x; c < {shape.length}u; c += {shape.threads * shape.rows}u) {{")
            lines += [f"  float y = held[0][c / {width}].v[c % {width}];", "  #pragma unroll"]
            lines.append(f"  for (int r = 1; r < {shape.rows}; r++) y += held[r][c / {width}].v[c % {width}];")
            lines.append(f"  parts[({j}u * gridDim.x + blockIdx.x) * {shape.length}u + c] = y;")
            lines += ["}", "__syncthreads();"]
        return lines

    def rounded(self, i: int) -> str:
        """A value as it is stored."""
        return f"Store<{self.stored[i]}, {self.computed[i]}>::as({self.names[i]})"

    def computation(self, i: int) -> str:
        """The statement that makes a value of others."""
        step = self.program[i - self.first]
        text = expression(step, [self.names[j] for j in step.operands], self.types[i].dtype, self.types)
        return f"const {self.computed[i]} {self.names[i]} = {text};"

    def made(self, at: int, full: bool) -> list[int]:
        """Values, of one for each element or one for a row, that elementwise instructions make in pass `at`."""
        values = range(self.first, len(self.types))
        return [
            i
            for i in values
            if self.plan.full[i] == full and self.plan.stage[i] == at and self.program[i - self.first].op not in REDUCTIONS
        ]

    def numbers(self, at: int) -> list[str]:
        """Statements for the numbers of a row that are known before pass `at`, and not before the one before it."""
        return [self.computation(i) for i in self.made(at, full=False)]

    def over_the_row(self, at: int) -> list[str]:
        """One pass: load, compute, keep, add up and store what belongs to it; then the sums across threads."""
        shape, plan = self.shape, self.plan
        sums = [
            (self.first + k, step.op, step.operands[0])
            for k, step in enumerate(self.program)
            if step.op in REDUCTIONS and plan.stage[self.first + k] == at + 1
        ]
        written = [(k, i) for k, i in self.results if plan.full[i] and plan.stage[i] == at]
        added = [(j, i) for j, i in enumerate(self.sums) if plan.stage[i] == at]
        loaded, elements = self.elements(at, [*[of for _, _, of in sums], *[i for _, i in added]])
        elements += [f"t{i} = {FOLDS[op][1].format(f't{i}', self.names[of])};" for i, op, of in sums]
        elements += [f"if (live) w{j}[turn * {shape.width} + v] += {self.names[i]};" for j, i in added]
        elements += [f"q{k}.v[v] = {self.rounded(i)};" for k, i in written]
        packs = {i: f"Pack<{self.stored[i]}, {shape.width}>" for i in (*loaded, *[i for _, i in written])}
        early = self.early(loaded)
        access = {i: f"*(const {packs[i]}*)(b{i} + at)" for i in loaded}
        body = [f"const {packs[i]} p{i} = {f'e{i}[turn]' if i in early else access[i]};" for i in loaded]
        body += [f"{packs[i]} q{k};" for k, i in written]
        body += ["#pragma unroll", f"for (int v = 0; v < {shape.width}; v++) {{", *[f"  {e}" for e in elements], "}"]
        guard = "if (live) " if self.sums else ""
        body += [f"{guard}*({packs[i]}*)(o{k} + (size_t)row * {shape.length}u + at) = q{k};" for k, i in written]
        lines = [f"{self.computed[i]} t{i} = ({self.computed[i]})({FOLDS[op][2]});" for i, op, _ in sums]
        lines += [f"{packs[i]} e{i}[{shape.turns}];" for i in early]
        lines += self.turns([f"e{i}[turn] = {access[i]};" for i in early]) if early else []
        return [*lines, *self.turns(body), *[line for i, op, _ in sums for line in self.joined(i, op)]]

    def turns(self, body: Sequence[str]) -> list[str]:
        """The loop over a thread's part of a row."""
        shape = self.shape
        if shape.length % (shape.threads * shape.width):
            body = [f"if (at < {shape.length}u) {{", *body, "}"]
        lines = ["#pragma unroll", f"for (int turn = 0; turn < {shape.turns}; turn++) {{"]
        return [*lines, f"  const u32 at = (turn * {shape.threads} + lane) * {shape.width};", *[f"  {b}" for b in body], "}"]

    def early(self, loaded: Sequence[int]) -> list[int]:
        """Operands of which a thread has all on their way before it looks at any: those that come from memory, not a cache."""
        found, bytes_ = [], 0
        most = min(EARLY, 2 * REGISTER_FILE // (self.shape.threads * self.shape.rows))
        for i in loaded:
            bytes_ += self.shape.each * self.types[i].dtype.itemsize
            if any(self.operands[i].steps) and bytes_ <= most:
                found.append(i)
        return found

    def elements(self, at: int, summed: Sequence[int]) -> tuple[list[int], list[str]]:
        """Operands that pass `at` loads, and statements for one element: what comes from memory, from before, and is made."""
        plan, width = self.plan, self.shape.width
        made = self.made(at, full=True)
        read = {j for i in made for j in self.program[i - self.first].operands if plan.full[j]}
        read |= {i for i in summed if plan.full[i]}
        loaded = [i for i in range(self.first) if self.operands[i].along and plan.stage[i] == at and i in read]
        lines = [f"const {self.computed[i]} t{i} = load(p{i}.v[v]);" for i in loaded]
        earlier = [i for i in sorted(read) if plan.stage[i] < at]
        lines += [f"const {self.computed[i]} t{i} = v{i}[turn * {width} + v];" for i in earlier]
        lines += [self.computation(i) for i in made]
        lines += [f"v{i}[turn * {width} + v] = t{i};" for i in plan.kept if plan.stage[i] == at]
        return loaded, lines

    def joined(self, i: int, op: str) -> list[str]:
        """Statements that make one number of a row of what its threads have added up."""
        lines = [f"t{i} = over_row<{FOLDS[op][0]}, {self.shape.threads}>(t{i});"]
        if op == "reduce_mean":
            lines.append(f"t{i} = t{i} / {self.shape.length};")
        if self.types[i].dtype in dtypes.HALF:
            lines.append(f"t{i} = load({self.rounded(i)});")
        return lines
