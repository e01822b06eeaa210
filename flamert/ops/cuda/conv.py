"""Convolutions on the GPU through cuDNN, in the layout that their operands have, and what is done in the same pass."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from flamert import dtypes
from flamert.errors import DeviceError
from flamert.graph import Node, TensorType
from flamert.ops import OPS
from flamert.ops.conv import conv, conv_transpose, conv_weight_gradient
from flamert.ops.cuda.conv_launch import Launch, first, launched, one
from flamert.ops.cuda.copy import copier
from flamert.ops.cuda.cudnn import TYPES, WORKSPACE_BYTES, Windows, available
from flamert.ops.cuda.pointwise import launch
from flamert.ops.op import Site, kernel, reference
from flamert.ops.pointwise import Instruction


def _suits(node: Node) -> bool:
    x = node.inputs[0]
    assert x is not None
    return x.dtype in TYPES and 3 <= x.rank <= 5 and x.type.size > 0 and node.types[0].size > 0 and available()


def _workspace(node: Node) -> tuple[TensorType, ...]:
    return (TensorType((WORKSPACE_BYTES,), dtypes.uint8),)


def _or_reference(site: Site, made: Callable[[], Launch], out: Any, *inputs: Any, **attrs: Any) -> Launch:
    """What cuDNN has no engine for, the op's reference computes."""
    try:
        return made()
    except DeviceError:
        plain = reference(site.node.op)
        if plain is None:
            raise
        return plain.thunk(site, out, inputs)


@kernel(conv, "cupy", when=_suits, bind=True, workspace=_workspace, measures=True)
def _(site: Site, out: Any, x: Any, w: Any, b: Any = None, *, strides: Any, pads: Any, dilations: Any, group: int) -> Launch:
    windows = Windows(strides, pads, dilations)
    return _or_reference(site, lambda: launched(site, "fprop", (x, w), out, windows, b), out, x, w, b)


@kernel(conv_weight_gradient, "cupy", when=_suits, bind=True, workspace=_workspace, measures=True)
def _(site: Site, out: Any, x: Any, dy: Any, *, kernel: Any, strides: Any, pads: Any, dilations: Any, group: int) -> Launch:
    windows = Windows(strides, pads, dilations)
    return _or_reference(site, lambda: launched(site, "wgrad", (x, dy), out, windows), out, x, dy)


def _transposable(node: Node) -> bool:
    """Whether the result has as many windows as there are elements: what is added at its end is less than a step."""
    less = all(o < s for o, s in zip(node.attrs["output_padding"], node.attrs["strides"], strict=True))
    return less and min(node.attrs["pads"], default=0) >= 0 and _suits(node)


@kernel(conv_transpose, "cupy", when=_transposable, bind=True, workspace=_workspace, measures=True)
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
        run = launched(site, "dgrad", (x, w), out, windows)
        if b is None:
            return run
        bias = b.reshape(-1, *[1] * (out.ndim - 2))

        def with_bias() -> None:
            run()
            site.xp.add(out, bias, out=out)

        return with_bias

    return _or_reference(site, made, out, x, w, b)


def _packed(site: Site, w: Any) -> tuple[Any, list[Launch]]:
    """Weights [M, C, kernel…] that lie with channels last, and the copy that puts them there, each time if they change."""
    xp, order = site.xp, (0, *range(2, w.ndim), 1)
    if math.prod(w.shape[2:]) == 1 and w.flags.c_contiguous:  # of one point: they lie in both orders
        return first(w.reshape([w.shape[i] for i in order])), []

    def made() -> Any:
        return xp.ascontiguousarray(w.transpose(order))

    if site.is_constant(1):
        return first(site.prepacked("channels last", 1, made)), []
    copy = made()
    return first(copy), [copier(copy, w.transpose(order))]


def _is_relu(activation: str, alpha: float, beta: float) -> bool:
    return activation == "relu" or (activation == "clip" and alpha == 0 and beta == math.inf)


def in_one_launch(node: Node) -> bool:
    """Whether cuDNN computes all of this product: with a bias and a residual, then relu, and nothing else."""
    attrs = node.attrs
    plain = not attrs["activation"] or _is_relu(attrs["activation"], attrs["alpha"], attrs["beta"])
    return node.op.name == "conv_channels_last" and plain and len(node.inputs) < 5


@kernel(OPS["conv_channels_last"], "cupy", when=_suits, bind=True, workspace=_workspace, measures=True)
def _(
    site: Site,
    out: Any,
    x: Any,
    w: Any,
    bias: Any = None,
    residual: Any = None,
    gate: Any = None,
    *,
    strides: Any,
    pads: Any,
    dilations: Any,
    group: int,
    activation: str,
    alpha: float,
    beta: float,
) -> Launch:
    weights, steps = _packed(site, w)
    windows, operands = Windows(strides, pads, dilations), (first(x), weights)
    over = None if residual is None else first(residual)
    try:
        relu = _is_relu(activation, alpha, beta)
        steps.append(launched(site, "fprop", operands, first(out), windows, bias, over, relu))
        bias, residual, activation = None, None, "" if relu else activation
    except DeviceError:
        attrs = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
        steps.append(_plain(site, conv, "fprop", operands, first(out), windows, attrs))
    return one(steps + _finished(site, out, bias, residual, gate, activation, alpha, beta))


@kernel(OPS["conv_transpose_channels_last"], "cupy", when=_transposable, bind=True, workspace=_workspace, measures=True)
def _(
    site: Site,
    out: Any,
    x: Any,
    w: Any,
    bias: Any = None,
    residual: Any = None,
    gate: Any = None,
    *,
    strides: Any,
    pads: Any,
    dilations: Any,
    group: int,
    output_padding: Any,
    activation: str,
    alpha: float,
    beta: float,
) -> Launch:
    weights, steps = _packed(site, w)
    windows, operands = Windows(strides, pads, dilations), (first(x), weights)
    attrs = {"strides": strides, "pads": pads, "dilations": dilations, "group": group, "output_padding": output_padding}
    steps.append(_plain(site, conv_transpose, "dgrad", operands, first(out), windows, attrs))
    return one(steps + _finished(site, out, bias, residual, gate, activation, alpha, beta))


def _weights(node: Node) -> tuple[TensorType, ...]:
    """cuDNN's scratch, and the result with channels last, unless it lies in both orders."""
    return (*_workspace(node), *([] if math.prod(node.attrs["kernel"]) == 1 else [node.types[0]]))


@kernel(OPS["conv_weight_gradient_channels_last"], "cupy", when=_suits, bind=True, workspace=_weights, measures=True)
def _(site: Site, out: Any, x: Any, dy: Any, *, kernel: Any, strides: Any, pads: Any, dilations: Any, group: int) -> Launch:
    windows = Windows(strides, pads, dilations)
    attrs = {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations, "group": group}
    operands = first(x), first(dy)
    last = (*site.work[1:], out)[0].reshape(out.shape[0], *out.shape[2:], out.shape[1])
    made = _plain(site, conv_weight_gradient, "wgrad", operands, first(last), windows, attrs)
    return one([made, copier(out, first(last))] if site.work[1:] else [made])


def _plain(
    site: Site, op: Any, kind: str, operands: tuple[Any, Any], out: Any, windows: Windows, attrs: dict[str, Any]
) -> Launch:
    """A convolution alone, by cuDNN where it can, else by the reference kernel."""
    try:
        return launched(site, kind, operands, out, windows)
    except DeviceError:
        plain = reference(op)
        assert plain is not None
        # Reference kernels reshape their result, which must not make a copy of it.
        whole = site.xp.empty(out.shape, out.dtype)
        return one(
            [
                functools.partial(plain.run, site.xp, whole, *operands, **attrs),
                copier(out, whole),
            ]
        )


NAMED = {"leaky_relu": ("alpha",), "hard_sigmoid": ("alpha", "beta")}
"""Activations with parameters, and which."""


def _finished(
    site: Site, out: Any, bias: Any, residual: Any, gate: Any, activation: str, alpha: float, beta: float
) -> list[Launch]:
    """One pass over `out`, in place, for what cuDNN did not do; none if it did everything."""
    if bias is None and residual is None and gate is None and not activation:
        return []
    chain = _Chain(site.node.types[0], out)
    value = 0
    for more in (bias, residual):
        if more is not None:
            value = chain.add("add", value, chain.operand(more))
    if activation == "clip":
        value = chain.add("maximum", value, chain.number(alpha))
        value = chain.add("minimum", value, chain.number(beta))
    elif activation:
        given = {"alpha": alpha, "beta": beta}
        attrs = {"alpha": 1.0} if activation == "swish" else {k: given[k] for k in NAMED.get(activation, ())}
        value = chain.add(activation, value, attrs=attrs)
    if gate is not None:
        passes = chain.add("greater", chain.operand(gate), chain.number(0.0))
        chain.add("where", passes, value, chain.number(0.0))
    return [chain.launch()]


class _Chain:
    """A chain over `out`, which it reads and writes. Numbers below 100 are operands, others results."""

    def __init__(self, type: TensorType, out: Any) -> None:
        self.type, self.arrays = type, [out]
        self.literals: list[float | None] = [None]
        self.steps: list[tuple[str, tuple[int, ...], dict[str, float]]] = []

    def operand(self, array: Any) -> int:
        """One that broadcasts to out's shape, of any strides."""
        self.arrays.append(array)
        self.literals.append(None)
        return len(self.arrays) - 1

    def number(self, value: float) -> int:
        self.arrays.append(self.arrays[0][(0,) * self.type.rank])
        self.literals.append(value)
        return len(self.arrays) - 1

    def add(self, op: str, *operands: int, attrs: dict[str, float] | None = None) -> int:
        self.steps.append((op, operands, attrs or {}))
        return 100 + len(self.steps) - 1

    def launch(self) -> Launch:
        n = len(self.arrays)
        program = tuple(
            Instruction(op, tuple(i if i < 100 else n + i - 100 for i in operands), tuple(attrs.items()))
            for op, operands, attrs in self.steps
        )
        types = [TensorType(x.shape, self.type.dtype) for x in self.arrays]
        return launch([self.arrays[0]], self.arrays, types, self.literals, program, (len(program) - 1,))
