"""Any graph of ops as a standard ONNX model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, ValueInfoProto, helper

from flamert.about import VERSION
from flamert.errors import InputError, UnsupportedOp
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
    sizes,
    trees,
)
from flamert.exporters.external import Layout
from flamert.exporters.onnx import MAX_PROTO, SMALLEST_EXTERNAL, filled, set_inline
from flamert.exporters.sizes import Draft, Ends
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

USUAL = 21
"""The opset that is written where nobody asks for one and nothing needs a newer: most runtimes know it."""

OLDEST = 17
"""The first opset that the exporters know how to write for."""


def export_graph(
    graph: Graph | Callable[..., Graph],
    path: str | os.PathLike[str],
    *,
    outputs: Sequence[str] | None = None,
    opset: int | None = None,
    name: str = "graph",
    external_data: str | bool = "auto",
    parameters: Mapping[str, np.ndarray] | None = None,
    sizes: Mapping[str, Sequence[int] | None] | None = None,
) -> None:
    """Write a graph as an ONNX model that other runtimes can run.

    graph: a Graph, or a function of integer sizes to one, such as `def at(batch, length)`. The function's graphs must differ
    in these sizes only, and in the model they vary: dimensions of inputs and outputs bear the parameters' names. It is called
    with three values for each size, and the graphs are compared; `sizes` says which values, where the default ones (some
    primes between 5 and 43) are out of its range.

    Inputs keep their names ("input", "input_1", … where they have none). parameters: arrays by the names of the inputs that
    become initializers; Dropout then is written as for inference. outputs: names for the results, "output", "output_1", … by
    default. opset: of ONNX's operators; 21 by default, or the newest if 21 lacks some. external_data: True puts constants into
    `<name>.data` beside the model, False all into the model file, "auto" only those of a model that would pass 2 GiB.
    Ops that ONNX lacks are written in ones that it has. Random ops draw the runtime's own numbers: counters are dropped.
    Raises UnsupportedOp, naming the op, for what ONNX cannot express; InputError for names and arrays that do not fit the
    graph, and for what cannot vary with the sizes, naming the node.
    """
    if external_data not in ("auto", True, False):
        raise InputError(f'external_data is "auto", True or False, not {external_data!r}')
    writer, ends = _written(graph, outputs, opset, parameters, sizes)
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
    graph: Graph | Callable[..., Graph],
    *,
    outputs: Sequence[str] | None = None,
    opset: int | None = None,
    name: str = "graph",
    parameters: Mapping[str, np.ndarray] | None = None,
    sizes: Mapping[str, Sequence[int] | None] | None = None,
) -> onnx.ModelProto:
    """The model that `export_graph` writes, with all constants inside it."""
    writer, ends = _written(graph, outputs, opset, parameters, sizes)
    tensors = []
    for key, array in writer.arrays.items():
        t = TensorProto(name=key, data_type=NUMBERS[array.dtype], dims=array.shape)
        t.raw_data = pack(array).tobytes()
        tensors.append(t)
    return _model(writer, ends, tensors, name)


def _written(
    graph: Graph | Callable[..., Graph],
    outputs: Sequence[str] | None,
    opset: int | None,
    parameters: Mapping[str, np.ndarray] | None,
    given: Mapping[str, Sequence[int] | None] | None,
) -> tuple[Writer, Ends]:
    """The nodes and initializers of a graph, or of all graphs of a function, and the declarations of inputs and outputs."""
    if opset is None:
        try:
            return _written(graph, outputs, USUAL, parameters, given)
        except UnsupportedOp:
            opset = onnx.defs.onnx_opset_version()
    if isinstance(graph, Graph):
        return written(graph, outputs, opset, parameters)
    points = list(sizes.points(sizes.tried(graph, given)))
    return sizes.merge([Draft(point, *written(graph(**point), outputs, opset, parameters)) for point in points])


def written(
    graph: Graph,
    outputs: Sequence[str] | None = None,
    opset: int | None = None,
    parameters: Mapping[str, np.ndarray] | None = None,
) -> tuple[Writer, Ends]:
    """The graph's nodes and initializers, and the declarations of its inputs and outputs."""
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not OLDEST <= opset <= newest:
        raise InputError(f"opset {opset} is not one of {OLDEST} … {newest}")
    names = _named(graph, outputs)
    results = names[len(graph.inputs) :]
    fixed = {name: np.asarray(array) for name, array in (parameters or {}).items()}
    _check(fixed, dict(zip(names, graph.inputs, strict=False)))
    wanted = dict(zip(graph.inputs, names, strict=False))
    for value, name in zip(graph.outputs, results, strict=True):
        wanted.setdefault(value, name)
    writer = Writer(opset or newest, {v: n for v, n in wanted.items() if v.constant is None}, names, fixed)
    writer.write(graph)
    for value, name in zip(graph.outputs, results, strict=True):
        if writer.name_of(value) != name:
            writer.copied(writer.name_of(value), name)
    writer.drop_unread()
    inputs = [_info(v, n) for v, n in zip(graph.inputs, names, strict=False) if n not in fixed]
    return writer, (inputs, list(map(_info, graph.outputs, results)))


def _check(parameters: Mapping[str, np.ndarray], inputs: Mapping[str, Value]) -> None:
    """Raise InputError for parameters that are no inputs, or of other types than these."""
    for name, array in parameters.items():
        if name not in inputs:
            raise InputError(f"there is no input {name!r} that the parameter could be")
        if (array.shape, array.dtype) != inputs[name].type:
            raise InputError(f"parameter {name!r} is {array.dtype.name}{list(array.shape)}, the input {inputs[name].type}")


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
