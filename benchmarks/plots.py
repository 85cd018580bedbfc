"""
Plots as SVG, written by hand: horizontal bars, and curves on logarithmic axes.
"""

from __future__ import annotations

import math
from html import escape

FONT = 'font-family="sans-serif" font-size="12"'
COLOURS = ("#1b6ca8", "#d1495b", "#3c9d6b", "#8a6bbd")
Series = dict[str, list[tuple[float, float]]]


def number(value: float) -> str:
    """Short, for a label."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _picture(width: int, height: int, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {FONT}>'
    ground = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, ground, *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def bars(title: str, rows: list[tuple[str, float, bool]]) -> str:
    """One bar for each (label, value, whether it is ours)."""
    left, width, step = 290, 760, 22
    most = max((value for _, value, _ in rows), default=1) or 1
    parts = [_text(8, 20, title)]
    for i, (label, value, ours) in enumerate(rows):
        y = 34 + i * step
        length = (width - left - 70) * value / most
        colour = COLOURS[0] if ours else "#b8c4cc"
        parts.append(_text(left - 8, y + 13, label, "end"))
        parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="17" fill="{colour}"/>')
        parts.append(_text(left + length + 6, y + 13, number(value)))
    return _picture(width, 44 + step * len(rows), parts)


def curves(title: str, x_name: str, y_name: str, series: Series) -> str:
    """Lines through (x, y), both axes logarithmic."""
    width, height, left, top, right, bottom = 640, 360, 70, 40, 20, 50
    points = [(x, y) for line in series.values() for x, y in line if x > 0 and y > 0]
    parts = [_text(8, 20, title)]
    if not points:
        return _picture(width, height, parts)
    low_x, high_x = _decades([x for x, _ in points])
    low_y, high_y = _decades([y for _, y in points])

    def at(x: float, y: float) -> tuple[float, float]:
        part_x = (math.log10(x) - low_x) / (high_x - low_x)
        part_y = (math.log10(y) - low_y) / (high_y - low_y)
        return left + part_x * (width - left - right), height - bottom - part_y * (
            height - top - bottom
        )

    for decade in range(low_x, high_x + 1):
        x, _ = at(10**decade, 10**low_y)
        parts.append(_line(x, top, x, height - bottom))
        parts.append(_text(x, height - bottom + 16, number(10**decade), "middle"))
    for decade in range(low_y, high_y + 1):
        _, y = at(10**low_x, 10**decade)
        parts.append(_line(left, y, width - right, y))
        parts.append(_text(left - 6, y + 4, number(10**decade), "end"))
    parts.append(_text((left + width - right) / 2, height - 12, x_name, "middle"))
    parts.append(_text(left, top - 6, y_name))
    for i, (name, line) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        places = [at(x, y) for x, y in line if x > 0 and y > 0]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(
            f'<text x="{width - right - 4}" y="{top + 14 + 16 * i}" text-anchor="end"'
            f' fill="{colour}">{escape(name)}</text>'
        )
    return _picture(width, height, parts)


def _decades(values: list[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#dddddd"/>'
