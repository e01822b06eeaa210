"""CUDA C for elementwise ops and reductions over rows: a row is read once, and what is needed again stays in registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flamert import dtypes
from flamert.graph import TensorType
from flamert.ops.cuda.emit import COMPUTED, HEADER, STORED, decomposed, expression, literal, named
from flamert.ops.pointwise import Instruction
from flamert.ops.rows import REDUCTIONS

WARP = 32
REGISTERS = 96
"""Numbers that a thread may hold from one pass over its row to the next."""

REDUCERS = """
struct Sum { template <typename T> static __device__ __forceinline__ T of(T a, T b) { return a + b; } };
struct Greatest { template <typename T> static __device__ __forceinline__ T of(T a, T b) { return greatest(a, b); } };
struct Least { template <typename T> static __device__ __forceinline__ T of(T a, T b) { return least(a, b); } };
template <typename F, int THREADS, typename T> __device__ __forceinline__ T over_row(T x) {
  #pragma unroll
  for (int step = 16; step; step /= 2) x = F::of(x, __shfl_xor_sync(0xffffffffu, x, step));
  if (THREADS > 32) {
    __shared__ T parts[32];
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = parts[0];
    #pragma unroll
    for (int i = 1; i < THREADS / 32; i++) x = F::of(x, parts[i]);
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


class Schedule(NamedTuple):
    """When values of a program are computed: in which pass over the row.

    stage: by value; numbers of a row are there once the passes before are over. full: whether a value is one for each
    element. kept: full values that later passes read.
    """

    stage: list[int]
    full: list[bool]
    kept: list[int]
    passes: int


def schedule(program: Sequence[Instruction], along: Sequence[bool], results: Sequence[int]) -> Schedule:
    """Each full value as late as those who need it allow, so that little has to be kept."""
    n = len(along)
    full, level = list(along), [0] * n
    for step in program:
        reduces = step.op in REDUCTIONS
        level.append(max(level[i] for i in step.operands) + reduces)
        full.append(not reduces and any(full[i] for i in step.operands))
    last = max(level)
    needed = [last] * len(level)
    readers: list[list[int]] = [[] for _ in level]
    for k in range(len(program) - 1, -1, -1):
        value, step = n + k, program[k]
        at = level[value] - 1 if step.op in REDUCTIONS else needed[value] if full[value] else level[value]
        if step.op in REDUCTIONS or full[value]:
            for i in step.operands:
                needed[i] = min(needed[i], at)
                readers[i].append(at)
    stage = [needed[i] if full[i] else level[i] for i in range(len(level))]
    kept = [i for i in range(len(level)) if full[i] and any(at > stage[i] for at in readers[i])]
    written = max([stage[n + k] for k in results if full[n + k]], default=-1)
    return Schedule(stage, full, kept, max(last, written + 1))


class Shape(NamedTuple):
    """How a kernel goes over rows of `length` elements: threads a row, elements a thread takes at once, and how often."""

    length: int
    threads: int
    width: int

    @property
    def turns(self) -> int:
        return -(-self.length // (self.threads * self.width))

    @property
    def rows(self) -> int:
        """Rows of one block."""
        return max(1, 8 * WARP // self.threads) if self.threads == WARP else 1


def shape_of(length: int, width: int) -> Shape:
    """Two accesses a thread, if the row is long enough for a block of them and short enough for a block."""
    threads = WARP
    while threads < 1024 and threads * width * 2 < length:
        threads *= 2
    return Shape(length, threads, width)


def held(plan: Schedule, shape: Shape) -> int:
    """Numbers that a thread holds between passes."""
    return len(plan.kept) * shape.turns * shape.width


def rows_kernel(
    program: Sequence[Instruction],
    types: Sequence[TensorType],
    operands: Sequence[RowOperand],
    results: Sequence[int],
    rank: int,
    shape: Shape,
) -> str:
    """The source of a kernel `rows_…(pointers…, results…, n, lengths…, strides…)` for n rows. types: of all values.

    rank: merged axes of rows; lengths of all but the outermost are given, and of each operand the strides, in elements, along
    those that it moves with.
    """
    return _Kernel(program, types, operands, results, shape).source(rank)


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
    ) -> None:
        self.program, self.types, self.operands, self.shape = program, types, operands, shape
        self.plan = schedule(program, [o.along for o in operands], results)
        self.first = len(operands)
        self.results = [(k, self.first + k) for k in results]
        self.stored = [STORED[t.dtype] for t in types]
        self.computed = [COMPUTED[t.dtype] for t in types]
        self.names = [f"t{i}" if o.literal is None else literal(o.literal, o.type.dtype) for i, o in enumerate(operands)]
        self.names += [f"t{self.first + k}" for k in range(len(program))]

    def source(self, rank: int) -> str:
        shape, plan = self.shape, self.plan
        read = [i for i, o in enumerate(self.operands) if o.literal is None]
        parameters = [f"const {self.stored[i]}* a{i}" for i in read]
        parameters += [f"{self.stored[i]}* o{k}" for k, i in self.results] + ["u32 n"]
        parameters += [f"u32 d{k}" for k in range(1, rank)]
        parameters += [f"long long s{i}_{k}" for i in read for k in range(rank) if self.operands[i].steps[k]]
        lines = [f"const u32 lane = threadIdx.x % {shape.threads};"]
        lines.append(f"const u32 row = blockIdx.x * {shape.rows}u + threadIdx.x / {shape.threads};")
        lines.append("if (row >= n) return;")
        lines += decomposed("row", "u32", rank)
        for i in read:
            place = " + ".join(f"x{k} * s{i}_{k}" for k in range(rank) if self.operands[i].steps[k]) or "0"
            lines.append(f"a{i} += {place};")
            if not self.operands[i].along:
                lines.append(f"const {self.computed[i]} t{i} = load(a{i}[0]);")
        lines += [f"{self.computed[i]} v{i}[{shape.turns * shape.width}];" for i in plan.kept]
        lines += self.numbers(0)
        for at in range(plan.passes):
            lines += [*self.over_the_row(at), *self.numbers(at + 1)]
        for k, i in self.results:
            if not plan.full[i]:
                lines.append(f"if (lane == 0) o{k}[row] = {self.rounded(i)};")
        inner = "\n  ".join(lines)
        threads = shape.threads * shape.rows
        name = rows_name(self.program)
        head = f'extern "C" __global__ void __launch_bounds__({threads}) {name}({", ".join(parameters)})'
        return f"{HEADER}{REDUCERS}\n{head} {{\n  {inner}\n}}\n"

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
        loaded, elements = self.elements(at, [of for _, _, of in sums])
        elements += [f"t{i} = {FOLDS[op][1].format(f't{i}', self.names[of])};" for i, op, of in sums]
        elements += [f"q{k}.v[v] = {self.rounded(i)};" for k, i in written]
        packs = {i: f"Pack<{self.stored[i]}, {shape.width}>" for i in (*loaded, *[i for _, i in written])}
        body = [f"const {packs[i]} p{i} = *(const {packs[i]}*)(a{i} + at);" for i in loaded]
        body += [f"{packs[i]} q{k};" for k, i in written]
        body += ["#pragma unroll", f"for (int v = 0; v < {shape.width}; v++) {{", *[f"  {e}" for e in elements], "}"]
        body += [f"*({packs[i]}*)(o{k} + (size_t)row * {shape.length}u + at) = q{k};" for k, i in written]
        if shape.length % (shape.threads * shape.width):
            body = [f"if (at < {shape.length}u) {{", *body, "}"]
        lines = [f"{self.computed[i]} t{i} = ({self.computed[i]})({FOLDS[op][2]});" for i, op, _ in sums]
        lines += ["#pragma unroll", f"for (int turn = 0; turn < {shape.turns}; turn++) {{"]
        lines += [f"  const u32 at = (turn * {shape.threads} + lane) * {shape.width};", *[f"  {b}" for b in body], "}"]
        return [*lines, *[line for i, op, _ in sums for line in self.joined(i, op)]]

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
