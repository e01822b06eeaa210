"""Teaches an LSTM to write Python: the sources of the standard library, byte by byte.

`python -m models.lstm.train`
"""

from __future__ import annotations

import numpy as np

import flamert as fr
from models import command, text
from models.lstm.make import CONFIGURATIONS, make

LAYERS, WIDTH = (CONFIGURATIONS["bytes"][name] for name in ("layers", "width"))


class Windows(text.Windows):
    """Windows that start from a state of zeros."""

    def example(self, windows: np.ndarray, rng: np.random.Generator) -> text.Batch:
        ids, target = super().example(windows, rng)
        return {**ids, **zeros(len(windows))}, target


def zeros(batch: int) -> dict[str, np.ndarray]:
    """The state in front of a text."""
    return {name: np.zeros((LAYERS, batch, WIDTH), np.float32) for name in ("h", "c")}


def continued(model: fr.Model, prompt: str, length: int, seed: int = 0) -> str:
    """The prompt and `length` more bytes. The model reads the prompt once; from there on its state tells it what there was."""
    rng, tokens, unread = np.random.default_rng(seed), list(prompt.encode()), list(prompt.encode())
    state = zeros(1)
    for _ in range(length):
        logits, state["h"], state["c"] = model(input_ids=np.array([unread]), **state)
        unread = [text.drawn(logits[0, -1], rng)]
        tokens += unread
    return bytes(tokens).decode(errors="replace")


def main() -> None:
    args = command.arguments(__doc__ or "", "lstm", epochs=10)
    model = fr.load(make("bytes", args.seed), device=args.device)
    text.learn(model, args, 64, lr=4e-3, title="lstm: bytes of the standard library", windows=Windows)
    print(continued(model, text.PROMPT, 400, args.seed))


if __name__ == "__main__":
    main()
