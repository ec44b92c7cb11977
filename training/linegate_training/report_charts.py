"""Charts as inline SVG, drawn by hand: no script, no font, no library.

Rules kept here: every chart has a title and a description for those who cannot see it; axes say their unit; colours come
from the page's style, so that one drawing serves light, dark and paper; numbers are rounded to a tenth of a pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from linegate_training.report_text import escape, number

Floats = NDArray[np.float64]

LEFT, RIGHT, TOP, BOTTOM = 64.0, 22.0, 14.0, 46.0
MAX_POINTS = 600
"""A curve of more points is thinned out: a screen shows no more."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows from `low` to `high`; `mirrored` labels values by their distance from 0."""

    label: str
    low: float
    high: float
    log: bool = False
    percent: bool = False
    mirrored: bool = False

    def place(self, values: Floats) -> Floats:
        """Return where values (n,) lie as shares of the axis, kept within it."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        shown = np.log(np.maximum(values, 1e-300)) if self.log else values
        return np.clip((shown - low) / max(high - low, 1e-12), 0.0, 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        """Return the values to label, and their labels."""
        values = _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)
        return [(value, self._label(value)) for value in values]

    def _label(self, value: float) -> str:
        shown = abs(value) if self.mirrored else value
        return f"{100 * shown:.3g} %" if self.percent else number(0.0 if abs(shown) < 1e-12 else shown)


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    rough = max(high - low, 1e-12) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1.0, 2.0, 5.0), (1.0,)):
        values = [factor * 10.0**decade for decade in decades for factor in factors]
        kept = [value for value in values if low * 0.999 <= value <= high * 1.001]
        if len(kept) <= 9:
            break
    return kept if len(kept) >= 2 else _ticks(low, high)


class Chart:
    """A chart of `width` × `height` pixels that marks are added to; those added first lie lowest."""

    def __init__(self, x: Axis, y: Axis, title: str, description: str, width: int = 460, height: int = 330) -> None:
        self._x, self._y = x, y
        self._width, self._height = width, height
        self._words = title, description
        self._marks: list[str] = []

    def line(self, xs: Floats, ys: Floats, kind: str) -> None:
        """Draw a line through points (n,), in the style `kind`."""
        self._marks.append(f'<polyline class="line {kind}" points="{self._points(*_thinned(xs, ys))}"/>')

    def between(self, upper: tuple[Floats, Floats], lower: tuple[Floats, Floats], kind: str) -> None:
        """Fill what lies between two lines, each through points (n,), (n,)."""
        there, back = _thinned(*upper), _thinned(*lower)
        self.area(np.concatenate([there[0], back[0][::-1]]), np.concatenate([there[1], back[1][::-1]]), kind)

    def area(self, xs: Floats, ys: Floats, kind: str) -> None:
        """Fill the polygon of points (n,)."""
        self._marks.append(f'<polygon class="area {kind}" points="{self._points(xs, ys)}"/>')

    def dot(self, x: float, y: float, kind: str) -> None:
        """Mark one point."""
        left, top = self._at(x, y)
        self._marks.append(f'<circle class="dot {kind}" cx="{left:.1f}" cy="{top:.1f}" r="4.5"/>')

    def bars(self, edges: Floats, heights: Floats, kind: str) -> None:
        """Draw bars between `edges` (n + 1,), up for heights (n,) over 0 and down for those under it."""
        for low, high, height in zip(edges[:-1], edges[1:], heights, strict=True):
            if height:
                (left, top), (right, bottom) = self._at(low, max(height, 0.0)), self._at(high, min(height, 0.0))
                size = f'width="{max(0.5, right - left - 1):.1f}" height="{bottom - top:.1f}"'
                self._marks.append(f'<rect class="bar {kind}" x="{left:.1f}" y="{top:.1f}" {size}/>')

    def rug(self, xs: Floats, y: float, length: float, kind: str) -> None:
        """Draw a short stroke of `length` pixels, up from `y`, at each of `xs`; negative lengths go down."""
        path = "".join(f"M{left:.1f} {top:.1f}v{-length:g}" for left, top in (self._at(x, y) for x in xs))
        self._marks.append(f'<path class="rug {kind}" d="{path}"/>')

    def upright(self, x: float, kind: str, text: str = "", left: bool = False, row: int = 0) -> None:
        """Draw a line over the whole height at `x`, its text at the top, to the left of it if asked for."""
        place, _ = self._at(x, self._y.low)
        ends = f'x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{self._height - BOTTOM}"'
        self._marks.append(f'<line class="rule {kind}" {ends}/>')
        if text:
            self._text(place + (-6 if left else 6), TOP + 12 + 16 * row, text, "end" if left else "start", kind)

    def level(self, y: float, kind: str) -> None:
        """Draw a line over the whole width at `y`."""
        _, place = self._at(self._x.low, y)
        ends = f'x1="{LEFT}" x2="{self._width - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"'
        self._marks.append(f'<line class="rule {kind}" {ends}/>')

    def stripe(self, low: float, high: float, kind: str) -> None:
        """Fill the whole height from `low` to `high`."""
        self.area(np.array([low, high, high, low]), np.array([self._y.low, self._y.low, self._y.high, self._y.high]), kind)

    def note(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start", down: float = 0.0) -> None:
        """Write beside the point, `down` pixels under it and a little away from it."""
        left, top = self._at(x, y)
        self._text(left + {"start": 8, "end": -8}.get(anchor, 0), top + down, text, anchor, kind)

    def svg(self) -> str:
        """Return the drawing."""
        title, description = (escape(text) for text in self._words)
        return (
            f'<svg viewBox="0 0 {self._width} {self._height}" role="img" aria-label="{title}. {description}">'
            f"<title>{title}</title><desc>{description}</desc>{self._grid()}{''.join(self._marks)}{self._labels()}</svg>"
        )

    def _grid(self) -> str:
        right, bottom = self._width - RIGHT, self._height - BOTTOM
        across = [self._at(self._x.low, value)[1] for value, _ in self._y.ticks()]
        lines = [f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>' for y in across]
        return "".join(lines) + f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'

    def _labels(self) -> str:
        bottom, middle = self._height - BOTTOM, (LEFT + self._width - RIGHT) / 2
        parts = []
        for value, label in self._x.ticks():
            x = self._at(value, self._y.low)[0]
            parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
        for value, label in self._y.ticks():
            y = self._at(self._x.low, value)[1]
            parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        height = (TOP + bottom) / 2
        parts.append(
            f'<text class="name" x="{middle}" y="{self._height - 8}" text-anchor="middle">{escape(self._x.label)}</text>'
        )
        turned = f'x="14" y="{height}" text-anchor="middle" transform="rotate(-90 14 {height})"'
        parts.append(f'<text class="name" {turned}>{escape(self._y.label)}</text>')
        return "".join(parts)

    def _text(self, left: float, top: float, text: str, anchor: str, kind: str) -> None:
        place = f'x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}"'
        self._marks.append(f'<text class="note {kind}" {place}>{escape(text)}</text>')

    def _at(self, x: float, y: float) -> tuple[float, float]:
        xs, ys = self._pixels(np.array([x], np.float64), np.array([y], np.float64))
        return float(xs[0]), float(ys[0])

    def _pixels(self, xs: Floats, ys: Floats) -> tuple[Floats, Floats]:
        wide, high = self._width - LEFT - RIGHT, self._height - TOP - BOTTOM
        return LEFT + wide * self._x.place(xs), TOP + high * (1.0 - self._y.place(ys))

    def _points(self, xs: Floats, ys: Floats) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(*self._pixels(xs, ys), strict=True))


def _thinned(xs: Floats, ys: Floats) -> tuple[Floats, Floats]:
    """Return at most `MAX_POINTS` of the points (n,), the first and last among them."""
    kept = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), MAX_POINTS)).round().astype(int))
    return xs[kept], ys[kept]
