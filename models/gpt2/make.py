"""GPT-2 (Radford et al. 2019): a decoder of text. Parameters are called and stored as in Hugging Face's GPT2LMHeadModel."""

from __future__ import annotations

from typing import Any

from onnx import ModelProto

from flamert import ops
from flamert.graph import Value
from flamert.ops.shape import narrow
from models import command
from models.building import Network, Place, embedding, layer, layer_norm, linear, normal
from models.transformer import attend, causal, dropout, scores, split
from models.weights import Weights

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "medium": {"layers": 24, "width": 1024, "heads": 16},
    "large": {"layers": 36, "width": 1280, "heads": 20},
    "xl": {"layers": 48, "width": 1600, "heads": 25},
    "bytes": {"layers": 4, "width": 128, "heads": 4, "vocabulary": 256, "context": 128, "drop": 0.0},
    "tiny": {"layers": 2, "width": 32, "heads": 4, "vocabulary": 50, "context": 24},
}


def gpt2(
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    vocabulary: int = 50257,
    context: int = 1024,
    drop: float = 0.1,
    seed: int = 0,
) -> Network:
    """A decoder of text: tokens → logits of the token after each of them."""
    small = normal(0.02)
    smaller = normal(0.02 / (2 * layers) ** 0.5)  # for what is added to the residual stream

    @layer
    def attention(at: Place, x: Value, batch: int, mask: Value) -> Value:
        qkv = linear(at / "c_attn", x, 3 * width, initial=small, inputs_first=True)
        q, k, v = (split(narrow(qkv, 1, i * width, width), batch, heads) for i in range(3))
        return linear(at / "c_proj", attend(q, k, v, mask, drop=drop), width, initial=smaller, inputs_first=True)

    @layer
    def mlp(at: Place, x: Value) -> Value:
        x = ops.gelu_tanh(linear(at / "c_fc", x, 4 * width, initial=small, inputs_first=True))
        return linear(at / "c_proj", x, width, initial=smaller, inputs_first=True)

    def network(at: Place, input_ids: Value) -> Value:
        batch, length = input_ids.shape
        at, head = at / "transformer", at / "transformer" / "wte"
        places = narrow((at / "wpe").parameter("weight", (context, width), small), 0, 0, length)
        x = embedding(head, input_ids, vocabulary, width) + places
        x = dropout(ops.reshape(x, shape=(batch * length, width)), drop)
        mask = causal(length)
        for i in range(layers):
            block = at / "h" / i
            x = x + dropout(attention(block / "attn", layer_norm(block / "ln_1", x), batch, mask), drop)
            x = x + dropout(mlp(block / "mlp", layer_norm(block / "ln_2", x)), drop)
        x = layer_norm(at / "ln_f", x)
        return scores(x, head.parameter("weight", (vocabulary, width), small), batch)

    return Network(network, {"input_ids": "int64[batch,sequence]"}, ["logits"], seed=seed)


def make(size: str = "gpt2", seed: int = 0, weights: Weights | None = None) -> ModelProto:
    """One of the configurations as an ONNX model."""
    return gpt2(**CONFIGURATIONS[size], seed=seed).proto(weights=weights)


if __name__ == "__main__":
    command.make(gpt2, CONFIGURATIONS)
