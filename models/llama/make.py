"""Llama (Touvron et al. 2023): a decoder of text. Parameters are called and stored as in Hugging Face's LlamaForCausalLM.

Against GPT-2: RMS normalization without biases, rotated queries and keys in the place of position embeddings, a gated MLP,
and heads of queries that share those of keys and values.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from onnx import ModelProto

from flamert import graph as g
from flamert import ops
from flamert.graph import Value
from flamert.ops.shape import narrow
from models import command
from models.building import Network, Place, embedding, layer, normal, rms_norm
from models.transformer import attend, causal, dense, scores, split
from models.weights import Weights

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "tinyllama-1.1b": {},
    "llama-2-7b": {"layers": 32, "width": 4096, "kv_heads": 32, "inner": 11008, "context": 4096},
    "smollm2-135m": {
        **{"layers": 30, "width": 576, "heads": 9, "kv_heads": 3, "inner": 1536, "vocabulary": 49152},
        **{"context": 8192, "theta": 1e5, "tied": True},
    },
    "bytes": {"layers": 4, "width": 128, "heads": 4, "kv_heads": 2, "inner": 344, "vocabulary": 256, "context": 128},
    "tiny": {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "inner": 48, "vocabulary": 50, "context": 24},
}


def llama(
    layers: int = 22,
    width: int = 2048,
    heads: int = 32,
    kv_heads: int = 4,
    inner: int = 5632,
    vocabulary: int = 32000,
    context: int = 2048,
    theta: float = 1e4,
    epsilon: float = 1e-5,
    tied: bool = False,
    seed: int = 0,
) -> Network:
    """A decoder of text: tokens → logits of the token after each of them."""
    size = width // heads
    table = (vocabulary, width)
    norm = partial(rms_norm, epsilon=epsilon)

    def turns(length: int) -> tuple[Value, Value]:
        """Cosines and sines [length, size / 2]: pair i of position p turns by p · theta^(−2i / size)."""
        places = narrow(g.constant(np.arange(context, dtype=np.float32)), 0, 0, length)
        speeds = g.constant((theta ** (-np.arange(0, size, 2) / size)).astype(np.float32))
        angles = ops.reshape(places, shape=(length, 1)) * speeds
        return ops.cos(angles), ops.sin(angles)

    @layer
    def attention(at: Place, x: Value, batch: int, mask: Value, cos: Value, sin: Value) -> Value:
        q, k, v = (
            split(dense(at / f"{name}_proj", x, n * size, bias=False), batch, n)
            for name, n in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        q, k = (ops.rotary_embedding(x, cos, sin) for x in (q, k))
        return dense(at / "o_proj", attend(q, k, v, mask), width, bias=False)

    @layer
    def mlp(at: Place, x: Value) -> Value:
        gate, up = (dense(at / f"{name}_proj", x, inner, bias=False) for name in ("gate", "up"))
        return dense(at / "down_proj", ops.swiglu(gate, up), width, bias=False)

    def network(at: Place, input_ids: Value) -> Value:
        batch, length = input_ids.shape
        root, words = at / "model", at / "model" / "embed_tokens"
        x = ops.reshape(embedding(words, input_ids, *table), shape=(batch * length, width))
        mask, (cos, sin) = causal(length), turns(length)
        for i in range(layers):
            block = root / "layers" / i
            x = x + attention(block / "self_attn", norm(block / "input_layernorm", x), batch, mask, cos, sin)
            x = x + mlp(block / "mlp", norm(block / "post_attention_layernorm", x))
        x = norm(root / "norm", x)
        return scores(x, (words if tied else at / "lm_head").parameter("weight", table, normal(0.02)), batch)

    return Network(network, {"input_ids": "int64[batch,sequence]"}, ["logits"], seed=seed)


def make(size: str = "tinyllama-1.1b", seed: int = 0, weights: Weights | None = None) -> ModelProto:
    """One of the configurations as an ONNX model."""
    return llama(**CONFIGURATIONS[size], seed=seed).proto(weights=weights)


if __name__ == "__main__":
    command.make(llama, CONFIGURATIONS)
