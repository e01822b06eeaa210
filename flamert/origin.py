"""Where a model's graphs come from: what a model asks of the importer behind it, and the records they exchange."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from flamert.feeds import TensorSpec
from flamert.graph import Value
from flamert.runtime.program import Slot, Stage


class About(NamedTuple):
    """What a model file says of itself. `ops`: how often each (domain, op type) occurs, subgraphs included.

    `types`: the declared type of each input and output as ONNX writes it, "tensor(float)".
    """

    file: str
    graph: str
    doc: str
    graph_doc: str
    producer: str
    producer_version: str
    domain: str
    version: int
    ir_version: int
    opsets: Mapping[str, int]
    metadata: Mapping[str, str]
    ops: Mapping[tuple[str, str], int]
    functions: tuple[str, ...]
    types: Mapping[str, str]


class Projection(NamedTuple):
    """A weight that data is multiplied with. name: the layer's. operand: the shape of one row that a result is made with.

    inputs_first: whether the weight is stored as [in, out]. beside: whether a low-rank product of the data can be added to
    the layer's result; otherwise it is added to the weight.
    """

    name: str
    weight: str
    outputs: int
    operand: tuple[int, ...]
    inputs_first: bool
    beside: bool


class LowRank(NamedTuple):
    """A term scale · B·A beside a weight. a, b: names of its factors. dropout: how much of the data training keeps from it."""

    at: Projection
    a: str
    b: str
    scale: float
    dropout: float


class Features(NamedTuple):
    """A value that a last layer takes. layer: the name of the one that does. matrix: whether that is a Gemm, of [out, in]."""

    name: str
    width: int
    layer: str
    matrix: bool
    dtype: np.dtype


class Traced(NamedTuple):
    """A model as one static graph: every value by name, the entries of its inputs and variable weights, and the inputs whose
    contents it was specialised to: those that are constants in it, and those that it was only right to look at (`consulted`).

    Of the training form also `moved`, what becomes of running statistics, and `counter`, which random numbers depend on.
    """

    values: Mapping[str, Any]
    inputs: Mapping[str, Any]
    static: frozenset[str]
    consulted: frozenset[str] = frozenset()
    moved: Mapping[str, Value] = MappingProxyType({})
    counter: Value | None = None


class Algorithm(NamedTuple):
    """A training algorithm that comes with a model: how its variables start, and one step of it, as models of their own.

    step: takes the model's inputs, the algorithm's, and all variables. initial, updated: variable → the output of
    `initialization` or `step` that it becomes. state: the algorithm's own variables and constants, by name; not the model's.
    outputs: what a step gives its caller.
    """

    initialization: Origin
    step: Origin
    initial: Mapping[str, str]
    updated: Mapping[str, str]
    state: dict[str, np.ndarray]
    outputs: tuple[str, ...]


class Stored(Protocol):
    """A mapping from names of floating weights to arrays, computed from what the file stores until a weight is thawed."""

    def __getitem__(self, name: str) -> np.ndarray: ...

    def __iter__(self) -> Iterator[str]: ...

    def __contains__(self, name: object) -> bool: ...

    @property
    def within(self) -> frozenset[str]:
        """Weights that only serve to make others of codes: scales, zero points."""

    def thaw(self, names: Iterable[str]) -> None:
        """From now on these weights, as far as they are stored so, are the model's own, so that they can change."""

    def follow(self, codes: str) -> None:
        """Let thawed weights be what their codes, which were replaced, stand for."""


class Origin(Protocol):
    """Where a model's graphs come from: the importer behind the scenes."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: dict[str, np.ndarray]
    optional: frozenset[str]
    file: str
    grafts: dict[str, LowRank]
    """Low-rank terms by the names of their places."""

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """The training algorithms in the file: its `training_info`."""

    @property
    def stored(self) -> Stored:
        """Weights that the file stores as small integers, by the names of their floating values."""

    @property
    def values(self) -> frozenset[str]:
        """Every name that `run` can be asked for."""

    def about(self) -> About:
        """What the file says of itself."""

    def save(self, path: str | os.PathLike[str], external_data: str | bool = "auto") -> None:
        """Write the file with the current weights."""

    def specialise(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> tuple[Stage, list[Slot], list[str]]:
        """The first stage for inputs of these types, the slots of the inputs' leaves, and the names of the inputs in order."""

    @property
    def statistics(self) -> frozenset[str]:
        """Names of the weights that are running statistics, which training moves without a gradient."""

    def trace(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], variable: frozenset[str], lasting: bool, seed: int | None
    ) -> Traced:
        """The model as one static graph, weights named in `variable` as inputs; see `flamert.importers.trace`."""

    def projections(self) -> list[Projection]:
        """Weights that low-rank terms can be put beside."""

    def attach(self, at: Projection, a: np.ndarray, b: np.ndarray, scale: float, dropout: float) -> None:
        """Put scale · B·A beside a weight. The factors become weights, "<name>.lora_A.weight" and B; files never hold them."""

    def detach(self) -> None:
        """Take all terms away."""

    def merged(self) -> dict[str, np.ndarray]:
        """The weights that have terms, with these added."""

    def features(self, output: str) -> Features:
        """What the last linear layer in front of an output takes; the output itself if it has none."""

    def replace_head(self, output: str, taken: Features, name: str, w: np.ndarray, b: np.ndarray) -> None:
        """Let an output be a new layer of these features, "<name>.weight" and bias, here and in the file that is saved."""
