"""The loop's page: NDCG@10 against participation, what passed the sockets, and every figure in a table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bench.loop.lines import SHARINGS
from bench.replay.charts import COLOURS, OURS_COLOUR, Point, Series, over_groups
from bench.replay.report import STYLE

_SERIES = (
    ("all homes", None, OURS_COLOUR, {}),
    ("homes that share", "sharing", COLOURS[0], {"mode": "titles"}),
    ("homes that only receive", "receiving", COLOURS[1], {"mode": "receive"}),
)


def page(made: Sequence[dict], facts: dict) -> str:
    """The page's text. made: the lines; facts: of the run."""
    parts = [_opening(facts), _curve(made), _gates(made), _table(made)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>The closed loop</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body>\n{chr(10).join(parts)}\n</body></html>\n"
    )


def _found(made: Sequence[dict], metric: str, **where: object) -> dict | None:
    """The line with all of these; without `group` among them, the one of all homes."""
    for line in made:
        if line["metric"] == metric and where.items() <= line.items() and ("group" in line) == ("group" in where):
            return line
    return None


def _point(line: dict | None) -> Point | None:
    return None if line is None or line["value"] is None else Point(line["value"], line["low"], line["high"])


def _opening(facts: dict) -> str:
    quick = "<p><b>A quick run over few homes: it shows that the loop works, no more.</b></p>" if facts.get("quick") else ""
    return (
        "<h1>What is sharing worth to every television?</h1>"
        f'<p class="quiet">{escape(str(facts["dataset"]))}: {facts["homes"]} homes, {facts["days"]} days, '
        f'{facts["queries"]:,} questions asked.</p>{quick}'
        '<p class="lead">Real households\' viewing is played back through real brains that sync with real shard processes. '
        "What the shards receive trains the next bundle each week and the trends each day; nothing else reaches the model. "
        "The higher the title that a home watched next stands in its list, the better.</p>"
    )


def _curve(made: Sequence[dict]) -> str:
    groups = [f"{sharing:.0%}" for sharing in SHARINGS]
    series = []
    for name, group, colour, mode in _SERIES:
        where = {"group": group} if group else {}
        found = [
            _found(made, "ndcg_at_10", sharing=sharing, **where, **(mode if group else _mode_at(sharing)))
            for sharing in SHARINGS
        ]
        series.append(Series(name, colour, group is None, [_point(line) for line in found]))
    full = _point(_found(made, "ndcg_at_10_full_log"))
    if full is not None:
        alone = [None] * (len(SHARINGS) - 1)
        series.append(Series("trained on the full log", COLOURS[7], False, [*alone, full]))
    counts = _point(_found(made, "ndcg_at_10", mode="counts"))
    if counts is not None:
        series.append(Series("all in counts", COLOURS[2], False, [*[None] * (len(SHARINGS) - 1), counts]))
    series = [one for one in series if any(point is not None for point in one.points)]
    return (
        "<h2>NDCG@10 against participation</h2>"
        + over_groups("NDCG@10 against the share of homes that share", "homes in “titles”", "NDCG@10", groups, series)
        + '<p class="quiet">Bars: 95 % intervals over households. At 0 % the seed\'s bundle stays as it is.</p>'
    )


def _mode_at(sharing: float) -> dict[str, str]:
    return {"mode": "titles" if sharing else "receive"}


def _gates(made: Sequence[dict]) -> str:
    rows = []
    for line in made:
        if "limit" in line:
            bound = "≥" if line.get("at_least") else "≤"
            where = ", ".join(f"{key} {line[key]}" for key in ("sharing", "mode", "group", "lists", "direction") if key in line)
            rows.append(
                f"<tr><td>{escape(line['metric'])}</td><td class='words'>{escape(where)}</td><td>{_shown(line['value'])}</td>"
                f"<td>{bound} {line['limit']:g}</td><td>{'met' if line['met'] else '<b>missed</b>'}</td></tr>"
            )
    head = "<tr><th>gate</th><th class='words'></th><th>value</th><th>limit</th><th></th></tr>"
    return f'<h2>Gates</h2><div class="wide"><table>{head}{"".join(rows)}</table></div>'


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.4f}"
    return "none" if value is None else escape(str(value))


def _table(made: Sequence[dict]) -> str:
    left_out = {"metric", "value", "low", "high", "unit", "correct", "limit", "met", "at_least"}
    rows = []
    for line in made:
        interval = f"{line['low']:+.4f} to {line['high']:+.4f}" if line.get("low") is not None else ""
        more = ", ".join(f"{key} {_shown(value)}" for key, value in line.items() if key not in left_out)
        rows.append(
            f"<tr><td>{escape(line['metric'])}</td><td>{_shown(line['value'])}</td><td>{interval}</td>"
            f"<td class='words'>{more}</td></tr>"
        )
    head = "<tr><th>measure</th><th>value</th><th>95 % interval</th><th class='words'>of what</th></tr>"
    return f'<h2>Every figure</h2><div class="wide"><table>{head}{"".join(rows)}</table></div>'
