"""Passes over memory for `gpu_ops`: norms, softmax, activations, losses, tables, updates, pooling."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.gpu_op_work import Case, Maker, Work, differentiated, normal, numbers, operand, way
from flamert import dtypes, losses, ops, optim
from flamert import graph as g
from flamert.grad import grad
from flamert.graph import TensorType, Value


def layer_norm(rows: int, width: int, backward: bool) -> Maker:
    def make(dtype: np.dtype) -> Work:
        x, scale, bias = operand((rows, width), dtype), operand((width,), dtype), operand((width,), dtype)
        y = ops.layer_norm(x, scale, bias, axis=-1)
        if not backward:
            return Work([x, scale, bias], [y])
        dy, slopes = differentiated(y, [x, scale, bias])
        return Work([dy, x, scale, bias], slopes)

    return make


def softmax(rows: int, width: int, backward: bool) -> Maker:
    def make(dtype: np.dtype) -> Work:
        x = operand((rows, width), dtype)
        y = ops.softmax(x, axis=-1)
        if not backward:
            return Work([x], [y])
        dy, slopes = differentiated(y, [x])
        return Work([dy, x], slopes)

    return make


def gelu(rows: int, width: int, backward: bool, name: str = "gelu") -> Maker:
    """gelu(x + bias), and what reaches x through it."""

    def make(dtype: np.dtype) -> Work:
        x, bias = operand((rows, width), dtype), operand((width,), dtype)
        y = getattr(ops, name)(x + bias)
        if not backward:
            return Work([x, bias], [y])
        dy, slopes = differentiated(y, [x])
        return Work([dy, x, bias], slopes)

    return make


def column_sums(rows: int, width: int) -> Maker:
    def make(dtype: np.dtype) -> Work:
        x = operand((rows, width), dtype)
        return Work([x], [ops.reduce_sum(x, axes=(0,))])

    return make


def cross_entropy(rows: int, classes: int) -> Maker:
    """The loss of logits and what reaches them. At least: logits read once, gradients written once."""

    def make(dtype: np.dtype) -> Work:
        logits, target = operand((rows, classes), dtype), operand((rows,), dtypes.int64)
        loss = losses.CrossEntropy()(logits, target)
        slopes = [d for d in grad(loss, [logits]) if d is not None]
        return Work([logits, target], [loss, *slopes], given={target: numbers(rows, classes)})

    return make


def embedding(tokens: int, vocabulary: int, width: int, backward: bool) -> Maker:
    """Rows of a table; what reaches the table, which is written whole."""

    def make(dtype: np.dtype) -> Work:
        table, indices = operand((vocabulary, width), dtype), operand((tokens,), dtypes.int64)
        y = ops.gather(table, indices, axis=0)
        given = {indices: numbers(tokens, vocabulary)}
        if not backward:
            return Work([table, indices], [y], nbytes=2 * y.type.nbytes + indices.type.nbytes, given=given)
        dy, slopes = differentiated(y, [table])
        return Work([dy, indices], slopes, given=given)

    return make


def adamw(tensors: int, elements: int) -> Maker:
    """Updates in place, of so many tensors of so many elements."""

    def make(dtype: np.dtype) -> Work:
        optimizer = optim.AdamW(1e-3)
        options = optimizer.options("w")
        lr, step = operand((), dtypes.float32), operand((), dtypes.float32)
        inputs, outputs = [lr, step], list[Value]()
        given, updates = {lr: np.array(1e-6, np.float32), step: np.array(100, np.float32)}, dict[int, Value]()
        for _ in range(tensors):
            p, slope = operand((elements,), dtype), operand((elements,), dtype)
            state = {name: g.input(TensorType(a.shape, a.dtype), name) for name, a in optimizer.init(p.type, options).items()}
            new, moved = optimizer.update(p, slope, state, lr, step, options)
            given |= {v: np.abs(normal(v.shape, v.dtype)) for v in state.values()}
            inputs += [p, slope, *state.values()]
            for old, value in ((p, new), *[(state[name], value) for name, value in moved.items()]):
                updates[len(outputs)] = old
                outputs.append(value)
        return Work(inputs, outputs, given=given, updates=updates)

    return make


def batch_norm(batch: int, side: int, channels: int, backward: bool) -> Maker:
    """relu of batch norm with the batch's own statistics, channels last; and what reaches x, scale and bias through the norm.

    As under mixed precision: computed in float32, kept in the row's type. At least: x and dy read once.
    """

    def make(dtype: np.dtype) -> Work:
        x = operand((batch, side, side, channels), dtype)
        scale, bias, mean, var = (operand((channels,), dtypes.float32) for _ in range(4))
        given = {var: np.ones(channels, np.float32)}
        if not backward:
            found = [ops.reshape(m, shape=(channels,)) for m in ops.moments(x, axes=(0, 1, 2))]
            running = [old * 0.9 + new * 0.1 for old, new in zip((mean, var), found, strict=True)]
            wide_x = x if dtype == dtypes.float32 else ops.cast(x, to=dtypes.float32)
            y = ops.relu((wide_x - found[0]) * (scale / ops.sqrt(found[1] + 1e-5)) + bias)
            y = y if dtype == dtypes.float32 else ops.cast(y, to=dtype)
            return Work([x, scale, bias, mean, var], [y, *running, *found], given=given)
        dy = operand(x.shape, dtype)
        wide = [ops.cast(v, to=dtypes.float32) if v.dtype != dtypes.float32 else v for v in (dy, x)]
        dx, dscale, dbias = ops.batch_norm_gradient(*wide, scale, mean, var, axis=3)
        dx = dx if dtype == dx.dtype else ops.cast(dx, to=dtype)
        return Work([dy, x, scale, mean, var], [dx, dscale, dbias], given=given)

    return make


def max_pool(batch: int, side: int, channels: int, backward: bool) -> Maker:
    """3×3, stride 2, as behind the first convolution of a ResNet."""
    attrs = {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1)}

    def make(dtype: np.dtype) -> Work:
        x = operand((batch, side, side, channels), dtype)
        y = ops.max_pool_channels_last(x, **attrs)
        if not backward:
            return Work([x], [y])
        dy = g.input(y.type)
        return Work([dy, x], [ops.max_pool_gradient_channels_last(dy, x, **attrs)])

    return make


def passes() -> Iterator[Case]:
    """Rows of the table."""
    for form in ("bf16", "fp32"):
        for backward in (False, True):
            yield Case(f"layer_norm {way(backward)}", "4096×768", form, layer_norm(4096, 768, backward))
            yield Case(f"softmax {way(backward)}", "49152×128", form, softmax(49152, 128, backward))
            yield Case(f"bias+gelu {way(backward)}", "4096×3072", form, gelu(4096, 3072, backward))
            for side, channels in ((112, 64), (56, 256), (14, 1024)):
                shape = f"64×{side}²×{channels}"
                yield Case(f"batch_norm {way(backward)}", shape, form, batch_norm(64, side, channels, backward))
            yield Case(f"max_pool {way(backward)}", "64×112²×64", form, max_pool(64, 112, 64, backward))
        yield Case("column sums", "4096×3072", form, column_sums(4096, 3072))
        yield Case("cross_entropy fwd+bwd", "4096×50304", form, cross_entropy(4096, 50304))
    for backward in (False, True):
        yield Case(f"embedding {way(backward)}", "4096 of 50304×768", "fp32", embedding(4096, 50304, 768, backward))
    yield Case("AdamW", "1 × 10,000,000", "fp32", adamw(1, 10_000_000))
    yield Case("AdamW", "100 × 100,000", "fp32", adamw(100, 100_000))
