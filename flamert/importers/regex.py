"""Regular expressions in RE2's syntax, matched as RE2 does: in time linear in the text, whatever the pattern."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from flamert.errors import InvalidModel
from flamert.importers.regex_syntax import Assertion, Char, Choice, Parser, Repeat, Run, Tree

MAX_SIZE = 50_000
"""Steps of a compiled pattern, beyond which it counts as a bomb: a{1000} inside {1000} would have a million."""

MAX_STATES = 4096
"""Deterministic states kept; beyond that they are forgotten and built again as the text needs them."""


class Regex:
    """`Regex(pattern).fullmatch(text)` → whether the whole text matches.

    The pattern becomes a nondeterministic automaton; its deterministic counterpart is built state by state as texts ask for
    it. Raises InvalidModel for what RE2 rejects too (backreferences and lookaround among it), UnsupportedOp for classes by
    script (`\\p{Greek}`), of which Python knows nothing, and for `\\C`.
    """

    def __init__(self, pattern: str) -> None:
        self.program = _Program()
        self.start = self.program.compile(Parser(pattern).parse(), self.program.add(_Accept()))
        self._forget()

    def fullmatch(self, text: str) -> bool:
        state = self._first
        for char in text:
            following = self._moves[state].get(char)
            if following is None:
                if len(self._states) > MAX_STATES:
                    steps, before = self._states[state]
                    self._forget()
                    state = self._state(steps, before)
                following = self._moves[state][char] = self._move(state, char)
            state = following
        if state not in self._accepting:
            self._accepting[state] = any(isinstance(self.program[at], _Accept) for at in self._closure(state, None))
        return self._accepting[state]

    def _forget(self) -> None:
        self._states: list[tuple[frozenset[int], str | None]] = []
        self._numbers: dict[tuple[frozenset[int], str | None], int] = {}
        self._moves: list[dict[str, int]] = []
        self._accepting: dict[int, bool] = {}
        self._first = self._state(frozenset([self.start]), None)

    def _state(self, steps: frozenset[int], before: str | None) -> int:
        """The number of a state: steps that may come next, and what kind of character ^, $ and \\b see before them."""
        key = (steps, before)
        if key not in self._numbers:
            self._numbers[key] = len(self._states)
            self._states.append(key)
            self._moves.append({})
        return self._numbers[key]

    def _move(self, state: int, char: str) -> int:
        taken = [self.program[at] for at in self._closure(state, char)]
        reached = frozenset([s.following for s in taken if isinstance(s, _One) and s.takes(char)])
        return self._state(reached, _kind(char) if reached else None)

    def _closure(self, state: int, char: str | None) -> set[int]:
        """Steps reached without consuming anything, `char` (None: the end) being what comes next."""
        steps, before = self._states[state]
        seen: set[int] = set()
        pending = list(steps)
        while pending:
            at = pending.pop()
            if at in seen:
                continue
            seen.add(at)
            step = self.program[at]
            if isinstance(step, _Fork):
                pending += (step.left, step.right)
            elif isinstance(step, _Check) and _holds(step.what, before, None if char is None else _kind(char)):
                pending.append(step.following)
        return seen


@functools.lru_cache(maxsize=64)
def compiled(pattern: str) -> Regex:
    """The automaton of a pattern, kept for later."""
    return Regex(pattern)


def _kind(char: str) -> str:
    if char == "\n":
        return "newline"
    return "word" if char.isascii() and (char.isalnum() or char == "_") else "other"


def _holds(what: str, before: str | None, after: str | None) -> bool:
    """Whether an assertion holds between two kinds of characters, None being an end of the text."""
    if what in ("start", "end"):
        return (before if what == "start" else after) is None
    if what in ("line start", "line end"):
        return (before if what == "line start" else after) in (None, "newline")
    return ((before == "word") != (after == "word")) == (what == "boundary")


# -- the nondeterministic automaton: each step names those that follow it ---------------------------------------------------


class _One(NamedTuple):
    takes: Callable[[str], bool]
    following: int


class _Fork(NamedTuple):
    left: int
    right: int


class _Check(NamedTuple):
    what: str
    following: int


class _Accept(NamedTuple):
    pass


_Step = _One | _Fork | _Check | _Accept


class _Program(list[_Step]):
    """The steps by number, built from the end of the pattern to its start."""

    def add(self, step: _Step) -> int:
        if len(self) >= MAX_SIZE:
            raise InvalidModel("the regular expression is too large")
        self.append(step)
        return len(self) - 1

    def compile(self, tree: Tree, following: int) -> int:
        """Add the steps of `tree`, then `following`; returns where it starts."""
        if isinstance(tree, Char):
            return self.add(_One(tree.takes, following))
        if isinstance(tree, Assertion):
            return self.add(_Check(tree.what, following))
        if isinstance(tree, Run):
            for part in reversed(tree.parts):
                following = self.compile(part, following)
            return following
        if isinstance(tree, Choice):
            starts = [self.compile(part, following) for part in tree.parts]
            return functools.reduce(lambda right, left: self.add(_Fork(left, right)), starts[::-1])
        return self._repeat(tree, following)

    def _repeat(self, tree: Repeat, following: int) -> int:
        if tree.most is None:
            loop = self.add(_Fork(following, following))
            self[loop] = _Fork(self.compile(tree.part, loop), following)
            following = loop
        else:
            end = following
            for _ in range(tree.most - tree.least):
                following = self.add(_Fork(self.compile(tree.part, following), end))
        for _ in range(tree.least):
            following = self.compile(tree.part, following)
        return following
