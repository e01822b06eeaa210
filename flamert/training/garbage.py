"""Python's search for reference cycles, held back while a step's graphs are made: it would go through them again and again."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

OBJECTS = 200_000
"""New objects before the next search: a few ten MB of graphs."""

_lock = threading.Lock()
_makers = 0
_usual = (0, 0, 0)


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Search for cycles only where many objects have been made; what was set holds again once nobody is inside any more."""
    global _makers, _usual
    with _lock:
        if not _makers:
            _usual = gc.get_threshold()
            if 0 < _usual[0] < OBJECTS:
                gc.set_threshold(OBJECTS, *_usual[1:])
        _makers += 1
    try:
        yield
    finally:
        with _lock:
            _makers -= 1
            if not _makers:
                gc.set_threshold(*_usual)
