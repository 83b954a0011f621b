"""
Line charts as SVG, and one page that holds them: no plotting library is needed to look at a contest.

    chart("held-out loss", "tokens", {"A": Line(xs, ys, lows, highs)})      # an <svg> element as text
    page("Optimizers", [svg, ...], "<p>verdict</p>")
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

WIDTH, HEIGHT, MARGIN = 640, 360, 56
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")
TICKS = 5


class Line(NamedTuple):
    """Points, and a band around them where there is one."""

    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()


def chart(title: str, x_label: str, lines: Mapping[str, Line], log_x: bool = False) -> str:
    """One chart; lines keep their colour by position."""
    shown = {name: line for name, line in lines.items() if len(line.xs)}
    xs = [_x(x, log_x) for line in shown.values() for x in line.xs]
    ys = [y for line in shown.values() for y in (*line.ys, *line.lows, *line.highs)]
    if not xs:
        return ""
    frame = _Frame(min(xs), max(xs), min(ys), max(ys))
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-size="12">']
    parts += [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    parts += [f'<text x="{MARGIN}" y="20" font-weight="bold">{html.escape(title)}</text>']
    parts += [f'<text x="{WIDTH // 2}" y="{HEIGHT - 8}">{html.escape(x_label)}</text>', *_ticks(frame, log_x)]
    for place, (name, line) in enumerate(shown.items()):
        parts += _drawn(frame, line, COLOURS[place % len(COLOURS)], log_x)
        colour, at = COLOURS[place % len(COLOURS)], 40 + 16 * place
        parts += [f'<text x="{WIDTH - 40}" y="{at}" fill="{colour}">{html.escape(name)}</text>']
    return "\n".join([*parts, "</svg>"])


def page(title: str, charts: Sequence[str], text: str) -> str:
    """All charts below a text that is already HTML."""
    head = f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>'
    return "\n".join([head, f"<h1>{html.escape(title)}</h1>", text, *charts]) + "\n"


class _Frame(NamedTuple):
    left: float
    right: float
    bottom: float
    top: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.left) / max(self.right - self.left, 1e-12)
        up = (y - self.bottom) / max(self.top - self.bottom, 1e-12)
        return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)


def _drawn(frame: _Frame, line: Line, colour: str, log_x: bool) -> list[str]:
    xs = [_x(x, log_x) for x in line.xs]
    parts = []
    if line.lows:
        outline = [*zip(xs, line.highs, strict=True), *reversed(list(zip(xs, line.lows, strict=True)))]
        parts.append(f'<polygon points="{_points(frame, outline)}" fill="{colour}" opacity="0.15"/>')
    points = _points(frame, list(zip(xs, line.ys, strict=True)))
    return [*parts, f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>']


def _ticks(frame: _Frame, log_x: bool) -> list[str]:
    parts = []
    for i in range(TICKS):
        share = i / (TICKS - 1)
        x = frame.left + share * (frame.right - frame.left)
        y = frame.bottom + share * (frame.top - frame.bottom)
        (across, _), (_, up) = frame.at(x, y), frame.at(x, y)
        parts.append(f'<text x="{across:.0f}" y="{HEIGHT - 30}">{10**x if log_x else x:.3g}</text>')
        parts.append(f'<text x="4" y="{up:.0f}">{y:.4g}</text>')
    return parts


def _points(frame: _Frame, points: Sequence[tuple[float, float]]) -> str:
    return " ".join("{:.1f},{:.1f}".format(*frame.at(x, y)) for x, y in points)


def _x(value: float, log_x: bool) -> float:
    return math.log10(value) if log_x else value
