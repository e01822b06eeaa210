"""Convolutions on the GPU through cuDNN, in the layout that their operands have; the fastest engine is found by measuring."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from flamert import dtypes
from flamert.errors import DeviceError
from flamert.graph import Node, TensorType
from flamert.ops import OPS
from flamert.ops.conv import conv, conv_transpose, conv_weight_gradient
from flamert.ops.cuda.cudnn import TYPES, WORKSPACE_BYTES, Convolution, Tensor, Windows, available, version
from flamert.ops.cuda.emit import Operand, chain
from flamert.ops.cuda.pointwise import THREADS, compiled, value_types
from flamert.ops.cuda.tuning import choices, fastest
from flamert.ops.op import Site, kernel, reference
from flamert.ops.pointwise import Instruction

Launch = Callable[[], None]


def _suits(node: Node) -> bool:
    x = node.inputs[0]
    assert x is not None
    return x.dtype in TYPES and 3 <= x.rank <= 5 and x.type.size > 0 and node.types[0].size > 0 and available()


def _workspace(node: Node) -> tuple[TensorType, ...]:
    return (TensorType((WORKSPACE_BYTES,), dtypes.uint8),)


def _made(
    site: Site,
    kind: str,
    operands: Sequence[Any],
    out: Any,
    windows: Windows,
    bias: Any = None,
    residual: Any = None,
    relu: bool = False,
) -> Launch:
    """The launch of a convolution, tuned."""
    device = site.device
    rank = len(Tensor.of(out).dims)
    per_channel = None if bias is None else Tensor((1, bias.size, *[1] * (rank - 2)), (bias.size, 1, *[1] * (rank - 2)))
    made = Convolution(
        *(kind, [Tensor.of(x) for x in operands], Tensor.of(out), site.node.types[0].dtype, windows),
        bias=per_channel,
        residual=None if residual is None else Tensor.of(residual),
        relu=relu,
        tf32=device.allow_tf32 is not False,
        deterministic=device.deterministic,
        device=device.index,
    )
    given = [*operands, *[x for x in (residual, bias) if x is not None]]
    run = made.launch(given, out, site.work[0], site.xp.cuda.get_current_stream)

    def measured() -> str:
        def under(index: int) -> Launch:
            def launch() -> None:
                made.chosen = index
                run()

            return launch

        return str(made.candidates[fastest([under(i) for i in made.candidates])])

    made.chosen = int(choices("cudnn", version(), device.index).find(made.key, measured))
    return run


def _or_reference(site: Site, made: Callable[[], Launch], out: Any, *inputs: Any, **attrs: Any) -> Launch:
    """What cuDNN has no engine for, the op's reference computes."""
    try:
        return made()
    except DeviceError:
        plain = reference(site.node.op)
        if plain is None:
            raise
        return plain.thunk(site, out, inputs)


@kernel(conv, "cupy", when=_suits, bind=True, workspace=_workspace)
def _(site: Site, out: Any, x: Any, w: Any, b: Any = None, *, strides: Any, pads: Any, dilations: Any, group: int) -> Launch:
    windows = Windows(strides, pads, dilations)
    return _or_reference(site, lambda: _made(site, "fprop", (x, w), out, windows, b), out, x, w, b)


@kernel(conv_weight_gradient, "cupy", when=_suits, bind=True, workspace=_workspace)
def _(site: Site, out: Any, x: Any, dy: Any, *, kernel: Any, strides: Any, pads: Any, dilations: Any, group: int) -> Launch:
    windows = Windows(strides, pads, dilations)
    return _or_reference(site, lambda: _made(site, "wgrad", (x, dy), out, windows), out, x, dy)


def _transposable(node: Node) -> bool:
    """Whether the result has as many windows as there are elements: what is added at its end is less than a step."""
    less = all(o < s for o, s in zip(node.attrs["output_padding"], node.attrs["strides"], strict=True))
    return less and min(node.attrs["pads"], default=0) >= 0 and _suits(node)


@kernel(conv_transpose, "cupy", when=_transposable, bind=True, workspace=_workspace)
def _(
    site: Site,
    out: Any,
    x: Any,
    w: Any,
    b: Any = None,
    *,
    strides: Any,
    pads: Any,
    dilations: Any,
    group: int,
    output_padding: Any,
) -> Launch:
    """The data gradient of the convolution whose windows these are; what no window reaches is zero."""
    windows = Windows(strides, pads, dilations)

    def made() -> Launch:
        run = _made(site, "dgrad", (x, w), out, windows)
        if b is None:
            return run
        bias = b.reshape(-1, *[1] * (out.ndim - 2))

        def with_bias() -> None:
            run()
            site.xp.add(out, bias, out=out)

        return with_bias

    return _or_reference(site, made, out, x, w, b)


@kernel(OPS["conv_channels_last"], "cupy", when=_suits, bind=True, workspace=_workspace)
def _(
    site: Site,
    out: Any,
    x: Any,
    w: Any,
    bias: Any = None,
    residual: Any = None,
    *,
    strides: Any,
    pads: Any,
    dilations: Any,
    group: int,
    activation: str,
    alpha: float,
    beta: float,
) -> Launch:
    xp = site.xp

    def first(a: Any) -> Any:
        return a.transpose(0, a.ndim - 1, *range(1, a.ndim - 1))

    def packed() -> Any:
        return xp.ascontiguousarray(w.transpose(0, *range(2, w.ndim), 1))

    constant = site.is_constant(1)
    weights = site.prepacked("channels last", 1, packed) if constant else packed()
    windows = Windows(strides, pads, dilations)
    operands = first(x), first(weights)
    over = None if residual is None else first(residual)
    try:
        steps = [_made(site, "fprop", operands, first(out), windows, bias, over, activation == "relu")]
        activation = "" if activation == "relu" else activation
    except DeviceError:
        attrs = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
        steps = [_plain(site, *operands, first(out), windows, attrs)]
        steps += [_added(xp, out, more) for more in (bias, residual) if more is not None]
    if activation:
        steps.append(_activation(site, out, activation, alpha, beta))
    if not constant:
        source = w.transpose(0, *range(2, w.ndim), 1)
        steps.insert(0, lambda: xp.copyto(weights, source))

    def all_steps() -> None:
        for step in steps:
            step()

    return steps[0] if len(steps) == 1 else all_steps


def _plain(site: Site, x: Any, w: Any, out: Any, windows: Windows, attrs: dict[str, Any]) -> Launch:
    """A convolution alone, by cuDNN where it can, else by the reference kernel."""
    try:
        return _made(site, "fprop", (x, w), out, windows)
    except DeviceError:
        plain = reference(conv)
        assert plain is not None
        return lambda: plain.run(site.xp, out, x, w, **attrs)


def _added(xp: Any, out: Any, more: Any) -> Launch:
    return lambda: xp.add(out, more, out=out)


def _activation(site: Site, out: Any, activation: str, alpha: float, beta: float) -> Launch:
    """An activation of all of `out`, in place."""
    type = TensorType((out.size,), site.node.types[0].dtype)
    named = {"leaky_relu": {"alpha": alpha}, "hard_sigmoid": {"alpha": alpha, "beta": beta}, "swish": {"alpha": 1.0}}
    operands = [Operand(type.dtype, (1,))]
    if activation == "clip":
        program: tuple[Instruction, ...] = (Instruction("maximum", (0, 1)), Instruction("minimum", (3, 2)))
        operands += [Operand(type.dtype, (0,), bound) for bound in (alpha, beta)]
    else:
        program = (Instruction(activation, (0,), tuple(named.get(activation, {}).items())),)
    types = value_types(program, [type, *[TensorType((), type.dtype)] * (len(operands) - 1)])
    width = math.gcd(16 // type.dtype.itemsize, out.size)
    run = compiled(chain(program, types, operands, (len(program) - 1,), 1, width, False), "chain")
    arguments = (out, out, site.xp.uint32(out.size), site.xp.int64(1))
    blocks = math.ceil(out.size / (width * THREADS))
    return lambda: run((blocks,), (THREADS,), arguments)
