"""TensorBoard's event files: scalars by tag and step, written without TensorFlow or TensorBoard.

A file is a row of records: length, masked CRC-32C of it, an Event message, masked CRC-32C of that.
Source: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto, summary.proto.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from types import TracebackType

from flamert.errors import CheckpointError

POLYNOMIAL = 0x82F6_3B78
"""Castagnoli's, bits reversed."""


def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_TABLE = _table()


def masked_crc32c(data: bytes) -> int:
    """CRC-32C, rotated and shifted so that the CRC of data that holds CRCs is no weaker."""
    crc = 0xFFFF_FFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFF_FFFF
    return ((crc >> 15 | crc << 17) + 0xA282_EAD8) & 0xFFFF_FFFF


def _varint(number: int) -> bytes:
    out = bytearray()
    number &= (1 << 64) - 1
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _bytes_field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _event(step: int, what: bytes) -> bytes:
    """Event: wall_time = 1, step = 2, then what happened."""
    return b"\x09" + struct.pack("<d", time.time()) + b"\x10" + _varint(step) + what


class EventFile:
    """An event file in a folder, which is made if need be. Each run writes one of its own.

    Methods raise CheckpointError where the system refuses.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = os.fspath(folder)
        name = f"events.out.tfevents.{time.time_ns() // 10**6 / 1000:017.3f}.{socket.gethostname()}.{os.getpid()}"
        with self._told():
            os.makedirs(folder, exist_ok=True)
            self._file = open(os.path.join(folder, name), "xb")  # noqa: SIM115 (closed by `close`)
        self._record(_event(0, _bytes_field(3, b"brain.Event:2")))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Add one number."""
        entry = _bytes_field(1, tag.encode()) + b"\x15" + struct.pack("<f", value)
        self._record(_event(step, _bytes_field(5, _bytes_field(1, entry))))

    def flush(self) -> None:
        """Let readers see what has been written."""
        with self._told():
            self._file.flush()

    def close(self) -> None:
        """No more will come."""
        with self._told():
            self._file.close()

    def __enter__(self) -> EventFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _record(self, data: bytes) -> None:
        length = struct.pack("<Q", len(data))
        with self._told():
            self._file.write(length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data)))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"cannot write logs into {self._folder!r}: {error.strerror or error}") from error
