"""Which ONNX operators run here, in which versions, and by what: a converter, or the body that ONNX's schema gives."""

from __future__ import annotations

from typing import NamedTuple

from onnx import defs

from flamert.importers.low_rank import DOMAIN
from flamert.importers.registry import CONVERTERS, find


class Coverage(NamedTuple):
    """One ONNX operator. versions: opsets that define it and run here. missing: opsets that define it and do not."""

    domain: str
    op_type: str
    versions: tuple[int, ...]
    missing: tuple[int, ...]
    by: str
    deprecated: bool


def coverage() -> list[Coverage]:
    """Every operator of ONNX's own domains, and every other one that has a converter, by domain and name."""
    import flamert.importers  # noqa: F401 - its modules register the converters

    schemas: dict[tuple[str, str], list[defs.OpSchema]] = {}
    for schema in defs.get_all_schemas_with_history():
        schemas.setdefault((schema.domain, schema.name), []).append(schema)
    rows = [_row(domain, op, history) for (domain, op), history in schemas.items()]
    for (domain, op), converters in CONVERTERS.items():
        if (domain, op) not in schemas and domain != DOMAIN:  # whose nodes no file holds
            rows.append(Coverage(domain, op, tuple(sorted(c.since for c in converters)), (), "converter", False))
    return sorted(rows)


def newest_opset() -> int:
    """The newest version of the default domain that the installed onnx package knows."""
    return defs.onnx_opset_version()


def _row(domain: str, op: str, history: list[defs.OpSchema]) -> Coverage:
    runs: dict[int, str] = {}
    versions = sorted((s for s in history), key=lambda s: s.since_version)
    for schema in versions:
        if find(domain, op, schema.since_version) is not None:
            runs[schema.since_version] = "converter"
        elif schema.has_function or schema.has_context_dependent_function:  # type: ignore[attr-defined]
            runs[schema.since_version] = "schema body"
    live = [s.since_version for s in versions if not s.deprecated]
    by = " and ".join(sorted(set(runs.values())))
    return Coverage(domain, op, tuple(runs), tuple(v for v in live if v not in runs), by, versions[-1].deprecated)
