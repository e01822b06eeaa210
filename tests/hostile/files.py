"""Files that are no model."""

from pathlib import Path

import numpy as np

from tests.hostile.bricks import add_weight, hostile, write


@hostile
def truncated(folder):
    whole = add_weight(raw_data=b"\0" * 8).SerializeToString()
    return write(folder, whole[: len(whole) // 2])


@hostile
def truncated_large(folder):
    whole = add_weight(dims=[100_000], raw_data=b"\0" * 400_000).SerializeToString()
    return write(folder, whole[: len(whole) // 2])


@hostile
def garbage(folder):
    return write(folder, np.random.default_rng(0).bytes(4096))


@hostile
def text(folder):
    return write(folder, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123456\n")


@hostile
def zip_archive(folder):
    return write(folder, b"PK\x03\x04" + bytes(2000))


@hostile
def empty(folder):
    return write(folder, b"")


@hostile
def zeros(folder):
    return write(folder, bytes(100_000))


@hostile
def no_graph(folder):
    proto = add_weight(raw_data=b"\0" * 8)
    proto.ClearField("graph")
    return write(folder, proto)


@hostile
def not_there(folder):
    return folder / "model.onnx"


@hostile
def a_folder(folder):
    return folder


@hostile
def a_device(folder):
    return Path("/dev/zero")
