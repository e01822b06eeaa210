"""Counting n-grams of a fixed vocabulary in rows of tokens, skips allowed: what TfIdfVectorizer does before it weighs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flamert.errors import InvalidModel


class Vocabulary:
    """N-grams by length, numbered as they come.

    pool: the n-grams' tokens end to end, those of length 1 first; starts: where each length begins in it. Only n-grams of the
    given lengths count. Raises InvalidModel where these do not fit each other.
    """

    def __init__(self, pool: list[Any], starts: Sequence[int], lengths: range) -> None:
        self.tokens: dict[Any, int] = {}
        coded = np.array([self.tokens.setdefault(token, len(self.tokens)) for token in pool], np.int64)
        self.grams: dict[int, _Grams] = {}
        self.size = 0
        for n, (start, stop) in enumerate(zip(starts, [*starts[1:], len(pool)], strict=True), 1):
            if not 0 <= start <= stop <= len(pool) or (stop - start) % n:
                raise InvalidModel(f"the pool's part [{start}, {stop}) does not hold whole {n}-grams")
            grams = coded[start:stop].reshape(-1, n)
            if n in lengths and len(grams):
                self.grams[n] = _Grams(grams, self.size, len(self.tokens) + 1)
            self.size += len(grams)

    def counts(self, rows: np.ndarray, skips: int) -> np.ndarray:
        """Occurrences by row and n-gram; the tokens of an n-gram lie up to `skips` others apart, evenly. int64[N, size]."""
        unknown = len(self.tokens)
        coded = np.array([self.tokens.get(token, unknown) for token in rows.reshape(-1).tolist()], np.int64)
        coded = coded.reshape(rows.shape)
        result = np.zeros((len(rows), self.size), np.int64)
        for n, grams in self.grams.items():
            # One token is the same whatever is skipped, so it counts once.
            for step in range(1, 2 if n == 1 else skips + 2):
                places = rows.shape[1] - step * (n - 1)
                if places > 0:
                    found = grams.find([coded[:, k * step : k * step + places] for k in range(n)])
                    row, place = np.nonzero(found >= 0)
                    np.add.at(result, (row, found[row, place]), 1)
        return result


class _Grams:
    """N-grams of one length, found by their prefixes: each prefix has a number, which with the next token keys the longer one.

    So the keys stay small, however many tokens there are and however long the n-grams.
    """

    def __init__(self, grams: np.ndarray, first: int, n_tokens: int) -> None:
        self.n_tokens = n_tokens
        self.keys: list[np.ndarray] = []
        number = np.zeros(len(grams), np.int64)
        for token in grams.T:
            keys, number = np.unique(number * n_tokens + token, return_inverse=True)
            self.keys.append(keys)
        if len(self.keys[-1]) < len(grams):
            raise InvalidModel(f"the pool holds a {grams.shape[1]}-gram twice")
        self.position = np.empty(len(grams), np.int64)
        self.position[number] = np.arange(first, first + len(grams))

    def find(self, tokens: Sequence[np.ndarray]) -> np.ndarray:
        """The vocabulary's number of each n-gram, given its first, second, … tokens; -1 for one that it lacks."""
        number = np.zeros(tokens[0].shape, np.int64)
        known = np.ones(tokens[0].shape, np.bool_)
        for keys, token in zip(self.keys, tokens, strict=True):
            key = number * self.n_tokens + token
            number = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
            known &= keys[number] == key
        return np.where(known, self.position[number], -1)
