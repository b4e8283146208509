"""The plot of recall against time: an SVG written here, every method named beside its point, ours in blue."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

from bench.search.lines import Case

WIDTH, HEIGHT = 1_200, 760
LEFT, RIGHT, TOP, BOTTOM = 96, 40, 96, 112
FLOOR = 0.80
"""Points of lower recall are named below the picture."""
NEAREST_MISS = 0.0004
"""Added to the missed share before its logarithm is taken, so that 100 % has a place."""
TICKS = (0.80, 0.90, 0.95, 0.98, 0.99, 0.995, 0.998, 1.0)
LABEL_SIZE, CHARACTER, BOLD_CHARACTER = 14, 7.8, 8.7
"""Pixels: height of a text, width of a character."""
START = 4
"""The first points of a leader line, 16 pixels, are not judged: other methods may lie on the same place."""
CLEARANCE = 7.0
"""Least pixels between a leader line and another method's point."""
SUBTITLE = (
    "Up and to the left is better. One thread; each method in its best configuration; thin lines: other settings."
)
FAMILIES = {
    "ours": ("#0b57b7", "Omega Edge"),
    "exact int8": ("#b3541e", "exact scan, 8 bit"),
    "exact float32": ("#6b6b6b", "exact scan, float32"),
    "refined": ("#7a3fa0", "coarse, then refined"),
    "graph": ("#2f7d3b", "graph (HNSW)"),
}


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of the picture."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two share an inner point."""
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)

    def holds(self, x: float, y: float) -> bool:
        """Whether the point lies inside."""
        return self.left < x < self.right and self.top < y < self.bottom


@dataclass(frozen=True, slots=True)
class Mark:
    """A method's point, what stands beside it, and the curve of its other efforts."""

    text: str
    family: str
    us: float
    recall: float
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def width(self) -> float:
        """Pixels that the text takes."""
        return (BOLD_CHARACTER if self.family == "ours" else CHARACTER) * len(self.text) + 6


def marks_of(case: Case) -> list[Mark]:
    """A mark for each method measured; the curve is what the trial of each effort gave."""
    marks = []
    for method in case.methods.values():
        several = len(method.facts["points"]) > 1 and not method.family.startswith("exact")
        curve = rising(method.facts["points"]) if several else ()
        text = f"{method.name}, {in_time(method.median_us)}"
        marks.append(Mark(text, method.family, method.median_us, method.recall, curve))
    return marks


def rising(points: Sequence[dict]) -> tuple[tuple[float, float], ...]:
    """Time and recall of the points that no other beats in both, from the fastest on."""
    kept: list[tuple[float, float]] = []
    for us, recall in sorted((point["median_us"], point["recall_at_50"]) for point in points):
        if not kept or recall > kept[-1][1]:
            kept.append((us, recall))
    return tuple(kept)


def in_time(microseconds: float) -> str:
    """Three digits at most, in microseconds or milliseconds."""
    return f"{microseconds:.3g} µs" if microseconds < 1_000 else f"{microseconds / 1_000:.3g} ms"


def height_of(recall: float) -> float:
    """y of a recall: by the logarithm of the share missed, so that 99 % and 99.9 % stand apart."""

    def depth(value: float) -> float:
        return -math.log10(1 - value + NEAREST_MISS)

    share = (depth(recall) - depth(FLOOR)) / (depth(1.0) - depth(FLOOR))
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def across(us: float, lowest: float, highest: float) -> float:
    """x of a time on the logarithmic axis."""
    return LEFT + math.log(us / lowest) / math.log(highest / lowest) * (WIDTH - LEFT - RIGHT)


def time_ticks(lowest: float, highest: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between the ends."""
    powers = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
    return [step * 10**power for power in powers for step in (1, 2, 5) if lowest <= step * 10**power <= highest]


def place_labels(points: Sequence[tuple[float, float, float]], obstacles: Iterable[tuple[float, float]]) -> list[Box]:
    """A box for the text of each point (x, y, width of the text), near it, over no other box or point.

    Obstacles, the points of curves, and leader lines are kept clear where there is room. Boxes are tried on growing rings around the point; ValueError where the picture has no room left.
    """
    marks, curves = [(x, y) for x, y, _ in points], list(obstacles)
    placed: list[Box] = []
    leaders: list[tuple[float, float]] = []
    for x, y, width in points:
        others = [mark for mark in marks if math.hypot(mark[0] - x, mark[1] - y) > CLEARANCE]
        # A text has a white edge: over a thin curve it can be read, where nothing else is free. Where points lie on
        # one another, a leader line cannot keep clear of all.
        strictness = (
            ([*marks, *curves], placed, others, leaders),
            (marks, placed, others, leaders),
            (marks, placed, others, []),
            (marks, [], [], []),
        )
        tries = (
            box
            for blocked, boxes, avoided, crossed in strictness
            for box in boxes_around(x, y, width)
            if free(box, blocked, placed, crossed) and clear(leader(box, x, y)[START:], boxes, avoided, crossed)
        )
        box = next(tries, None)
        if box is None:
            raise ValueError(f"no room for a label of {width:.0f} pixels")
        placed.append(box)
        leaders += leader(box, x, y)
    return placed


def boxes_around(x: float, y: float, width: float) -> list[Box]:
    """Where a label might stand inside the frame, the shortest leader line first, above and below before beside."""
    height, found = LABEL_SIZE + 5, []
    for down in range(-330, 331, 11):
        for right in range(-16, 17):
            left, top = x - width / 2 + right * width / 8, y + down - height / 2
            box = Box(left, top, left + width, top + height)
            inside = left > LEFT + 4 and box.right < WIDTH - RIGHT - 4
            if inside and top > TOP + 4 and box.bottom < HEIGHT - BOTTOM - 4:
                reach_x, reach_y = (max(low - at, at - high, 0) for low, at, high in
                                    ((left, x, box.right), (top, y, box.bottom)))  # fmt: skip
                found.append((math.hypot(1.6 * reach_x, reach_y) + abs(right) / 4, box))
    return [box for _, box in sorted(found, key=lambda pair: pair[0])]


def leader(box: Box, x: float, y: float) -> list[tuple[float, float]]:
    """Points along the line from a mark to the nearest point of its box."""
    to_x, to_y = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
    steps = max(2, int(math.hypot(to_x - x, to_y - y) / 4))
    return [(x + (to_x - x) * step / steps, y + (to_y - y) * step / steps) for step in range(1, steps)]


def free(
    box: Box,
    blocked: Sequence[tuple[float, float]],
    placed: Sequence[Box],
    leaders: Sequence[tuple[float, float]],
) -> bool:
    """Whether a box covers nothing that is there already."""
    roomy = Box(box.left - 5, box.top - 3, box.right + 5, box.bottom + 3)
    if any(roomy.overlaps(other) for other in placed):
        return False
    return not any(roomy.holds(*point) for points in (blocked, leaders) for point in points)


def clear(
    line: Sequence[tuple[float, float]],
    boxes: Sequence[Box],
    marks: Sequence[tuple[float, float]],
    leaders: Sequence[tuple[float, float]],
) -> bool:
    """Whether a leader line crosses no text and no other leader line, and passes no other method's point."""
    if any(box.holds(x, y) for box in boxes for x, y in line):
        return False
    if any(math.hypot(x - mark_x, y - mark_y) < CLEARANCE for x, y in line for mark_x, mark_y in marks):
        return False
    return all(abs(x - other_x) + abs(y - other_y) > 5 for x, y in line for other_x, other_y in leaders)


def svg(case: Case, machine: dict) -> str:
    """The picture of a case as the text of an SVG file."""
    marks = marks_of(case)
    shown = sorted((mark for mark in marks if mark.recall >= FLOOR), key=lambda mark: (mark.family != "ours", mark.us))
    slowest = 1.5 * max(mark.us for mark in shown)
    drawn = [[(us, recall) for us, recall in mark.curve if recall >= FLOOR and us <= slowest] for mark in shown]
    lowest = min([mark.us for mark in shown] + [us for curve in drawn for us, _ in curve]) / 1.5
    highest = 1.5 * slowest
    parts = [frame(case, lowest, highest)]
    points, obstacles = [], []
    for mark, curve in zip(shown, drawn, strict=True):
        line = [(across(us, lowest, highest), height_of(recall)) for us, recall in curve]
        colour = FAMILIES[mark.family][0]
        if len(line) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5" opacity="0.45"/>')
            obstacles += along(line)
        points.append((across(mark.us, lowest, highest), height_of(mark.recall), mark.width))
    boxes = place_labels(points, obstacles)
    placed = list(zip(shown, points, boxes, strict=True))
    parts += [leader_line(mark, x, y, box) for mark, (x, y, _), box in placed]
    parts += [labelled(mark, x, y, box) for mark, (x, y, _), box in placed]
    parts.append(captions(case, machine, [mark for mark in marks if mark.recall < FLOOR]))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="DejaVu Sans, Verdana, Arial, sans-serif">\n{body}\n</svg>\n'
    )


def along(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points every few pixels along a curve."""
    found = []
    for (x, y), (to_x, to_y) in pairwise(line):
        steps = max(1, int(math.hypot(to_x - x, to_y - y) / 6))
        found += [(x + (to_x - x) * step / steps, y + (to_y - y) * step / steps) for step in range(steps + 1)]
    return found


def leader_line(mark: Mark, x: float, y: float, box: Box) -> str:
    """The line from a point to its text, where they are apart."""
    near = leader(box, x, y)
    if not near or math.hypot(near[-1][0] - x, near[-1][1] - y) <= 10:
        return ""
    end_x, end_y = near[-1]
    colour = FAMILIES[mark.family][0]
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{end_x:.1f}" y2="{end_y:.1f}" stroke="{colour}" opacity="0.5"/>'


def labelled(mark: Mark, x: float, y: float, box: Box) -> str:
    """A point and its text."""
    colour, ours = FAMILIES[mark.family][0], mark.family == "ours"
    weight = ' font-weight="bold"' if ours else ""
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{7 if ours else 5}" fill="{colour}" stroke="#ffffff"/>'
        f'<text x="{(box.left + box.right) / 2:.1f}" y="{box.bottom - 5:.1f}" font-size="{LABEL_SIZE}" '
        f'text-anchor="middle" fill="{colour}"{weight} stroke="#fafafa" stroke-width="4" paint-order="stroke">'
        f"{escape(mark.text)}</text>"
    )


def frame(case: Case, lowest: float, highest: float) -> str:
    """Background, title, axes and their ticks."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    kind = "title vectors" if case.data == "real" else "uniform random vectors"
    title = f"Finding the 50 nearest of {case.rows:,} {kind}: how many are found, and how fast"
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="38" font-size="22" font-weight="bold" fill="#1a1a1a">{escape(title)}</text>',
        f'<text x="{LEFT}" y="62" font-size="14" fill="#555555">{SUBTITLE}</text>',
        f'<rect x="{LEFT}" y="{TOP}" width="{right - LEFT}" height="{bottom - TOP}" fill="#fafafa" stroke="#999999"/>',
    ]
    for recall in TICKS:
        y = height_of(recall)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#e2e2e2"/>')
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 5:.1f}" font-size="14" text-anchor="end" fill="#333333">'
            f"{100 * recall:.3g} %</text>"
        )
    for us in time_ticks(lowest, highest):
        x = across(us, lowest, highest)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#e2e2e2"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 20}" font-size="14" text-anchor="middle" fill="#333333">{us:,g} µs</text>'
        )
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text x="{(LEFT + right) / 2}" y="{bottom + 42}" font-size="15" text-anchor="middle" fill="#1a1a1a">'
        "time for one search, in microseconds (further right is slower; the axis is logarithmic)</text>"
        f'<text transform="translate(26 {middle}) rotate(-90)" font-size="15" text-anchor="middle" fill="#1a1a1a">'
        "share of the true 50 that is found (recall)</text>"
    )
    return "\n".join(parts)


def captions(case: Case, machine: dict, below: Sequence[Mark]) -> str:
    """The families' colours, what was measured where, and what lies below the picture."""
    parts, x, y = [], LEFT, HEIGHT - 40
    for family, (colour, words) in FAMILIES.items():
        if any(method.family == family for method in case.methods.values()):
            parts.append(f'<circle cx="{x + 6}" cy="{y - 5}" r="6" fill="{colour}"/>')
            parts.append(f'<text x="{x + 18}" y="{y}" font-size="14" fill="#333333">{escape(words)}</text>')
            x += 44 + CHARACTER * len(words)
    notes = [f"{machine['cpu']}, {machine['architecture']}, one core"]
    if case.facts["jittered_rows"]:
        notes.append(f"{case.facts['real_rows']:,} real vectors, {case.facts['jittered_rows']:,} made from them")
    notes += [f"{mark.text} finds {100 * mark.recall:.0f} % (below the picture)" for mark in below]
    notes += [f"{name} failed" for name in case.faults]
    text = escape("; ".join(notes))
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 14}" font-size="13" fill="#555555">{text}</text>')
    return "\n".join(parts)


def write_plot(case: Case, machine: dict, path: Path) -> None:
    """Writes the picture of a case, unless nothing in it was measured."""
    if case.methods:
        path.write_text(svg(case, machine), encoding="utf-8")
