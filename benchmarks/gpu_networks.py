"""The networks of `gpu` and `gpu_curves`: torch modules with what they are fed, as torch has them and as ONNX."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Network(NamedTuple):
    """make: a torch module. draw: (torch, batch) → its inputs. batches: for inference; batch: for training.

    loss: "cross_entropy" of [N, classes], "tokens" of [N, length, classes], or "mse". adaptive: AdamW; else SGD with momentum.
    masked: floating-point operations of one sample's forward pass that a causal mask makes needless.
    """

    make: Callable[[], Any]
    draw: Callable[[Any, int], tuple[Any, ...]]
    batches: tuple[int, int]
    batch: int
    classes: int
    adaptive: bool
    loss: str = "cross_entropy"
    masked: float = 0.0

    def labels(self, torch: Any, example: tuple[Any, ...]) -> Any:
        """Random targets for these inputs."""
        if self.loss == "mse":
            return torch.randn(example[0].shape)
        shape = example[0].shape if self.loss == "tokens" else example[0].shape[:1]
        return torch.randint(0, self.classes, shape)


def torch_loss(network: Network, y: Any, labels: Any) -> Any:
    """The loss of outputs, in their precision or float32 if that is wider."""
    import torch

    y = y.float() if y.dtype in (torch.float16, torch.bfloat16) else y
    if network.loss == "mse":
        return torch.nn.functional.mse_loss(y, labels.to(y.dtype))
    return torch.nn.functional.cross_entropy(y.reshape(-1, y.shape[-1]), labels.reshape(-1))


def our_loss(network: Network) -> Any:
    """The same for a Trainer."""
    from flamert import losses, ops

    def tokens(outputs: Any, targets: Any) -> Any:
        n, length, classes = outputs["y"].shape
        flat = ops.reshape(outputs["y"], shape=(n * length, classes))
        return losses.by_name("cross_entropy")(flat, ops.reshape(targets["target"], shape=(n * length,)))

    return tokens if network.loss == "tokens" else network.loss


def exported(module: Any, example: tuple[Any, ...], train: bool) -> bytes:
    """The module as ONNX, with what it trains left apart."""
    import torch

    file = io.BytesIO()
    form = torch.onnx.TrainingMode.TRAINING if train else torch.onnx.TrainingMode.EVAL
    options: dict[str, Any] = {"opset_version": 18, "dynamo": False, "training": form, "do_constant_folding": not train}
    torch.onnx.export(module, example, file, input_names=["x", "t"][: len(example)], output_names=["y"], **options)
    return file.getvalue()


def _images(torch: Any, batch: int) -> tuple[Any, ...]:
    return (torch.randn(batch, 3, 224, 224),)


def _tokens(length: int, vocabulary: int) -> Callable[[Any, int], tuple[Any, ...]]:
    # Not 0: as padding it would have a gradient of zeros in PyTorch, which a file does not tell.
    return lambda torch, batch: (torch.randint(1, vocabulary, (batch, length)),)


def _noisy_images(torch: Any, batch: int) -> tuple[Any, ...]:
    return torch.randn(batch, 3, 64, 64), torch.randint(0, 1000, (batch,))


def _vision(name: str) -> Callable[[], Any]:
    def make() -> Any:
        import torch
        import torchvision

        made = getattr(torchvision.models, name)(weights=None)
        for weight in made.parameters():
            if weight.ndim > 1 and not weight.any():  # a head of zeros, which would say nothing and send nothing back
                torch.nn.init.normal_(weight, std=0.02)
        for block in made.modules():
            # A residual block that starts as large as what it is added to doubles every error: gradients of 16 are noise.
            if isinstance(block, torchvision.models.resnet.Bottleneck):
                torch.nn.init.constant_(block.bn3.weight, SMALL)
        return made

    return make


SMALL = 0.2
"""The scale that residual blocks of ResNet-50 start with. Source: Goyal et al. 2017, who have 0, and gradients of 0 with it."""


def logits(kind: str, config: str, **options: Any) -> Callable[[], Any]:
    """A model of transformers that takes token ids and gives logits, without dropout."""

    def make() -> Any:
        import torch
        import transformers

        settings = getattr(transformers, config)(**options)
        for name in vars(settings):
            if "drop" in name or name.endswith("_pdrop"):
                setattr(settings, name, 0.0)

        class Logits(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = getattr(transformers, kind)(settings)

            def forward(self, ids: Any) -> Any:
                # A mask of ones spares exporters the search for packed sequences, which uses an operator that they lack.
                masked = torch.onnx.is_in_onnx_export() and kind.startswith("GPT2")
                return self.inner(ids, attention_mask=torch.ones_like(ids) if masked else None).logits

        return Logits()

    return make


def _lstm() -> Any:
    import torch

    class Tagger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(10000, 256)
            self.lstm = torch.nn.LSTM(256, 512, num_layers=2, batch_first=True)
            self.head = torch.nn.Linear(512, 100)

        def forward(self, ids: Any) -> Any:
            return self.head(self.lstm(self.embedding(ids))[0][:, -1])

    return Tagger()


def unet(widths: tuple[int, ...] = (128, 256, 256, 256), attended: tuple[int, ...] = (2, 3), groups: int = 32) -> Any:
    """A U-Net that predicts noise: residual blocks moved by a time embedding, attention at some levels.

    Source: Ho et al. 2020.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    time = 4 * widths[0]

    class Block(nn.Module):
        def __init__(self, inputs: int, width: int, attends: bool) -> None:
            super().__init__()
            self.norm1, self.conv1 = nn.GroupNorm(groups, inputs), nn.Conv2d(inputs, width, 3, padding=1)
            self.time = nn.Linear(time, width)
            self.norm2, self.conv2 = nn.GroupNorm(groups, width), nn.Conv2d(width, width, 3, padding=1)
            self.shortcut = nn.Identity() if inputs == width else nn.Conv2d(inputs, width, 1)
            self.attention = Attention(width) if attends else nn.Identity()

        def forward(self, x: Any, t: Any) -> Any:
            y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(t))[:, :, None, None]
            return self.attention(self.conv2(F.silu(self.norm2(y))) + self.shortcut(x))

    class Attention(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.heads = max(1, width // 64)
            self.norm, self.qkv, self.out = nn.GroupNorm(groups, width), nn.Linear(width, 3 * width), nn.Linear(width, width)

        def forward(self, x: Any) -> Any:
            n, c, h, w = x.shape
            rows = self.norm(x).flatten(2).transpose(1, 2)
            q, k, v = (p.unflatten(2, (self.heads, c // self.heads)).transpose(1, 2) for p in self.qkv(rows).chunk(3, 2))
            seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return x + self.out(seen).transpose(1, 2).reshape(n, c, h, w)

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time1, self.time2 = nn.Linear(widths[0], time), nn.Linear(time, time)
            self.first = nn.Conv2d(3, widths[0], 3, padding=1)
            self.down: Any
            self.up: Any
            self.down, self.shrink, self.up, self.grow = (nn.ModuleList() for _ in range(4))
            seen, size = [widths[0]], widths[0]
            for level, width in enumerate(widths):
                self.down.append(nn.ModuleList([Block(n, width, level in attended) for n in (size, width)]))
                seen, size = [*seen, width, width], width
                if level + 1 < len(widths):
                    self.shrink.append(nn.Conv2d(width, width, 3, 2, 1))
                    seen.append(width)
            self.middle1, self.middle2 = Block(size, size, True), Block(size, size, False)
            for level in reversed(range(len(widths))):
                blocks = nn.ModuleList()
                for _ in range(3):
                    blocks.append(Block(size + seen.pop(), widths[level], level in attended))
                    size = widths[level]
                self.up.append(blocks)
                if level:
                    self.grow.append(nn.Conv2d(size, size, 3, padding=1))
            self.norm, self.last = nn.GroupNorm(groups, size), nn.Conv2d(size, 3, 3, padding=1)
            steps = torch.arange(widths[0] // 2) / (widths[0] // 2 - 1)
            self.register_buffer("frequencies", torch.exp(-math.log(10000) * steps), persistent=False)

        def forward(self, x: Any, t: Any) -> Any:
            angles = t[:, None].float() * self.frequencies.float()
            waves = torch.cat((angles.sin(), angles.cos()), 1).to(self.time1.weight.dtype)
            t = self.time2(F.silu(self.time1(waves)))
            y = self.first(x)
            seen = [y]
            for level, blocks in enumerate(self.down):
                for block in blocks:
                    y = block(y, t)
                    seen.append(y)
                if level < len(self.shrink):
                    y = self.shrink[level](y)
                    seen.append(y)
            y = self.middle2(self.middle1(y, t), t)
            for level, blocks in enumerate(self.up):
                for block in blocks:
                    y = block(torch.cat((y, seen.pop()), 1), t)
                if level < len(self.grow):
                    y = self.grow[level](F.interpolate(y, scale_factor=2.0, mode="nearest"))
            return self.last(F.silu(self.norm(y)))

    return UNet()


CAUSAL = 12 * 2.0 * 512**2 * 768
"""GPT-2's: half of both products of attention, in 12 layers of width 768, over 512 tokens."""

NETWORKS = {
    "resnet50": Network(_vision("resnet50"), _images, (1, 64), 64, 1000, False),
    "vit-b/16": Network(_vision("vit_b_16"), _images, (1, 64), 64, 1000, True),
    "bert-base s128": Network(
        logits("BertForSequenceClassification", "BertConfig", num_labels=2), _tokens(128, 30000), (1, 32), 32, 2, True
    ),
    "gpt2 s512": Network(
        logits("GPT2LMHeadModel", "GPT2Config", use_cache=False), _tokens(512, 50000), (1, 8), 8, 50000, True, "tokens", CAUSAL
    ),
    "unet 64²": Network(unet, _noisy_images, (1, 16), 16, 0, True, "mse"),
    "lstm s64": Network(_lstm, _tokens(64, 10000), (1, 64), 64, 100, True),
}
