"""The protobuf wire format, as far as needed to take large tensors out of a model's bytes and to put them back.

A parsed ModelProto holds every byte of its weights, and reading a field copies them once more. So large `raw_data` fields
are cut out before parsing, a ticket left in the place of each, and filled in again when the model is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import onnx

SMALLEST = 4096
"""Bytes; shorter tensors stay in the proto."""

MAX_DEPTH = 100
"""Messages inside one another that protobuf parses; what lies deeper is left for it to refuse."""

Piece = bytes | memoryview
"""A run of bytes on its way to a file."""

Swap = Callable[[memoryview], Piece | None]
"""New contents for a `raw_data` field, or None to leave it."""


class Tickets:
    """What stands in a proto for the tensors cut out of it: a secret that no file can contain, and a number."""

    def __init__(self) -> None:
        self._secret = os.urandom(16)
        self.cut: list[memoryview] = []
        """The bytes of each tensor, by number."""

    SIZE = 24

    def issue(self, raw: memoryview) -> bytes:
        """A ticket for these bytes."""
        self.cut.append(raw)
        return self._secret + (len(self.cut) - 1).to_bytes(8, "little")

    def number(self, raw: bytes | memoryview) -> int | None:
        """The number on a ticket; None for bytes that are none."""
        if len(raw) != self.SIZE or raw[:16] != self._secret:
            return None
        return int.from_bytes(raw[16:], "little")


def cut(data: memoryview) -> tuple[onnx.ModelProto, Tickets]:
    """Parse a model, with tickets for its large tensors. Raises what protobuf raises for bytes that are no model.

    Protobuf is the judge of what is well-formed: where this walk loses its way, everything is left to the parser.
    """
    tickets = Tickets()
    try:
        pieces = rewrite(data, onnx.ModelProto.DESCRIPTOR, tickets.issue, SMALLEST)
    except (ValueError, IndexError):
        tickets, pieces = Tickets(), [data]
    return onnx.ModelProto.FromString(b"".join(pieces)), tickets


def rewrite(data: memoryview, descriptor: Any, swap: Swap, smallest: int, depth: int = 0) -> list[Piece]:
    """A serialised message with `swap` applied to every `raw_data` of at least `smallest` bytes inside it, in pieces.

    Raises ValueError or IndexError for bytes that are no message.
    """
    pieces: list[Piece] = []
    at, done, end = 0, 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 2:
            length, body = _varint(data, at)
            stop = body + length
            if stop > end:
                raise ValueError("a field ends outside its message")
            if length >= smallest and (new := _field(data[body:stop], descriptor, tag >> 3, swap, smallest, depth)):
                pieces += [data[done:at], _encoded(sum(map(len, new))), *new]
                done = stop
            at = stop
        elif kind == 0:
            at = _varint(data, at)[1]
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
    if at != end:
        raise ValueError("a field ends outside its message")
    return [*pieces, data[done:]] if done else [data]


def _field(body: memoryview, descriptor: Any, number: int, swap: Swap, smallest: int, depth: int) -> list[Piece] | None:
    """New contents for one length-delimited field; None where it stays as it is."""
    field = descriptor.fields_by_number.get(number)
    if field is None:
        return None
    if field.message_type is not None:
        if depth == MAX_DEPTH:
            return None
        new = rewrite(body, field.message_type, swap, smallest, depth + 1)
        return None if len(new) == 1 else new
    if field.name == "raw_data" and descriptor.full_name == "onnx.TensorProto":
        swapped = swap(body)
        return None if swapped is None else [swapped]
    return None


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while byte >= 0x80:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift += 7
        if shift > 70:
            raise ValueError("a number of more than ten bytes")
    return value, at + 1


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
