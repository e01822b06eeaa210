"""Rows for ops/signal.py: the oracles are matrices of complex exponentials."""

import numpy as np

from flamert.testing import Case
from tests.cases.elementwise import FLOATS, f32

FLOAT32_ERROR = (1e-4, 1e-5)


def dft(x, axis, length, inverse=False, onesided=False):
    z = np.moveaxis(x[..., 0] + (1j * x[..., 1] if x.shape[-1] == 2 else 0), axis, -1)[..., :length]
    z = np.concatenate([z, np.zeros((*z.shape[:-1], length - z.shape[-1]))], -1)
    if inverse and onesided:  # the half that was left out is the conjugate of the half that is there
        half = z[..., : length // 2 + 1].copy()
        half[..., 0] = half[..., 0].real
        if length % 2 == 0:
            half[..., -1] = half[..., -1].real
        z = np.concatenate([half, half[..., 1 : (length + 1) // 2][..., ::-1].conj()], -1)
    k = np.arange(length)
    z = z @ np.exp((2j if inverse else -2j) * np.pi * np.outer(k, k) / length) / (length if inverse else 1)
    z = np.moveaxis(z, -1, axis)
    if onesided and not inverse:
        z = np.take(z, range(length // 2 + 1), axis)
    return z.real[..., None] if onesided and inverse else np.stack([z.real, z.imag], -1)


def stft(signal, window=None, step=1, length=1, onesided=True):
    frames = np.stack([signal[:, t : t + length] for t in range(0, signal.shape[1] - length + 1, step)], 1)
    return dft(frames * (1 if window is None else window[:, None]), 2, length, onesided=onesided)


CASES = [
    *[Case("dft", [f32(2, 6, c)], {"axis": 1, "length": 6}, dft, FLOATS) for c in (1, 2)],
    *[Case("dft", [f32(2, 6, c)], {"axis": 1, "length": 6, "inverse": True}, dft, FLOATS) for c in (1, 2)],
    *[Case("dft", [f32(5, 3, 2)], {"axis": 0, "length": n}, dft, tolerance=FLOAT32_ERROR) for n in (1, 4, 5, 8)],
    *[
        Case("dft", [f32(5, 3, 1)], {"axis": 0, "length": n, "onesided": True}, dft, tolerance=FLOAT32_ERROR)
        for n in (1, 4, 5, 8)
    ],
    *[
        Case("dft", [f32(2, n // 2 + 1, 2)], {"axis": 1, "length": n, "inverse": True, "onesided": True}, dft, FLOATS)
        for n in (6, 7)
    ],
    Case("dft", [f32(2, 0, 2)], {"axis": 1, "length": 2}, np.zeros((2, 2, 2))),
    Case("dft", [f32(0, 4, 1)], {"axis": 1, "length": 4}, np.zeros((0, 4, 2))),
    Case("stft", [f32(2, 16, 1), f32(6)], {"step": 3, "length": 6}, stft, FLOATS),
    Case("stft", [f32(2, 16, 1)], {"step": 5, "length": 5}, stft, tolerance=FLOAT32_ERROR),
    Case("stft", [f32(2, 16, 1), f32(4)], {"step": 2, "length": 4, "onesided": False}, stft, tolerance=FLOAT32_ERROR),
    Case("stft", [f32(1, 9, 2), f32(9)], {"step": 1, "length": 9, "onesided": False}, stft, tolerance=FLOAT32_ERROR),
    Case("stft", [f32(0, 9, 1)], {"step": 1, "length": 4}, np.zeros((0, 6, 3, 2))),
]
