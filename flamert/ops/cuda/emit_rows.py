"""CUDA C for elementwise ops and reductions over rows: a row is read once, and what is needed again stays in registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flamert import dtypes
from flamert.graph import TensorType
from flamert.ops.cuda.emit import COMPUTED, HEADER, STORED, decomposed, expression, literal
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
    """The source of a kernel `rows(pointers…, results…, n, lengths…, strides…)` for n rows. types: of all values.

    rank: merged axes of rows; lengths of all but the outermost are given, and of each operand the strides, in elements, along
    those that it moves with.
    """
    plan = schedule(program, [o.along for o in operands], results)
    n = len(operands)
    stored = [i for i, o in enumerate(operands) if o.literal is None]
    parameters = [f"const {STORED[operands[i].type.dtype]}* a{i}" for i in stored]
    parameters += [f"{STORED[types[n + k].dtype]}* o{k}" for k in results] + ["u32 n"]
    parameters += [f"u32 d{k}" for k in range(1, rank)]
    parameters += [f"long long s{i}_{k}" for i in stored for k in range(rank) if operands[i].steps[k]]
    lines = [f"const u32 lane = threadIdx.x % {shape.threads};"]
    lines.append(f"const u32 row = blockIdx.x * {shape.rows}u + threadIdx.x / {shape.threads};")
    lines.append("if (row >= n) return;")
    lines += decomposed("row", "u32", rank)
    for i in stored:
        place = " + ".join(f"x{k} * s{i}_{k}" for k in range(rank) if operands[i].steps[k]) or "0"
        lines.append(f"a{i} += {place};")
        if not operands[i].along:
            lines.append(f"const {COMPUTED[operands[i].type.dtype]} t{i} = load(a{i}[0]);")
    names = [f"t{i}" if o.literal is None else literal(o.literal, o.type.dtype) for i, o in enumerate(operands)]
    names += [f"t{n + k}" for k in range(len(program))]
    for i in plan.kept:
        lines.append(f"{COMPUTED[types[i].dtype]} v{i}[{shape.turns * shape.width}];")
    lines += _numbers(program, types, plan, names, 0)
    for at in range(plan.passes):
        lines += _pass(program, types, operands, results, plan, names, shape, at)
        lines += _numbers(program, types, plan, names, at + 1)
    for k in results:
        if not plan.full[n + k]:
            c = STORED[types[n + k].dtype]
            lines.append(f"if (lane == 0) o{k}[row] = Store<{c}, {COMPUTED[types[n + k].dtype]}>::as({names[n + k]});")
    inner = "\n  ".join(lines)
    threads = shape.threads * shape.rows
    head = f'extern "C" __global__ void __launch_bounds__({threads}) rows({", ".join(parameters)})'
    return f"{HEADER}{REDUCERS}\n{head} {{\n  {inner}\n}}\n"


def _numbers(
    program: Sequence[Instruction], types: Sequence[TensorType], plan: Schedule, names: Sequence[str], at: int
) -> list[str]:
    """Statements for the numbers of a row that are known before pass `at`, and not before the one before it."""
    n = len(types) - len(program)
    lines = []
    for k, step in enumerate(program):
        value = n + k
        if not plan.full[value] and plan.stage[value] == at and step.op not in REDUCTIONS:
            text = expression(step, [names[i] for i in step.operands], types[value].dtype, types)
            lines.append(f"const {COMPUTED[types[value].dtype]} {names[value]} = {text};")
    return lines


def _pass(
    program: Sequence[Instruction],
    types: Sequence[TensorType],
    operands: Sequence[RowOperand],
    results: Sequence[int],
    plan: Schedule,
    names: Sequence[str],
    shape: Shape,
    at: int,
) -> list[str]:
    """One pass over the row: load, compute, keep, add up and store what belongs to it; then the sums across threads."""
    n, width = len(operands), shape.width
    reductions = [k for k, s in enumerate(program) if s.op in REDUCTIONS and plan.stage[n + k] == at + 1]
    now = [k for k in range(len(program)) if plan.full[n + k] and plan.stage[n + k] == at]
    read = {i for k in (*now, *reductions) for i in program[k].operands if plan.full[i]}
    loaded = [i for i in range(n) if operands[i].along and plan.stage[i] == at and i in read]
    lines = []
    for k in reductions:
        c = COMPUTED[types[n + k].dtype]
        lines.append(f"{c} t{n + k} = ({c})({FOLDS[program[k].op][2]});")
    lines += ["#pragma unroll", f"for (int turn = 0; turn < {shape.turns}; turn++) {{"]
    body = [f"const u32 at = (turn * {shape.threads} + lane) * {width};"]
    guarded = shape.length % (shape.threads * width) != 0
    if guarded:
        body.append(f"if (at < {shape.length}u) {{")
    for i in loaded:
        c = STORED[operands[i].type.dtype]
        body.append(f"const Pack<{c}, {width}> p{i} = *(const Pack<{c}, {width}>*)(a{i} + at);")
    written = [k for k in results if plan.full[n + k] and plan.stage[n + k] == at]
    body += [f"Pack<{STORED[types[n + k].dtype]}, {width}> q{k};" for k in written]
    body += ["#pragma unroll", f"for (int v = 0; v < {width}; v++) {{"]
    for i in loaded:
        body.append(f"  const {COMPUTED[operands[i].type.dtype]} t{i} = load(p{i}.v[v]);")
    for i in sorted(read - set(loaded)):
        if plan.stage[i] < at:
            body.append(f"  const {COMPUTED[types[i].dtype]} t{i} = v{i}[turn * {width} + v];")
    for k in now:
        text = expression(program[k], [names[i] for i in program[k].operands], types[n + k].dtype, types)
        body.append(f"  const {COMPUTED[types[n + k].dtype]} t{n + k} = {text};")
    for i in plan.kept:
        if plan.stage[i] == at:
            body.append(f"  v{i}[turn * {width} + v] = t{i};")
    for k in reductions:
        fold = FOLDS[program[k].op][1].format(f"t{n + k}", names[program[k].operands[0]])
        body.append(f"  t{n + k} = {fold};")
    for k in written:
        body.append(f"  q{k}.v[v] = Store<{STORED[types[n + k].dtype]}, {COMPUTED[types[n + k].dtype]}>::as(t{n + k});")
    body.append("}")
    for k in written:
        place = f"o{k} + (size_t)row * {shape.length}u + at"
        body.append(f"*(Pack<{STORED[types[n + k].dtype]}, {width}>*)({place}) = q{k};")
    if guarded:
        body.append("}")
    lines += [f"  {s}" for s in body] + ["}"]
    for k in reductions:
        lines.append(f"t{n + k} = over_row<{FOLDS[program[k].op][0]}, {shape.threads}>(t{n + k});")
        if program[k].op == "reduce_mean":
            lines.append(f"t{n + k} = t{n + k} / {shape.length};")
        if types[n + k].dtype in dtypes.HALF:
            c = STORED[types[n + k].dtype]
            lines.append(f"t{n + k} = load(Store<{c}, float>::as(t{n + k}));")
    return lines
