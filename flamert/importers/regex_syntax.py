"""The syntax of regular expressions as RE2 has it: a pattern read into a tree. What a tree matches is in regex.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from flamert.errors import InvalidModel, UnsupportedOp
from flamert.importers.regex_sets import CATEGORIES, ESCAPES, LAST, PERL, POSIX, CharacterSet, complement, orbits

MAX_REPEAT = 1000
"""The largest n of a{n} and a{m,n}: RE2's own."""

MAX_DEPTH = 100
"""Groups within groups."""


class Char(NamedTuple):
    """One character of a set."""

    takes: Callable[[str], bool]


class Assertion(NamedTuple):
    """A place in the text: start, end, line start, line end, boundary, no boundary."""

    what: str


class Run(NamedTuple):
    """Parts one after the other."""

    parts: tuple[Tree, ...]


class Choice(NamedTuple):
    """One of the parts."""

    parts: tuple[Tree, ...]


class Repeat(NamedTuple):
    """`part`, from `least` to `most` times (None: without limit). Greedy or not makes no difference to a full match."""

    part: Tree
    least: int
    most: int | None


Tree = Char | Assertion | Run | Choice | Repeat


class _Flags(NamedTuple):
    i: bool = False
    m: bool = False
    s: bool = False
    U: bool = False


class Parser:
    """RE2's grammar by recursive descent."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.flags = _Flags()
        self.depth = 0

    def parse(self) -> Tree:
        tree = self._choice()
        if self.at < len(self.pattern):
            raise self._error("unexpected )")
        return tree

    def _error(self, why: str) -> InvalidModel:
        return InvalidModel(f"the regular expression {self.pattern!r} is no RE2 syntax: {why} at {self.at}")

    def _peek(self, text: str) -> bool:
        return self.pattern.startswith(text, self.at)

    def _accept(self, text: str) -> bool:
        if self._peek(text):
            self.at += len(text)
            return True
        return False

    def _next(self, missing: str) -> str:
        if self.at >= len(self.pattern):
            raise self._error(missing)
        self.at += 1
        return self.pattern[self.at - 1]

    def _until(self, end: str) -> str:
        stop = self.pattern.find(end, self.at)
        if stop < 0:
            raise self._error(f"missing {end}")
        text, self.at = self.pattern[self.at : stop], stop + len(end)
        return text

    def _choice(self) -> Tree:
        parts = [self._sequence()]
        while self._accept("|"):
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def _sequence(self) -> Tree:
        parts: list[Tree] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            if self._accept("\\Q"):
                stop = self.pattern.find("\\E", self.at)
                text = self.pattern[self.at :] if stop < 0 else self.pattern[self.at : stop]
                self.at += len(text) + (0 if stop < 0 else 2)
                parts += [self._literal(ord(c)) for c in text]
                if text:
                    parts.append(self._repeated(parts.pop()))
            else:
                parts.append(self._repeated(self._atom()))
        return Run(tuple(parts))

    def _repeated(self, part: Tree) -> Tree:
        bounds = self._bounds()
        if bounds is None:
            return part
        self._accept("?")
        if self._bounds() is not None:
            raise self._error("repetition of a repetition")
        return Repeat(part, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        """A repetition operator, if there is one; a brace that starts none is an ordinary character."""
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._accept(sign):
                return bounds
        if not self._peek("{"):
            return None
        stop = self.pattern.find("}", self.at)
        low, comma, high = self.pattern[self.at + 1 : max(stop, self.at)].partition(",")
        if stop < 0 or not all(n.isascii() and n.isdigit() for n in ([low, high] if high else [low])):
            return None
        self.at = stop + 1
        least = int(low)
        most = least if not comma else int(high) if high else None
        if max(least, most or 0) > MAX_REPEAT or (most is not None and most < least):
            raise self._error("invalid repetition size")
        return least, most

    def _atom(self) -> Tree:
        char = self._next("an end")
        if char == "(":
            return self._group()
        if char == "[":
            return self._bracket()
        if char == ".":
            return Char((lambda c: True) if self.flags.s else (lambda c: c != "\n"))
        if char == "^":
            return Assertion("line start" if self.flags.m else "start")
        if char == "$":
            return Assertion("line end" if self.flags.m else "end")
        if char == "\\":
            return self._escape()
        self.at -= 1
        if self._bounds() is not None:
            raise self._error("nothing to repeat")
        self.at += 1
        return self._literal(ord(char))

    def _group(self) -> Tree:
        if self.depth >= MAX_DEPTH:
            raise self._error("groups are nested too deep")
        outer = self.flags
        if self._accept("?P<") or self._accept("?<"):
            name = self._until(">")
            if not name or not all(c.isalnum() or c == "_" for c in name):
                raise self._error("invalid group name")
        elif self._accept("?"):
            self.flags = self._new_flags()
            if self.pattern[self.at - 1] == ")":
                return Run(())
        self.depth += 1
        tree = self._choice()
        self.depth -= 1
        if not self._accept(")"):
            raise self._error("missing )")
        self.flags = outer
        return tree

    def _new_flags(self) -> _Flags:
        """The letters of (?i-s) or (?i-s:, up to the end of that; the former holds to the end of the enclosing group."""
        flags, value = self.flags, True
        while (char := self._next("missing )")) not in ":)":
            if char == "-" and value:
                value = False
            elif char in _Flags._fields:
                flags = flags._replace(**{char: value})
            else:
                raise self._error("(? is followed by something that RE2 lacks (lookaround, for instance)")
        return flags

    def _escape(self) -> Tree:
        places = {"A": "start", "z": "end", "b": "boundary", "B": "no boundary"}
        if self.at < len(self.pattern) and self.pattern[self.at] in places:
            return Assertion(places[self._next("")])
        members = CharacterSet()
        return self._set(members, False) if self._class_escape(members) else self._literal(self._code())

    def _class_escape(self, members: CharacterSet) -> bool:
        r"""Whether \d, \pN or the like follows the backslash; if so it is added to `members`."""
        char = self._next("trailing \\")
        if char.lower() in PERL:
            ranges = PERL[char.lower()]
            members.ranges += ranges if char.islower() else complement(ranges)
        elif char in "pP":
            name = self._until("}") if self._accept("{") else self._next("missing class")
            negated = name.startswith("^")
            name = name.removeprefix("^")
            if name == "Any":
                members.ranges += [(0, LAST)] if negated == (char == "P") else []
            elif name[:1] in CATEGORIES and name[1:] in ("", *CATEGORIES[name[:1]]):
                members.categories.append((name, negated != (char == "P")))
            else:
                raise UnsupportedOp(f"the regular expression {self.pattern!r} names the script {name!r}; write a range")
        else:
            self.at -= 1
            return False
        return True

    def _code(self) -> int:
        """The code point that an escape stands for; the backslash has been read."""
        char = self._next("trailing \\")
        if char in ESCAPES:
            return ESCAPES[char]
        if char == "x":
            digits = self._until("}") if self._accept("{") else self._next("\\x") + self._next("\\x")
            return self._number(digits, 16)
        if char in "01234567" and (char == "0" or self.pattern[self.at : self.at + 1] in tuple("01234567")):
            digits = char
            while len(digits) < 3 and self.pattern[self.at : self.at + 1] in tuple("01234567"):
                digits += self._next("")
            return self._number(digits, 8)
        if char == "C":
            raise UnsupportedOp(f"the regular expression {self.pattern!r} matches single bytes (\\C)")
        if not char.isascii() or char.isalnum():
            raise self._error(f"invalid escape \\{char}")
        return ord(char)

    def _number(self, digits: str, base: int) -> int:
        try:
            code = int(digits, base)
        except ValueError:
            raise self._error(f"invalid number {digits!r}") from None
        if code > LAST:
            raise self._error("code point out of range")
        return code

    def _literal(self, code: int) -> Char:
        return self._set(CharacterSet((code, code)), False)

    def _bracket(self) -> Char:
        members, negated, first = CharacterSet(), self._accept("^"), True
        while first or not self._peek("]"):
            first = False
            if self._accept("[:"):
                name = self._until(":]")
                ranges = POSIX.get(name.removeprefix("^"))
                if ranges is None:
                    raise self._error(f"unknown class [:{name}:]")
                members.ranges += complement(ranges) if name.startswith("^") else ranges
            elif not self._accept("\\"):
                self._range(members, ord(self._next("missing ]")))
            elif not self._class_escape(members):
                self._range(members, self._code())
        self.at += 1
        return self._set(members, negated)

    def _range(self, members: CharacterSet, low: int) -> None:
        high = low
        if self._peek("-") and not self._peek("-]"):
            self.at += 1
            high = self._code() if self._accept("\\") else ord(self._next("missing ]"))
            if high < low:
                raise self._error("a range whose end is before its start")
        members.ranges.append((low, high))

    def _set(self, members: CharacterSet, negated: bool) -> Char:
        exact = members.holds
        if not self.flags.i:
            return Char((lambda char: not exact(char)) if negated else exact)
        alike = orbits()
        return Char(lambda char: any(map(exact, alike.get(char, char))) != negated)
