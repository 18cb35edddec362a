"""A small plotter: axes, lines, bands, bars and marks as SVG text. Colours are CSS classes, so that a page in dark mode
shows them dark. Called by `registry.report.plots`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

LEFT, RIGHT, TOP, BOTTOM = 52, 14, 22, 34
XY = tuple[float, float]


@dataclass
class Plot:
    """A plot of `width` x `height` CSS pixels over `x` and `y`, both (lowest, highest). `name` is unique on its page;
    `label` says what it shows to who cannot see it; `y_text` writes a value of the y axis."""

    name: str
    label: str
    x: tuple[float, float]
    y: tuple[float, float]
    y_text: Callable[[float], str]
    width: int = 440
    height: int = 210
    _parts: list[str] = field(default_factory=list)
    _over: list[str] = field(default_factory=list)

    def px(self, value: float) -> float:
        low, high = self.x
        return LEFT + (value - low) / (high - low) * (self.width - LEFT - RIGHT)

    def py(self, value: float) -> float:
        low, high = self.y
        inside = min(max(value, low - (high - low)), high + (high - low))  # far outside is as good as outside
        return self.height - BOTTOM - (inside - low) / (high - low) * (self.height - TOP - BOTTOM)

    def line(self, points: Sequence[XY], kind: str, *, step: bool = False) -> None:
        self._parts.append(
            f'<polyline class="line {kind}" points="{self._points(_steps(points) if step else points)}"/>'
        )

    def band(self, points: Sequence[tuple[float, float, float]], kind: str) -> None:
        """`points` are (x, low, high)."""
        if points:
            outline = [(x, high) for x, _, high in points] + [(x, low) for x, low, _ in reversed(points)]
            self._parts.append(f'<polygon class="band {kind}" points="{self._points(outline)}"/>')

    def area(self, points: Sequence[XY], kind: str) -> None:
        """Between a step line and the axis."""
        stepped = _steps(points)
        self.band([(x, self.y[0], y) for x, y in stepped], kind)

    def bar(self, x: tuple[float, float], y: tuple[float, float], kind: str) -> None:
        left, right, top, bottom = self.px(x[0]), self.px(x[1]), self.py(y[1]), self.py(y[0])
        self._parts.append(
            f'<rect class="bar {kind}" x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 1):.1f}" '
            f'height="{max(bottom - top, 0.5):.1f}"/>'
        )

    def span(self, x: tuple[float, float], kind: str) -> None:
        """Shade the whole height between two values of x."""
        left, right = self.px(x[0]), self.px(x[1])
        self._parts.append(
            f'<rect class="span {kind}" x="{left:.1f}" y="{TOP}" width="{max(right - left, 1):.1f}" '
            f'height="{self.height - TOP - BOTTOM}"/>'
        )

    def mark(self, x: float, text: str = "", kind: str = "event") -> None:
        """A vertical line; its text stands above the plot, inside its edges."""
        at = self.px(x)
        self._over.append(
            f'<line class="mark {kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{self.height - BOTTOM}"/>'
        )
        if text:
            anchor = "start" if at < self.width * 0.6 else "end"
            self._over.append(
                f'<text class="note {kind}" x="{at:.1f}" y="{TOP - 7}" text-anchor="{anchor}">{escape(text)}</text>'
            )

    def note(self, at: XY, text: str) -> None:
        self._over.append(
            f'<text class="note" x="{self.px(at[0]) + 4:.1f}" y="{self.py(at[1]) - 5:.1f}">{escape(text)}</text>'
        )

    def svg(self) -> str:
        clip = f"clip-{self.name}"
        inner = f'x="{LEFT}" y="{TOP}" width="{self.width - LEFT - RIGHT}" height="{self.height - TOP - BOTTOM}"'
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.label)}">'
            f'<clipPath id="{clip}"><rect {inner}/></clipPath>{self._axes()}'
            f'<g clip-path="url(#{clip})">{"".join(self._parts)}</g>{"".join(self._over)}</svg>'
        )

    def _points(self, points: Sequence[XY]) -> str:
        return " ".join(f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in points)

    def _axes(self) -> str:
        parts = []
        bottom = self.height - BOTTOM
        for value in ticks(*self.y, 4):
            y = self.py(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{self.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            text = escape(self.y_text(value))
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
        unit_s, unit = time_unit(self.x[1] - self.x[0])
        for value in ticks(self.x[0] / unit_s, self.x[1] / unit_s, self.width // 75):
            x = self.px(value * unit_s)
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{value:g} {unit}</text>'
            )
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{self.width - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
        return "".join(parts)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values within low..high, about that many."""
    size = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(size))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= size * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def time_unit(span_s: float) -> tuple[float, str]:
    return next(((s, u) for s, u in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")) if span_s > 3 * s), (1.0, "s"))


def _steps(points: Sequence[XY]) -> list[XY]:
    """Each value holds until the next point."""
    stepped: list[XY] = []
    for (x, y), after in zip(points, [*points[1:], None], strict=True):
        stepped.append((x, y))
        if after is not None:
            stepped.append((after[0], y))
    return stepped
