"""A model's weights put back into the ONNX file it came from; everything else in the file stays as it was."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto

from flamert import dtypes
from flamert.errors import InputError
from flamert.exporters.external import Layout
from flamert.files import write_files
from flamert.importers.tensors import declared, pack, stored_bytes
from flamert.importers.weights import constants, parts
from flamert.importers.wire import SMALLEST, Piece, Tickets, rewrite

if TYPE_CHECKING:
    from flamert.importers.load import OnnxOrigin

MAX_PROTO = (1 << 31) - 1
"""Bytes that a protobuf file can have; more weights than that must lie in a data file."""

SMALLEST_EXTERNAL = 1024
"""Bytes; with external_data=True, initializers below this stay in the model file."""

DATA_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data", "raw_data")


def save(origin: OnnxOrigin, path: str | os.PathLike[str], external_data: str | bool = "auto") -> None:
    """Write the model to `path` with its current weights.

    external_data: "auto" keeps each tensor where it was, in the model file or in a data file, and moves the weights out only
    where the model file would pass 2 GiB; True puts the weights into a data file, False every tensor into the model file.
    Data files keep their names and layout where the model keeps its file name; a copy under another name gets one
    `<name>.data` of its own, so that the original's files stay whole.
    Raises InputError, CheckpointError (a full disk, a read-only folder) or UnsafeModel (a link in the way); then nothing has
    changed on disk.
    """
    if external_data not in ("auto", True, False):
        raise InputError(f'external_data is "auto", True or False, not {external_data!r}')
    folder, name = os.path.split(os.path.abspath(os.fspath(path)))
    proto = onnx.ModelProto()
    proto.CopyFrom(origin.template)
    _write_out_changed_sparse(proto, origin)
    layout = Layout(name, keep=external_data == "auto" and name == os.path.basename(origin.file))
    tickets = Tickets()
    for t in proto.graph.initializer:
        _put_weight(t, origin, layout, tickets, external_data)
    changed = _changed_inside(proto, origin)
    new = {id(t): array for t, array in changed}
    for t in _other_tensors(proto):
        if id(t) in new:
            _put_changed(t, new[id(t)], layout, tickets, external_data)
        else:
            _put_other(t, origin, layout, tickets, external_data)
    files: dict[str, Iterable[Piece]] = dict(layout.files())
    pieces = filled(proto, tickets)
    if sum(map(len, pieces)) <= MAX_PROTO:
        write_files(folder, {**files, name: pieces})
    elif external_data == "auto":
        save(origin, path, True)
    else:
        raise InputError(f"the model file would pass 2 GiB with external_data={external_data}, which no ONNX file can")


def _put_weight(t: TensorProto, origin: OnnxOrigin, layout: Layout, tickets: Tickets, external_data: str | bool) -> None:
    """Give an initializer its current contents: in a data file, or in the proto if it is not there already."""
    array, changed = origin.weights[t.name], origin.changed(t.name)
    external = t.data_location == TensorProto.EXTERNAL
    if array.dtype == dtypes.string:
        if changed:
            _set_strings(t, array)
    elif external and external_data is not False:
        layout.put(t, pack(array), changed, origin.tensors.folder)
    elif external_data is True and stored_bytes(array.dtype, array.size) >= SMALLEST_EXTERNAL:
        layout.put(t, pack(array), True, None)
    elif changed or external or origin.tensors.tickets.number(t.raw_data) is not None:
        set_inline(t, pack(array), tickets)


def _put_other(t: TensorProto, origin: OnnxOrigin, layout: Layout, tickets: Tickets, external_data: str | bool) -> None:
    """Give any other tensor the contents it came with."""
    number, folder = origin.tensors.tickets.number(t.raw_data), origin.tensors.folder
    if number is not None:
        set_inline(t, origin.tensors.kept[number], tickets)
    elif t.data_location == TensorProto.EXTERNAL and folder is not None:
        dtype, _, elements = declared(t)
        data = folder.read(t, stored_bytes(dtype, elements))
        if external_data is False:
            set_inline(t, data, tickets)
        else:
            layout.put(t, data, False, folder)


def _put_changed(t: TensorProto, array: np.ndarray, layout: Layout, tickets: Tickets, external_data: str | bool) -> None:
    """Give a tensor other than the main graph's initializers new contents, where it had its old ones."""
    if array.dtype == dtypes.string:
        _set_strings(t, array)
    elif t.data_location == TensorProto.EXTERNAL and external_data is not False:
        layout.put(t, pack(array), True, None)
    else:
        set_inline(t, pack(array), tickets)


def set_inline(t: TensorProto, data: np.ndarray, tickets: Tickets) -> None:
    """Let a TensorProto hold these bytes itself; a ticket for them where they are many."""
    for field in DATA_FIELDS:
        t.ClearField(field)
    if t.data_location == TensorProto.EXTERNAL:
        t.ClearField("external_data")
        t.ClearField("data_location")
    t.raw_data = tickets.issue(data.data) if data.nbytes >= SMALLEST else data.tobytes()


def _set_strings(t: TensorProto, array: np.ndarray) -> None:
    t.ClearField("string_data")
    t.string_data.extend([s if isinstance(s, bytes) else str(s).encode("utf-8", "surrogateescape") for s in array.reshape(-1)])


def _write_out_changed_sparse(proto: onnx.ModelProto, origin: OnnxOrigin) -> None:
    """A sparse initializer that was replaced becomes a dense one of the same name."""
    for part, names in zip(parts(proto), origin.names, strict=True):
        sparse: Any = getattr(part.proto, "sparse_initializer", ())
        for i in reversed(range(len(sparse))):
            own = sparse[i].values.name
            if origin.changed(names[own]):
                dims = origin.weights[names[own]].shape
                part.proto.initializer.add(name=own, data_type=sparse[i].values.data_type, dims=dims)
                del sparse[i]


def _changed_inside(proto: onnx.ModelProto, origin: OnnxOrigin) -> list[tuple[TensorProto, np.ndarray]]:
    """Weights that were replaced and are no initializers of the main graph: in constants, in inner graphs, in functions.

    And the variables that training algorithms have of their own.
    """
    found = []
    for part, names in zip(parts(proto), origin.names, strict=True):
        initializers = getattr(part.proto, "initializer", []) if part.where else []
        for own, t in [*[(t.name, t) for t in initializers], *constants(part.proto)]:
            if own in names and origin.changed(names[own]):
                found.append((t, origin.weights[names[own]]))
    for info, algorithm, first in zip(proto.training_info, origin.algorithms, origin.first_state, strict=True):
        state = {n: a for n, a in algorithm.state.items() if a is not first[n]}
        found += [(t, state[t.name]) for t in info.algorithm.initializer if t.name in state]
    return found


def _other_tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every TensorProto but the main graph's initializers."""
    for field, value in proto.ListFields():
        if field.name != "graph":
            yield from _tensors(field, value)
    for field, value in proto.graph.ListFields():
        if field.name != "initializer":
            yield from _tensors(field, value)


def _tensors(field: Any, value: Any) -> Iterator[TensorProto]:
    if field.message_type is None:
        return
    for message in value if hasattr(value, "__len__") else (value,):
        if isinstance(message, TensorProto):
            yield message
        else:
            for inner, held in message.ListFields():
                yield from _tensors(inner, held)


def filled(proto: onnx.ModelProto, tickets: Tickets) -> list[Piece]:
    """The serialised model, in pieces, with the bytes that the tickets stand for."""

    def swap(raw: memoryview) -> Piece | None:
        number = tickets.number(raw)
        return None if number is None else tickets.cut[number]

    return rewrite(memoryview(proto.SerializeToString()), onnx.ModelProto.DESCRIPTOR, swap, Tickets.SIZE)
