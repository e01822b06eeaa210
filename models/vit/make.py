"""Vision transformers. Source: Dosovitskiy et al. 2020; parameters are called as in timm."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from flamert import ops
from flamert.graph import Value
from flamert.ops.shape import narrow
from models import command
from models.building import Network, Place, conv, layer, layer_norm, linear, normal, xavier, zeros
from models.transformer import attend, split
from models.weights import Weights

CONFIGURATIONS = {
    "b16": {"width": 768, "depth": 12, "heads": 12},
    "s16": {"width": 384, "depth": 12, "heads": 6},
    "l16": {"width": 1024, "depth": 24, "heads": 16},
    "digits": {"side": 16, "patch": 4, "channels": 1, "width": 64, "depth": 4, "heads": 4, "classes": 10},
    "tiny": {"side": 8, "patch": 4, "channels": 1, "width": 16, "depth": 2, "heads": 2, "classes": 3},
}


@layer
def block(at: Place, x: Value, batch: int, heads: int) -> Value:
    """Attention, then two linear layers on each patch, both after a norm and beside a shortcut. x: rows."""
    x = x + self_attention(at / "attn", layer_norm(at / "norm1", x, epsilon=1e-6), batch, heads)
    return x + mlp(at / "mlp", layer_norm(at / "norm2", x, epsilon=1e-6))


@layer
def self_attention(at: Place, x: Value, batch: int, heads: int) -> Value:
    """Each patch asks all patches. One layer makes queries, keys and values."""
    width = x.shape[1]
    initial = xavier(width, width)
    qkv = linear(at / "qkv", x, 3 * width, initial=initial)
    q, k, v = (split(narrow(qkv, 1, i * width, width), batch, heads) for i in range(3))
    return linear(at / "proj", attend(q, k, v), width, initial=initial)


@layer
def mlp(at: Place, x: Value) -> Value:
    """Two linear layers with GELU between them, four times as wide inside."""
    width = x.shape[1]
    initial = xavier(width, 4 * width)
    return linear(at / "fc2", ops.gelu(linear(at / "fc1", x, 4 * width, initial=initial)), width, initial=initial)


def vit(
    width: int,
    depth: int,
    heads: int,
    side: int = 224,
    patch: int = 16,
    channels: int = 3,
    classes: int = 1000,
    seed: int = 0,
) -> Network:
    """A vision transformer: images → logits of classes. A learnt class token reads the patches; the head starts from 0."""
    patches = (side // patch) ** 2

    def network(at: Place, image: Value) -> Value:
        batch = image.shape[0]
        initial = normal((channels * patch**2) ** -0.5)
        x = conv(at / "patch_embed" / "proj", image, width, patch, stride=patch, pad=0, initial=initial)
        x = ops.transpose(ops.reshape(x, shape=(batch, width, patches)), perm=(0, 2, 1))
        token = ops.expand(at.parameter("cls_token", (1, 1, width), zeros), shape=(batch, 1, width))
        x = ops.concat(token, x, axis=1) + at.parameter("pos_embed", (1, patches + 1, width), normal(0.02))
        x = ops.reshape(x, shape=(batch * (patches + 1), width))
        for i in range(depth):
            x = block(at / "blocks" / i, x, batch, heads)
        first = ops.gather(ops.reshape(x, shape=(batch, patches + 1, width)), np.int64(0), axis=1)
        return linear(at / "head", layer_norm(at / "norm", first, epsilon=1e-6), classes, initial=zeros)

    return Network(network, {"image": f"float32[batch,{channels},{side},{side}]"}, ["logits"], seed=seed)


def make(size: str = "b16", seed: int = 0, weights: Weights | None = None) -> ModelProto:
    """One of the configurations as an ONNX model."""
    return vit(**CONFIGURATIONS[size], seed=seed).proto(weights=weights)


if __name__ == "__main__":
    command.make(vit, CONFIGURATIONS)
