"""Large results that end a plan are made last, in memory that the caller gets: that spares a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flamert.graph import TensorType
from flamert.runtime.device import Device
from flamert.runtime.steps import Place, Step

LARGE = 1 << 20
"""Bytes of a result from which it is worth a call of its own."""

MOSTLY = 0.9
"""How much of what a call makes an output must at least be."""


class Late(NamedTuple):
    """A call that ends a plan by making a large result: it writes what the caller gets."""

    number: int  # of the output
    call: Any
    whole: Any  # what it would write in the arena
    type: TensorType
    place: Place  # of the output, in what is written

    def made(self, device: Device) -> Any:
        """The output, in memory of its own; where it is less than what the call makes, as a view."""
        result = device.fresh(self.whole)
        self.call.onto(self.whole.data.ptr, result)()
        _, offset, strides = self.place
        return device.view(result, offset, self.type, strides)


def taken_late(
    steps: Sequence[Step],
    calls: list[Any],
    returned: Sequence[tuple[int, TensorType, Place, bool]],
    array: Callable[[TensorType, Place], Any],
) -> tuple[Late, ...]:
    """Take the calls at the end that make a large result, and nothing else, from among the others, one for each step.

    returned: (number, type, place, whether it updates an array) of each output. Taken is none that another of them reads the
    result of: in the arena there would be nothing to read. Nor one of which little is an output: all of it stays in memory.
    """
    found: list[Late] = []
    while calls:
        step, call = steps[len(calls) - 1], calls[-1]
        type, at = step.outputs[0]
        shown = [output for output in returned if output[2].storage is at.storage]
        alone = at.storage.array is None and at.storage.type.nbytes == type.nbytes >= LARGE
        if not alone or len(step.outputs) != 1 or len(shown) != 1:
            break
        number, of, place, updates = shown[0]
        if updates or of.nbytes < MOSTLY * type.nbytes:
            break
        whole = array(type, at)
        writes_it = hasattr(call, "onto") and call.writes_alone(whole.data.ptr)
        if not writes_it or any(late.call.reads_of(call) for late in found):
            break
        found.append(Late(number, calls.pop(), whole, of, place))
    return tuple(found[::-1])
