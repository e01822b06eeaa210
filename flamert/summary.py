"""Text tables about a model, for `model.summary()` and the command line; rich is imported only when one is asked for."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from flamert.model import Model

WIDTH = 110
"""Columns of a table that is written to no terminal."""


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], right: Collection[str] = ()) -> Any:
    """A rich table of plain text: what looks like markup in a name is left alone. right: columns to align to the right."""
    from rich.table import Table
    from rich.text import Text

    result = Table()
    for column in columns:
        result.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        result.add_row(*[Text(str(cell)) for cell in row])
    return result


def listing(lines: Mapping[str, Any]) -> Any:
    """Names and values side by side, without rules; empty values are left out."""
    from rich.table import Table
    from rich.text import Text

    result = Table(show_header=False, box=None, pad_edge=False)
    result.add_column(style="bold")
    result.add_column(overflow="fold")
    for name, value in lines.items():
        if value != "":
            result.add_row(name, Text(str(value)))
    return result


def show(renderables: Sequence[Any], console: Any) -> None:
    """Print tables and plain lines."""
    for renderable in renderables:
        if isinstance(renderable, str):
            console.print(renderable, markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(renderable)


def as_text(renderables: Sequence[Any]) -> str:
    """Tables and lines as plain text."""
    from rich.console import Console

    stream = io.StringIO()
    show(renderables, Console(file=stream, width=WIDTH, color_system=None, force_terminal=False))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def summary(model: Model) -> str:
    """See `Model.summary`."""
    return as_text(tables(model))


def facts(model: Model) -> dict[str, Any]:
    """What the tables show, as plain data."""
    about = model.origin.about()
    floating = [a for a in model.params.values() if a.dtype.kind in "fV"]
    return {
        "file": about.file,
        "graph": about.graph,
        "doc": about.doc or about.graph_doc,
        "producer": f"{about.producer} {about.producer_version}".strip(),
        "version": about.version,
        "ir_version": about.ir_version,
        "opsets": {domain or "ai.onnx": version for domain, version in about.opsets.items()},
        "metadata": dict(about.metadata),
        "functions": list(about.functions),
        "inputs": [_spec(s, about.types) | {"optional": s.name in model.origin.optional} for s in model.inputs],
        "outputs": [_spec(s, about.types) for s in model.outputs],
        "parameters": sum(a.size for a in floating),
        "parameter_bytes": sum(a.nbytes for a in model.origin.weights.values()),
        "ops": {f"{domain}::{op}" if domain else op: n for (domain, op), n in about.ops.items()},
        "device": model.device.name,
        "signatures": model.signatures,
    }


def tables(model: Model) -> list[Any]:
    """The summary as rich renderables: facts, inputs and outputs, ops."""
    known = facts(model)
    opsets = ", ".join(f"{domain} {version}" for domain, version in known["opsets"].items())
    head = {
        "file": known["file"] or "(bytes)",
        "graph": known["graph"],
        "producer": known["producer"],
        "opsets": f"{opsets} (IR {known['ir_version']})",
        "parameters": f"{known['parameters']:,} ({human(known['parameter_bytes'])})",
        "metadata": ", ".join(f"{k}={v if len(v) < 60 else v[:57] + '…'}" for k, v in known["metadata"].items()),
        "functions": ", ".join(known["functions"]),
        "device": f"{known['device']}, {known['signatures']} input signatures compiled",
    }
    ends = []
    for kind, specs in (("input", known["inputs"]), ("output", known["outputs"])):
        for s in specs:
            shape = "?" if s["shape"] is None else "[" + ", ".join("?" if d is None else str(d) for d in s["shape"]) + "]"
            ends.append((kind + (" (optional)" if s.get("optional") else ""), s["name"], s["type"], shape))
    counts = sorted(known["ops"].items(), key=lambda item: -item[1])
    return [
        listing(head),
        table(("", "name", "type", "shape"), ends),
        f"{sum(known['ops'].values())} nodes",
        table(("op", "count"), counts, right={"count"}),
    ]


def human(nbytes: int) -> str:
    """Bytes with a unit people read."""
    size, units = float(nbytes), iter(("B", "KiB", "MiB", "GiB"))
    unit = next(units)
    for larger in units:
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def dtype_name(dtype: np.dtype | None) -> str:
    """An element type as people write it."""
    return "?" if dtype is None else "string" if dtype.hasobject else dtype.name


def _spec(spec: Any, types: Any) -> dict[str, Any]:
    shape = None if spec.shape is None else list(spec.shape)
    return {"name": spec.name, "type": types.get(spec.name, dtype_name(spec.dtype)), "shape": shape}
