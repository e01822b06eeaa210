"""CUDA C for LSTMs: what lies between their matrix products, forward step by step, backward in one walk and step by step."""

from __future__ import annotations

import numpy as np

from flamert.ops.cuda.emit import COMPUTED, HEADER

THREADS = 128


def _kernel(name: str, dtype: np.dtype, parameters: str, text: str) -> str:
    """A kernel with a thread for each element of a state [B, H]: number i, in column j, whose gates begin at `row`."""
    return f"""{HEADER}
typedef {COMPUTED[dtype]} A;
extern "C" __global__ void __launch_bounds__({THREADS}) {name}({parameters}, u32 n, u32 H) {{
  const u32 i = blockIdx.x * {THREADS}u + threadIdx.x;
  if (i >= n) return;
  const u32 j = i % H, row = i / H * 4 * H + j;
  {text}
}}
"""


def _gates(biased: bool) -> str:
    """Statements that find the gates and the cell of a step. x, h: what was multiplied with W and R there."""
    bias = " + (bias[k * H + j] + bias[(4 + k) * H + j])" if biased else ""
    return f"""A raw[4];
  #pragma unroll
  for (u32 k = 0; k < 4; k++) raw[k] = x[row + k * H] + h[row + k * H]{bias};
  const A in = logistic<A>(raw[0]), out = logistic<A>(raw[1]), forget = logistic<A>(raw[2]), cell = tanh(raw[3]);"""


def step(dtype: np.dtype, biased: bool) -> str:
    """A kernel `lstm_step`: the next states, of which y is given one, too."""
    text = f"""{_gates(biased)}
  const A next = forget * c_state[i] + in * cell;
  c_state[i] = next;
  h_state[i] = y[i] = out * tanh(next);"""
    parameters = "const A* x, const A* h, const A* bias, A* c_state, A* h_state, A* y"
    return _kernel("lstm_step", dtype, parameters, text)


def walk(dtype: np.dtype, biased: bool, started: bool) -> str:
    """A kernel `lstm_walk`: all steps of a direction once more, from products of all of them, [T, B, 4H].

    xs is overwritten with what each gate passes on of the gradient of h (the output gate) or of c. kept [4, T, B, H] is given
    ∂h/∂c, the forget gate, and c before and after. started: whether there is a first c.
    """
    text = f"""A c = {"first[i]" if started else "0"};
  const size_t size = (size_t)T * n;
  for (u32 turn = 0; turn < T; turn++) {{
    const size_t t = reverse ? T - 1 - turn : turn, at = t * n + i;
    A* x = xs + t * 4 * n;
    const A* h = hs + t * 4 * n;
    {_gates(biased)}
    const A next = forget * c + in * cell, shown = tanh(next);
    x[row] = in * (A(1) - in) * cell;
    x[row + H] = out * (A(1) - out) * shown;
    x[row + 2 * H] = forget * (A(1) - forget) * c;
    x[row + 3 * H] = (A(1) - cell * cell) * in;
    kept[at] = out * (A(1) - shown * shown);
    kept[size + at] = forget;
    kept[2 * size + at] = c;
    kept[3 * size + at] = next;
    c = next;
  }}"""
    parameters = "A* xs, const A* hs, const A* bias, const A* first, A* kept, u32 T, u32 reverse"
    return _kernel("lstm_walk", dtype, parameters, text)


def back(dtype: np.dtype, flows: bool) -> str:
    """A kernel `lstm_back`: one step back in time.

    passed, kept: that step of what `walk` left, the latter's parts `size` apart. dh, dc: what came from the step after; dc
    goes on to the one before. sent: for what went into the gates, rows `width` apart. peep [3, B, H] is added what peepholes
    would be given. flows: whether y has a gradient of its own.
    """
    text = f"""const A down = dh[i]{" + dy[i]" if flows else ""};
  const A memory = down * kept[i] + dc[i], before = kept[2 * size + i], after = kept[3 * size + i];
  A* to = sent + (size_t)(i / H) * width + j;
  const A in = memory * passed[row], out = down * passed[row + H], forget = memory * passed[row + 2 * H];
  to[0] = in;
  to[H] = out;
  to[2 * H] = forget;
  to[3 * H] = memory * passed[row + 3 * H];
  dc[i] = memory * kept[size + i];
  peep[i] += in * before;
  peep[n + i] += out * after;
  peep[2 * n + i] += forget * before;"""
    parameters = "const A* passed, const A* kept, const A* dy, const A* dh, A* dc, A* sent, A* peep, u64 size, u64 width"
    return _kernel("lstm_back", dtype, parameters, text)
