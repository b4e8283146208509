"""The page of a replay: one HTML file with its charts inside, to be read without knowing the project."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bench.replay.charts import COLOURS, OURS_COLOUR, Point, Series, bars, over_groups, points
from bench.replay.lines import BUNDLE_AGES, FULL_MEASURES, HISTORIES, OURS, SWEPT, Results
from bench.replay.split import KNOWN_EVENTS, MISSING_EVENTS
from cloud.replay import MAX_QUERIES_PER_HOUSEHOLD

STYLE = """
body { font: 16px/1.55 system-ui, "DejaVu Sans", sans-serif; color: #1f2937; background: #fff; margin: 0 auto; max-width: 920px;
  padding: 24px 20px 80px; }
h1 { font-size: 28px; line-height: 1.25; margin: 16px 0 8px; } h2 { font-size: 20px; margin: 44px 0 6px; }
p { max-width: 46em; margin: 8px 0; } .lead { font-size: 18px; } .quiet { color: #6b7280; font-size: 14px; }
svg { width: 100%; height: auto; display: block; margin: 14px 0 4px; font: 13px system-ui, "DejaVu Sans", sans-serif; }
svg text { fill: #1f2937; } svg .tick { fill: #6b7280; font-size: 12px; } svg .axis { fill: #374151; }
svg .ours { font-weight: 700; fill: #9a3412; } svg .value { font-variant-numeric: tabular-nums; font-size: 12px; }
.grid { stroke: #e5e7eb; } .whisker { stroke: #111827; stroke-width: 1.6; } .thin { stroke-width: 1.2; opacity: .55; }
polyline { fill: none; } .mine { stroke-width: 3; } .theirs { stroke-width: 1.3; opacity: .6; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 9px; border-bottom: 1px solid #e5e7eb; white-space: nowrap; }
th:first-child, td:first-child, td.words, th.words { text-align: left; } tr.ours td { font-weight: 700; color: #9a3412; }
td { vertical-align: top; } td.words { white-space: normal; color: #6b7280; font-weight: 400; font-size: 12px; }
tr.ours td.words { color: #6b7280; font-weight: 400; } .interval { display: block; color: #6b7280; font-weight: 400; font-size: 12px; }
"""
DISPLAYED = {
    "omega": "Omega Edge",
    "omega_diverse": "Omega Edge, as shipped",
    "content": "Content kNN",
    "ease": "EASE",
    "factors": "iALS",
    "factors_bpr": "BPR",
    "item_knn": "ItemKNN",
    "popularity": "Popularity, all time",
    "popularity_window": "Popularity, best window",
    "sasrec": "SASRec",
    "slist": "SLIST",
}
"""How the page names methods; others stand by their own name."""
HEADINGS = {
    "ndcg_at_10": "NDCG@10",
    "recall_at_10": "Recall@10",
    "mrr": "MRR",
    "coverage": "Coverage",
    "novelty": "Novelty, bits",
    "intra_list_diversity": "Diversity",
}


class _Lines:
    """The lines of a replay, found by what they say."""

    def __init__(self, made: Sequence[dict], results: Results) -> None:
        self._made = [line for line in made if line["value"] is not None]
        every = [line["method"] for line in self._made if line["metric"] == "ndcg_at_10"]
        self.methods = [method for method in dict.fromkeys(every) if not method.startswith(SWEPT)]
        self.results = results
        theirs = [method for method in self.methods if not method.startswith(OURS)]
        self._colours = {method: COLOURS[index % len(COLOURS)] for index, method in enumerate(theirs)}

    def one(self, metric: str, method: str, **where: object) -> dict | None:
        """The line of a method with all of these, and with no split that is not among them."""
        splits = {"history", "bundle_age_days", "missing_events", "known_events"}
        for line in self._made:
            wanted = {"metric": metric, "method": method, **where}
            if wanted.items() <= line.items() and splits & line.keys() == splits & where.keys():
                return line
        return None

    def colour(self, method: str) -> str:
        """The method's colour on the whole page; ours as shipped is a lighter tone of ours."""
        return self._colours.get(method, OURS_COLOUR if method == OURS else "#f59e0b")

    def series(self, method: str, found: Sequence[dict | None], xs: Sequence[float] | None = None) -> Series:
        """Lines as the points of a chart."""
        made = [
            None if line is None else Point(line["value"], line["low"], line["high"], xs[index] if xs else 0.0)
            for index, line in enumerate(found)
        ]
        return Series(DISPLAYED.get(method, method), self.colour(method), method == OURS, made)


def page(made: Sequence[dict], results: Results, facts: dict) -> str:
    """The page's text. made: the lines; facts: of the data set and the run."""
    lines = _Lines(made, results)
    parts = [_opening(lines, made, facts), _ranking(lines), _histories(lines), _cold(lines), _stale(lines)]
    parts += [_breadth(lines), _sweep(lines), _table(lines), _method(facts)]
    title = escape(f"Replay of {facts['dataset']}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body>\n{chr(10).join(part for part in parts if part)}\n</body></html>\n"
    )


def _opening(lines: _Lines, made: Sequence[dict], facts: dict) -> str:
    best = next((line for line in made if line["metric"] == "ndcg_at_10_minus_best_baseline"), None)
    said = ""
    if best is not None and best["low"] is not None:
        above = "above" if best["value"] >= 0 else "below"
        sure = "an interval that does not reach zero" if best["low"] > 0 or best["high"] < 0 else "an interval that holds zero"
        said = (
            f'<p class="lead">NDCG@10 of Omega Edge is <b>{abs(best["value"]):.3f} {above}</b> that of the best baseline, '
            f"{escape(DISPLAYED.get(best['baseline'], best['baseline']))} ({best['low']:+.3f} to {best['high']:+.3f} with 95 % confidence: {sure}).</p>"
        )
    whole = lines.one("ndcg_at_10", lines.methods[0])
    slice_note = "<p><b>This is a quick run over a slice of the data: it shows that the replay works, no more.</b></p>"
    return (
        f"<h1>How well does the television recommend?</h1>"
        f'<p class="quiet">{escape(facts["dataset"])}: {facts["events"]:,} viewings, {facts["titles"]:,} titles, '
        f"{whole['queries']:,} questions asked; {facts['malformed_lines']} unusable lines left out.</p>"
        f"{slice_note if facts.get('quick') else ''}"
        "<p class=\"lead\">Real households' viewing is played back in the order in which it happened. Before each title "
        "that somebody watched for the first time and liked, every method makes its list of all titles that this household "
        "has not seen. The higher the watched title stands in the list, the better.</p>"
        f"{said}"
        "<p>Nothing that happened later is known to any method. Omega Edge is the real product: its bundle is built from "
        "what came before, it observes the household's viewing one by one, and it gets the trends of the day before by the "
        "bytes of a sync. The other methods are well-known ones, each with its settings chosen on the time before the "
        "test.</p>"
    )


def _ranking(lines: _Lines) -> str:
    rows = {name: [(method, lines.one(name, method)) for method in lines.methods] for name in ("ndcg_at_10", "recall_at_10")}
    charts = {}
    for name, found in rows.items():
        ordered = sorted((pair for pair in found if pair[1] is not None), key=lambda pair: -pair[1]["value"])
        charts[name] = [lines.series(method, [line]) for method, line in ordered]
    return (
        "<h2>How often the right title is near the top</h2>"
        "<p><b>NDCG@10</b> gives 1 for the first place, 0.63 for the second, 0.5 for the third, less down to the tenth, and "
        "nothing beyond; the mean over all questions is shown. Black lines are 95 % intervals: how far the mean would move "
        "with other households of the same kind.</p>"
        f"{bars('NDCG@10 by method', 'NDCG@10, longer is better', charts['ndcg_at_10'])}"
        "<p><b>Recall@10</b> is the share of questions in which the watched title is among the first ten.</p>"
        f"{bars('Recall@10 by method', 'Recall@10, longer is better', charts['recall_at_10'])}"
    )


def _grouped(lines: _Lines, metric: str, name: str, values: Sequence[object]) -> list[Series]:
    made = []
    for method in lines.methods:
        found = [lines.one(metric, method, **{name: value}) for value in values]
        if any(line is not None for line in found):
            made.append(lines.series(method, found))
    return made


def _counted(lines: _Lines, name: str, values: Sequence[object], labels: Sequence[str]) -> list[str]:
    found = [lines.one("ndcg_at_10", lines.methods[0], **{name: value}) for value in values]
    return [f"{label} ({line['queries'] if line else 0:,})" for label, line in zip(labels, found, strict=True)]


def _histories(lines: _Lines) -> str:
    labels = [label for label, _, _ in HISTORIES]
    series = _grouped(lines, "ndcg_at_10", "history", labels)
    if not series:
        return ""
    groups = _counted(lines, "history", labels, labels)
    axis = "viewings of the household that are known (questions)"
    return (
        "<h2>New homes and old ones</h2><p>The same questions, grouped by how many viewings the household had before. "
        "A home without any gets what is popular now.</p>"
        f"{over_groups('NDCG@10 by length of history', axis, 'NDCG@10', groups, series)}"
    )


def _cold(lines: _Lines) -> str:
    series = _grouped(lines, "recall_at_10", "known_events", KNOWN_EVENTS)
    if not series:
        return ""
    labels = [str(count) for count in KNOWN_EVENTS]
    groups = _counted(lines, "known_events", KNOWN_EVENTS, labels)
    axis = "newest viewings that the television knows (questions)"
    return (
        "<h2>How fast a new television learns</h2><p>Households with at least "
        f"{KNOWN_EVENTS[-1]} viewings, asked as if the television had been bought only so many viewings ago.</p>"
        f"{over_groups('Recall@10 by number of known viewings', axis, 'Recall@10', groups, series)}"
    )


def _stale(lines: _Lines) -> str:
    missing = (0, MISSING_EVENTS)
    ages = [label for label, _, _ in BUNDLE_AGES]
    by_missing = _grouped(lines, "ndcg_at_10", "missing_events", missing)
    by_age = _grouped(lines, "ndcg_at_10", "bundle_age_days", ages)
    if not by_missing or not by_age:
        return ""
    missing_groups = _counted(lines, "missing_events", missing, ["none is missing", f"the newest {MISSING_EVENTS} are missing"])
    age_groups = _counted(lines, "bundle_age_days", ages, ages)
    return (
        "<h2>What staleness costs</h2><p>First, the household's newest viewings have not arrived; the questions are those of "
        "the chart above.</p>"
        f"{over_groups('NDCG@10 with viewings missing', 'viewings of the household (questions)', 'NDCG@10', missing_groups, by_missing)}"
        "<p>Second, the days since a model was trained: all methods are trained anew before each block of the test and age in between. "
        "The groups hold other households, so the trend within a group tells more than the step from one to the next.</p>"
        f"{over_groups('NDCG@10 by age of the model', 'days since training (questions)', 'NDCG@10', age_groups, by_age)}"
    )


def _breadth(lines: _Lines) -> str:
    charts = []
    for metric, axis in (
        ("coverage", "coverage: share of all titles that are in anybody's first ten"),
        ("novelty", "novelty: mean -log2 of the share of viewings that a shown title has, in bits"),
    ):
        series = []
        for method in lines.methods:
            quality, breadth = lines.one("ndcg_at_10", method), lines.one(metric, method)
            if quality is not None and breadth is not None:
                series.append(lines.series(method, [quality], [breadth["value"]]))
        charts.append(points(f"NDCG@10 against {metric}", axis, "NDCG@10", series))
    return (
        "<h2>How much of the catalogue is shown</h2><p>A list can be right and dull: the same few titles for everybody. "
        "Further right is broader; higher is better. The best place is the upper right corner.</p>"
        f"{charts[0]}<p>The same with novelty: a title that one viewing in a thousand is of has 10 bits.</p>{charts[1]}"
    )


def _sweep(lines: _Lines) -> str:
    spots = []
    for value, method in sorted(lines.results.sweep.items()):
        quality, variety = lines.one("ndcg_at_10", method), lines.one("intra_list_diversity", method)
        if quality is not None and variety is not None:
            label = f"diversity {value:g}"
            spots.append(Point(quality["value"], quality["low"], quality["high"], variety["value"], label))
    if len(spots) < 2:
        return ""
    axis = "variety within a list: mean of 1 - cosine between the texts of its titles"
    series = [Series("Omega Edge", OURS_COLOUR, False, spots)]
    return (
        "<h2>The price of variety</h2><p>The option <code>diversity</code> trades the order of the scores for variety within "
        "the list (maximal marginal relevance). Further right, the ten titles are less alike; lower, the watched title is "
        "further down.</p>"
        f"{points('NDCG@10 against variety', axis, 'NDCG@10', series, joined=True)}"
    )


def _table(lines: _Lines) -> str:
    heads = "".join(f"<th>{heading}</th>" for heading in HEADINGS.values())
    rows = []
    for method in sorted(lines.methods, key=lambda method: -lines.one("ndcg_at_10", method)["value"]):
        cells = []
        for metric in FULL_MEASURES:
            line = lines.one(metric, method)
            interval = "" if line["low"] is None else f' <span class="interval">{line["low"]:.3f}–{line["high"]:.3f}</span>'
            cells.append(f"<td>{line['value']:.3f}{interval}</td>")
        chosen = escape(lines.results.configurations.get(method, ""))
        kind = ' class="ours"' if method == OURS else ""
        name = escape(DISPLAYED.get(method, method))
        rows.append(f'<tr{kind}><td>{name}</td>{"".join(cells)}<td class="words">{chosen}</td></tr>')
    for method, fault in lines.results.faults.items():
        rows.append(f'<tr><td>{escape(method)}</td><td class="words" colspan="7">not measured: {escape(fault)}</td></tr>')
    return (
        "<h2>All figures</h2>"
        f'<div class="wide"><table><tr><th>Method</th>{heads}<th class="words">Settings chosen</th></tr>'
        f"{''.join(rows)}</table></div>"
        '<p class="quiet">MRR: mean of 1 / rank, 0 beyond rank 100. Diversity: mean of 1 − cosine between the texts of the '
        "titles in a list. Grey: 95 % intervals.</p>"
    )


def _method(facts: dict) -> str:
    return (
        "<h2>How it was done</h2>"
        "<p>The last 20 % of the viewings in time order are the test, in rolling blocks; everything is trained anew before "
        f"each. At most {MAX_QUERIES_PER_HOUSEHOLD} questions come from one household. A viewing is a success if the rating is at "
        "least 70 % of the scale. The whole unseen catalogue is ranked; no sample of it. Titles of equal score stand at "
        "their mean rank. Intervals come from 1,000 resamplings of whole households (of coverage: from leaving out one "
        "household at a time). The line “as shipped” has the product's default variety; the other has none, as the other "
        "methods have none.</p>"
        f'<p class="quiet">Seed {facts["seed"]}; the run took {facts["seconds"] / 60:.1f} minutes.</p>'
    )
