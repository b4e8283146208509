"""Two pictures of a shard under rising load, as one SVG: how long replies take, and how many are accepted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log10
from pathlib import Path

from bench.replay.charts import COLOURS, OURS_COLOUR, WIDTH, Point, Series, key_of, line, mark, steps, text
from bench.shard_load.metrics import OVERLOAD_ACCEPTED_MS_P99

STYLE = """svg { font: 13px system-ui, "DejaVu Sans", sans-serif; background: #fff; }
text { fill: #1f2937; } .tick { fill: #6b7280; font-size: 12px; } .axis { fill: #374151; } .title { font-size: 17px; font-weight: 700; }
.ours { font-weight: 700; fill: #9a3412; } .quiet { fill: #6b7280; font-size: 12px; } .grid { stroke: #e5e7eb; }
.limit { stroke: #6b7280; stroke-dasharray: 5 4; } polyline { fill: none; } .mine { stroke-width: 3; } .theirs { stroke-width: 1.6; }"""
LEFT, RIGHT = 84, 30
PANEL = 250
FIRST_TOP, GAP = 106, 120
MILLISECONDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000)


def plot(measured: Sequence[dict], capacity: float, machine: str) -> str:
    """The SVG of a ramp.

    measured: for each rate offered, in rising order, "offered", "goodput" and "refused" in syncs a second, "accepted_ms_p50",
    "accepted_ms_p99", "refused_ms_p99" (None where there were none). capacity: syncs a second as fast as replies came.
    """
    marks = steps(measured[-1]["offered"])
    second_top = FIRST_TOP + PANEL + GAP
    height = second_top + PANEL + 76

    def across(rate: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * rate / marks[-1]

    parts = [
        text(LEFT, 28, "One shard under rising load", **{"class": "title"}),
        text(LEFT, 48, f"open loop: latency counts from the moment a request was due; {machine}", **{"class": "quiet"}),
        *_latencies(measured, across, FIRST_TOP),
        *_rates(measured, across, second_top),
    ]
    for top in (FIRST_TOP, second_top):
        bottom = top + PANEL
        parts.append(line(across(capacity), top, across(capacity), bottom, "limit"))
        parts.append(text(across(capacity) + 6, top + 16, "capacity, closed loop", **{"class": "quiet"}))
        for value in marks:
            parts.append(text(across(value), bottom + 20, f"{value:,.0f}", text_anchor="middle", **{"class": "tick"}))
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(text(middle, bottom + 42, "syncs offered a second", text_anchor="middle", **{"class": "axis"}))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">'
        f'<style>{STYLE}</style><rect width="{WIDTH}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _series(measured: Sequence[dict], name: str, key: str, colour: str, ours: bool = False) -> Series:
    points = [None if row[key] is None else Point(row[key], x=row["offered"]) for row in measured]
    return Series(name, colour, ours, points)


def _latencies(measured: Sequence[dict], across: Callable[[float], float], top: float) -> list[str]:
    series = (
        _series(measured, "accepted, 99 of 100 within", "accepted_ms_p99", OURS_COLOUR, ours=True),
        _series(measured, "accepted, half within", "accepted_ms_p50", COLOURS[0]),
        _series(measured, "refused (503), 99 of 100 within", "refused_ms_p99", COLOURS[2]),
    )
    values = [point.value for one in series for point in one.points if point is not None]
    low = max((tick for tick in MILLISECONDS if tick <= min(values)), default=MILLISECONDS[0])
    high = min(
        (tick for tick in MILLISECONDS if tick > max(*values, OVERLOAD_ACCEPTED_MS_P99)), default=MILLISECONDS[-1]
    )

    def height(value: float) -> float:
        share = (log10(max(value, low)) - log10(low)) / (log10(high) - log10(low))
        return top + PANEL - PANEL * min(share, 1.0)

    ticks = [tick for tick in MILLISECONDS if low <= tick <= high]
    limit = height(OVERLOAD_ACCEPTED_MS_P99)
    promised = text(
        LEFT + 6, limit - 5, f"{OVERLOAD_ACCEPTED_MS_P99:g} ms: limit of the accepted", **{"class": "quiet"}
    )
    return [
        *_panel(series, ticks, height, "milliseconds", across, top),
        line(LEFT, limit, WIDTH - RIGHT, limit, "limit"),
        promised,
    ]


def _rates(measured: Sequence[dict], across: Callable[[float], float], top: float) -> list[str]:
    series = (
        _series(measured, "accepted (durable)", "goodput", OURS_COLOUR, ours=True),
        _series(measured, "refused (503)", "refused", COLOURS[2]),
    )
    ticks = steps(max(max(row["goodput"], row["refused"]) for row in measured))

    def height(value: float) -> float:
        return top + PANEL - PANEL * value / ticks[-1]

    return _panel(series, ticks, height, "syncs a second", across, top)


def _panel(
    series: Sequence[Series],
    ticks: Sequence[float],
    height: Callable[[float], float],
    axis: str,
    across: Callable[[float], float],
    top: float,
) -> list[str]:
    """Grid, key and lines of one picture."""
    key, _ = key_of(series)
    parts = [f'<g transform="translate({LEFT - 64} {top - 46})">{"".join(key)}</g>']
    for tick in ticks:
        parts.append(line(LEFT, height(tick), WIDTH - RIGHT, height(tick), "grid"))
        parts.append(text(LEFT - 8, height(tick) + 4, f"{tick:,g}", text_anchor="end", **{"class": "tick"}))
    middle = top + PANEL / 2
    turned = {"transform": f"rotate(-90 14 {middle:.1f})", "class": "axis"}
    parts.append(text(14, middle, axis, text_anchor="middle", **turned))
    for one in sorted(series, key=lambda row: row.ours):
        spots = [(across(point.x), height(point.value), point) for point in one.points if point is not None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in spots)
        parts.append(f'<polyline class="{"mine" if one.ours else "theirs"}" points="{path}" stroke="{one.colour}"/>')
        parts += [mark(x, y, one, point) for x, y, point in spots]
    return parts


def write_plot(path: Path, measured: Sequence[dict], capacity: float, machine: str) -> None:
    """Write the picture of a ramp."""
    path.write_text(plot(measured, capacity, machine), encoding="utf-8")
