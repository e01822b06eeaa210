"""Small networks in PyTorch, with random weights and in the usual idioms, that tests export and compare."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """The basic block of ResNet-18."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        widths = (width, 2 * width, 4 * width, 8 * width)
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        blocks = []
        for i, w in enumerate(widths):
            blocks += [Residual(widths[max(i - 1, 0)], w, 1 if i == 0 else 2), Residual(w, w, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x):
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class TimeBlock(nn.Module):
    """A U-Net's residual block: group norm, SiLU and a shift that tells the time."""

    def __init__(self, inputs, outputs, times):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(times, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(4, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x, t):
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(t))[:, :, None, None]
        return self.conv2(F.silu(self.norm2(y))) + self.shortcut(x)


class SpatialAttention(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = (
            nn.GroupNorm(4, channels),
            nn.Linear(channels, 3 * channels),
            nn.Linear(channels, channels),
        )

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x).flatten(2).transpose(1, 2)).chunk(3, dim=-1)
        q, k, v = (t.view(b, h * w, self.heads, c // self.heads).transpose(1, 2) for t in (q, k, v))
        weights = torch.softmax(q @ k.transpose(-1, -2) * (c // self.heads) ** -0.5, dim=-1)
        y = self.out((weights @ v).transpose(1, 2).reshape(b, h * w, c))
        return x + y.transpose(1, 2).reshape(b, c, h, w)


class UNet(nn.Module):
    def __init__(self, width=8, times=32):
        super().__init__()
        self.frequencies = width
        self.embed = nn.Sequential(nn.Linear(2 * width, times), nn.SiLU(), nn.Linear(times, times))
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.down1, self.shrink = TimeBlock(width, width, times), nn.Conv2d(width, width, 3, 2, 1)
        self.down2, self.attend = TimeBlock(width, 2 * width, times), SpatialAttention(2 * width, 2)
        self.middle = TimeBlock(2 * width, 2 * width, times)
        self.up2 = TimeBlock(4 * width, width, times)
        self.up1 = TimeBlock(2 * width, width, times)
        self.norm, self.leave = nn.GroupNorm(4, width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x, time):
        rates = torch.exp(torch.arange(self.frequencies) * (-math.log(10000) / self.frequencies))
        angles = time[:, None].float() * rates[None]
        t = self.embed(torch.cat([angles.sin(), angles.cos()], dim=-1))
        a = self.down1(self.enter(x), t)
        b = self.attend(self.down2(self.shrink(a), t))
        y = self.up2(torch.cat([self.middle(b, t), b], dim=1), t)
        y = self.up1(torch.cat([F.interpolate(y, scale_factor=2.0, mode="nearest"), a], dim=1), t)
        return self.leave(F.silu(self.norm(y)))


class LSTMClassifier(nn.Module):
    def __init__(self, words=50, size=16):
        super().__init__()
        self.words = nn.Embedding(words, size)
        self.lstm = nn.LSTM(size, size, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * size, 5)

    def forward(self, ids):
        y, _ = self.lstm(self.words(ids))
        return F.log_softmax(self.head(y.mean(dim=1)), dim=-1)


class RMSNorm(nn.Module):
    """As Llama writes it."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x):
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


def rotate_half(x):
    a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-b, a), dim=-1)


def repeat_kv(x, times):
    b, h, s, d = x.shape
    return x[:, :, None].expand(b, h, times, s, d).reshape(b, h * times, s, d)


class LlamaAttention(nn.Module):
    """Grouped heads, rotary positions, a cache; `fused` leaves the middle to scaled_dot_product_attention."""

    def __init__(self, size, heads, groups, fused):
        super().__init__()
        self.heads, self.groups, self.depth, self.fused = heads, groups, size // heads, fused
        self.q = nn.Linear(size, size, bias=False)
        self.k = nn.Linear(size, groups * self.depth, bias=False)
        self.v = nn.Linear(size, groups * self.depth, bias=False)
        self.o = nn.Linear(size, size, bias=False)

    def forward(self, x, cos, sin, mask, past_key, past_value):
        b, l, _ = x.shape
        q = self.q(x).view(b, l, self.heads, self.depth).transpose(1, 2)
        k = self.k(x).view(b, l, self.groups, self.depth).transpose(1, 2)
        v = self.v(x).view(b, l, self.groups, self.depth).transpose(1, 2)
        cos, sin = cos[:, None], sin[:, None]
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        k, v = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
        wide_k, wide_v = (repeat_kv(t, self.heads // self.groups) for t in (k, v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, wide_k, wide_v, attn_mask=mask)
        else:
            scores = q @ wide_k.transpose(2, 3) * self.depth**-0.5 + mask
            y = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ wide_v
        return self.o(y.transpose(1, 2).reshape(b, l, -1)), k, v


class LlamaLayer(nn.Module):
    def __init__(self, size, heads, groups, fused):
        super().__init__()
        self.norm1, self.attention = RMSNorm(size), LlamaAttention(size, heads, groups, fused)
        self.norm2 = RMSNorm(size)
        self.gate, self.up = nn.Linear(size, 2 * size, bias=False), nn.Linear(size, 2 * size, bias=False)
        self.down = nn.Linear(2 * size, size, bias=False)

    def forward(self, x, cos, sin, mask, past_key, past_value):
        y, k, v = self.attention(self.norm1(x), cos, sin, mask, past_key, past_value)
        x = x + y
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y)), k, v


class Llama(nn.Module):
    def __init__(self, words=60, size=32, layers=2, heads=4, groups=2, fused=False):
        super().__init__()
        self.words = nn.Embedding(words, size)
        self.layers = nn.ModuleList(LlamaLayer(size, heads, groups, fused) for _ in range(layers))
        self.norm, self.head = RMSNorm(size), nn.Linear(size, words, bias=False)
        depth = size // heads
        self.register_buffer("rates", 10000.0 ** (-torch.arange(0, depth, 2) / depth))

    def forward(self, ids, key0, value0, key1, value1):
        past = key0.shape[2]
        l = ids.shape[1]
        positions = torch.arange(past, past + l)
        angles = positions[None, :, None].float() * self.rates
        angles = torch.cat([angles, angles], dim=-1)
        cos, sin = angles.cos(), angles.sin()
        hidden = torch.arange(past + l)[None, :] > positions[:, None]
        mask = torch.zeros(l, past + l).masked_fill(hidden, torch.finfo(torch.float32).min)[None, None]
        x = self.words(ids)
        caches = []
        for layer, k, v in zip(self.layers, (key0, key1), (value0, value1), strict=True):
            x, k, v = layer(x, cos, sin, mask, k, v)
            caches += [k, v]
        return self.head(self.norm(x)), *caches


class Bert(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, mask):
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state


class GPT2(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        positions = torch.arange(ids.shape[1])[None]
        return self.model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=False).logits


class ViT(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(pixel_values=x).last_hidden_state


def bert(attention="sdpa"):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=60, attn_implementation=attention, **sizes)
    return Bert(transformers.BertModel(config, add_pooling_layer=False))


def gpt2():
    transformers = pytest.importorskip("transformers")
    return GPT2(
        transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    )


def vit():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.ViTConfig(image_size=32, patch_size=8, **sizes)
    return ViT(transformers.ViTModel(config, add_pooling_layer=False))
