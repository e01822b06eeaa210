"""Calls of a plan that come from no op of the graph: several made one, and copies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from flamert.ops.op import Kernel, Site


def chained(calls: Sequence[Callable[[], Any]]) -> tuple[list[Callable[[], Any]], list[int]]:
    """Neighbouring calls of a type that knows how to `chain` as one each; and which call each of the new ones begins with.

    A type that cannot chain all of its calls says by `groups` which of its neighbours may become one, and in which order.
    """
    merged: list[Callable[[], Any]] = []
    starts: list[int] = []
    for kind, run in itertools.groupby(enumerate(calls), key=lambda item: type(item[1])):
        numbers, members = zip(*run, strict=True)
        together = [range(len(members))] if hasattr(kind, "chain") else [[i] for i in range(len(members))]
        for group in kind.groups(members) if hasattr(kind, "groups") else together:
            merged.append(kind.chain([members[i] for i in group]) if len(group) > 1 else members[group[0]])
            starts.append(numbers[group[0]])
    return merged, starts


class _CopyOp:
    """Internal op of the plan: a contiguous copy of a strided operand."""

    name, random, view, inplace = "copy", False, None, ()


COPYING = _CopyOp()


def _copy(site: Site, out: Any, x: Any, **attrs: Any) -> Callable[[], Any]:
    """Elements in C order are the same on both sides, so a copy serves reshapes that cannot be views as well."""
    return site.device.copier(out.reshape(x.shape), x)


COPY = Kernel(None, _copy, bind=True, strided=True)  # type: ignore[arg-type]
