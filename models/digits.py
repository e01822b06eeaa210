"""Pictures of digits, drawn on the spot: every one with strokes, slant, size and place of its own, if asked for in noise.

No data set is read. What a network reaches on these pictures says nothing about handwriting.
"""

from __future__ import annotations

import numpy as np

CHUNK = 256
"""Pictures drawn at a time."""


def _arc(x: float, y: float, width: float, height: float, start: float, end: float) -> np.ndarray:
    """Nine points on an ellipse, from one angle to another in degrees, clockwise from the right."""
    angle = np.radians(np.linspace(start, end, 9))
    return np.stack([x + width * np.cos(angle), y + height * np.sin(angle)], axis=1)


def _lines(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, float)


STROKES = (
    (_arc(0, 0, 0.5, 0.9, 0, 360),),
    (_lines((-0.3, -0.5), (0.1, -0.9), (0.1, 0.9)),),
    (_arc(0, -0.4, 0.5, 0.5, 190, 390), _lines((0.43, -0.15), (-0.5, 0.9), (0.55, 0.9))),
    (_arc(-0.05, -0.45, 0.45, 0.45, 200, 450), _arc(-0.05, 0.45, 0.5, 0.45, 270, 520)),
    (_lines((0.25, 0.9), (0.25, -0.9), (-0.55, 0.35), (0.55, 0.35)),),
    (_lines((0.45, -0.9), (-0.35, -0.9), (-0.42, -0.1)), _arc(-0.05, 0.32, 0.55, 0.55, 225, 510)),
    (_arc(0.35, 0.3, 0.85, 1.2, 270, 180), _arc(0, 0.4, 0.5, 0.5, 180, 540)),
    (_lines((-0.5, -0.9), (0.5, -0.9), (-0.15, 0.9)),),
    (_arc(0, -0.45, 0.4, 0.43, 0, 360), _arc(0, 0.45, 0.5, 0.46, 0, 360)),
    (_arc(0, -0.4, 0.5, 0.5, 0, 360), _lines((0.5, -0.4), (0.35, 0.9))),
)
"""What each digit is made of: lines through points, in a box from −1 to 1, y downwards."""


def _segments(digit: int) -> np.ndarray:
    """The pieces of a digit's lines: [pieces, 2 ends, 2 coordinates]."""
    return np.concatenate([np.stack([line[:-1], line[1:]], axis=1) for line in STROKES[digit]])


SEGMENTS = [_segments(d) for d in range(10)]
MOST = max(map(len, SEGMENTS))


def digits(count: int, side: int = 28, *, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(pictures [count, 1, side, side] from −1 to 1, which digit each is), float32 and int64. noise: its standard deviation."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    pictures = np.concatenate([_drawn(labels[i : i + CHUNK], side, rng) for i in range(0, count, CHUNK)])
    if noise:
        pictures += rng.standard_normal(pictures.shape, np.float32) * np.float32(noise)
    return pictures, labels


def _drawn(labels: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Dark where no line is near, bright within half a pen's width of one."""
    n = len(labels)
    # A digit of few pieces repeats its first one.
    pieces = np.stack([SEGMENTS[d][np.arange(MOST) % len(SEGMENTS[d])] for d in range(10)])[labels]
    ends = pieces + rng.normal(0, 0.035, pieces.shape)
    angle, slant = rng.normal(0, 0.12, n), rng.normal(0, 0.15, n)
    size, place = rng.uniform(0.55, 0.8, (n, 2)), rng.normal(0, 0.08, (n, 2))
    turn = np.stack([np.cos(angle), slant - np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(n, 2, 2)
    ends = np.einsum("nij,npej->npei", turn * size[:, :, None], ends) + place[:, None, None]
    pen = rng.uniform(0.07, 0.14, n)
    at = ((np.arange(side) + 0.5) * (2 / side) - 1).astype(np.float32)
    nearest = np.full((n, side, side), np.inf, np.float32)
    for piece in ends.astype(np.float32).transpose(1, 2, 3, 0)[..., None, None]:
        np.minimum(nearest, _square_distance(at, at[:, None], *piece), out=nearest)
    ink = np.clip((pen[:, None, None] - np.sqrt(nearest)) * (side / 2) + 0.5, 0, 1)
    return (ink * 2 - 1).astype(np.float32)[:, None]


def _square_distance(x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """From points to pieces of lines, squared; each coordinate in an array of its own."""
    (x0, y0), (dx, dy) = start, end - start
    x, y = x - x0, y - y0
    along = np.clip((x * dx + y * dy) / np.maximum(dx * dx + dy * dy, 1e-9), 0, 1)
    return (x - along * dx) ** 2 + (y - along * dy) ** 2
