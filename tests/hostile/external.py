"""External data that escapes its folder, is no file, or lies about what it holds; and layouts that are fine."""

import os

import onnx
from onnx import TensorProto

from tests.hostile.bricks import add_weight, hostile, legal, write


def external(folder, location="data.bin", data=b"\0" * 8, **keys):
    """A model whose weight is 8 bytes of a data file."""
    proto = add_weight(data_location=TensorProto.EXTERNAL)
    entries = proto.graph.initializer[0].external_data
    if location is not None:
        entries.add(key="location", value=location)
    for key, content in keys.items():
        entries.add(key=key, value=str(content))
    if data is not None:
        (folder / "data.bin").write_bytes(data)
    return write(folder, proto)


def secret(folder):
    path = folder.parent / "secret.bin"
    path.write_bytes(b"\1" * 8)
    return path


@hostile
def external_parent(folder):
    secret(folder)
    return external(folder, "../secret.bin")


@hostile
def external_nested_parent(folder):
    secret(folder)
    (folder / "a").mkdir()
    return external(folder, "a/../../secret.bin")


@hostile
def external_backslash_parent(folder):
    return external(folder, "a\\..\\..\\secret.bin")


@hostile
def external_absolute(folder):
    return external(folder, str(secret(folder)))


@hostile
def external_drive(folder):
    return external(folder, "C:data.bin")


@hostile
def external_symlink(folder):
    (folder / "data.bin").symlink_to(secret(folder))
    return external(folder, data=None)


@hostile
def external_symlinked_folder(folder):
    secret(folder)
    (folder / "sub").symlink_to(folder.parent)
    return external(folder, "sub/secret.bin")


@hostile
def external_hard_link(folder):
    os.link(secret(folder), folder / "data.bin")
    return external(folder, data=None)


@hostile
def external_hard_link_in_subfolder(folder):
    (folder / "sub").mkdir()
    os.link(secret(folder), folder / "sub" / "data.bin")
    return external(folder, "sub/data.bin")


@hostile
def external_fifo(folder):
    os.mkfifo(folder / "data.bin")
    return external(folder, data=None)


@hostile
def external_device(folder):
    try:
        os.mknod(folder / "data.bin", 0o666 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        (folder / "data.bin").symlink_to("/dev/zero")
    return external(folder, data=None)


@hostile
def external_folder(folder):
    (folder / "data.bin").mkdir()
    return external(folder, data=None)


@hostile
def external_missing(folder):
    return external(folder, data=None)


@hostile
def external_no_location(folder):
    return external(folder, None)


@hostile
def external_dot(folder):
    return external(folder, ".")


@hostile
def external_nul(folder):
    return external(folder, "data.bin\0.txt")


@hostile
def external_negative_offset(folder):
    return external(folder, offset=-8)


@hostile
def external_negative_length(folder):
    return external(folder, length=-1)


@hostile
def external_huge_length(folder):
    return external(folder, length=1 << 62)


@hostile
def external_length_of_many_digits(folder):
    return external(folder, length="9" * 100_000)


@hostile
def external_length_contradicts(folder):
    return external(folder, data=b"\0" * 16, length=16)


@hostile
def external_offset_past_end(folder):
    return external(folder, offset=4096)


@hostile
def external_offset_overflows(folder):
    return external(folder, offset=(1 << 63) - 4)


@hostile
def external_offset_no_number(folder):
    return external(folder, offset="0x0")


@hostile
def external_file_too_short(folder):
    return external(folder, data=b"\0" * 4)


@hostile
def external_file_empty(folder):
    return external(folder, data=b"")


@hostile
def external_key_twice(folder):
    path = external(folder, offset=0)
    proto = onnx.ModelProto.FromString(path.read_bytes())
    proto.graph.initializer[0].external_data.add(key="location", value="other.bin")
    return write(folder, proto)


@hostile
def external_strings(folder):
    path = external(folder)
    proto = onnx.ModelProto.FromString(path.read_bytes())
    proto.graph.initializer[0].data_type = TensorProto.STRING
    return write(folder, proto)


@hostile
def external_dunder_key(folder):
    return external(folder, __class__="os")


@hostile
def external_gigantic(folder):
    path = external(folder)
    proto = onnx.ModelProto.FromString(path.read_bytes())
    proto.graph.initializer[0].dims[:] = [1 << 30, 1 << 30]
    return write(folder, proto)


@hostile
def external_data_is_a_fifo_model(folder):
    os.mkfifo(folder / "model.onnx")
    return folder / "model.onnx"


@legal
def external_plain(folder):
    return external(folder, offset=0, length=8)


@legal
def external_in_subfolder(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "w.bin").write_bytes(b"\0" * 24)
    return external(folder, "sub/w.bin", offset=7)


@legal
def external_through_inner_link(folder):
    (folder / "real.bin").write_bytes(b"\0" * 8)
    (folder / "data.bin").symlink_to("real.bin")
    return external(folder, data=None)


@legal
def cache_of_links(folder):
    """Hugging Face's cache: snapshots hold links to blobs."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "abc" / "onnx"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    path = external(blobs, "model.onnx_data", data=None)
    path.rename(blobs / "1234")
    (blobs / "5678").write_bytes(b"\0" * 8)
    (snapshot / "model.onnx").symlink_to("../../../blobs/1234")
    (snapshot / "model.onnx_data").symlink_to("../../../blobs/5678")
    return snapshot / "model.onnx"


@legal
def cache_of_hard_links(folder):
    """A cache whose files, model and data alike, are hard-linked to where they are used."""
    cache, used = folder / "cache", folder / "used"
    cache.mkdir()
    used.mkdir()
    external(cache)
    for name in ("model.onnx", "data.bin"):
        os.link(cache / name, used / name)
    return used / "model.onnx"
