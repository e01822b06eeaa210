"""Curves as an SVG picture, drawn without any library."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 40, 46
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2")

Curve = tuple[Sequence[float], Sequence[float]]


def picture(curves: Mapping[str, Curve], x_label: str, title: str = "") -> str:
    """Curves by name, each (x, y), over common axes with ticks, grid and legend. Points that are not finite are left out."""
    points = {name: [(x, y) for x, y in zip(*c, strict=True) if math.isfinite(y)] for name, c in curves.items()}
    everything = [p for curve in points.values() for p in curve] or [(0.0, 0.0)]
    x_of = _Axis([p[0] for p in everything], LEFT, WIDTH - RIGHT)
    y_of = _Axis([p[1] for p in everything], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 20, title, "middle"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "middle"),
    ]
    for tick in y_of.ticks:
        parts.append(_line([(LEFT, y_of(tick)), (WIDTH - RIGHT, y_of(tick))], "#e5e7eb", 1))
        parts.append(_text(LEFT - 8, y_of(tick) + 4, f"{tick:.6g}", "end"))
    parts += [_text(x_of(tick), HEIGHT - BOTTOM + 18, f"{tick:.6g}", "middle") for tick in x_of.ticks]
    for i, (name, curve) in enumerate(points.items()):
        colour = COLOURS[i % len(COLOURS)]
        parts.append(_line([(x_of(x), y_of(y)) for x, y in curve], colour, 1.8))
        parts += [f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3" fill="{colour}"/>' for x, y in curve if len(curve) < 30]
        parts.append(_line([(WIDTH - 150, TOP + 18 * i), (WIDTH - 130, TOP + 18 * i)], colour, 1.8))
        parts.append(_text(WIDTH - 124, TOP + 18 * i + 4, name, "start"))
    return "\n".join([*parts, "</svg>\n"])


class _Axis:
    """Numbers → places in the picture, from `start` to `end`; `ticks` at round numbers."""

    def __init__(self, numbers: Sequence[float], start: float, end: float) -> None:
        low, high = min(numbers), max(numbers)
        if high - low <= 1e-12 * max(abs(low), abs(high)):
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        step = _round_step((high - low) / 5)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        self.ticks = [k * step for k in range(first, last + 1)]
        self._low, self._high, self._start, self._end = low, high, start, end

    def __call__(self, number: float) -> float:
        return self._start + (number - self._low) / (self._high - self._low) * (self._end - self._start)


def _round_step(step: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


def _line(points: Iterable[tuple[float, float]], colour: str, width: float) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#374151">{escape(text)}</text>'
