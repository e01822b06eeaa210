"""CUDA C for elementwise chains: what each op is as an expression, and the statements of a chain of them. Text only, no GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flamert import dtypes
from flamert.graph import TensorType
from flamert.ops.pointwise import Instruction

STORED = {
    dtypes.float64: "double",
    dtypes.float32: "float",
    dtypes.float16: "__half",
    dtypes.bfloat16: "__nv_bfloat16",
    np.dtype(np.int64): "long long",
    np.dtype(np.int32): "int",
    np.dtype(np.uint8): "unsigned char",
    np.dtype(np.bool_): "bool",
}
"""How elements lie in memory."""

COMPUTED = {dtype: "float" if dtype in dtypes.HALF else c for dtype, c in STORED.items()}
"""What they are computed in. Halves are rounded where the chain stores them, or a cast says so."""

HEADER = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
typedef unsigned int u32;
typedef unsigned long long u64;
template <typename T, int N> struct alignas(sizeof(T) * N) Pack { T v[N]; };
template <typename T> __device__ __forceinline__ T greatest(T a, T b) { return a != a || a > b ? a : b; }
template <typename T> __device__ __forceinline__ T least(T a, T b) { return a != a || a < b ? a : b; }
template <typename T> __device__ __forceinline__ T signum(T x) { return x != x ? x : T((x > T(0)) - (x < T(0))); }
template <typename T> __device__ __forceinline__ T logistic(T x) { return T(1) / (T(1) + exp(-x)); }
__device__ __forceinline__ float quick_logistic(float x) { return __fdividef(1.0f, 1.0f + exp(-x)); }
// erfc(x) = 2^(-x p(x)) for x >= 0; p was fitted for this file, to an absolute error of erf below 7e-7.
__device__ __forceinline__ float quick_erf(float x) {
  const float a = fabsf(x);
  const float p = (((0.0029441025f * a - 0.029589858f) * a + 0.14866543f) * a + 0.91850942f) * a + 1.627889f;
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(-a * p));
  return copysignf(1.0f - y, x);
}
__device__ __forceinline__ float load(float x) { return x; }
__device__ __forceinline__ float load(__half x) { return __half2float(x); }
__device__ __forceinline__ float load(__nv_bfloat16 x) { return __bfloat162float(x); }
template <typename T> __device__ __forceinline__ T load(T x) { return x; }
template <typename T, typename U> struct Store { static __device__ __forceinline__ T as(U x) { return (T)x; } };
template <typename U> struct Store<bool, U> { static __device__ __forceinline__ bool as(U x) { return x != (U)0; } };
template <typename U> struct Store<__half, U> {
  static __device__ __forceinline__ __half as(U x) { return __float2half_rn((float)x); }
};
template <typename U> struct Store<__nv_bfloat16, U> {
  static __device__ __forceinline__ __nv_bfloat16 as(U x) { return __float2bfloat16_rn((float)x); }
};
"""
"""What every kernel begins with. Doubles become halves by way of float, as on the CPU."""

Expression = Callable[..., str]
"""C operands, then attributes by name → a C expression. `T` in the text stands for the type that the result is computed in."""

CUBE = "{0} * {0} * {0}"

FUNCTIONS = ("sqrt", "exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "erf", "floor", "ceil")
"""Ops that C's library has under the same name."""

EXPRESSIONS: dict[str, str | Expression] = {
    **{name: f"({{}} {sign} {{}})" for name, sign in (("add", "+"), ("sub", "-"), ("mul", "*"), ("div", "/"))},
    **{name: f"({{}} {sign} {{}})" for name, sign in (("less", "<"), ("less_equal", "<="), ("equal", "=="))},
    **{name: f"({{}} {sign} {{}})" for name, sign in (("greater", ">"), ("greater_equal", ">="), ("not_equal", "!="))},
    "isnan": "({0} != {0})",
    "logical_and": "({} && {})",
    "logical_or": "({} || {})",
    "logical_xor": "({} != {})",
    "logical_not": "(!{})",
    "where": "({} ? {} : {})",
    "maximum": "greatest<T>({}, {})",
    "minimum": "least<T>({}, {})",
    "pow": "pow({}, {})",
    "neg": "(-{})",
    "abs": "({0} < T(0) ? -{0} : {0} + T(0))",
    "sign": "signum<T>({})",
    "reciprocal": "(T(1) / {})",
    **{name: f"{name}({{}})" for name in FUNCTIONS},
    "round": "rint({})",
    "trunc": "trunc({})",
    "sigmoid": "logistic<T>({})",
    "relu": "greatest<T>({}, T(0))",
    "leaky_relu": lambda x, alpha: f"({x} < T(0) ? T({alpha!r}) * {x} : {x})",
    "elu": lambda x, alpha: f"({x} > T(0) ? {x} : T({alpha!r}) * expm1({x}))",
    "hard_sigmoid": lambda x, alpha, beta: f"greatest<T>(least<T>(T({alpha!r}) * {x} + T({beta!r}), T(1)), T(0))",
    "hard_swish": "({0} * greatest<T>(least<T>({0} * T(1.0 / 6) + T(0.5), T(1)), T(0)))",
    "swish": lambda x, alpha: f"({x} * logistic<T>(T({alpha!r}) * {x}))",
    "gelu": f"({{0}} * (erf({{0}} * T({math.sqrt(0.5)!r})) + T(1)) * T(0.5))",
    "gelu_tanh": f"(T(0.5) * {{0}} * (T(1) + tanh(T({math.sqrt(2 / math.pi)!r}) * ({{0}} + T(0.044715) * {CUBE}))))",
    "softplus": "(greatest<T>({0}, T(0)) + log1p(exp(-abs({0}))))",
}
"""Ops by name. Formulas are those of the ops' own docstrings."""

COMPARISONS = frozenset({"less", "less_equal", "equal", "greater", "greater_equal", "not_equal"})

INTEGRAL = COMPARISONS | {"add", "sub", "mul", "maximum", "minimum", "neg", "where"}
"""Ops whose expression is right for integers, too."""

ON_BOOL = frozenset({"logical_and", "logical_or", "logical_xor", "logical_not", "where", "equal", "not_equal"})
"""Ops that take truth values, besides where's condition."""

PARAMETERS = {"leaky_relu": {"alpha"}, "hard_sigmoid": {"alpha", "beta"}, "swish": {"alpha"}, "elu": {"alpha"}}


def expressible(name: str, attrs: Mapping[str, Any], operands: Sequence[np.dtype], result: np.dtype) -> bool:
    """Whether an op on elements of these types can be part of a chain."""
    if any(d not in STORED for d in (*operands, result)):
        return False
    if name == "cast":
        plain = attrs.get("saturate", True) and attrs.get("round_mode", "up") == "up"
        return plain and (result in dtypes.STANDARD_FLOAT or operands[0] not in dtypes.STANDARD_FLOAT)
    if name not in EXPRESSIONS or set(attrs) != PARAMETERS.get(name, set()):
        return False
    for dtype in operands[1:] if name == "where" else operands:
        if dtype == np.bool_:
            allowed = name in ON_BOOL
        else:
            allowed = name in INTEGRAL if dtype not in dtypes.STANDARD_FLOAT else not name.startswith("logical")
        if not allowed:
            return False
    return True


class Operand(NamedTuple):
    """An input of a chain. literal: its only element, where that is known. strides: in elements, along the kernel's axes."""

    dtype: np.dtype
    strides: tuple[int, ...]
    literal: Any = None


class Loop(NamedTuple):
    """The axes that a chain runs over, merged where operands allow it; outermost first. strides: of each operand."""

    shape: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


def merged(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> Loop:
    """Axes of length 1 left out, and neighbours that every operand steps through as through one made one."""
    axes = [(d, tuple(s[i] for s in strides)) for i, d in enumerate(shape) if d != 1]
    kept: list[tuple[int, tuple[int, ...]]] = []
    for length, steps in axes:
        if kept and all(outer == inner * length for outer, inner in zip(kept[-1][1], steps, strict=True)):
            kept[-1] = kept[-1][0] * length, steps
        else:
            kept.append((length, steps))
    if not kept:
        kept = [(1, (0,) * len(strides))]
    return Loop(tuple(d for d, _ in kept), tuple(tuple(s[i] for _, s in kept) for i in range(len(strides))))


QUICK = {"erf(": "quick_erf(", "logistic<float>(": "quick_logistic("}
"""What gives the same half type after rounding and takes fewer instructions: its error is below 2e-6."""


def body(
    program: Sequence[Instruction],
    types: Sequence[TensorType],
    names: Sequence[str],
    quick: bool = False,
    ahead: Sequence[bool] | None = None,
) -> tuple[list[str], list[str]]:
    """C statements that compute a chain on operands of these C names, and the names of all values. types: of all values.

    quick: everything that is computed will be rounded to a half type. ahead: values whose statements will stand elsewhere,
    where their operands cannot be named.
    """
    known = list(names)
    n = len(names)
    lines = []
    for step, type in zip(program, types[n:], strict=True):
        name = f"t{len(known)}"
        c = COMPUTED[type.dtype]
        k = _added_product(step, len(known), program, n, ahead) if c in MULTIPLY_ADD else None
        if k is not None:
            # Compilers would make one instruction of them where they see fit. Said here, it has the same bits in all kernels.
            addend = step.operands[1 if step.operands[0] == k else 0]
            text = f"{MULTIPLY_ADD[c]}({', '.join(known[i] for i in (*program[k - n].operands, addend))})"
        else:
            text = expression(step, [known[i] for i in step.operands], type.dtype, types)
        if quick and c == "float" and (step.op != "erf" or _shifted(len(known), program)):
            for plain, other in QUICK.items():
                text = text.replace(plain, other)
        lines.append(f"const {c} {name} = {text};")
        known.append(name)
    return lines, known


MULTIPLY_ADD = {"float": "fmaf", "double": "fma"}
"""C's functions for a · b + c, rounded once."""


def _added_product(
    step: Instruction, value: int, program: Sequence[Instruction], n: int, ahead: Sequence[bool] | None
) -> int | None:
    """The number of the product that an addition adds something to, the addition being `value` and the operands n; or None."""
    for k in step.operands if step.op == "add" else ():
        if k >= n and program[k - n].op == "mul" and (ahead is None or ahead[value] or not ahead[k]):
            return k
    return None


def _shifted(value: int, program: Sequence[Instruction]) -> bool:
    """Whether a value is only used in sums, which lose what it is precise to near zero."""
    readers = [step.op for step in program if value in step.operands]
    return bool(readers) and all(op in ("add", "sub") for op in readers)


def expression(step: Instruction, operands: Sequence[str], dtype: np.dtype, types: Sequence[TensorType]) -> str:
    """An instruction in C. operands: their names. types: of all values of the program."""
    if step.op == "cast":
        if dtype in dtypes.HALF:
            c = STORED[dtype]
            return f"load(Store<{c}, {COMPUTED[types[step.operands[0]].dtype]}>::as({operands[0]}))"
        if dtype == np.bool_:
            return f"({operands[0]} != 0)"
        return f"({COMPUTED[dtype]})({operands[0]})"
    # What an op computes in: its operands' type, which for a comparison is not its result's.
    inner = types[step.operands[-1]].dtype
    if step.op == "pow" and (short := _power(*operands)) is not None:
        return short.replace("T(", f"({COMPUTED[inner]})(")
    expression = EXPRESSIONS[step.op]
    text = expression.format(*operands) if isinstance(expression, str) else expression(*operands, **dict(step.attrs))
    return text.replace("<T>", f"<{COMPUTED[inner]}>").replace("T(", f"({COMPUTED[inner]})(")


def _power(x: str, exponent: str) -> str | None:
    """Powers that need no logarithm."""
    forms = {2.0: "({0} * {0})", 3.0: "({0} * {0} * {0})", 1.0: "({0})", 0.5: "sqrt({0})", -1.0: "(T(1) / {0})"}
    try:
        return forms[float(exponent.partition(")")[2].strip("()f"))].format(x)
    except (KeyError, ValueError):
        return None


def literal(value: Any, dtype: np.dtype) -> str:
    """A number as C, exactly."""
    c = COMPUTED[dtype]
    if dtype == np.bool_:
        return "true" if value else "false"
    if dtype not in dtypes.STANDARD_FLOAT:
        return f"({c})({int(value)}LL)"
    number = float(value)
    if math.isnan(number):
        return f"({c})(__int_as_float(0x7fffffff))"
    if math.isinf(number):
        return f"({c})({'-' if number < 0 else ''}__int_as_float(0x7f800000))"
    return f"({c})({number!r})"


def decomposed(number: str, index: str, rank: int) -> list[str]:
    """Statements that find x0, x1, …, where a number is along merged axes of lengths (whatever), d1, d2, …"""
    lines = []
    for k in range(rank - 1, 0, -1):
        lines.append(f"const {index} x{k} = {number} % d{k}, r{k} = {number} / d{k};")
        number = f"r{k}"
    return [*lines, f"const {index} x0 = {number};"]


MOST = 48
"""Characters of a kernel's name."""


def named(*words: str) -> str:
    """A name for a kernel that tells what it computes: words, each once, as many as there is room for."""
    name = ""
    for word in dict.fromkeys(words):
        if len(name) + len(word) < MOST:
            name += f"_{word}" if name else word
    return name
