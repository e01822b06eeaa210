"""Batches: what users iterate over, as inputs and targets by name; arrays cut into batches; reading ahead in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sized
from typing import Any, NamedTuple

import numpy as np

from flamert.errors import InputError
from flamert.feeds import on_gpu
from flamert.model import Model

AHEAD = 2
"""Batches that are made ready while the model works on another."""

Arrays = dict[str, Any]
Types = Mapping[str, np.dtype | None]
"""Element types by the names of a model's inputs."""


class Batch(NamedTuple):
    """Inputs and targets by name."""

    inputs: Arrays
    targets: Arrays

    @property
    def examples(self) -> int:
        """The length of the first input's (or target's) first axis."""
        first = next(iter({**self.inputs, **self.targets}.values()), None)
        return int(first.shape[0]) if first is not None and first.ndim else 1


def declared(model: Model) -> Types:
    """What a model says of its inputs."""
    return {spec.name: spec.dtype for spec in model.inputs}


def as_array(x: Any, dtype: np.dtype | None = None) -> Any:
    """A NumPy array of anything array-like in host memory (NumPy's, torch's, DLPack's, lists); GPU arrays as they are.

    dtype: what lists of Python numbers become, which have no type of their own.
    """
    if isinstance(x, np.ndarray) or on_gpu(x):
        return x
    try:
        if hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
            return np.from_dlpack(x)
        array = np.asarray(x)
        if dtype is None or hasattr(x, "dtype") or not np.can_cast(array.dtype, dtype, "same_kind"):
            return array
        return np.asarray(x, dtype)
    except Exception as error:  # a foreign tensor's own refusal
        raise InputError(f"no array can be made of a {type(x).__name__}: {error}") from error


def arrays_of(given: Any, types: Types, alone: str = "input") -> Arrays:
    """Arrays by name. What has no name takes those of `types` in turn, or `alone`, with a number where there are several."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {name: as_array(x, types.get(name)) for name, x in given.items() if x is not None}
    names = list(types)
    if not isinstance(given, tuple) and not (isinstance(given, list) and given and _is_array(given[0])):
        name = names[0] if names else alone
        return {name: as_array(given, types.get(name))}
    if names and len(given) > len(names):
        raise InputError(f"{len(given)} inputs are given, the model has {len(names)}")
    labels = names or [f"{alone}{i}" for i in range(len(given))]
    return {name: as_array(x, types.get(name)) for name, x in zip(labels, given, strict=False)}


def _is_array(x: Any) -> bool:
    return hasattr(x, "__array__") or hasattr(x, "__dlpack__")


def batch_of(item: Any, inputs: Types) -> Batch:
    """One item of a user's data: a pair (inputs, targets), or a mapping whose items that are no inputs are targets."""
    if isinstance(item, Batch):
        return item
    if isinstance(item, Mapping):
        fed = {name: x for name, x in item.items() if name in inputs}
        rest = {name: as_array(x) for name, x in item.items() if name not in inputs}
        rest = {name: x for name, x in rest.items() if x.dtype.kind not in "OUST"}  # texts, which no loss looks at
        if not fed:
            raise InputError(f"a batch holds {', '.join(map(repr, item))}; none is an input of the model ({', '.join(inputs)})")
        return Batch(arrays_of(fed, inputs), rest)
    if not isinstance(item, tuple | list) or not 1 <= len(item) <= 2:
        length = f" of {len(item)}" if isinstance(item, tuple | list) else ""
        raise InputError(
            f"a batch is a pair (inputs, targets) or a mapping by name, not a {type(item).__name__}{length}; one pair alone "
            "goes into a list, and arrays of examples are cut into batches by fr.Batches"
        )
    return Batch(arrays_of(item[0], inputs), arrays_of(item[1] if len(item) == 2 else None, {}, "target"))


class Source:
    """A user's data, iterated anew for every epoch.

    Takes any re-iterable of batches, a torch DataLoader among them, and data sets in the manner of Hugging Face's, which are
    read `batch_size` examples at a time. `set_epoch`, where the data (or its sampler) has it, is told the epoch. Training that
    is resumed within an epoch passes over the batches before, so that it goes on bit for bit if their order is the same then:
    that of `Batches` is; a torch DataLoader that shuffles by torch's global generator has another one each time.
    """

    def __init__(self, data: Iterable[Any], model: Model, batch_size: int | None = None) -> None:
        self._types = declared(model)
        self._columns = hasattr(data, "iter") and hasattr(data, "features")
        if batch_size is not None and not self._columns:
            raise InputError(f"batch_size is for data sets of examples; this {type(data).__name__} decides on its own batches")
        if isinstance(data, Iterator) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
            kind = type(data).__name__
            raise InputError(f"batches must be re-iterable, a list, a loader, an object with __iter__, and no {kind}")
        self.data, self.batch_size = data, batch_size or 32

    def __len__(self) -> int:
        """Batches of an epoch; 0 where the data cannot tell."""
        known = len(self.data) if isinstance(self.data, Sized) else 0
        return -(-known // self.batch_size) if self._columns else known

    def epoch(self, number: int, skip: int = 0) -> Generator[Batch]:
        """The batches of one epoch, from number `skip` on, made ready ahead of time."""
        for listener in (self.data, getattr(self.data, "sampler", None)):
            if tell := getattr(listener, "set_epoch", None):
                tell(number)
        return ahead(self._batches(skip))

    def _batches(self, skip: int) -> Iterator[Batch]:
        items = self.data.iter(self.batch_size) if self._columns else iter(self.data)  # type: ignore[attr-defined]
        for i, item in enumerate(items):
            if i >= skip:
                batch = batch_of(item, self._types)
                # Whoever fills the same buffers again for every batch must not do so under one that waits to be used.
                yield batch if isinstance(self.data, Batches) else Batch(*[_kept(part) for part in batch])


def _kept(arrays: Arrays) -> Arrays:
    return {name: x.copy() if isinstance(x, np.ndarray) else x for name, x in arrays.items()}


def ahead(items: Iterator[Any], depth: int = AHEAD) -> Generator[Any]:
    """The same items, `depth` of them fetched by a thread before they are asked for. Its errors come out here."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(failed: bool, item: Any) -> None:
        while not stopped.is_set():
            try:
                ready.put((failed, item), timeout=0.1)
                return
            except queue.Full:
                continue

    def fetch() -> None:
        try:
            for item in items:
                put(False, item)
                if stopped.is_set():
                    return
            put(True, None)
        except BaseException as error:  # handed over, whatever it is: the reader is who must know
            put(True, error)

    thread = threading.Thread(target=fetch, name="flamert-batches", daemon=True)
    thread.start()
    try:
        while True:
            ended, item = ready.get()
            if ended:
                if item is not None:
                    raise item
                return
            yield item
    finally:
        stopped.set()
        thread.join(timeout=5)


class Batches:
    """Arrays in memory, cut into batches along the first axis. The order is a function of seed and epoch.

    inputs, targets: an array (or a list of rows), a tuple of arrays, or arrays by name. drop_last: leave out a last batch
    that is not full.
    """

    def __init__(
        self,
        inputs: Any,
        targets: Any = None,
        batch_size: int = 32,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        self._parts = (_indexable(inputs), _indexable(targets))
        lengths = {len(a) for part in self._parts for a in _leaves(part)}
        if len(lengths) != 1 or batch_size < 1:
            raise InputError(f"inputs and targets need one length, and batches at least one example; got {sorted(lengths)}")
        self.examples, self.batch_size = lengths.pop(), batch_size
        self.shuffle, self.seed, self.drop_last, self._epoch = shuffle, seed, drop_last, 0

    def set_epoch(self, epoch: int) -> None:
        """Shuffle as for this epoch from the next iteration on."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self.examples // self.batch_size if self.drop_last else -(-self.examples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        order = np.arange(self.examples)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self._epoch)).permutation(self.examples)
        for i in range(len(self)):
            rows = order[i * self.batch_size : (i + 1) * self.batch_size]
            inputs, targets = (_taken(part, rows) for part in self._parts)
            yield inputs, targets


def _indexable(part: Any) -> Any:
    """Lists, which no array of row numbers can index, as arrays."""
    if isinstance(part, Mapping):
        return {name: _indexable(a) for name, a in part.items()}
    if isinstance(part, tuple):
        return tuple(map(_indexable, part))
    return as_array(part) if isinstance(part, list) else part


def _leaves(part: Any) -> list[Any]:
    if part is None:
        return []
    if isinstance(part, Mapping):
        return list(part.values())
    return list(part) if isinstance(part, tuple) else [part]


def _taken(part: Any, rows: np.ndarray) -> Any:
    if part is None:
        return None
    if isinstance(part, Mapping):
        return {name: a[rows] for name, a in part.items()}
    return tuple(a[rows] for a in part) if isinstance(part, tuple) else part[rows]
