"""Profile: where the time of one run goes, by op and by node, as tables and as a Chrome trace. Measuring is the plan's job."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from flamert.runtime.program import Program, Read


class Span(NamedTuple):
    """One kernel call or host step: seconds from the start of the run and how long it took."""

    op: str
    node: str
    """The ONNX node it came from, or "" where the op was made by a pass."""
    types: str
    start: float
    seconds: float


class Profile:
    """The calls of one run, in order. `print(profile)` shows both tables; rows are there as data too."""

    def __init__(self, spans: Sequence[Span], device: str) -> None:
        self.spans = tuple(spans)
        self.device = device

    @property
    def seconds(self) -> float:
        """All calls together."""
        return sum(s.seconds for s in self.spans)

    def by_op(self) -> list[tuple[str, int, float]]:
        """(op, calls, seconds), slowest first."""
        return _summed((s.op for s in self.spans), self.spans)

    def by_node(self) -> list[tuple[str, int, float]]:
        """(ONNX node, calls, seconds), slowest first."""
        return _summed((s.node or f"({s.op})" for s in self.spans), self.spans)

    def table(self, rows: int = 20) -> str:
        """Both tables as text, with the `rows` slowest lines of each."""
        from flamert.summary import as_text

        return as_text(self.tables(rows))

    def tables(self, rows: int = 20) -> list[Any]:
        """The tables by op and by node, with their headings, as rich renderables."""
        from flamert.summary import table

        result: list[Any] = []
        for what, lines in (("op", self.by_op()), ("ONNX node", self.by_node())):
            columns = (what, "calls", "ms", "%")
            cells = [
                (name, calls, f"{seconds * 1e3:.3f}", f"{100 * seconds / (self.seconds or 1):.1f}")
                for name, calls, seconds in lines[:rows]
            ]
            result.append(f"by {what}: {self.seconds * 1e3:.3f} ms on {self.device}")
            result.append(table(columns, cells, right=columns[1:]))
        return result

    def save_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the run in Chrome's trace format, for chrome://tracing or ui.perfetto.dev."""
        events: list[dict[str, Any]] = [
            {
                "name": s.op,
                "cat": "kernel" if s.node or s.types else "host",
                "ph": "X",
                "ts": s.start * 1e6,
                "dur": s.seconds * 1e6,
                "pid": 0,
                "tid": 0,
                "args": {"node": s.node, "types": s.types},
            }
            for s in self.spans
        ]
        events.append({"name": "thread_name", "ph": "M", "pid": 0, "tid": 0, "args": {"name": self.device}})
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<Profile: {len(self.spans)} calls, {self.seconds * 1e3:.3f} ms on {self.device}>"


def profile(program: Program, feeds: Sequence[Any], repeats: int) -> Profile:
    """Time each stage of a program on device arrays `feeds`; stages and host steps follow each other on one time line."""
    spans: list[Span] = []
    offset = 0.0
    for stage, rows, waited in program.profile(feeds, max(repeats, 1)):
        for step, start, seconds in rows:
            node = step.node
            operands = ", ".join("_" if v is None else str(v.type) for v in node.inputs)
            types = f"({operands}) → {', '.join(map(str, node.types))}"
            source = node.source
            name = f"{source.op_type} {source.name}".strip() if source is not None else ""
            spans.append(Span(node.op.name, name, types, offset + start, seconds))
        if rows:
            offset = spans[-1].start + spans[-1].seconds
        if waited:
            spans.append(Span("read" if isinstance(stage.step, Read) else "host", "", "", offset, waited))
            offset += waited
    return Profile(spans, program.device.name)


def _summed(names: Any, spans: Sequence[Span]) -> list[tuple[str, int, float]]:
    totals: dict[str, tuple[int, float]] = {}
    for name, span in zip(names, spans, strict=True):
        calls, seconds = totals.get(name, (0, 0.0))
        totals[name] = calls + 1, seconds + span.seconds
    return sorted(((name, *t) for name, t in totals.items()), key=lambda row: -row[2])
