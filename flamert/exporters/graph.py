"""Any graph of ops as a standard ONNX model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import onnx
from onnx import TensorProto, ValueInfoProto, helper

from flamert.about import VERSION
from flamert.errors import InputError
from flamert.exporters import (
    activation,
    attention,
    conv,
    elementwise,
    image,
    index,
    linear,
    normalize,
    pool,
    quantize,
    random,
    recurrent,
    reduce,
    region,
    shape,
    signal,
    trees,
)
from flamert.exporters.external import Layout
from flamert.exporters.onnx import MAX_PROTO, SMALLEST_EXTERNAL, filled, set_inline
from flamert.exporters.writer import NUMBERS, Writer, identifier
from flamert.files import write_files
from flamert.graph import Graph, Value
from flamert.importers.tensors import pack
from flamert.importers.wire import Piece, Tickets

FAMILIES = (
    activation,
    attention,
    conv,
    elementwise,
    image,
    index,
    linear,
    normalize,
    pool,
    quantize,
    random,
    recurrent,
    reduce,
    region,
    shape,
    signal,
    trees,
)
"""The modules whose import registers exporters."""

OLDEST = 17
"""The first opset that the exporters know how to write for."""


def export_graph(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    outputs: Sequence[str] | None = None,
    opset: int | None = None,
    name: str = "graph",
    external_data: str | bool = "auto",
) -> None:
    """Write a graph as an ONNX model that other runtimes can run.

    Inputs keep their names ("input", "input_1", … where they have none). outputs: names for the results, "output",
    "output_1", … by default. opset: of ONNX's operators, the newest by default. external_data: True puts constants into
    `<name>.data` beside the model, False all into the model file, "auto" only those of a model that would pass 2 GiB.
    Ops that ONNX lacks are written in ones that it has. Random ops draw the runtime's own numbers: counters are dropped.
    Raises UnsupportedOp, naming the op, for what ONNX cannot express; InputError for names that do not fit the graph.
    """
    if external_data not in ("auto", True, False):
        raise InputError(f'external_data is "auto", True or False, not {external_data!r}')
    writer, ends = written(graph, outputs, opset)
    folder, file = os.path.split(os.path.abspath(os.fspath(path)))
    outside = external_data is True or (
        external_data == "auto" and sum(a.nbytes for a in writer.arrays.values()) > MAX_PROTO - (1 << 24)
    )
    layout, tickets = Layout(file, keep=False), Tickets()
    tensors = []
    for key, array in writer.arrays.items():
        t = TensorProto(name=key, data_type=NUMBERS[array.dtype], dims=array.shape)
        if outside and array.nbytes >= SMALLEST_EXTERNAL:
            layout.put(t, pack(array), True, None)
        else:
            set_inline(t, pack(array), tickets)
        tensors.append(t)
    files: dict[str, Iterable[Piece]] = dict(layout.files())
    pieces = filled(_model(writer, ends, tensors, name), tickets)
    if sum(map(len, pieces)) > MAX_PROTO:
        raise InputError("the model file would pass 2 GiB; leave external_data at 'auto', or make it True")
    write_files(folder, {**files, file: pieces})


def model_proto(
    graph: Graph, *, outputs: Sequence[str] | None = None, opset: int | None = None, name: str = "graph"
) -> onnx.ModelProto:
    """The model that `export_graph` writes, with all constants inside it."""
    writer, ends = written(graph, outputs, opset)
    tensors = []
    for key, array in writer.arrays.items():
        t = TensorProto(name=key, data_type=NUMBERS[array.dtype], dims=array.shape)
        t.raw_data = pack(array).tobytes()
        tensors.append(t)
    return _model(writer, ends, tensors, name)


Ends = tuple[list[ValueInfoProto], list[ValueInfoProto]]


def written(graph: Graph, outputs: Sequence[str] | None = None, opset: int | None = None) -> tuple[Writer, Ends]:
    """The graph's nodes and initializers, and the declarations of its inputs and outputs."""
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not OLDEST <= opset <= newest:
        raise InputError(f"opset {opset} is not one of {OLDEST} … {newest}")
    names = _named(graph, outputs)
    results = names[len(graph.inputs) :]
    wanted = dict(zip(graph.inputs, names, strict=False))
    for value, name in zip(graph.outputs, results, strict=True):
        wanted.setdefault(value, name)
    writer = Writer(opset or newest, {v: n for v, n in wanted.items() if v.constant is None}, names)
    writer.write(graph)
    for value, name in zip(graph.outputs, results, strict=True):
        if writer.name_of(value) != name:
            writer.copied(writer.name_of(value), name)
    writer.drop_unread()
    return writer, (list(map(_info, graph.inputs, names)), list(map(_info, graph.outputs, results)))


def _named(graph: Graph, outputs: Sequence[str] | None) -> list[str]:
    """Names of inputs and outputs, all different."""
    if len(set(graph.inputs)) != len(graph.inputs):
        raise InputError("one of the graph's inputs is listed twice")
    if outputs is not None and len(outputs) != len(graph.outputs):
        raise InputError(f"{len(outputs)} names for {len(graph.outputs)} outputs")
    given = [*[v.node.attrs["name"] for v in graph.inputs], *(outputs or [""] * len(graph.outputs))]
    known = [n for n in given if n]
    if len(set(known)) != len(known):
        raise InputError(f"{next(n for n in known if known.count(n) > 1)!r} names two inputs or outputs")
    names: list[str] = []
    for i, name in enumerate(given):
        stem = "input" if i < len(graph.inputs) else "output"
        options = (f"{stem}_{k}" if k else stem for k in range(len(given) + len(known) + 1))
        names.append(name or next(o for o in options if o not in names and o not in known))
    return names


def _info(value: Value, name: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, NUMBERS[value.dtype], value.shape)


def _model(writer: Writer, ends: Ends, tensors: Sequence[TensorProto], name: str) -> onnx.ModelProto:
    graph = helper.make_graph(writer.nodes, identifier(name), *ends, list(tensors))
    imports = [helper.make_opsetid("", writer.opset)]
    return helper.make_model(
        graph,
        opset_imports=imports,
        ir_version=helper.find_min_ir_version_for(imports, ignore_unknown=True),
        producer_name="flamert",
        producer_version=VERSION,
    )


__all__ = ["export_graph", "model_proto", "written"]
