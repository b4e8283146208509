"""Charts of the replay's page, as SVG text: bars with intervals, lines over ordered groups, and points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 880
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 16, 52
OURS_COLOUR = "#c2410c"
COLOURS = ("#1d4ed8", "#0f766e", "#7c3aed", "#a16207", "#be185d", "#0369a1", "#4d7c0f", "#6b7280", "#9f1239", "#334155")
BAR_HEIGHT, BAR_GAP = 22, 8
LABEL_WIDTH = 190
LEGEND_ROW = 20
LETTER_WIDTH, BOLD_LETTER_WIDTH = 7.4, 8.6
"""Of the page's font at 13 pixels, on average."""


@dataclass(frozen=True, slots=True)
class Point:
    """A value with its interval; low and high are None where there is none. x: its place, where places are numbers."""

    value: float
    low: float | None = None
    high: float | None = None
    x: float = 0.0
    label: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """One method: its points, None where there was nothing to measure."""

    name: str
    colour: str
    ours: bool
    points: Sequence[Point | None]


def steps(highest: float, lowest: float = 0.0) -> list[float]:
    """Round values from at most the lowest to at least the highest, four to eight of them."""
    span = max(highest - lowest, 1e-9)
    size = 10.0 ** math.floor(math.log10(span / 4))
    size *= next(factor for factor in (1, 2, 5, 10) if span / (factor * size) <= 7)
    first = math.floor(lowest / size + 1e-9)
    last = math.ceil(highest / size - 1e-9)
    return [number * size for number in range(first, last + 1)]


def shown(value: float, places: int = 3) -> str:
    """A number as the page writes it."""
    return f"{value:.{places}f}"


def text(x: float, y: float, words: str, **attributes: object) -> str:
    """A text element; attributes with _ for -."""
    told = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{told}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str, colour: str = "") -> str:
    """A line element of a class of the page's style."""
    stroke = f' stroke="{colour}"' if colour else ""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"{stroke}/>'


def picture(height: float, title: str, parts: Sequence[str]) -> str:
    """The whole of an SVG element; title: for those who do not see it."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )


def bars(title: str, axis: str, rows: Sequence[Series]) -> str:
    """A bar and its interval for each series, which has one point; the value stands at the right."""
    highest = max(max(row.points[0].value, row.points[0].high or 0.0) for row in rows)
    ticks = steps(highest)
    left, right = LABEL_WIDTH, WIDTH - 195
    bottom = TOP + len(rows) * (BAR_HEIGHT + BAR_GAP)

    def across(value: float) -> float:
        return left + (right - left) * value / ticks[-1]

    parts = []
    for tick in ticks:
        parts.append(line(across(tick), TOP - 6, across(tick), bottom, "grid"))
        parts.append(text(across(tick), bottom + 18, f"{tick:g}", text_anchor="middle", **{"class": "tick"}))
    for index, row in enumerate(rows):
        point, y = row.points[0], TOP + index * (BAR_HEIGHT + BAR_GAP)
        middle = y + BAR_HEIGHT / 2
        weight = {"class": "ours"} if row.ours else {}
        parts.append(text(left - 10, middle + 4.5, row.name, text_anchor="end", **weight))
        width = max(across(point.value) - left, 0.5)
        parts.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" fill="{row.colour}"/>')
        told = shown(point.value)
        if point.low is not None and point.high is not None:
            parts.append(line(across(point.low), middle, across(point.high), middle, "whisker"))
            parts += [line(across(end), middle - 5, across(end), middle + 5, "whisker") for end in (point.low, point.high)]
            told += f"  ({shown(point.low)} to {shown(point.high)})"
        parts.append(text(right + 12, middle + 4.5, told, **{"class": "value"} | weight))
    parts.append(text((left + right) / 2, bottom + 40, axis, text_anchor="middle", **{"class": "axis"}))
    return picture(bottom + BOTTOM, title, parts)


def over_groups(title: str, across_axis: str, axis: str, groups: Sequence[str], series: Sequence[Series]) -> str:
    """A line for each series over groups in order, with the intervals, side by side so that they can be told apart."""
    found = [point for one in series for point in one.points if point is not None]
    ticks = steps(max(max(point.value, point.high or 0.0) for point in found))
    legend, legend_height = key_of(series)
    top, bottom = TOP + legend_height, TOP + legend_height + 300
    room = (WIDTH - LEFT - RIGHT) / len(groups)
    step = min(12.0, 0.6 * room / max(len(series), 1))

    def height(value: float) -> float:
        return bottom - (bottom - top) * value / ticks[-1]

    parts = [*legend, *upright_axis(ticks, height, axis, top, bottom)]
    for index, group in enumerate(groups):
        parts.append(text(LEFT + (index + 0.5) * room, bottom + 20, group, text_anchor="middle", **{"class": "tick"}))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, bottom + 42, across_axis, text_anchor="middle", **{"class": "axis"}))
    for place, one in sorted(enumerate(series), key=lambda pair: pair[1].ours):
        offset = (place - (len(series) - 1) / 2) * step
        spots = [
            (LEFT + (index + 0.5) * room + offset, point) for index, point in enumerate(one.points) if point is not None
        ]
        path = " ".join(f"{x:.1f},{height(point.value):.1f}" for x, point in spots)
        kind = "mine" if one.ours else "theirs"
        parts.append(f'<polyline class="{kind}" points="{path}" stroke="{one.colour}"/>')
        for x, point in spots:
            if point.low is not None and point.high is not None:
                parts.append(line(x, height(point.low), x, height(min(point.high, ticks[-1])), "thin", one.colour))
            parts.append(mark(x, height(point.value), one, point))
    return picture(bottom + BOTTOM, title, parts)


def points(title: str, across_axis: str, axis: str, series: Sequence[Series], joined: bool = False) -> str:
    """Points at their x, each with its name, or joined by a line in order, each with its label."""
    found = [point for one in series for point in one.points if point is not None]
    low, high = min(point.x for point in found), max(point.x for point in found)
    margin = 0.08 * max(high - low, 1e-6)
    marks = steps(high + margin, low - margin if joined or low - margin > 0.3 * high else 0.0)
    values = [point.value for point in found]
    ticks = steps(max(values) * 1.05, min(values) * 0.95 if joined else 0.0)
    top, bottom = TOP, TOP + 320

    def across(value: float) -> float:
        return LEFT + (WIDTH - RIGHT - 90 - LEFT) * (value - marks[0]) / (marks[-1] - marks[0])

    def height(value: float) -> float:
        return bottom - (bottom - top) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    parts = upright_axis(ticks, height, axis, top, bottom)
    for value in marks:
        parts.append(text(across(value), bottom + 20, f"{value:.3g}", text_anchor="middle", **{"class": "tick"}))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, bottom + 42, across_axis, text_anchor="middle", **{"class": "axis"}))
    taken: list[tuple[float, float, float]] = []
    for one in series:
        if joined:
            path = " ".join(f"{across(point.x):.1f},{height(point.value):.1f}" for point in one.points if point)
            parts.append(f'<polyline class="mine" points="{path}" stroke="{one.colour}"/>')
        for point in one.points:
            if point is None:
                continue
            x, y = across(point.x), height(point.value)
            parts.append(mark(x, y, one, point))
            parts.append(beside(x, y, point.label or one.name, one.ours, taken))
    return picture(bottom + BOTTOM, title, parts)


def beside(x: float, y: float, words: str, ours: bool, taken: list[tuple[float, float, float]]) -> str:
    """A label near a point, moved down or up until it covers no other; notes what it covers."""
    width = len(words) * (BOLD_LETTER_WIDTH if ours else LETTER_WIDTH)
    for shift in (0, 14, -14, 28, -28, 42, -42, 56, -56):
        if all(abs(y + shift - other_y) > 13 or x + 10 + width < left or right < x + 10 for left, right, other_y in taken):
            break
    taken.append((x + 10, x + 10 + width, y + shift))
    return text(x + 10, y + shift + 4, words, **({"class": "ours"} if ours else {}))


def mark(x: float, y: float, series: Series, point: Point) -> str:
    """A dot, with what it says for whoever points at it."""
    interval = "" if point.low is None else f" ({shown(point.low)} to {shown(point.high)})"
    told = escape(f"{series.name}: {shown(point.value)}{interval}")
    radius = 5.5 if series.ours else 4
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{series.colour}"><title>{told}</title></circle>'


def upright_axis(
    ticks: Sequence[float], height: Callable[[float], float], axis: str, top: float, bottom: float
) -> list[str]:
    """Grid lines with their values, and the name of what they measure."""
    parts = []
    for tick in ticks:
        parts.append(line(LEFT, height(tick), WIDTH - RIGHT, height(tick), "grid"))
        parts.append(text(LEFT - 8, height(tick) + 4, f"{tick:.3g}", text_anchor="end", **{"class": "tick"}))
    middle = (top + bottom) / 2
    turned = {"transform": f"rotate(-90 16 {middle:.1f})", "class": "axis"}
    return [*parts, text(16, middle, axis, text_anchor="middle", **turned)]


def key_of(series: Sequence[Series]) -> tuple[list[str], int]:
    """Which colour is which method, in as many rows as needed, and the height of those in pixels."""
    parts, x, y = [], float(LEFT), TOP + 6.0
    for one in series:
        width = 34 + len(one.name) * (BOLD_LETTER_WIDTH if one.ours else LETTER_WIDTH)
        if x + width > WIDTH - RIGHT:
            x, y = float(LEFT), y + LEGEND_ROW
        parts.append(f'<circle cx="{x + 6:.1f}" cy="{y - 4:.1f}" r="5" fill="{one.colour}"/>')
        parts.append(text(x + 16, y, one.name, **({"class": "ours"} if one.ours else {})))
        x += width
    return parts, int(y - TOP) + LEGEND_ROW
