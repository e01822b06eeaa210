"""Convolutions on the CPU: NHWC, patches gathered a block at a time into cache-sized scratch, products with packed weights.

A transposed convolution is plain ones, one for each residue of the output's coordinates by the strides, with the taps that
reach it. Gradients of weights are in conv_gradient.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from flamert.graph import Node, TensorType
from flamert.ops.channels_last import conv_channels_last, conv_transpose_channels_last
from flamert.ops.cpu.library import NativeCall, library, native
from flamert.ops.cpu.shape import copier, sequence
from flamert.ops.fused import ACTIVATIONS
from flamert.ops.op import Site, kernel

SCRATCH_FLOATS = 1 << 16
"""Floats of gathered patches per thread: a quarter of a megabyte, which stays in the second-level cache."""

FEWEST_ROWS = 48
"""Patches that are gathered at least, even if they take more: all weights pass by for each block."""

FEW, LONG = 2, 24
"""Up to so many output channels, and from such a length of patches, sums run along the patch instead of across channels."""

BUT_WEIGHTS = (0, 2, 3, 4)
"""Operands that must be contiguous; weights are arranged anyhow."""


class Geometry(NamedTuple):
    """How patches of an image lie: strides, padding in front, dilations (all for y, x), and groups of channels."""

    strides: tuple[int, int]
    pads: tuple[int, int]
    dilations: tuple[int, int]
    group: int


class Form(NamedTuple):
    """Which of the kernels a convolution takes, and how weights lie in it: columns per panel, or 0 where there are none."""

    depthwise: bool
    few: bool
    panel: int

    def size(self, group: int, own: int, k: int) -> int:
        """Floats of the arranged weights of groups with `own` output channels and patches of k numbers."""
        return group * (-(-own // self.panel) * self.panel if self.panel else own) * k


def _suits(node: Node) -> bool:
    """One or two spatial dimensions."""
    return node.inputs[0].rank in (3, 4) and node.types[0].size > 0  # type: ignore[union-attr]


def _form(node: Node, own: int) -> Form:
    """own: output channels of a group."""
    lib = library()
    assert lib is not None
    x, w = node.inputs[:2]
    depthwise = node.attrs["group"] == x.shape[-1] > 1 and own == 1  # type: ignore[union-attr]
    channels = x.shape[-1] // node.attrs["group"]  # type: ignore[union-attr]
    few = not depthwise and own <= FEW and channels * math.prod(w.shape[2:]) >= LONG  # type: ignore[union-attr]
    return Form(depthwise, few, 0 if depthwise or few else lib.panel)


def _block(k: int) -> int:
    """Output pixels per block, a multiple of every tile height (6 and 12)."""
    return max(FEWEST_ROWS, min(96, SCRATCH_FLOATS // max(k, 1) // 12 * 12))


def _scratch(form: Form, k: int, columns: int, apart: int) -> int:
    """Floats of scratch for one thread. columns: output channels; apart: results of a line that must be put in place, or 0."""
    if form.depthwise:
        return apart * columns
    return _block(k) * (k + (columns if apart else 0))


def _in_plane(array: Any, at: int) -> Any:
    """An array with one spatial axis as one with two: an image of height one."""
    return None if array is None else np.expand_dims(array, at)


def _workspace(node: Node) -> Sequence[TensorType]:
    """Gathered patches for each thread; weights arranged, where they may be others in every call."""
    lib = library()
    assert lib is not None
    m, *patch = node.inputs[1].shape  # type: ignore[union-attr]
    group, k = node.attrs["group"], math.prod(patch)
    form = _form(node, m // group)
    sizes = [lib.threads * _scratch(form, k, m, 0)]
    if node.inputs[1].constant is None:  # type: ignore[union-attr]
        sizes.append(form.size(group, m // group, k))
    return [TensorType((size,), np.dtype(np.float32)) for size in sizes]


@kernel(conv_channels_last, "numpy", when=native(_suits), bind=True, contiguous=BUT_WEIGHTS, workspace=_workspace)
def _(
    site: Site,
    out: Any,
    x: Any,
    w: Any,
    bias: Any = None,
    residual: Any = None,
    gate: Any = None,
    *,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int,
    activation: str,
    alpha: float,
    beta: float,
) -> Callable[[], None]:
    own, few = w.shape[0] // group, _form(site.node, w.shape[0] // group)
    begins = pads[: len(strides)]
    if x.ndim == 3:
        x, out, residual, gate, w = (_in_plane(a, at) for a, at in ((x, 1), (out, 1), (residual, 1), (gate, 1), (w, 2)))
        strides, begins, dilations = (1, *strides), (0, *begins), (1, *dilations)
    elif x.shape[2] == out.shape[2] == w.shape[3] == 1:  # the same numbers, lying down
        x, out, residual, gate = (None if a is None else a.swapaxes(1, 2) for a in (x, out, residual, gate))
        w, strides, begins, dilations = w.swapaxes(2, 3), strides[::-1], begins[::-1], dilations[::-1]
    geometry = Geometry(strides, begins, dilations, group)  # type: ignore[arg-type]
    weights, first = _arranged(site, [w.reshape(group, own, *w.shape[1:])], few)
    finish = Finish(bias, residual, gate, activation, alpha, beta)
    return sequence([*first, _call(site, few, out, x, weights[0], w.shape[2:], geometry, finish)])


class Finish(NamedTuple):
    """What is done to sums of products."""

    bias: Any
    residual: Any
    gate: Any
    activation: str
    alpha: float
    beta: float


def _call(
    site: Site,
    form: Form,
    out: np.ndarray,
    x: np.ndarray,
    weights: np.ndarray,
    taps: tuple[int, ...],
    geometry: Geometry,
    finish: Finish,
    lattice: tuple[int, ...] = (0, 0, 0),
) -> NativeCall:
    """The kernel's call. lattice: pixels from one result to the next, to the next line and image, where they lie apart.

    out: [B, OH, OW, N], where they do a view of those results alone.
    """
    lib = library()
    assert lib is not None
    strides, pads, dilations, group = geometry
    k = x.shape[3] // group * math.prod(taps)
    numbers = [*x.shape, *out.shape[1:], *taps, *strides, *pads, *dilations, group, ACTIVATIONS.index(finish.activation)]
    numbers += [_block(k), lib.threads, form.few, *lattice]
    name = "depthwise" if form.depthwise else "conv"
    call = lib.call(name, [None, x, weights, finish.bias, None, site.work[0]], numbers, [finish.alpha, finish.beta])
    for i, array in ((0, out), (4, finish.residual), (6, finish.gate)):
        if array is not None:
            call.arguments[0].p[i] = array.__array_interface__["data"][0]
    call.kept = (call.kept, out, finish)
    return call


def _arranged(site: Site, parts: Sequence[np.ndarray], form: Form) -> tuple[list[np.ndarray], list[Callable[[], Any]]]:
    """Weights [group, own, C, KH, KW] in the kernel's order, and calls that put them there each time: none for constants."""
    sizes = [form.size(w.shape[0], w.shape[1], math.prod(w.shape[2:])) for w in parts]
    ends = np.cumsum(sizes)

    def split(memory: np.ndarray) -> list[np.ndarray]:
        return [memory[end - size : end] for size, end in zip(sizes, ends, strict=True)]

    def calls(memory: np.ndarray) -> list[Callable[[], Any]]:
        pairs = zip(split(memory), parts, strict=True)
        return [call for to, w in pairs if to.size for call in _arranging(to, w, form)]

    if not site.is_constant(1):
        return split(site.work[1]), calls(site.work[1])

    def arrange() -> np.ndarray:
        memory = np.empty(sum(sizes), np.float32)
        for call in calls(memory):
            call()
        return memory

    attrs = site.node.attrs
    kind = (site.node.op.name, attrs["group"], attrs["strides"], attrs["pads"], attrs["dilations"])
    return split(site.prepacked(kind, 1, arrange)), []  # type: ignore[arg-type]


def _arranging(out: np.ndarray, w: np.ndarray, form: Form) -> list[Callable[[], Any]]:
    """Calls that copy w [group, own, C, KH, KW] into its order in `out`.

    Depthwise [KH, KW, group]; for few channels [group, own, KH, KW, C]; else panels of columns, [group, panel, KH, KW, C,
    columns], with zeros for columns that are missing in the last one.
    """
    group, own, channels, *taps = w.shape
    if form.depthwise:
        return [copier(out.reshape(*taps, group), w[:, 0, 0].transpose(1, 2, 0))]
    if form.few:
        return [copier(out.reshape(group, own, *taps, channels), w.transpose(0, 1, 3, 4, 2))]
    lib = library()
    assert lib is not None
    call = lib.call("arrange", [out], [group, own, channels, *taps, *[n // 4 for n in w.strides]])
    call.arguments[0].p[1] = w.__array_interface__["data"][0]
    call.kept = (out, w)
    return [call]


class Phase(NamedTuple):
    """Along one axis of a transposed convolution, the results first, first + stride, … are a plain one of step 1."""

    first: int
    taps: slice
    pad: int
    dilation: int


def _phases(size: int, kernel: int, stride: int, pad: int, dilation: int) -> Iterator[Phase]:
    """size: of the output. Tap k of element i of x goes to i · stride + k · dilation − pad."""
    period = stride // math.gcd(stride, dilation)
    for first in range(min(size, stride)):
        reaching = [k for k in range(kernel) if (first + pad - k * dilation) % stride == 0]
        if not reaching:
            yield Phase(first, slice(0, 0), 0, 1)
            continue
        low, high = reaching[0], reaching[-1]
        backwards = slice(high, low - 1 if low else None, -period)
        yield Phase(first, backwards, (high * dilation - first - pad) // stride, period * dilation // stride)


def _transposed_workspace(node: Node) -> Sequence[TensorType]:
    lib = library()
    assert lib is not None
    w, group = node.inputs[1], node.attrs["group"]
    assert w is not None
    form = _form(node, w.shape[1])
    k = w.shape[0] // group * math.prod(w.shape[2:])
    apart = node.types[0].shape[-2] if max(node.attrs["strides"]) > 1 else 0
    sizes = [lib.threads * _transposed_scratch(form, w.shape[0] // group, math.prod(w.shape[2:]), w.shape[1] * group, apart)]
    if w.constant is None:
        sizes.append(form.size(group, w.shape[1], k))
    return [TensorType((size,), np.dtype(np.float32)) for size in sizes]


def _transposed_scratch(form: Form, channels: int, taps: int, columns: int, apart: int) -> int:
    """For whichever number of taps a phase has."""
    return max(_scratch(form, channels * n, columns, apart) for n in range(taps + 1))


@kernel(
    conv_transpose_channels_last,
    "numpy",
    when=native(_suits),
    bind=True,
    contiguous=BUT_WEIGHTS,
    workspace=_transposed_workspace,
)
def _(
    site: Site,
    out: Any,
    x: Any,
    w: Any,
    bias: Any = None,
    residual: Any = None,
    gate: Any = None,
    *,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int,
    output_padding: tuple[int, ...],
    activation: str,
    alpha: float,
    beta: float,
) -> Callable[[], None]:
    form, begins = _form(site.node, w.shape[1]), pads[: len(strides)]
    if x.ndim == 3:
        x, out, residual, gate, w = (_in_plane(a, at) for a, at in ((x, 1), (out, 1), (residual, 1), (gate, 1), (w, 2)))
        strides, begins, dilations = (1, *strides), (0, *begins), (1, *dilations)
    height, width = out.shape[1:3]
    # By group, output channels before input channels, as `conv` has them.
    w = w.reshape(group, w.shape[0] // group, *w.shape[1:]).swapaxes(1, 2)
    axes = zip((height, width), w.shape[3:], strides, begins, dilations, strict=True)
    phases = list(itertools.product(*[_phases(*axis) for axis in axes]))
    parts = [w[..., down.taps, across.taps] for down, across in phases]
    weights, calls = _arranged(site, parts, form)
    lattice = (strides[1], strides[0] * width, height * width) if max(strides) > 1 else (0, 0, 0)
    for (down, across), part, arranged in zip(phases, parts, weights, strict=True):
        where = (slice(None), slice(down.first, None, strides[0]), slice(across.first, None, strides[1]))
        geometry = Geometry((1, 1), (down.pad, across.pad), (down.dilation, across.dilation), group)
        over, through = (None if a is None else a[where] for a in (residual, gate))
        finish = Finish(bias, over, through, activation, alpha, beta)
        calls.append(_call(site, form, out[where], x, arranged, part.shape[3:], geometry, finish, lattice))
    return sequence(calls)
