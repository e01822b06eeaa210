"""Residual networks for images. Source: He et al. 2015; strides lie where torchvision has them, on the 3 × 3 convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto

from flamert import ops
from flamert.graph import Value
from models import command
from models.building import Network, Place, batch_norm, conv, layer, linear, zeros
from models.weights import Weights

CONFIGURATIONS = {
    "18": {"blocks": (2, 2, 2, 2)},
    "34": {"blocks": (3, 4, 6, 3)},
    "50": {"blocks": (3, 4, 6, 3), "deep": True},
    "101": {"blocks": (3, 4, 23, 3), "deep": True},
    "digits": {"blocks": (1, 1, 1), "width": 8, "channels": 1, "side": 16, "classes": 10, "small": True},
    "tiny": {"blocks": (1, 1), "width": 4, "channels": 1, "side": 8, "classes": 3, "small": True},
}


@layer
def basic(at: Place, x: Value, width: int, stride: int) -> Value:
    """Two 3 × 3 convolutions beside a shortcut."""
    y = ops.relu(batch_norm(at / "bn1", conv(at / "conv1", x, width, 3, stride=stride, bias=False)))
    y = batch_norm(at / "bn2", conv(at / "conv2", y, width, 3, bias=False), scale=zeros)
    return ops.relu(y + shortcut(at / "downsample", x, width, stride))


@layer
def bottleneck(at: Place, x: Value, width: int, stride: int) -> Value:
    """A 3 × 3 convolution between one that narrows and one that widens, beside a shortcut."""
    y = ops.relu(batch_norm(at / "bn1", conv(at / "conv1", x, width, 1, bias=False)))
    y = ops.relu(batch_norm(at / "bn2", conv(at / "conv2", y, width, 3, stride=stride, bias=False)))
    y = batch_norm(at / "bn3", conv(at / "conv3", y, 4 * width, 1, bias=False), scale=zeros)
    return ops.relu(y + shortcut(at / "downsample", x, 4 * width, stride))


def shortcut(at: Place, x: Value, width: int, stride: int) -> Value:
    """x itself, or projected where the block changes its shape."""
    if x.shape[1] == width and stride == 1:
        return x
    return batch_norm(at / 1, conv(at / 0, x, width, 1, stride=stride, bias=False))


def resnet(
    blocks: Sequence[int],
    deep: bool = False,
    width: int = 64,
    channels: int = 3,
    side: int = 224,
    classes: int = 1000,
    small: bool = False,
    seed: int = 0,
) -> Network:
    """A residual network: images → logits of classes. The last norm of a block starts from 0, and so the block as its shortcut.

    blocks: in each stage, the next of which has images half as large and twice the width. deep: of bottlenecks.
    small: begin with a 3 × 3 convolution, not with one of 7 × 7 and pooling, both of stride 2.
    """
    block = bottleneck if deep else basic

    def network(at: Place, x: Value) -> Value:
        kernel, stride = (3, 1) if small else (7, 2)
        x = ops.relu(batch_norm(at / "bn1", conv(at / "conv1", x, width, kernel, stride=stride, bias=False)))
        if not small:
            x = ops.max_pool(x, kernel=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1), dilations=(1, 1))
        for stage, count in enumerate(blocks):
            for i in range(count):
                x = block(at / f"layer{stage + 1}" / i, x, width << stage, 2 if stage and not i else 1)
        return linear(at / "fc", ops.reduce_mean(x, axes=(2, 3)), classes)

    return Network(network, {"image": f"float32[batch,{channels},{side},{side}]"}, ["logits"], seed=seed)


def make(size: str = "18", seed: int = 0, weights: Weights | None = None) -> ModelProto:
    """One of the configurations as an ONNX model."""
    return resnet(**CONFIGURATIONS[size], seed=seed).proto(weights=weights)


if __name__ == "__main__":
    command.make(resnet, CONFIGURATIONS)
