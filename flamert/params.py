"""A model's parameters, by their names in the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np

from flamert.errors import InputError, ShapeError
from flamert.origin import Stored


class Params(MutableMapping[str, np.ndarray]):
    """A model's parameters: name in the file → array. Assigning replaces the array; shape and dtype must stay.

    A weight that the file stores as small integers (int8 behind Cast and Mul, DequantizeLinear) is there twice: as the
    integers, under the initializer's name, and as the floating weight that they stand for, under the name of the value that
    the model computes with. The floating one can be assigned and trained; `Model.save` rounds it to integers again, with the
    file's scale and zero point, so that changes smaller than half a step are lost. Assigning integers sets it back to them.

    Weights that are being trained live elsewhere: whoever trains them `lend`s the means to fetch them, which is used when
    somebody looks.
    """

    def __init__(self, arrays: dict[str, np.ndarray], stored: Stored, changed: Callable[[], None]) -> None:
        self._arrays, self._stored = arrays, stored
        self._changed = changed
        self._fetch: Callable[[], Mapping[str, np.ndarray]] | None = None
        self.assigned = 0
        """How many assignments there have been."""

    def lend(self, fetch: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """From now on some arrays are out of date; `fetch` gives their contents."""
        self._fetch = fetch

    def settle(self) -> None:
        """Bring all arrays up to date."""
        if self._fetch is not None:
            fetch, self._fetch = self._fetch, None
            self._arrays.update(fetch())
            self._changed()

    def __getitem__(self, name: str) -> np.ndarray:
        self.settle()
        return self._arrays[name] if name in self._arrays else self._stored[name]

    def thaw(self, names: Iterable[str]) -> None:
        """From now on those of these weights that are stored as integers are arrays of their own, ready to be trained."""
        self._stored.thaw(names)

    def __setitem__(self, name: str, array: Any) -> None:
        self.settle()
        self._stored.thaw([name])
        old = self._arrays.get(name)
        if old is None:
            raise InputError(f"the model has no parameter {name!r}")
        array = np.asarray(array)
        if array.shape != old.shape or array.dtype != old.dtype:
            raise ShapeError(
                f"parameter {name!r} is {old.dtype.name}{list(old.shape)}, not {array.dtype.name}{list(array.shape)}"
            )
        self._arrays[name] = np.array(array)
        self._stored.follow(name)
        self.assigned += 1
        self._changed()

    def __delitem__(self, name: str) -> None:
        raise InputError("parameters cannot be removed")

    def __iter__(self) -> Iterator[str]:
        yield from self._arrays
        yield from [name for name in self._stored if name not in self._arrays]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<{len(self)} parameters>"
