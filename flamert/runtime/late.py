"""Large results that end a plan are made last, in memory that the caller gets: that spares a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flamert.graph import TensorType
from flamert.runtime.device import Device
from flamert.runtime.steps import Place, Step

LARGE = 1 << 20
"""Bytes of a result from which it is worth a call of its own."""


class Late(NamedTuple):
    """A call that ends a plan by making a large result: it writes what the caller gets."""

    number: int  # of the output
    call: Any
    address: int  # where it would write in the arena

    def made(self, device: Device, like: Any) -> Any:
        """The result, in memory of its own. like: where it would lie in the arena."""
        result = device.fresh(like)
        self.call.onto(self.address, result)()
        return result


def taken_late(
    steps: Sequence[Step],
    calls: list[Any],
    returned: Sequence[tuple[int, Place, bool]],
    array: Callable[[TensorType, Place], Any],
) -> tuple[Late, ...]:
    """Take the calls at the end that make a large result, and nothing else, from among the others, one for each step.

    returned: (number, place, whether it updates an array) of each output. Taken is none that another of them reads the
    result of: in the arena there would be nothing to read.
    """
    found: list[Late] = []
    while calls:
        step, call = steps[len(calls) - 1], calls[-1]
        type, at = step.outputs[0]
        shown = [(i, place, updates) for i, place, updates in returned if place.storage is at.storage]
        whole = at.storage.array is None and at.storage.type.nbytes == type.nbytes >= LARGE
        if not whole or len(step.outputs) != 1 or len(shown) != 1:
            break
        number, place, updates = shown[0]
        if updates or (place.offset, place.strides) != (0, None):
            break
        address = array(type, at).data.ptr
        if not hasattr(call, "onto") or not call.writes_alone(address) or any(late.call.reads_of(call) for late in found):
            break
        found.append(Late(number, calls.pop(), address))
    return tuple(found[::-1])
