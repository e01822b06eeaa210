"""A binding of cuDNN's graphs, as far as convolutions need it: arrays as they lie, own workspace, safe to capture."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from flamert import dtypes
from flamert.errors import DeviceError

WORKSPACE_BYTES = 128 << 20

TYPES = {dtypes.float32: "FLOAT", dtypes.float16: "HALF", dtypes.bfloat16: "BFLOAT16"}


@functools.cache
def available() -> bool:
    """Whether cuDNN and its Python front end are installed."""
    return importlib.util.find_spec("cudnn") is not None


@functools.cache
def _cudnn() -> Any:
    from cuda.pathfinder import load_nvidia_dynamic_lib

    # Engines that are compiled when they are chosen look for these among what is loaded already.
    for name in ("nvrtc", "cudart"):
        load_nvidia_dynamic_lib(name)
    import cudnn

    return cudnn


@functools.cache
def _handle(device: int) -> Any:
    return _cudnn().create_handle()


@functools.cache
def version() -> int:
    """Of the library."""
    return int(_cudnn().backend_version())


class Tensor(NamedTuple):
    """How an operand lies: lengths, channels second, and strides in elements."""

    dims: tuple[int, ...]
    strides: tuple[int, ...]

    @staticmethod
    def of(shape: Sequence[int], last: bool) -> Tensor:
        """That of a whole array [N, C, spatial…], in C order or with channels last; one spatial axis gets another before it."""
        dims = tuple(shape) if len(shape) != 3 else (*shape[:2], 1, shape[2])
        strides, step = [0] * len(dims), 1
        for i in (1, *range(len(dims) - 1, 1, -1), 0) if last else range(len(dims) - 1, -1, -1):
            strides[i] = step
            step *= dims[i]
        return Tensor(dims, tuple(strides))

    @staticmethod
    def as_it_lies(x: Any) -> Tensor:
        """That of an array of four axes, of whatever strides."""
        return Tensor(tuple(x.shape), tuple(s // x.itemsize for s in x.strides))


class Windows(NamedTuple):
    """Where windows lie, as `conv` has it."""

    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]

    @property
    def uneven(self) -> bool:
        """Whether there is more padding on one side than on the other, and none that takes away."""
        n = len(self.strides)
        return self.pads[:n] != self.pads[n:] and min(self.pads) >= 0

    def spelled(self, rank: int) -> dict[str, list[int]]:
        """cuDNN's arguments for this many spatial axes."""
        n = len(self.strides)
        more = rank - n
        return {
            "pre_padding": [0] * more + list(self.pads[:n]),
            "post_padding": [0] * more + list(self.pads[n:]),
            "stride": [1] * more + list(self.strides),
            "dilation": [1] * more + list(self.dilations),
        }


class Convolution:
    """One convolution, built for its operands' layouts. kind: "fprop" (x, w → y), "dgrad" (dy, w → dx), "wgrad" (x, dy → dw).

    bias, residual: layouts of what is added to y, in the order that has the fast engines. relu: of the sum. tf32: let float32
    products round their operands. Raises DeviceError where cuDNN has no engine for it.
    """

    def __init__(
        self,
        kind: str,
        operands: Sequence[Tensor],
        result: Tensor,
        dtype: np.dtype,
        windows: Windows,
        *,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        relu: bool = False,
        tf32: bool = True,
        deterministic: bool = False,
        device: int = 0,
    ) -> None:
        self.device = device
        self.key = repr((kind, operands, result, dtype.name, windows, bias, residual, relu, tf32, deterministic))
        cudnn = _cudnn()
        io, wide = getattr(cudnn.data_type, TYPES[dtype]), cudnn.data_type.FLOAT
        handle = _handle(device)
        self.graph = cudnn.pygraph(io_data_type=io, intermediate_data_type=wide, compute_data_type=wide, handle=handle)
        self._numbers = iter(range(8))
        self.inputs = [self._tensor(t, io) for t in operands]
        spelled = windows.spelled(len(result.dims) - 2)
        names = {"fprop": ("image", "weight"), "dgrad": ("loss", "filter"), "wgrad": ("image", "loss")}[kind]
        y = getattr(self.graph, f"conv_{kind}")(**dict(zip(names, self.inputs, strict=True)), **spelled)
        if kind != "fprop":
            y.set_dim(list(result.dims))
        for more in (residual, bias):
            if more is not None:
                self.inputs.append(self._tensor(more, io))
                y = self.graph.add(y, self.inputs[-1])
        y = self.graph.relu(y) if relu else y
        self.output = y.set_output(True).set_data_type(io).set_dim(list(result.dims)).set_stride(list(result.strides))
        try:
            self._plan(cudnn, tf32 or dtype != dtypes.float32, deterministic)
        except Exception as error:
            raise DeviceError(f"cuDNN has no {kind} for {operands} → {result}, {dtype.name}: {error}") from error

    def _tensor(self, t: Tensor, io: Any) -> Any:
        return self.graph.tensor(name=f"t{next(self._numbers)}", data_type=io, dim=list(t.dims), stride=list(t.strides))

    def _plan(self, cudnn: Any, tensor_cores: bool, deterministic: bool) -> None:
        graph = self.graph
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        notes = [] if tensor_cores else [cudnn.numerical_note.TENSOR_CORE]
        notes += [cudnn.numerical_note.NONDETERMINISTIC] if deterministic else []
        if notes:
            graph.deselect_numeric_notes(notes)
        graph.deselect_workspace_greater_than(WORKSPACE_BYTES)
        graph.check_support()
        self._built: dict[int, bool] = {}
        self.chosen = -1

    @functools.cached_property
    def candidates(self) -> list[int]:
        """Numbers of the engines that can be built, all of them now. Raises DeviceError where there are none."""
        found = [i for i in range(self.graph.get_execution_plan_count()) if self._build(i)]
        if not found:
            raise DeviceError(f"cuDNN promises engines and can build none of them for {self.key}")
        return found

    def _build(self, index: int) -> bool:
        if index not in self._built:
            try:
                self.graph.build_plan_at_index(index)
                self._built[index] = self.graph.get_workspace_size_plan_at_index(index) <= WORKSPACE_BYTES
            except Exception:  # an engine that promised too much
                self._built[index] = False
        return self._built[index]

    def take(self, index: int) -> None:
        """Have this engine from now on. Raises DeviceError where it cannot be built."""
        if not self._build(index):
            raise DeviceError(f"cuDNN cannot build engine {index} for {self.key}")
        self.chosen = index

    def launch(self, inputs: Sequence[Any], output: Any, work: Any, stream: Callable[[], Any]) -> Callable[[], None]:
        """A call on these arrays, of the layouts that this was built for."""
        pointers = {t: x.data.ptr for t, x in zip((*self.inputs, self.output), (*inputs, output), strict=True)}
        cudnn, handle, workspace = _cudnn(), _handle(self.device), work.data.ptr

        def run() -> None:
            cudnn.set_stream(handle, stream().ptr)
            self.graph.execute_plan_at_index(pointers, workspace, self.chosen, handle=handle)

        return run


@functools.lru_cache(1024)
def convolution(*args: Any, **options: Any) -> Convolution:
    """The Convolution of these arguments: one for all layers that have it, which differ in addresses alone."""
    return Convolution(*args, **options)


class Attention(NamedTuple):
    """softmax(scale · q·kᵀ + mask) · v, forward and backward, for operands [B, H, L, D] as they lie.

    operands: q, k, v. mask: an additive one. stats: let the forward pass leave what the backward pass needs, the logarithm of
    each query's sum, float32 [B, H, L, 1]. Each is built once for all layers that have it. Raises DeviceError where cuDNN has
    no engine.
    """

    operands: tuple[Tensor, ...]
    result: Tensor
    dtype: np.dtype
    scale: float
    causal: bool
    mask: Tensor | None
    stats: bool
    device: int

    def forward(
        self, inputs: Sequence[Any], mask: Any, out: Any, stats: Any, work: Any, stream: Callable[[], Any]
    ) -> Callable[[], None]:
        """The launch of the forward pass."""
        arrays = [*inputs, *([] if mask is None else [mask]), out, *([stats] if self.stats else [])]
        return self._launch(self._built(), arrays, work, stream)

    def backward(
        self,
        inputs: Sequence[Any],
        mask: Any,
        y: Any,
        stats: Any,
        dy: Any,
        outs: Sequence[Any],
        work: Any,
        stream: Callable[[], Any],
        deterministic: bool,
    ) -> Callable[[], None]:
        """The launch of the backward pass, which fills dq, dk and dv."""
        lie = tuple(map(Tensor.as_it_lies, (dy, stats, *outs)))
        arrays = [*inputs, *([] if mask is None else [mask]), y, dy, stats, *outs]
        return self._launch(self._built_back(lie, deterministic), arrays, work, stream)

    def _graph(self) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """An empty graph, its first tensors, and options."""
        cudnn = _cudnn()
        wide = cudnn.data_type.FLOAT
        handle = _handle(self.device)
        graph = cudnn.pygraph(io_data_type=self._io, intermediate_data_type=wide, compute_data_type=wide, handle=handle)
        given = {n: self._tensor(graph, n, t) for n, t in zip("qkv", self.operands, strict=True)}
        if self.mask is not None:
            given["bias"] = self._tensor(graph, "bias", self.mask)
        return graph, given, {"attn_scale": self.scale, "use_causal_mask": self.causal}

    @property
    def _io(self) -> Any:
        return getattr(_cudnn().data_type, TYPES[self.dtype])

    def _tensor(self, graph: Any, name: str, t: Tensor, wide: bool = False) -> Any:
        kind = _cudnn().data_type.FLOAT if wide else self._io
        return graph.tensor(name=name, data_type=kind, dim=list(t.dims), stride=list(t.strides))

    @functools.lru_cache(256)  # noqa: B019 (they are few, and small)
    def _built(self) -> tuple[Any, list[Any]]:
        """The graph of the forward pass, and its tensors in the order of the arrays."""
        graph, given, options = self._graph()
        y, sums = graph.sdpa(name="sdpa", **given, generate_stats=self.stats, **options)
        _result(y, self.result).set_data_type(self._io)
        if self.stats:
            sums.set_output(True).set_data_type(_cudnn().data_type.FLOAT)
        return self._planned(graph), [*given.values(), y, *([sums] if self.stats else [])]

    @functools.lru_cache(256)  # noqa: B019
    def _built_back(self, lie: tuple[Tensor, ...], deterministic: bool) -> tuple[Any, list[Any]]:
        """The graph of the backward pass. lie: dy, stats, dq, dk, dv."""
        graph, given, options = self._graph()
        flows = {
            "o": self._tensor(graph, "o", self.result),
            "dO": self._tensor(graph, "dO", lie[0]),
            "stats": self._tensor(graph, "stats", lie[1], wide=True),
        }
        results = graph.sdpa_backward(
            name="sdpa_backward", **given, **flows, **options, use_deterministic_algorithm=deterministic
        )
        for t, lies in zip(results, lie[2:], strict=True):
            _result(t, lies).set_data_type(self._io)
        return self._planned(graph), [*given.values(), *flows.values(), *results]

    def _planned(self, graph: Any) -> Any:
        try:
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([_cudnn().heur_mode.A])
            graph.check_support()
            graph.build_plans()
        except Exception as error:
            raise DeviceError(f"cuDNN has no attention for {self.operands}: {error}") from error
        return graph

    def _launch(
        self, built: tuple[Any, list[Any]], arrays: Sequence[Any], work: Any, stream: Callable[[], Any]
    ) -> Callable[[], None]:
        graph, tensors = built
        pointers = {t: x.data.ptr for t, x in zip(tensors, arrays, strict=True)}
        cudnn, handle, workspace = _cudnn(), _handle(self.device), work.data.ptr
        if graph.get_workspace_size() > work.nbytes:
            raise DeviceError(f"cuDNN's attention wants {graph.get_workspace_size()} bytes of scratch, there are {work.nbytes}")

        def run() -> None:
            cudnn.set_stream(handle, stream().ptr)
            graph.execute(pointers, workspace, handle=handle)

        return run


def _result(t: Any, lies: Tensor) -> Any:
    """Mark a tensor as a result that lies so."""
    return t.set_output(True).set_dim(list(lies.dims)).set_stride(list(lies.strides))
