"""Teaches a small BERT what Python is made of: comments, strings, keywords, … in the sources of the standard library.

`python -m models.bert.train`. The model sees windows of bytes and tells of each what it belongs to; Python's own tokenizer
says what is right.
"""

from __future__ import annotations

import io
import keyword
import tokenize

import numpy as np

import flamert as fr
from models import command, text
from models.bert.make import CONFIGURATIONS, make

CONTEXT = CONFIGURATIONS["bytes"]["context"]
KINDS = {"space": " ", "name": "n", "keyword": "k", "number": "1", "string": "s", "comment": "c", "operator": "o"}
"""What a byte can belong to, and the letter that stands for it."""

TOKENS = {tokenize.NUMBER: 3, tokenize.STRING: 4, tokenize.COMMENT: 5, tokenize.OP: 6}
TOKENS |= {getattr(tokenize, name): 4 for name in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END") if hasattr(tokenize, name)}

SAMPLE = '''        """Close the file, if it is open."""
        if self._file is not None:  # or all is done
            return self._file
'''


def kind(token: tokenize.TokenInfo) -> int:
    """The number of what a token is."""
    if token.type == tokenize.NAME:
        return 1 + keyword.iskeyword(token.string)
    return TOKENS.get(token.type, 0)


def marked(source: bytes) -> np.ndarray:
    """Every byte of a text, and 256 times the number of its kind."""
    lines = io.StringIO(source.decode(errors="replace")).readlines()
    starts = np.cumsum([0, *[len(line.encode()) for line in lines]])
    found = np.frombuffer("".join(lines).encode(), np.uint8).astype(np.int64)

    def place(row: int, column: int) -> int:
        return int(starts[row - 1]) + len(lines[row - 1][:column].encode()) if row <= len(lines) else len(found)

    for token in tokenize.generate_tokens(io.StringIO("".join(lines)).readline):
        found[place(*token.start) : place(*token.end)] |= kind(token) << 8
    return found


class Windows(text.Windows):
    """Windows of a text that is `marked`; the kinds are the targets."""

    def example(self, windows: np.ndarray, rng: np.random.Generator) -> text.Batch:
        return inputs(windows[:, :-1] & 255), windows[:, :-1] >> 8


def inputs(ids: np.ndarray) -> dict[str, np.ndarray]:
    """All that the model takes, of texts of one length."""
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def told(model: fr.Model, source: str) -> str:
    """The text, and below each line a letter for what each byte belongs to."""
    ids = np.frombuffer(source.encode(), np.uint8).astype(np.int64)
    letters = np.array(list(KINDS.values()))[model(**inputs(ids[None]))[0].argmax(-1)]
    below = "".join(np.where(ids == ord("\n"), "\n", letters))
    return "\n".join(line for pair in zip(source.splitlines(), below.splitlines(), strict=True) for line in pair)


def main() -> None:
    args = command.arguments(__doc__ or "", "bert", epochs=8)
    model = fr.load(make("bytes", args.seed), device=args.device)
    title, metric = "bert: kinds of bytes in the standard library", fr.metrics.accuracy()
    text.learn(model, args, CONTEXT, lr=2e-3, title=title, windows=Windows, read=marked, metric=metric)
    print(told(model, SAMPLE))


if __name__ == "__main__":
    main()
