"""BERT (Devlin et al. 2018): an encoder of text. Parameters are called and stored as Hugging Face has them."""

from __future__ import annotations

from functools import partial
from typing import Any

from onnx import ModelProto

from flamert import ops
from flamert.graph import Value
from flamert.ops.shape import narrow
from models import command
from models.building import Network, Place, embedding, layer, layer_norm, linear, normal, zeros
from models.transformer import attend, dropout, scores, sinusoids, split
from models.weights import Weights

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "base": {},
    "large": {"layers": 24, "width": 1024, "heads": 16},
    "mini": {"layers": 4, "width": 256, "heads": 4},
    "masked": {"masked": True},
    "bytes": {
        "layers": 4,
        "width": 128,
        "heads": 4,
        "vocabulary": 256,
        "context": 128,
        "drop": 0.0,
        "kinds": 7,
        "deviation": 0.08,
    },
    "tiny": {"layers": 2, "width": 32, "heads": 4, "vocabulary": 50, "context": 24},
}

EPSILON = 1e-12


def bert(
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    vocabulary: int = 30522,
    context: int = 512,
    drop: float = 0.1,
    masked: bool = False,
    kinds: int = 0,
    deviation: float = 0.02,
    seed: int = 0,
) -> Network:
    """An encoder of text: tokens → their hidden states and a summary of all; or logits for each of them.

    masked: logits of what the token is, where it is masked, as of Hugging Face's BertForMaskedLM. kinds: logits of which of
    that many kinds it is of, as of BertForTokenClassification. deviation: of weights before training, in which positions are
    sinusoids: so a small model finds neighbours sooner.
    """
    spread = normal(deviation)
    dense = partial(linear, initial=spread)

    def embeddings(at: Place, ids: Value, types: Value) -> Value:
        places = (at / "position_embeddings").parameter("weight", (context, width), sinusoids(1.4 * deviation))
        x = embedding(at / "word_embeddings", ids, vocabulary, width, initial=spread) + narrow(places, 0, 0, ids.shape[1])
        x = x + embedding(at / "token_type_embeddings", types, 2, width, initial=spread)
        x = layer_norm(at / "LayerNorm", ops.reshape(x, shape=(ids.type.size, width)), epsilon=EPSILON)
        return dropout(x, drop)

    def added(at: Place, x: Value, y: Value) -> Value:
        """The end of each half of a block: y, projected, beside what went into it."""
        y = dropout(dense(at / "dense", y, width), drop)
        return layer_norm(at / "LayerNorm", x + y, epsilon=EPSILON)

    @layer
    def block(at: Place, x: Value, batch: int, mask: Value) -> Value:
        own = at / "attention" / "self"
        q, k, v = (split(dense(own / name, x, width), batch, heads) for name in ("query", "key", "value"))
        x = added(at / "attention" / "output", x, attend(q, k, v, mask, drop=drop))
        return added(at / "output", x, ops.gelu(dense(at / "intermediate" / "dense", x, 4 * width)))

    def network(at: Place, input_ids: Value, attention_mask: Value, token_type_ids: Value) -> Value | tuple[Value, Value]:
        batch, length = input_ids.shape
        root = at / "bert"
        mask = ops.reshape(ops.not_equal(attention_mask, 0), shape=(batch, 1, 1, length))
        x = embeddings(root / "embeddings", input_ids, token_type_ids)
        for i in range(layers):
            x = block(root / "encoder" / "layer" / i, x, batch, mask)
        if masked:
            return guesses(at / "cls" / "predictions", x, root / "embeddings" / "word_embeddings", batch)
        if kinds:
            return ops.reshape(dense(at / "classifier", dropout(x, drop), kinds), shape=(batch, length, kinds))
        states = ops.reshape(x, shape=(batch, length, width))
        first = ops.reshape(narrow(states, 1, 0, 1), shape=(batch, width))
        return states, ops.tanh(dense(root / "pooler" / "dense", first, width))

    def guesses(at: Place, x: Value, words: Place, batch: int) -> Value:
        x = ops.gelu(dense(at / "transform" / "dense", x, width))
        x = layer_norm(at / "transform" / "LayerNorm", x, epsilon=EPSILON)
        table = words.parameter("weight", (vocabulary, width), spread)
        return scores(x, table, batch) + at.parameter("bias", (vocabulary,), zeros)

    inputs = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), "int64[batch,sequence]")
    outputs = ["logits"] if masked or kinds else ["last_hidden_state", "pooler_output"]
    return Network(network, inputs, outputs, seed=seed)


def make(size: str = "base", seed: int = 0, weights: Weights | None = None) -> ModelProto:
    """One of the configurations as an ONNX model."""
    return bert(**CONFIGURATIONS[size], seed=seed).proto(weights=weights)


if __name__ == "__main__":
    command.make(bert, CONFIGURATIONS)
