"""Two ONNX files side by side: which tensors hold other numbers. Whatever else differs is an error."""

from collections.abc import Iterator

from google.protobuf.message import Message
from onnx import NodeProto, TensorProto

CONTENTS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data", "raw_data")
"""Fields of a TensorProto that hold its numbers."""


def changed_tensors(before: Message, after: Message) -> dict[str, tuple[TensorProto, TensorProto]]:
    """The tensors inside two messages whose contents differ, by name; one of a Constant node by the name of its output.

    Raises AssertionError, naming the place, for any other difference: names, types, dimensions, documentation, metadata,
    opsets, functions, where external data lies, the number and order of nodes, and fields that this ONNX does not know.
    """
    pairs = list(_tensors(before, after, type(before).__name__, ""))
    found = {name: (a, b) for name, a, b in pairs if contents(a) != contents(b)}
    bare = [type(m).FromString(m.SerializeToString()) for m in (before, after)]
    for _, *tensors in _tensors(*bare, "", ""):
        for t in tensors:
            for field in CONTENTS:
                t.ClearField(field)
    assert bare[0] == bare[1], "there is a difference in fields that are unknown"
    return found


def contents(t: TensorProto) -> list:
    """All that holds a tensor's numbers."""
    return [getattr(t, field) for field in CONTENTS]


def _tensors(a: Message, b: Message, where: str, node: str) -> Iterator[tuple[str, TensorProto, TensorProto]]:
    """Walk both messages in step."""
    if isinstance(a, NodeProto):
        node = a.output[0] if a.output else ""
    if isinstance(a, TensorProto):
        yield a.name or node, a, b
    for field in a.DESCRIPTOR.fields:
        if isinstance(a, TensorProto) and field.name in CONTENTS:
            continue
        place = f"{where}.{field.name}"
        one, other = getattr(a, field.name), getattr(b, field.name)
        if hasattr(one, "__len__") and not isinstance(one, str | bytes):
            assert len(one) == len(other), f"{place}: {len(one)} became {len(other)}"
            pairs = [(f"{place}[{i}]", *pair) for i, pair in enumerate(zip(one, other, strict=True))]
        else:
            assert a.HasField(field.name) == b.HasField(field.name), f"{place} came or went"
            pairs = [(place, one, other)] if a.HasField(field.name) else []
        for at, x, y in pairs:
            if field.message_type is None:
                assert x == y, f"{at}: {x!r} became {y!r}"
            else:
                yield from _tensors(x, y, at, node)
