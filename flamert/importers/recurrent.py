"""Converters of ONNX's RNN, GRU and LSTM: activations by name become triples, batch-major layout becomes transposes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from flamert import ops
from flamert.errors import InvalidModel, UnsupportedOp
from flamert.graph import Value
from flamert.importers.registry import Context, converter
from flamert.ops.cast import cast
from flamert.ops.cells import DIRECTIONS, SIGMOID, TANH, Activation

ACTIVATIONS: dict[str, tuple[str, float | None, float | None]] = {
    "sigmoid": ("sigmoid", None, None),
    "tanh": ("tanh", None, None),
    "relu": ("relu", None, None),
    "affine": ("affine", 1.0, 0.0),
    "leakyrelu": ("leaky_relu", 0.01, None),
    "thresholdedrelu": ("thresholded_relu", 1.0, None),
    "scaledtanh": ("scaled_tanh", 1.0, 1.0),
    "hardsigmoid": ("hard_sigmoid", 0.2, 0.5),
    "elu": ("elu", 1.0, None),
    "softsign": ("softsign", None, None),
    "softplus": ("softplus", None, None),
}
"""By ONNX's name in lower case: the name in `ops.cells`, and the defaults of alpha and beta (None: takes none)."""


def activations_of(
    names: Sequence[str], alpha: Sequence[float], beta: Sequence[float], default: tuple[Activation, ...], directions: int
) -> tuple[Activation, ...]:
    """Activations with their alphas and betas, which are consumed in order by the functions that take one."""
    if not names:
        return default
    alphas, betas = iter(alpha), iter(beta)

    def take(given: Iterator[float], otherwise: float | None) -> float:
        return 0.0 if otherwise is None else float(next(given, otherwise))

    result = []
    for name in names[: len(default) * directions]:
        if name.lower() not in ACTIVATIONS:
            raise UnsupportedOp(f"activation {name!r} is none of {', '.join(ACTIVATIONS)}")
        own, a, b = ACTIVATIONS[name.lower()]
        result.append((own, take(alphas, a), take(betas, b)))
    return tuple(result)


def import_layer(
    op: Any,
    default: tuple[Activation, ...],
    x: Value,
    operands: Sequence[Value | None],
    states: Sequence[Value | None],
    tail: Sequence[Value | None] = (),
    *,
    direction: str = "forward",
    activations: Sequence[str] = (),
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float | None = None,
    hidden_size: int | None = None,
    layout: int = 0,
    **attrs: Any,
) -> tuple[Value, ...]:
    """A recurrent layer and its results in ONNX's layout. operands: w, r, b, sequence_lens; tail: what follows the states."""
    direction = "forward" if direction == "foward" else direction  # the default in the schema of GRU-1 is misspelt
    if direction not in DIRECTIONS:
        raise UnsupportedOp(f"direction {direction!r} is none of {', '.join(DIRECTIONS)}")
    r = operands[1]
    if hidden_size is not None and r is not None and r.rank == 3 and r.shape[2] != hidden_size:
        raise InvalidModel(f"hidden_size is {hidden_size}, but R has shape {list(r.shape)}")
    if layout:
        x = ops.transpose(x, perm=(1, 0, 2))
        states = [None if s is None else ops.transpose(s, perm=(1, 0, 2)) for s in states]
    functions = activations_of(activations, activation_alpha, activation_beta, default, DIRECTIONS[direction])
    y, *last = op(x, *operands, *states, *tail, direction=direction, activations=functions, clip=clip, **attrs)
    if layout:
        return ops.transpose(y, perm=(2, 0, 1, 3)), *[ops.transpose(s, perm=(1, 0, 2)) for s in last]
    return y, *last


@converter("RNN")
def _(
    ctx: Context,
    X: Value,
    W: Value,
    R: Value,
    B: Value | None = None,
    sequence_lens: Value | None = None,
    initial_h: Value | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    output_sequence: int = 0,
) -> tuple[Value, ...]:
    return import_layer(
        ops.rnn,
        (TANH,),
        X,
        (W, R, B, sequence_lens),
        (initial_h,),
        activation_alpha=activation_alpha,
        activation_beta=activation_beta,
        activations=activations,
        clip=clip,
        direction=direction,
        hidden_size=hidden_size,
        layout=layout,
    )


@converter("GRU")
def _(
    ctx: Context,
    X: Value,
    W: Value,
    R: Value,
    B: Value | None = None,
    sequence_lens: Value | None = None,
    initial_h: Value | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    linear_before_reset: int = 0,
    layout: int = 0,
    output_sequence: int = 0,
) -> tuple[Value, ...]:
    return import_layer(
        ops.gru,
        (SIGMOID, TANH),
        X,
        (W, R, B, sequence_lens),
        (initial_h,),
        activation_alpha=activation_alpha,
        activation_beta=activation_beta,
        activations=activations,
        clip=clip,
        direction=direction,
        hidden_size=hidden_size,
        linear_before_reset=bool(linear_before_reset),
        layout=layout,
    )


@converter("LSTM")
def _(
    ctx: Context,
    X: Value,
    W: Value,
    R: Value,
    B: Value | None = None,
    sequence_lens: Value | None = None,
    initial_h: Value | None = None,
    initial_c: Value | None = None,
    P: Value | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
    output_sequence: int = 0,
) -> tuple[Value, ...]:
    return import_layer(
        ops.lstm,
        (SIGMOID, TANH, TANH),
        X,
        (W, R, B, sequence_lens),
        (initial_h, initial_c),
        (P,),
        activation_alpha=activation_alpha,
        activation_beta=activation_beta,
        activations=activations,
        clip=clip,
        direction=direction,
        hidden_size=hidden_size,
        input_forget=bool(input_forget),
        layout=layout,
    )


@converter("DynamicQuantizeLSTM", domain="com.microsoft")
def _(
    ctx: Context,
    X: Value,
    W: Value,
    R: Value,
    B: Value | None = None,
    sequence_lens: Value | None = None,
    initial_h: Value | None = None,
    initial_c: Value | None = None,
    P: Value | None = None,
    W_scale: Value | None = None,
    W_zero_point: Value | None = None,
    R_scale: Value | None = None,
    R_zero_point: Value | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
) -> tuple[Value, ...]:
    """The weights become floating again, which for constant ones is done once, and are turned as LSTM has them."""
    return import_layer(
        ops.dynamic_quantize_lstm,
        (SIGMOID, TANH, TANH),
        X,
        (_weights(W, W_scale, W_zero_point), _weights(R, R_scale, R_zero_point), B, sequence_lens),
        (initial_h, initial_c),
        (P,),
        activation_alpha=activation_alpha,
        activation_beta=activation_beta,
        activations=activations,
        clip=clip,
        direction=direction,
        hidden_size=hidden_size,
        input_forget=bool(input_forget),
    )


def _weights(q: Value, scale: Value | None, zero: Value | None) -> Value:
    """(q − zero) · scale, turned: [D, in, out] → [D, out, in]. Scales are one for each direction, or [D, out]."""
    if scale is None or zero is None:
        raise InvalidModel("the scales and zero points of W and R are missing")
    shape = (q.shape[0], 1, scale.type.size // q.shape[0])
    level, zero = cast(q, to=scale.dtype), cast(zero, to=scale.dtype)
    return ops.transpose((level - ops.reshape(zero, shape=shape)) * ops.reshape(scale, shape=shape), perm=(0, 2, 1))
