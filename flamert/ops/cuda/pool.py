"""Pooling of images with channels last on the GPU, and its gradients, which gather: every element asks its windows.

Each thread takes neighbouring channels of one place in one wide access. Sizes are part of a source, so that the compiler
divides by constants; kernels are kept on disk.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flamert import dtypes
from flamert.graph import Node, TensorType
from flamert.ops import OPS
from flamert.ops.cuda.emit import COMPUTED, HEADER, STORED
from flamert.ops.cuda.launch import Launch, compiled, extent
from flamert.ops.op import Site, kernel

THREADS = 256

VECTOR_BYTES = 16

UNROLLED = 32
"""Elements of a window up to which a kernel has no loops over them."""

PLACES: dict[int, np.dtype] = {255: np.dtype(np.uint8), 65535: np.dtype(np.uint16)}
"""What numbers the elements of a window, by how many there are; the greatest number says that there is none."""


class Windows(NamedTuple):
    """Pooling of [N, H, W, C]: sizes of images and results, and attributes for both axes. counted: as in `average_pool`."""

    image: tuple[int, int]
    windows: tuple[int, int]
    channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]
    dilations: tuple[int, int]
    counted: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def taps(self) -> int:
        """Elements of a window."""
        return math.prod(self.kernel)

    @property
    def places(self) -> np.dtype:
        """What numbers them."""
        return PLACES[min(most for most in PLACES if self.taps <= most)]

    def constants(self, width: int) -> str:
        """C's names for all of this. EH, EW: what a window spans. JH, JW: windows that may contain an element."""
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        groups = {
            **{"H, W": self.image, "P, Q": self.windows, "C, V": (self.channels, width), "kh, kw": self.kernel},
            **{"sh, sw": self.strides, "ph, pw": self.pads, "dh, dw": self.dilations, "top, left, bottom, right": self.counted},
            **{"EH, EW": spans, "JH, JW": [-(-e // s) for e, s in zip(spans, self.strides, strict=True)]},
        }
        named = [f"{n} = {v}" for names, found in groups.items() for n, v in zip(names.split(", "), found, strict=True)]
        return f"constexpr int {', '.join(named)};"

    @property
    def unroll(self) -> str:
        return "#pragma unroll" if self.taps <= UNROLLED else "#pragma unroll 1"


def windows_of(image: tuple[int, ...], results: tuple[int, ...], attrs: Any) -> Windows:
    """image, results: [N, H, W, C], or [N, W, C]."""
    lead: tuple[int, ...] = (1,) if len(image) == 3 else ()
    pads, counted = attrs["pads"], attrs.get("counted", (0,) * 2 * (len(image) - 2))
    if lead:
        pads, counted = (0, pads[0], 0, pads[1]), (0, counted[0], 0, counted[1])
    both = [(*lead, *attrs[name]) for name in ("kernel", "strides", "dilations")]
    (h, w), (p, q) = (*lead, *image[1:-1]), (*lead, *results[1:-1])
    return Windows((h, w), (p, q), image[-1], both[0], both[1], pads[:2], both[2], counted)  # type: ignore[arg-type]


def _over_window(of: Windows, c: str, each: str) -> str:
    """Statements that do `each` with held[b], element a · kw + b of window (n, p, q), if it is `inside` the image x.

    The elements of a row are asked for before the first is looked at.
    """
    return f"""{of.unroll}
  for (int a = 0; a < kh; a++) {{
    const int y = p * sh - ph + a * dh;
    if (y < 0 || y >= H) continue;
    Pack<{c}, V> held[kw];
    {of.unroll}
    for (int b = 0; b < kw; b++) {{
      const int z = q * sw - pw + b * dw;
      if (z >= 0 && z < W) held[b] = *(const Pack<{c}, V>*)(x + ((u32)(n * H + y) * W + z) * C + c);
    }}
    {of.unroll}
    for (int b = 0; b < kw; b++) {{
      const int z = q * sw - pw + b * dw;
      if (z < 0 || z >= W) continue;
      #pragma unroll
      for (int v = 0; v < V; v++) {{ {each} }}
    }}
  }}"""


def _over_windows(of: Windows, each: str) -> str:
    """Statements that do `each` for every window (n, p, q) that has the element (n, y, z) as its element a · kw + b."""
    return f"""{of.unroll}
  for (int i = 0; i < JH; i++) {{
    const int p = (y + ph) / sh - i, down = (y + ph) % sh + i * sh, a = down / dh;
    if (p < 0 || p >= P || down >= EH || down % dh) continue;
    {of.unroll}
    for (int j = 0; j < JW; j++) {{
      const int q = (z + pw) / sw - j, across = (z + pw) % sw + j * sw, b = across / dw;
      if (q < 0 || q >= Q || across >= EW || across % dw) continue;
      const u32 at = ((u32)(n * P + p) * Q + q) * C + c;
      {each}
    }}
  }}"""


def _kernel(of: Windows, width: int, name: str, parameters: str, places: tuple[str, str], text: str) -> str:
    """A kernel with a thread for every `width` channels of each place. places: the names of its coordinates."""
    down, across = places
    rows, columns = ("H", "W") if down == "y" else ("P", "Q")
    return f"""{HEADER}
{of.constants(width)}
// How many elements count of the windows in row p or column q.
__device__ __forceinline__ int counts(int first, int size, int step, int least, int most) {{
  int found = 0;
  {of.unroll}
  for (int k = 0; k < size; k++) found += first + k * step >= -least && first + k * step < most;
  return found;
}}
extern "C" __global__ void __launch_bounds__({THREADS}) {name}({parameters}, u32 count) {{
  const u32 thread = blockIdx.x * {THREADS}u + threadIdx.x;
  if (thread >= count) return;
  const int c = thread % (u32)(C / V) * V, {across} = thread / (u32)(C / V) % (u32){columns};
  const int {down} = thread / (u32)(C / V * {columns}) % (u32){rows}, n = thread / ((u32)(C / V * {columns}) * (u32){rows});
  {text}
}}
"""


INFINITE = "-__int_as_float(0x7f800000)"

MEMBERS = "counts(p * sh - ph, kh, dh, top, H + bottom) * counts(q * sw - pw, kw, dw, left, W + right)"
"""What a window's sum is divided by for its mean."""


def max_source(of: Windows, dtype: np.dtype, width: int) -> str:
    """A kernel `max_pool(x, out, count)`."""
    c, wide = STORED[dtype], COMPUTED[dtype]
    each = f"const {wide} seen = load(held[b].v[v]); if (seen > most[v] || seen != seen) most[v] = seen;"
    text = f"""{wide} most[V];
  #pragma unroll
  for (int v = 0; v < V; v++) most[v] = {INFINITE};
  {_over_window(of, c, each)}
  {_stored(c, wide, "most[v]")}"""
    return _kernel(of, width, "max_pool", f"const {c}* x, {c}* out", ("p", "q"), text)


def winners_source(of: Windows, dtype: np.dtype, width: int) -> str:
    """A kernel `max_winners(x, out, count)`: which element of its window is the maximum: the first of equals, or of NaNs."""
    c, wide, place = STORED[dtype], COMPUTED[dtype], _place(of)
    # Below what is greater than all numbers only where nothing has been seen yet: a window of −∞ alone has a first element.
    better = "won.v[v] == none || seen > most[v] || (seen != seen && most[v] == most[v])"
    each = f"const {wide} seen = load(held[b].v[v]); if ({better}) {{ most[v] = seen; won.v[v] = a * kw + b; }}"
    text = f"""constexpr {place} none = ({place})-1;
  {wide} most[V];
  Pack<{place}, V> won;
  #pragma unroll
  for (int v = 0; v < V; v++) {{ most[v] = 0; won.v[v] = none; }}
  {_over_window(of, c, each)}
  *(Pack<{place}, V>*)(out + thread * V) = won;"""
    return _kernel(of, width, "max_winners", f"const {c}* x, {place}* out", ("p", "q"), text)


def max_gradient_source(of: Windows, dtype: np.dtype, width: int) -> str:
    """A kernel `max_pool_gradient(dy, winners, out, count)`: what the windows hand on that an element has won."""
    c, wide, place = STORED[dtype], COMPUTED[dtype], _place(of)
    each = f"""const Pack<{place}, V> won = *(const Pack<{place}, V>*)(winners + at);
      const Pack<{c}, V> handed = *(const Pack<{c}, V>*)(dy + at);
      #pragma unroll
      for (int v = 0; v < V; v++) if (won.v[v] == a * kw + b) sums[v] += load(handed.v[v]);"""
    text = f"""{wide} sums[V] = {{}};
  {_over_windows(of, each)}
  {_stored(c, wide, "sums[v]")}"""
    return _kernel(of, width, "max_pool_gradient", f"const {c}* dy, const {place}* winners, {c}* out", ("y", "z"), text)


def average_source(of: Windows, dtype: np.dtype, width: int) -> str:
    """A kernel `average_pool(x, out, count)`."""
    c, wide = STORED[dtype], COMPUTED[dtype]
    text = f"""{wide} sums[V] = {{}};
  {_over_window(of, c, "sums[v] += load(held[b].v[v]);")}
  const {wide} members = {MEMBERS};
  {_stored(c, wide, "sums[v] / members")}"""
    return _kernel(of, width, "average_pool", f"const {c}* x, {c}* out", ("p", "q"), text)


def average_gradient_source(of: Windows, dtype: np.dtype, width: int) -> str:
    """A kernel `average_pool_gradient(dy, out, count)`."""
    c, wide = STORED[dtype], COMPUTED[dtype]
    each = f"""const Pack<{c}, V> handed = *(const Pack<{c}, V>*)(dy + at);
      const {wide} members = {MEMBERS};
      #pragma unroll
      for (int v = 0; v < V; v++) sums[v] += load(handed.v[v]) / members;"""
    text = f"""{wide} sums[V] = {{}};
  {_over_windows(of, each)}
  {_stored(c, wide, "sums[v]")}"""
    return _kernel(of, width, "average_pool_gradient", f"const {c}* dy, {c}* out", ("y", "z"), text)


def _place(of: Windows) -> str:
    return "unsigned char" if of.places.itemsize == 1 else "unsigned short"


def _stored(c: str, wide: str, value: str) -> str:
    return f"""Pack<{c}, V> result;
  #pragma unroll
  for (int v = 0; v < V; v++) result.v[v] = Store<{c}, {wide}>::as({value});
  *(Pack<{c}, V>*)(out + thread * V) = result;"""


def _suits(node: Node) -> bool:
    types = [*node.types, *[v.type for v in node.inputs if v is not None]]
    whole = all(t.rank in (3, 4) and 0 < t.size < 1 << 31 and t.dtype in dtypes.STANDARD_FLOAT for t in types)
    few = math.prod(node.attrs["kernel"]) <= max(PLACES)
    return whole and few and min(*node.attrs["pads"], *node.attrs.get("counted", (0,))) >= 0


def launch(make: Callable[..., str], name: str, of: Windows, dtype: np.dtype, arrays: tuple[Any, ...]) -> Launch:
    """The launch of a kernel on arrays of which the last is the result, and the others are read."""
    width = VECTOR_BYTES // dtype.itemsize
    while of.channels % width or any(x.data.ptr % (width * x.itemsize) for x in arrays):
        width //= 2
    count = arrays[-1].size // width
    run = compiled(make(of, dtype, width), name)
    reads = [extent(x) for x in arrays[:-1]]
    return Launch(run, (-(-count // THREADS),), THREADS, (*arrays, np.uint32(count)), reads, [extent(arrays[-1])])


@kernel(OPS["max_pool_channels_last"], "cupy", when=_suits, bind=True, contiguous=True)
def _(site: Site, out: Any, x: Any, **attrs: Any) -> Launch:
    return launch(max_source, "max_pool", windows_of(x.shape, out.shape, attrs), site.node.types[0].dtype, (x, out))


@kernel(OPS["average_pool_channels_last"], "cupy", when=_suits, bind=True, contiguous=True)
def _(site: Site, out: Any, x: Any, **attrs: Any) -> Launch:
    return launch(average_source, "average_pool", windows_of(x.shape, out.shape, attrs), site.node.types[0].dtype, (x, out))


@kernel(OPS["average_pool_gradient_channels_last"], "cupy", when=_suits, bind=True, contiguous=True)
def _(site: Site, out: Any, dy: Any, *, spatial: Any, **attrs: Any) -> Launch:
    of = windows_of(out.shape, dy.shape, attrs)
    return launch(average_gradient_source, "average_pool_gradient", of, site.node.types[0].dtype, (dy, out))


def _winners(node: Node) -> list[TensorType]:
    dy, x = (v.type for v in node.inputs if v is not None)
    return [TensorType(dy.shape, windows_of(x.shape, dy.shape, node.attrs).places)]


@kernel(OPS["max_pool_gradient_channels_last"], "cupy", when=_suits, bind=True, contiguous=True, workspace=_winners)
def _(site: Site, out: Any, dy: Any, x: Any, **attrs: Any) -> Callable[[], None]:
    of, dtype, [winners] = windows_of(x.shape, dy.shape, attrs), site.node.types[0].dtype, site.work
    find = launch(winners_source, "max_winners", of, dtype, (x, winners))
    give = launch(max_gradient_source, "max_pool_gradient", of, dtype, (dy, winners, out))
    return functools.partial(_both, find, give)


def _both(first: Launch, second: Launch) -> None:
    first()
    second()
