"""Which exporter turns which op here into ONNX nodes, and how ops that ONNX lacks are spelled in ops that it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from flamert.ops.op import Op

if TYPE_CHECKING:
    from flamert.exporters.writer import Writer


class Unfit(Exception):
    """Raised by `Writer` for a node that ONNX does not have: this op type, with these attributes and element types."""


class Exporter(NamedTuple):
    """`run(to, *operands, **attributes)` → names of the results, or None where it does not fit. Operands are Values."""

    run: Callable[..., Any]
    since: int


EXPORTERS: dict[str, list[Exporter]] = {}
"""By op: in the order to try them."""

SPELLINGS: dict[str, Callable[..., Any]] = {}
"""By op: what it is in other ops, as a composite's body is; for an op that no exporter takes."""


def exporter(op: Op, since: int = 1) -> Callable[[Any], Any]:
    """Register ONNX nodes for an op: `run(to, *operands, **attributes)`, where `to(op_type, …)` adds a node.

    It returns the name (or names) of the results, or None for a case that it does not cover. A node that ONNX's schemas do
    not allow in the opset asked for counts as not covered too. The next exporter of the op is tried then, at last its
    spelling or body. since: the first opset in which these nodes mean what the op means.
    """

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        EXPORTERS.setdefault(op.name, []).append(Exporter(run, since))
        return run

    return register


def plain(op: Op, op_type: str, since: int = 1, **names: str) -> None:
    """Register an op that ONNX has with the same operands. names: ONNX's names of attributes that are called otherwise here."""

    @exporter(op, since)
    def _(to: Writer, /, *operands: Any, **attributes: Any) -> Any:
        return to(op_type, *operands, **{names.get(k, k): v for k, v in attributes.items()})


def spelled(op: Op) -> Callable[[Any], Any]:
    """Register an op's spelling: a function of its operands and attributes to Values, in ops that have exporters.

    It raises UnsupportedOp where there is none.
    """

    def register(spelling: Callable[..., Any]) -> Callable[..., Any]:
        if op.name in SPELLINGS:
            raise ValueError(f"{op.name} is spelled twice")
        SPELLINGS[op.name] = spelling
        return spelling

    return register
