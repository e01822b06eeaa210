"""Lengths that a model is prepared for: inputs are filled up to the next of them, and results cut back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flamert.errors import InputError
from flamert.feeds import TensorSpec, on_gpu
from flamert.runtime.device import Device


class Buckets:
    """By symbolic dimension the lengths that plans exist for, smallest first. Empty: inputs are taken as they come."""

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self._inputs, self._outputs = {s.name: s for s in inputs}, {s.name: s for s in outputs}
        self.lengths: dict[str, tuple[int, ...]] = {}

    def add(self, symbol: str, lengths: int | Sequence[int]) -> None:
        """Prepare for these lengths of a dimension.

        Raises InputError if no input has the dimension, or an output lacks it: what it is made of could not be told apart.
        """
        wanted = [lengths] if isinstance(lengths, int) else list(lengths)
        if not wanted or any(not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 1 for n in wanted):
            raise InputError(f"{symbol}={lengths!r}: give lengths of this dimension, positive integers")
        if not any(symbol in (s.shape or ()) for s in self._inputs.values()):
            inputs = ", ".join(f"{n}: {s}" for n, s in self._inputs.items())
            raise InputError(f"{symbol!r} is neither an input nor a dimension of one; there are {inputs}")
        without = [n for n, s in self._outputs.items() if symbol not in (s.shape or ())]
        if without:
            raise InputError(f"output {without[0]!r} has no dimension {symbol!r}: filled up inputs would change what it says")
        self.lengths[symbol] = tuple(sorted(map(int, wanted)))

    def shapes(self) -> Iterator[dict[str, tuple[int, ...]]]:
        """Every combination of lengths, as shapes of the inputs by name. Raises InputError for a dimension that has none."""
        for combination in itertools.product(*self.lengths.values()):
            chosen = dict(zip(self.lengths, combination, strict=True))
            yield {name: _filled(spec, chosen) for name, spec in self._inputs.items()}

    def widened(self, feeds: Mapping[str, Any], device: Device) -> tuple[dict[str, Any], dict[str, int]]:
        """Inputs filled up to the next lengths by repeating their last entries, and the lengths that they had.

        Inputs longer than all lengths stay as they are.
        """
        had: dict[str, int] = {}
        for name, x in feeds.items():
            for axis, d in enumerate(self._dims(name)):
                if isinstance(d, str) and d in self.lengths and hasattr(x, "shape") and axis < len(x.shape):
                    had.setdefault(d, int(x.shape[axis]))
        to = {d: next((n for n in self.lengths[d] if n >= length), length) for d, length in had.items()}
        short = {d: n for d, n in had.items() if 0 < n < to[d]}
        return {name: self._repeated(name, x, short, to, device) for name, x in feeds.items()} if short else dict(feeds), short

    def _dims(self, name: str) -> tuple[int | str | None, ...]:
        spec = self._inputs.get(name)
        return () if spec is None or spec.shape is None else spec.shape

    def _repeated(self, name: str, x: Any, short: Mapping[str, int], to: Mapping[str, int], device: Device) -> Any:
        for axis, d in enumerate(self._dims(name)):
            if isinstance(d, str) and d in short and x.shape[axis] == short[d]:
                x = device.adopt(x) if on_gpu(x) else np.asarray(x)
                xp = np if isinstance(x, np.ndarray) else device.xp
                x = xp.take(x, xp.minimum(xp.arange(to[d]), short[d] - 1), axis)
        return x

    def cut(self, name: str, result: Any, had: Mapping[str, int]) -> Any:
        """An output without what was filled up."""
        window = tuple(slice(had.get(d) if isinstance(d, str) else None) for d in self._outputs[name].shape or ())
        return result[window].copy()

    def cover(self, outputs: Sequence[str]) -> bool:
        """Whether these are outputs of the model, whose dimensions are known."""
        return bool(self.lengths) and all(name in self._outputs for name in outputs)


def _filled(spec: TensorSpec, chosen: Mapping[str, int]) -> tuple[int, ...]:
    shape = []
    for d in spec.shape or ():
        n = chosen.get(d) if isinstance(d, str) else d
        if n is None:
            remedy = "give an example of each input" if d is None else f"give lengths of {d!r} too, {d}=[…]"
            raise InputError(f"input {spec.name!r} is {spec}, whose dimensions are not all known: {remedy}")
        shape.append(n)
    return tuple(shape)
