"""U-nets that predict the noise in an image, for diffusion. Source: Ho et al. 2020."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence

import numpy as np
from onnx import ModelProto

from flamert import graph as g
from flamert import ops
from flamert.graph import Value
from models import command
from models.building import Initial, Network, Place, conv, group_norm, layer, linear, uniform, zeros
from models.transformer import attend, split
from models.weights import Weights

CONFIGURATIONS = {
    "cifar": {"side": 32, "channels": 3, "widths": (128, 256, 256, 256), "blocks": 2, "attend": (16,), "groups": 32},
    "digits": {"side": 12, "channels": 1, "widths": (16, 32), "blocks": 1, "attend": (6,), "groups": 8},
    "tiny": {"side": 8, "channels": 1, "widths": (8, 16), "blocks": 1, "attend": (4,), "groups": 4},
}


@layer
def time_embedding(at: Place, t: Value, size: int) -> Value:
    """Sines and cosines of the time at `size` frequencies, and two linear layers: [batch] → [batch, 4 · size]."""
    frequencies = np.exp(np.arange(size // 2) * (-math.log(10_000) / (size // 2 - 1))).astype(np.float32)
    angles = ops.reshape(ops.cast(t, to=frequencies.dtype), shape=(t.shape[0], 1)) * g.constant(frequencies)
    waves = ops.concat(ops.sin(angles), ops.cos(angles), axis=1)
    return linear(at / "dense1", ops.swish(linear(at / "dense0", waves, 4 * size)), 4 * size)


@layer
def residual(at: Place, x: Value, time: Value, width: int, groups: int) -> Value:
    """Two convolutions beside a shortcut; the time shifts the channels between them."""
    y = convolution(at / "conv1", ops.swish(group_norm(at / "norm1", x, groups)), width)
    shift = linear(at / "time", ops.swish(time), width)
    y = y + ops.reshape(shift, shape=(*shift.shape, 1, 1))
    y = convolution(at / "conv2", ops.swish(group_norm(at / "norm2", y, groups)), width, zeros)
    return y + (x if x.shape[1] == width else conv(at / "shortcut", x, width, 1))


def convolution(at: Place, x: Value, width: int, initial: Initial | None = None) -> Value:
    """3 × 3, with the variance of x at first."""
    return conv(at, x, width, 3, initial=initial or uniform(math.sqrt(3 / (9 * x.shape[1]))))


@layer
def self_attention(at: Place, x: Value, groups: int) -> Value:
    """Each pixel asks all pixels, beside a shortcut. The last layer starts from 0."""
    n, c, h, w = x.shape
    pixels = ops.transpose(group_norm(at / "norm", x, groups), perm=(0, 2, 3, 1))
    rows = ops.reshape(pixels, shape=(n * h * w, c))
    q, k, v = (split(linear(at / name, rows, c), n, heads=1) for name in ("query", "key", "value"))
    y = linear(at / "out", attend(q, k, v), c, initial=zeros)
    return x + ops.transpose(ops.reshape(y, shape=(n, h, w, c)), perm=(0, 3, 1, 2))


def unet(
    side: int, channels: int, widths: Sequence[int], blocks: int, attend: Container[int], groups: int, seed: int = 0
) -> Network:
    """A U-net: images with noise, and how many steps of noise they have seen → the noise.

    widths: channels at each level; images are halved between levels. blocks: at each level on the way down, one more on the
    way up. attend: sides of images that attention looks at.
    """

    def stage(at: Place, x: Value, time: Value, width: int) -> Value:
        x = residual(at, x, time, width, groups)
        return self_attention(at / "attention", x, groups) if x.shape[2] in attend else x

    def network(at: Place, x: Value, t: Value) -> Value:
        time = time_embedding(at / "time", t, widths[0])
        x = convolution(at / "first", x, widths[0])
        seen = [x]
        for level, width in enumerate(widths):
            here = at / "down" / level
            for i in range(blocks):
                x = stage(here / i, x, time, width)
                seen.append(x)
            if level + 1 < len(widths):
                x = conv(here / "smaller", x, width, 3, stride=2)
                seen.append(x)
        x = residual(at / "middle" / 0, x, time, widths[-1], groups)
        x = self_attention(at / "middle" / "attention", x, groups)
        x = residual(at / "middle" / 1, x, time, widths[-1], groups)
        for level, width in reversed(list(enumerate(widths))):
            here = at / "up" / level
            for i in range(blocks + 1):
                x = stage(here / i, ops.concat(x, seen.pop(), axis=1), time, width)
            if level:
                x = convolution(here / "larger", ops.repeat(x, repeats=(1, 1, 2, 2)), width)
        return convolution(at / "last", ops.swish(group_norm(at / "norm", x, groups)), channels, zeros)

    image = f"float32[batch,{channels},{side},{side}]"
    return Network(network, {"image": image, "time": "int64[batch]"}, ["noise"], seed=seed)


def make(size: str = "cifar", seed: int = 0, weights: Weights | None = None) -> ModelProto:
    """One of the configurations as an ONNX model."""
    return unet(**CONFIGURATIONS[size], seed=seed).proto(weights=weights)


if __name__ == "__main__":
    command.make(unet, CONFIGURATIONS)
