"""Sets of characters that regular expressions name: ranges, Perl's and POSIX's classes, Unicode categories, case orbits."""

from __future__ import annotations

import functools
import unicodedata

LAST = 0x10FFFF
"""The largest code point."""

Ranges = list[tuple[int, int]]
"""Code points, both ends included."""

_DIGIT: Ranges = [(0x30, 0x39)]
_LOWER: Ranges = [(0x61, 0x7A)]
_UPPER: Ranges = [(0x41, 0x5A)]
_PUNCT: Ranges = [(0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E)]
_WORD = _DIGIT + _UPPER + [(0x5F, 0x5F)] + _LOWER
PERL = {"d": _DIGIT, "w": _WORD, "s": [(9, 10), (12, 13), (32, 32)]}
POSIX = {
    "alnum": _DIGIT + _UPPER + _LOWER,
    "alpha": _UPPER + _LOWER,
    "ascii": [(0, 0x7F)],
    "blank": [(9, 9), (32, 32)],
    "cntrl": [(0, 31), (127, 127)],
    "digit": _DIGIT,
    "graph": [(0x21, 0x7E)],
    "lower": _LOWER,
    "print": [(0x20, 0x7E)],
    "punct": _PUNCT,
    "space": [(9, 13), (32, 32)],
    "upper": _UPPER,
    "word": _WORD,
    "xdigit": [*_DIGIT, (0x41, 0x46), (0x61, 0x66)],
}
ESCAPES = {"a": 7, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}
CATEGORIES = {
    "C": "cfos",
    "L": "lmotu",
    "M": "cen",
    "N": "dlo",
    "P": "cdefios",
    "S": "ckmo",
    "Z": "lps",
}
"""Unicode's general categories: the second letters that may follow a first one."""


def complement(ranges: Ranges) -> Ranges:
    result: Ranges = []
    at = 0
    for low, high in sorted(ranges):
        if low > at:
            result.append((at, low - 1))
        at = max(at, high + 1)
    return [*result, (at, LAST)] if at <= LAST else result


@functools.lru_cache(maxsize=1)
def orbits() -> dict[str, str]:
    """Characters that have others differing in case only, with all of these, by simple case folding."""
    classes: dict[str, str] = {}
    for char in map(chr, range(0x1E944)):
        folded = char.casefold()
        folded = folded if len(folded) == 1 else char.lower()
        if len(folded) == 1 and folded != char:
            classes[folded] = classes.get(folded, folded) + char
    return {char: orbit for orbit in classes.values() for char in orbit}


class CharacterSet:
    """What a bracketed class holds: ranges, and Unicode categories that may be negated."""

    def __init__(self, *ranges: tuple[int, int]) -> None:
        self.ranges: Ranges = list(ranges)
        self.categories: list[tuple[str, bool]] = []

    def holds(self, char: str) -> bool:
        code = ord(char)
        if any(low <= code <= high for low, high in self.ranges):
            return True
        if not self.categories:
            return False
        category = unicodedata.category(char).replace("Cn", "unassigned")
        return any(category.startswith(name) != negated for name, negated in self.categories)
