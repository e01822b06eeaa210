"""Where a model comes from: a path, bytes, a ModelProto or an onnx_ir.Model, opened as a proto and a reader of its tensors."""

from __future__ import annotations

import mmap
import os
import stat
from typing import Any, NamedTuple

import onnx

from flamert.errors import InputError, InvalidModel, UnsafeModel
from flamert.importers.external import Folder
from flamert.importers.tensors import Tensors
from flamert.importers.wire import cut


class Opened(NamedTuple):
    """A parsed model whose large tensors were cut out (see wire.py), the reader that knows where they are, and the path."""

    proto: onnx.ModelProto
    tensors: Tensors
    file: str


def open_model(source: Any) -> Opened:
    """Open a path, bytes, `onnx.ModelProto` or `onnx_ir.Model`. Raises InputError, InvalidModel."""
    if isinstance(source, onnx.ModelProto):
        return _parse(_serialised(source), None)
    if isinstance(source, bytes | bytearray | memoryview):
        return _parse(source, None)
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        return _parse(_mapped(path), Folder(path), path)
    if type(source).__module__.startswith("onnx_ir"):
        import onnx_ir

        return _parse(_serialised(onnx_ir.to_proto(source)), _folder_of(source))
    raise InputError(f"cannot load a model from {type(source).__name__}: give a path, bytes, onnx.ModelProto or onnx_ir.Model")


def _parse(data: Any, folder: Folder | None, file: str = "") -> Opened:
    try:
        proto, tickets = cut(memoryview(data))
    except Exception as error:
        raise InvalidModel(f"not an ONNX protobuf: {error}").at(file or None) from error
    return Opened(proto, Tensors(tickets, folder), file)


def _mapped(path: str) -> Any:
    """A file's bytes, mapped for as long as it takes to load them."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"{path!r} is no regular file; read it yourself and load the bytes")
            if os.fstat(file.fileno()).st_size == 0:
                raise InvalidModel("the file is empty").at(path)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError | InvalidModel):
            raise
        raise InputError(f"cannot read {path!r}: {getattr(error, 'strerror', None) or error}") from error


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _serialised(proto: onnx.ModelProto) -> bytes:
    """A proto's bytes: what is loaded is independent of what its owner does to it afterwards."""
    try:
        return proto.SerializeToString()
    except Exception as error:
        raise InvalidModel(f"the proto cannot be serialised, {error}; above 2 GiB, save it with external data first") from error


def _folder_of(model: Any) -> Folder | None:
    """The folder of an onnx_ir.Model's external tensors."""
    import onnx_ir

    values = [v.const_value for graph in model.graphs() for v in graph.initializers.values()]
    folders = {os.path.abspath(t.base_dir) for t in values if isinstance(t, onnx_ir.ExternalTensor)}
    if len(folders) > 1:
        raise UnsafeModel(f"the model's external tensors lie in several folders: {sorted(folders)}")
    return Folder(None, folders.pop()) if folders else None
