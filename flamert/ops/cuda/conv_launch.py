"""One convolution's launch: operands put where cuDNN takes them, engines tried and the fastest sound one taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flamert.ops.cuda.copy import copier
from flamert.ops.cuda.cudnn import Tensor, Windows, convolution, version
from flamert.ops.cuda.tuning import choices, fastest, sound
from flamert.ops.op import Site

Launch = Callable[[], None]

GUARD = 4096
"""Elements around what engines are tried on."""

ALIGNMENT = 16
"""Bytes that the first element of what cuDNN takes must lie on a multiple of."""


def launched(
    site: Site,
    kind: str,
    operands: Sequence[Any],
    out: Any,
    windows: Windows,
    bias: Any = None,
    residual: Any = None,
    relu: bool = False,
) -> Launch:
    """The launch of a convolution, tuned."""
    device, xp = site.device, site.xp
    # Where lengths of 1 leave it open how the result lies, the operands decide.
    last = any(map(_channels_last, operands)) if _either(out) else _channels_last(out)
    before: list[Launch] = []
    after: list[Launch] = []
    if kind == "wgrad" and windows.uneven:
        covered = _covered(xp, operands[0], out.shape[2:], operands[1].shape[2:], windows, last, before)
        operands, windows = (covered, operands[1]), windows._replace(pads=(0,) * len(windows.pads))
    whole, out = out, _placed(xp, out, last)
    if out is not whole:
        after.append(copier(whole, out))
    given = [_placed(xp, x, last) for x in (*operands, *[x for x in (residual,) if x is not None])]
    given += [] if bias is None else [_placed(xp, bias, False)]
    for to, x in zip(given, [x for x in (*operands, residual, bias) if x is not None], strict=True):
        if to is not x:
            before.append(copier(to, x))
    built = convolution(
        *(kind, tuple([Tensor.of(x.shape, last) for x in operands]), Tensor.of(out.shape, last)),
        *(site.node.types[0].dtype, windows),
        bias=None if bias is None else Tensor.of((1, bias.size, *[1] * (out.ndim - 2)), last),
        residual=None if residual is None else Tensor.of(residual.shape, last),
        relu=relu,
        tf32=device.allow_tf32 is not False,
        deterministic=device.deterministic,
        device=device.index,
    )
    run = built.launch(given, out, site.work[0], xp.cuda.get_current_stream)
    built.take(_engine(site, built, given, out))
    return one([*before, run, *after])


def _engine(site: Site, built: Any, given: Sequence[Any], out: Any) -> int:
    """The number of the engine to take for a convolution of arrays that lie like these, measured now or before."""
    device, xp = site.device, site.xp

    def measured() -> str:
        # On data of its own: what operands hold is not there yet, or not to be overwritten.
        noise, result = [_noise(xp, x) for x in given], xp.empty_like(out)
        trial = built.launch(noise, result, site.work[0], xp.cuda.get_current_stream)

        def under(index: int) -> Launch:
            def launch() -> None:
                built.take(index)
                trial()

            return launch

        tried = sound([under(i) for i in built.candidates], lambda: result.astype(xp.float32), xp)
        # Times differ from process to process, and engines in the order of their sums.
        first = 0 if device.deterministic else fastest([under(built.candidates[i]) for i in tried])
        return str(built.candidates[tried[first]])

    return int(choices("cudnn", version(), device.index).find(built.key, measured))


def _covered(
    xp: Any, x: Any, kernel: Sequence[int], counts: Sequence[int], windows: Windows, last: bool, before: list[Launch]
) -> Any:
    """What the windows cover of x with its padding, and no more: with uneven padding wgrad engines take in what lies beyond."""
    steps = zip(kernel, counts, windows.strides, windows.dilations, strict=True)
    lengths = [(count - 1) * stride + dilation * (k - 1) + 1 for k, count, stride, dilation in steps]
    shape = (x.shape[0], *lengths, x.shape[1]) if last else (*x.shape[:2], *lengths)
    buffer = xp.zeros(shape, x.dtype)
    made = first(buffer) if last else buffer
    into, of = [slice(None)] * 2, [slice(None)] * 2
    for length, size, pad in zip(lengths, x.shape[2:], windows.pads, strict=False):
        kept = min(size, length - pad)
        into.append(slice(pad, pad + kept))
        of.append(slice(0, kept))
    before.append(copier(made[tuple(into)], x[tuple(of)]))
    return made


def _noise(xp: Any, x: Any) -> Any:
    """An array that lies as x does, of numbers from −1 to 1 in no order; NaN around it gives away engines that read too far."""
    shape = x.shape if x.flags.c_contiguous else _turned(x).shape
    memory = xp.full(2 * GUARD + x.size, xp.nan, x.dtype)
    flat = memory[GUARD : GUARD + x.size]
    flat[...] = xp.sin(xp.arange(x.size, dtype=xp.float32) * 12.9898)
    made = flat.reshape(shape)
    return made if x.flags.c_contiguous else first(made)


def _turned(x: Any) -> Any:
    """[N, C, spatial…] seen as [N, spatial…, C]."""
    return x.transpose(0, *range(2, x.ndim), 1)


def _channels_last(x: Any) -> bool:
    """Whether an array [N, C, spatial…] lies with its channels innermost, and could not be taken to lie in C order."""
    return _turned(x).flags.c_contiguous and not x.flags.c_contiguous


def _either(x: Any) -> bool:
    """Whether it lies in both orders."""
    return _turned(x).flags.c_contiguous and x.flags.c_contiguous


def _placed(xp: Any, x: Any, last: bool) -> Any:
    """x, or a buffer for it where it does not lie in one piece in this order: on other strides cuDNN's engines are wrong."""
    turned = _turned(x) if last else x
    if turned.flags.c_contiguous and x.data.ptr % ALIGNMENT == 0:
        return x
    buffer = xp.empty(turned.shape, x.dtype)
    return first(buffer) if last else buffer


def first(a: Any) -> Any:
    """[N, spatial…, C] seen as [N, C, spatial…]."""
    return a.transpose(0, a.ndim - 1, *range(1, a.ndim - 1))


def one(steps: list[Launch]) -> Launch:
    """One call of all of these."""

    def run() -> None:
        for step in steps:
            step()

    return steps[0] if len(steps) == 1 else run
