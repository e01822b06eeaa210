"""Converters of ONNX ops on strings, run on the host: concatenation, splitting, normalization, regular expressions, n-grams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flamert import dtypes
from flamert.errors import InvalidModel, ShapeError, UnsupportedType
from flamert.graph import Value
from flamert.importers.ngrams import Vocabulary
from flamert.importers.regex import compiled
from flamert.importers.registry import Context, converter


def strings(x: Value) -> Value:
    """`x`, if it is a tensor of strings. Raises UnsupportedType where it is not."""
    if not isinstance(x, Value) or x.dtype != dtypes.string:
        raise UnsupportedType(f"a tensor of strings is needed, got {x.type if isinstance(x, Value) else x}")
    return x


def string_array(items: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of strings from its elements in C order."""
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape)


@converter("StringConcat", 20, strings=True)
def _(ctx: Context, x: Value, y: Value) -> Any:
    return ctx.host(lambda a, b: [np.asarray(a + b, object)], strings(x), strings(y))


@converter("StringSplit", 20, strings=True)
def _(ctx: Context, x: Value, *, delimiter: str = "", maxsplit: int = -1) -> Any:
    def split(x: np.ndarray) -> list[np.ndarray]:
        parts = [s.split(delimiter or None, maxsplit) for s in x.reshape(-1)]
        width = max(map(len, parts), default=0)
        padded = [part for row in parts for part in row + [""] * (width - len(row))]
        return [string_array(padded, (*x.shape, width)), np.array([*map(len, parts)], np.int64).reshape(x.shape)]

    return ctx.host(split, strings(x))


@converter("RegexFullMatch", 20, strings=True)
def _(ctx: Context, x: Value, *, pattern: str = "") -> Any:
    regex = compiled(pattern)

    def match(x: np.ndarray) -> list[np.ndarray]:
        return [np.array([regex.fullmatch(s) for s in x.reshape(-1)], np.bool_).reshape(x.shape)]

    return ctx.host(match, strings(x))


class _Case(dict[int, int]):
    """How letters change case one by one, as C's towupper and towlower do: ß has no capital, and no context counts.

    Turkic languages pair i with İ and ı with I; other locales do not differ.
    """

    def __init__(self, action: str, locale: str) -> None:
        turkic = locale.replace("-", "_").partition("_")[0].lower() in ("tr", "az")
        if action == "UPPER":
            self.change = str.upper
            super().__init__({ord("i"): ord("İ" if turkic else "I")})
        else:
            self.change = str.lower
            super().__init__({ord("İ"): ord("i"), ord("I"): ord("ı" if turkic else "i")})

    def __missing__(self, code: int) -> int:
        changed = self.change(chr(code))
        if len(changed) > 1 and self.change is str.upper:
            changed = chr(code).title()  # ᾳ: its single-letter capital is the title-case one
        self[code] = ord(changed) if len(changed) == 1 else code
        return self[code]


@converter("StringNormalizer", 10, strings=True)
def _(
    ctx: Context,
    x: Value,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: int = 0,
    locale: str = "en_US",
    stopwords: Sequence[str] = (),
) -> Any:
    if case_change_action not in ("NONE", "LOWER", "UPPER"):
        raise InvalidModel(f"case_change_action is {case_change_action!r}, not NONE, LOWER or UPPER")
    if strings(x).rank not in (1, 2) or (x.rank == 2 and x.shape[0] != 1):
        raise ShapeError(f"StringNormalizer takes [C] or [1, C], not {list(x.shape)}")
    output = None if case_change_action == "NONE" else _Case(case_change_action, locale)
    compared = None if is_case_sensitive else _Case("LOWER", locale)
    stop = {_translated(w, compared) for w in stopwords}

    def normalize(x: np.ndarray) -> list[np.ndarray]:
        kept = [s for s in x.reshape(-1) if not stop or _translated(s, compared) not in stop]
        kept = [_translated(s, output) for s in kept] or [""]
        return [string_array(kept, (*x.shape[:-1], len(kept)))]

    return ctx.host(normalize, x)


def _translated(text: str, case: _Case | None) -> str:
    return text if case is None else text.translate(case)


@converter("TfIdfVectorizer", 9, strings=True)
def _(
    ctx: Context,
    x: Value,
    *,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: str,
    ngram_counts: Sequence[int],
    ngram_indexes: Sequence[int],
    pool_int64s: Sequence[int] = (),
    pool_strings: Sequence[str] = (),
    weights: Sequence[float] = (),
) -> Any:
    if mode not in ("TF", "IDF", "TFIDF"):
        raise InvalidModel(f"mode is {mode!r}, not TF, IDF or TFIDF")
    if x.rank > 2:
        raise ShapeError(f"TfIdfVectorizer takes [C] or [N, C], not {list(x.shape)}")
    if not 1 <= min_gram_length <= max_gram_length or max_skip_count < 0:
        raise InvalidModel("n-gram lengths must be positive and ordered, and skips not negative")
    if pool_strings:
        strings(x)
    elif x.dtype not in (dtypes.int32, dtypes.int64):
        raise UnsupportedType(f"a pool of integers needs an integer tensor, got {x.type}")
    lengths = range(min_gram_length, max_gram_length + 1)
    vocabulary = Vocabulary(list(pool_strings or pool_int64s), ngram_counts, lengths)
    columns = np.array(ngram_indexes, np.int64)
    scale = np.array(weights, np.float32) if mode != "TF" and weights else np.ones(len(columns), np.float32)
    if len(columns) < vocabulary.size or not len(columns) or columns.min() < 0 or len(scale) != len(columns):
        raise InvalidModel(f"ngram_indexes or weights do not fit a pool of {vocabulary.size} n-grams")

    def vectorize(x: np.ndarray) -> list[np.ndarray]:
        counts = vocabulary.counts(np.atleast_2d(x), max_skip_count)
        result = np.zeros((len(counts), columns.max() + 1), np.float32)
        row, gram = np.nonzero(counts)
        if mode == "IDF":  # of n-grams that share a column, the last one present counts
            result[row, columns[gram]] = scale[gram]
        else:
            np.add.at(result, (row, columns[gram]), counts[row, gram] * scale[gram])
        return [result if x.ndim == 2 else result[0]]

    return ctx.host(vectorize, x)
