"""Max pooling of images with channels last on the GPU, and its gradient, which gathers: every element asks its windows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from flamert.graph import Node
from flamert.ops import OPS
from flamert.ops.cuda.emit import COMPUTED, HEADER, STORED
from flamert.ops.cuda.pointwise import compiled
from flamert.ops.op import Site, kernel

THREADS = 256

PARAMETERS = "int H, int W, int C, int P, int Q, int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw, u32 n"
"""Image, windows, kernel, strides, first pads, dilations, and how many results there are."""

BEST = """
// Where window (p, q) has its maximum: the first of equals, or the first NaN; −1 for a window in the padding.
template <typename T> __device__ __forceinline__ int best(
    const T* x, int H, int W, int C, int p, int q, int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw) {
  int at = -1;
  float most = 0;
  for (int i = 0; i < kh; i++) {
    const int y = p * sh - ph + i * dh;
    if (y < 0 || y >= H) continue;
    for (int j = 0; j < kw; j++) {
      const int z = q * sw - pw + j * dw;
      if (z < 0 || z >= W) continue;
      const float v = load(x[(y * W + z) * C]);
      if (at < 0 || v > most || (v != v && most == most)) { most = v; at = y * W + z; }
    }
  }
  return at;
}
"""


def forward(c: str) -> str:
    """A kernel `pool`: each thread makes one result."""
    return f"""{HEADER}{BEST}
extern "C" __global__ void __launch_bounds__({THREADS}) pool(const {c}* x, {c}* out, {PARAMETERS}) {{
  const u32 i = blockIdx.x * {THREADS}u + threadIdx.x;
  if (i >= n) return;
  const int c = i % C, q = i / C % Q, p = i / C / Q % P;
  const size_t image = (size_t)(i / C / Q / P) * H * W * C + c;
  const int at = best(x + image, H, W, C, p, q, kh, kw, sh, sw, ph, pw, dh, dw);
  out[i] = at < 0 ? Store<{c}, float>::as(-__int_as_float(0x7f800000)) : x[image + (size_t)at * C];
}}
"""


def backward(c: str) -> str:
    """A kernel `pool`: each thread adds up what one element of the image is given."""
    return f"""{HEADER}{BEST}
extern "C" __global__ void __launch_bounds__({THREADS}) pool(const {c}* dy, const {c}* x, {c}* out, {PARAMETERS}) {{
  const u32 i = blockIdx.x * {THREADS}u + threadIdx.x;
  if (i >= n) return;
  const int c = i % C, z = i / C % W, y = i / C / W % H;
  const size_t image = i / C / W / H;
  float sum = 0;
  for (int a = 0; a < kh; a++) {{
    const int up = y + ph - a * dh;
    if (up < 0 || up % sh || up / sh >= P) continue;
    for (int b = 0; b < kw; b++) {{
      const int left = z + pw - b * dw;
      if (left < 0 || left % sw || left / sw >= Q) continue;
      const int p = up / sh, q = left / sw;
      if (best(x + image * H * W * C + c, H, W, C, p, q, kh, kw, sh, sw, ph, pw, dh, dw) == y * W + z)
        sum += load(dy[((image * P + p) * Q + q) * C + c]);
    }}
  }}
  out[i] = Store<{c}, float>::as(sum);
}}
"""


def _suits(node: Node) -> bool:
    types = [*node.types, *[v.type for v in node.inputs if v is not None]]
    whole = all(t.rank == 4 and 0 < t.size < 1 << 31 and COMPUTED.get(t.dtype) == "float" for t in types)
    return whole and min(node.attrs["pads"], default=0) >= 0


def _launch(source: str, arrays: tuple[Any, ...], image: Any, windows: Any, count: int, attrs: Any) -> Callable[[], None]:
    (_, h, w, c), (_, p, q, _) = image.shape, windows.shape
    sizes = (h, w, c, p, q, *attrs["kernel"], *attrs["strides"], *attrs["pads"][:2], *attrs["dilations"])
    arguments = (*arrays, *map(np.int32, sizes), np.uint32(count))
    return functools.partial(compiled(source, "pool"), (-(-count // THREADS),), (THREADS,), arguments)


@kernel(OPS["max_pool_channels_last"], "cupy", when=_suits, bind=True, contiguous=True)
def _(site: Site, out: Any, x: Any, **attrs: Any) -> Callable[[], None]:
    return _launch(forward(STORED[site.node.types[0].dtype]), (x, out), x, out, out.size, attrs)


@kernel(OPS["max_pool_gradient_channels_last"], "cupy", when=_suits, bind=True, contiguous=True)
def _(site: Site, out: Any, dy: Any, x: Any, **attrs: Any) -> Callable[[], None]:
    return _launch(backward(STORED[site.node.types[0].dtype]), (dy, x, out), x, dy, out.size, attrs)
