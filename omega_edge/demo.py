"""`omega-edge demo`: a real household's viewing replayed through the brain, and what comes of it.

The events go through OmegaBrain.observe in time order, under a virtual clock, into a temporary store. Nothing of the
household's own memory is read or written. Then two televisions sync with a shard (demo_loop.py). What the data set lacks is derived by rule and labelled: ages and
availability from genre and year, and local times, which are taken from UTC.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from omega_edge import demo_measure
from omega_edge.brain import OmegaBrain
from omega_edge.cli_codes import EXIT_OK
from omega_edge.cli_output import Progress, Screen, as_plain, counted, in_minutes, write_json
from omega_edge.config import SHARING_WORDS, BrainConfig
from omega_edge.configuration import brain_config, settings_of
from omega_edge.datasets import Dataset, read_dataset
from omega_edge.demo_data import (
    DAY_MS,
    Viewing,
    data_folder,
    household_index,
    trace_places,
    viewings_at,
    with_bundle,
)
from omega_edge.demo_loop import two_televisions
from omega_edge.protocol import SUCCESS_THRESHOLD, FeedbackKind, Profile, Recommendation, ViewContext, ViewingEvent

SCHEMA = "omega-edge-demo/1"
CHILDREN = Profile("children", "Children", 7)
ROWS = 5
RANKED = 20
MOVED = 3
HOUR_MS = 3_600_000
MORNING_HOUR, EVENING_HOUR, LATE_HOUR = 8, 20, 23
_FEEDBACK_IN_WORDS = {"dislike": "not interested", "never": "never again", "not_now": "not now"}
NOTES = (
    "Ratings stand for viewings: watched share = rating / highest rating; 70 % counts as finished.",
    "The data's times are UTC, not the household's: morning and evening are a demonstration.",
    "The data has no age ratings and no availability: both are derived by rule from genre and year.",
)


class VirtualClock:
    """A clock that the replay moves."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def run(options: argparse.Namespace) -> int:
    """The verb: replay, then print text or JSON."""
    progress = Progress()
    data = data_folder(options.data)
    config = brain_config(with_bundle(options, data, settings_of(options), progress))
    try:
        told = demonstration(data, config, options.household, progress)
    finally:
        progress.done()
    if options.json:
        write_json(told)
    else:
        from omega_edge.demo_text import show

        show(Screen(sys.stdout), as_plain(told))
    return EXIT_OK


# The replay ------------------------------------------------------------------------------------------------


def demonstration(data: Path, config: BrainConfig, household: str | None, progress: Progress) -> dict[str, object]:
    """Everything the demonstration shows, ready for JSON (see SCHEMA in the README)."""
    progress.say(f"reading {data.name}")
    dataset = read_dataset(data)
    index = household_index(dataset, household, data)
    viewings = viewings_at(dataset, np.flatnonzero(dataset.events.household == index).tolist())
    clock = VirtualClock(viewings[0].timestamp)
    with tempfile.TemporaryDirectory(prefix="omega-edge-demo-") as folder:
        replayed = replace(config, storage_path=Path(folder), time_zone="UTC", background_maintenance=False)
        progress.say(f"replaying {len(viewings)} viewings")
        with OmegaBrain.open(replayed, clock) as brain:
            _replay(brain, clock, viewings)
            told = {
                "schema": SCHEMA,
                "machine": _machine(brain),
                "data": _data_told(dataset, data, brain),
                "household": _household_told(dataset, index, viewings),
                **_shown(brain, clock, viewings, int(dataset.events.timestamp[-1])),
                "stored": _stored(brain, Path(folder)),
            }
    trace = viewings_at(dataset, trace_places(dataset))
    lines = demo_measure.measure(
        config, [(each.content_id, each.name, each.watched) for each in trace], trace[0].timestamp, progress.say
    )
    return {
        **told,
        "measured": as_plain(lines),
        "measured_events": len(trace),
        "measured_note": "Measured on this machine, not on a television; the limits are for Cortex-A73 class cores.",
        "two_televisions": two_televisions(
            data, config.catalog_path, config.model_path, dataset.households[index], progress.say
        ),
        "notes": list(NOTES),
    }


def _replay(brain: OmegaBrain, clock: VirtualClock, viewings: list[Viewing]) -> None:
    for viewing in viewings:
        clock.now_ms = viewing.timestamp
        # 0 seconds: the data set does not tell how long anyone watched.
        brain.observe(
            ViewingEvent(viewing.content_id, viewing.name, viewing.watched, 0, viewing.timestamp, brain.now_context())
        )
        brain.maintain()
    brain.flush()


def _next_evening(after_ms: int, data_end_ms: int) -> int:
    """20:00 UTC of the data set's last day, or of the day after it if the household was still watching then."""
    evening = data_end_ms // DAY_MS * DAY_MS + EVENING_HOUR * HOUR_MS
    return evening if evening > after_ms else evening + DAY_MS


def _shown(brain: OmegaBrain, clock: VirtualClock, viewings: list[Viewing], data_end_ms: int) -> dict[str, object]:
    """The lists: now, after one "not interested", for children, and by time of day."""
    clock.now_ms = _next_evening(viewings[-1].timestamp, data_end_ms)
    context = brain.now_context()
    before = brain.recommend(context, RANKED)
    shown: dict[str, object] = {"recommendations": _listed(context, clock.now_ms, before[:ROWS])}

    refused = before[0]
    brain.feedback(refused.content_id, FeedbackKind.DISLIKE)
    after = brain.recommend(brain.now_context(), RANKED)
    shown["after_feedback"] = _changed(refused, before, after)

    brain.set_profile(CHILDREN)
    children = brain.now_context(CHILDREN.id)
    withheld = brain.withheld_counts(CHILDREN.id)
    shown["children"] = {
        "profile": as_plain(CHILDREN),
        **_listed(children, clock.now_ms, brain.recommend(children, ROWS)),
        "withheld": withheld,
        "withheld_total": sum(withheld.values()),
        "titles": brain.stats()["catalog"]["titles"],
    }

    shown["times_of_day"] = _by_time_of_day(brain, clock.now_ms // DAY_MS * DAY_MS)
    return shown


def _by_time_of_day(brain: OmegaBrain, day_ms: int) -> dict[str, object]:
    """The first rows in the morning and late in the evening of one day, and what moves between the two."""
    told: dict[str, object] = {}
    ranks: list[dict[str, int]] = []
    names: dict[str, str] = {}
    for name, hour in (("morning", MORNING_HOUR), ("late_evening", LATE_HOUR)):
        at = day_ms + hour * HOUR_MS
        context = brain.now_context(at=at)
        rows = brain.recommend(context, RANKED)
        told[name] = _listed(context, at, rows[:ROWS])
        ranks.append({row.content_id: rank for rank, row in enumerate(rows, start=1)})
        names |= {row.content_id: row.content_title for row in rows}
    morning, late = ranks
    # A title that is in one list only counts as standing right behind the other.
    moves = {each: abs(morning.get(each, RANKED + 1) - late.get(each, RANKED + 1)) for each in names}
    moved = sorted((each for each in moves if moves[each]), key=lambda each: -moves[each])[:MOVED]
    any_title = next(iter(names))
    return {
        **told,
        "context_weight": brain.explain(any_title).features["context"].weight,
        "compared": RANKED,
        "in_both": len(set(morning) & set(late)),
        "moved_most": [
            {
                "content_id": each,
                "content_title": names[each],
                "rank_morning": morning.get(each),
                "rank_late_evening": late.get(each),
            }
            for each in moved
        ],
    }


def _row(rank: int, row: Recommendation) -> dict[str, object]:
    return {"rank": rank, **as_plain(row)}


def _listed(context: ViewContext, at: int, rows: list[Recommendation]) -> dict[str, object]:
    return {
        "at": at,
        "context": as_plain(context),
        "rows": [_row(rank, row) for rank, row in enumerate(rows, start=1)],
    }


def _changed(refused: Recommendation, before: list[Recommendation], after: list[Recommendation]) -> dict[str, object]:
    """The list after the feedback, each row with its rank before (None: not among the first RANKED)."""
    ranks = {row.content_id: rank for rank, row in enumerate(before, start=1)}
    scores = {row.content_id: row.score for row in before}
    return {
        "feedback": {
            "kind": FeedbackKind.DISLIKE.value,
            "content_id": refused.content_id,
            "content_title": refused.content_title,
        },
        "rows": [
            _row(rank, row) | {"rank_before": ranks.get(row.content_id), "score_before": scores.get(row.content_id)}
            for rank, row in enumerate(after[:ROWS], start=1)
        ],
    }


# What is told beside the lists ---------------------------------------------------------------------------------


def _machine(brain: OmegaBrain) -> dict[str, object]:
    from omega_edge import __version__

    return {
        "omega_edge": __version__,
        "architecture": platform.machine(),
        "cpu": _cpu_name(),
        "instruction_set": brain.stats()["instruction_set"],
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    """The processor's name as the kernel tells it, or the architecture where it does not."""
    text = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _data_told(dataset: Dataset, data: Path, brain: OmegaBrain) -> dict[str, object]:
    return {
        "name": dataset.name,
        "folder": data.name,
        "titles": len(dataset.titles),
        "households": len(dataset.households),
        "viewings": len(dataset.events),
        "malformed_lines": len(dataset.malformed),
        "catalog": brain.stats()["catalog"],
    }


def _household_told(dataset: Dataset, index: int, viewings: list[Viewing]) -> dict[str, object]:
    genres_of = {title.content_id: title.genres for title in dataset.titles}
    finished = [each for each in viewings if each.watched >= SUCCESS_THRESHOLD]
    genres = Counter(genre for each in finished for genre in genres_of[each.content_id])
    return {
        "id": dataset.households[index],
        "viewings": len(viewings),
        "titles": len({each.content_id for each in viewings}),
        "finished": len(finished),
        "first": viewings[0].timestamp,
        "last": viewings[-1].timestamp,
        "most_finished_genres": [{"genre": genre, "titles": count} for genre, count in genres.most_common(4)],
        "last_viewings": [
            {"content_id": each.content_id, "content_title": each.name, "watched": each.watched, "at": each.timestamp}
            for each in viewings[-3:]
        ],
    }


def _stored(brain: OmegaBrain, folder: Path) -> dict[str, object]:
    stats = brain.stats()
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "memory": as_plain(stats["memory"]),
        "file_bytes": sum(path.stat().st_size for path in files),
        "files": sorted(str(path.relative_to(folder)) for path in files),
        "sharing": stats["sharing"],
        "sharing_in_words": SHARING_WORDS[stats["sharing"]],
        "sync_delta": as_plain(brain.prepare_sync_delta()),
        "degraded": stats["degraded"],
        "in_words": _records_in_words(brain.export()),
    }


def _records_in_words(exported: dict) -> list[str]:
    """What is stored, counted, with an example of each kind."""
    lines = []
    viewings = [episode for episode in exported["episodes"] if episode["kind"] == "watched"]
    last = viewings[-1]
    lines.append(
        f"{counted(len(viewings), 'viewing')}. The last: {last['content_title']}, watched to "
        f"{last['watch_percentage']:.0%}, {in_minutes(last['timestamp'])}, {last['time_of_day']}."
    )
    skills = sorted(exported["skills"], key=lambda skill: -(skill["successes"] + skill["failures"]))
    if skills:
        tries = skills[0]["successes"] + skills[0]["failures"]
        named = [title["content_title"] for title in skills[0]["titles"][:3]]
        lines.append(
            f"{counted(len(skills), 'skill')}: titles that belong together. The largest: {', '.join(named)}"
            f"{' and others' if len(skills[0]['titles']) > 3 else ''}; finished {skills[0]['successes']} of {tries}."
        )
    titles = {episode["content_id"]: episode["content_title"] for episode in exported["episodes"]}
    for profile in exported["profiles"]:
        limit = profile["max_age_rating"]
        hidden = [
            f"{titles.get(each, each)} ({_FEEDBACK_IN_WORDS[what['kind']]})" for each, what in profile["hidden"].items()
        ]
        lines.append(
            f"Profile {profile['id']}: {counted(len(profile['seen']), 'title')} seen, "
            f"{'no age limit' if limit is None else f'up to {limit} years'}, "
            f"{'hidden: ' + ', '.join(hidden) if hidden else 'nothing hidden'}."
        )
    return lines
