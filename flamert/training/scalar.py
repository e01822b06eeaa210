"""A number that stays on the device until somebody looks at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flamert.runtime.device import Device


class Scalar:
    """One number on a device. Looking at it, by float(), formatting, comparing or computing, reads it, once.

    look: called before, when the device is done with it; may raise.
    """

    __slots__ = ("_array", "_device", "_dtype", "_look", "_value")

    def __init__(self, array: Any, dtype: np.dtype, device: Device, look: Callable[[], None] | None = None) -> None:
        self._array, self._dtype, self._device, self._look = array, dtype, device, look or _nothing
        self._value: float | None = None

    def item(self) -> float:
        """The number."""
        if self._value is None:
            self._device.synchronize()
            self._look()
            self._take(float(self._device.download(self._array, self._dtype).reshape(())))
        return self._value  # type: ignore[return-value]

    def _take(self, value: float) -> None:
        """Keep the number and let go of what it was read from."""
        self._value, self._array, self._look = value, None, _nothing

    @staticmethod
    def read_all(scalars: Sequence[Scalar]) -> list[float]:
        """All of them, in one transfer for those that have not been looked at."""
        waiting = [s for s in scalars if s._value is None]
        if waiting and len({s._dtype for s in waiting}) == 1:
            device, dtype = waiting[0]._device, waiting[0]._dtype
            device.synchronize()
            waiting[0]._look()
            found = device.download(device.xp.stack([s._array.reshape(()) for s in waiting]), dtype)
            for s, value in zip(waiting, found.tolist(), strict=True):
                s._take(value)
        return [s.item() for s in scalars]

    __float__ = item

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.item(), dtype)

    def __repr__(self) -> str:
        return repr(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec)

    def __bool__(self) -> bool:
        return bool(self.item())

    def __hash__(self) -> int:
        return hash(self.item())

    def __eq__(self, other: object) -> bool:
        return self.item() == (other.item() if isinstance(other, Scalar) else other)

    def __lt__(self, other: Any) -> bool:
        return self.item() < float(other)

    def __le__(self, other: Any) -> bool:
        return self.item() <= float(other)

    def __gt__(self, other: Any) -> bool:
        return self.item() > float(other)

    def __ge__(self, other: Any) -> bool:
        return self.item() >= float(other)

    def __add__(self, other: Any) -> float:
        return self.item() + float(other)

    def __sub__(self, other: Any) -> float:
        return self.item() - float(other)

    def __rsub__(self, other: Any) -> float:
        return float(other) - self.item()

    def __mul__(self, other: Any) -> float:
        return self.item() * float(other)

    def __truediv__(self, other: Any) -> float:
        return self.item() / float(other)

    def __rtruediv__(self, other: Any) -> float:
        return float(other) / self.item()

    def __neg__(self) -> float:
        return -self.item()

    def __abs__(self) -> float:
        return abs(self.item())

    __radd__, __rmul__ = __add__, __mul__


def _nothing() -> None:
    """Nobody looks."""
