"""What the verbs of `omega-edge` do with an open brain. Thin: arguments to messages, results to JSON or text."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO
from zoneinfo import ZoneInfo

from omega_edge.brain import Explanation, OmegaBrain, wall_clock_ms
from omega_edge.catalog import Catalog
from omega_edge.cli import EXIT_DATA, EXIT_OK
from omega_edge.cli_output import Screen, as_plain, counted, fit, in_bytes, in_minutes, write_json
from omega_edge.config import BrainConfig
from omega_edge.configuration import Setting, brain_config, settings_of
from omega_edge.errors import ConfigError, ProtocolError
from omega_edge.protocol import (
    Profile,
    Recommendation,
    ViewContext,
    ViewingEvent,
    check_content_id,
    check_timestamp,
)

MAX_LINE_BYTES = 64 * 1024
"""A longer line of `observe` is refused unread: no event comes near."""
MAX_IMPORT_BYTES = 512 * 1024 * 1024
_EVENT_KEYS = frozenset(
    ("content_id", "watch_percentage", "duration_seconds", "timestamp", "content_title", "profile", "context")
)
_CONTEXT_KEYS = frozenset(("time_of_day", "day_of_week", "mood_hint", "recent_watches"))


def require_file(path: Path, what: str, remedy: str) -> None:
    """FileNotFoundError, in words, if there is no such file."""
    if not path.exists():
        raise FileNotFoundError(f"{what}: expected the file {path}, there is none; {remedy}")


def _open_brain(config: BrainConfig, moment: int | None = None) -> OmegaBrain:
    require_file(config.catalog_path, "catalogue", "./run builds one in a source tree, --catalog names another")
    # A verb ends within a second: a thread for timed work would only be waited for. close() makes all durable.
    config = BrainConfig.from_mapping({**_fields(config), "background_maintenance": False})
    return OmegaBrain.open(config, wall_clock_ms if moment is None else lambda: moment)


def _fields(config: BrainConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.as_dict()}


def parse_moment(text: str | None, zone: ZoneInfo) -> int | None:
    """Unix milliseconds of --at: a number as it is, ISO 8601 in the given zone unless it has an offset."""
    if text is None:
        return None
    if text.isdigit():
        return check_timestamp("--at", int(text))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--at: expected a time such as 2026-03-01T20:15, or Unix ms, got {text!r}") from None
    moment = moment.replace(tzinfo=zone) if moment.tzinfo is None else moment
    return check_timestamp("--at", int(moment.timestamp() * 1000))


def run(options: argparse.Namespace) -> int:
    """Run one verb; returns the exit code."""
    settings = settings_of(options)
    if options.verb == "config":
        return _show_settings(options, settings)
    config = brain_config(settings)
    if options.verb == "profile":
        return {"list": _list_profiles, "set": _set_profile}[options.action](options, config)
    return _VERBS[options.verb](options, config)


# Recommending ----------------------------------------------------------------------------------------------


def _recommend(options: argparse.Namespace, config: BrainConfig) -> int:
    moment = parse_moment(options.at, config.zone())
    with _open_brain(config, moment) as brain:
        context = brain.now_context(options.profile, options.mood)
        rows = brain.recommend(context, options.count)
    if options.json:
        write_json({"profile": options.profile, "context": context, "recommendations": rows})
        return EXIT_OK
    screen = Screen(sys.stdout)
    screen.line(screen.style(f"For {options.profile}, {_context_in_words(context)}", "bold"))
    show_rows(screen, rows)
    if not rows:
        screen.line("Nothing left that may be shown; `omega-edge stats` tells what is withheld.")
    return EXIT_OK


def _context_in_words(context: ViewContext) -> str:
    day = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")[context.day_of_week]
    return f"{day} {context.time_of_day.value}" + (
        f", in the mood for {context.mood_hint}" if context.mood_hint else ""
    )


def show_rows(screen: Screen, rows: list[Recommendation]) -> None:
    """Two lines a recommendation: the title with its figures, then the reason."""
    for rank, row in enumerate(rows, start=1):
        figures = f"score {row.score:.2f}  chance {row.confidence:4.0%}"
        ids = fit(row.content_id, 10)
        title = fit(row.content_title, screen.width - len(figures) - len(ids) - 8)
        screen.line(f"{rank:3}  {screen.style(title, 'bold')} {screen.style(ids, 'dim')}  {figures}")
        screen.paragraph(row.reason, indent="     ", style="dim")


def _explain(options: argparse.Namespace, config: BrainConfig) -> int:
    moment = parse_moment(options.at, config.zone())
    with _open_brain(config, moment) as brain:
        context = brain.now_context(options.profile, options.mood)
        told = brain.explain(options.content_id, context)
    if options.json:
        write_json({"profile": options.profile, "context": context, **as_plain(told)})
        return EXIT_OK
    _show_explanation(Screen(sys.stdout), told, config)
    return EXIT_OK


def _show_explanation(screen: Screen, told: Explanation, config: BrainConfig) -> None:
    screen.line(screen.style(told.content_title, "bold") + f"  score {told.score:.2f}  chance {told.confidence:.0%}")
    screen.line(f"Withheld: {told.withheld}" if told.withheld else "May be offered.")
    screen.line(told.reason)
    screen.heading("What the score is made of")
    ordered = sorted(told.features.items(), key=lambda item: -abs(item[1].contribution))
    screen.table(
        ("feature", "value", "weight", "contribution"),
        [(name, f"{part.value:.4f}", f"{part.weight:.3f}", f"{part.contribution:+.4f}") for name, part in ordered],
        (18, 10, 10, 13),
        "lrrr",
    )
    if told.events:
        screen.heading("Events that lift it most")
        screen.table(
            ("title", "watched", "fall without it"),
            [
                (event.content_title, in_minutes(event.timestamp, config.zone()), f"{event.drop:.4f}")
                for event in told.events
            ],
            (screen.width - 40, 18, 16),
            "llr",
        )


# Watching --------------------------------------------------------------------------------------------------


def _observe(options: argparse.Namespace, config: BrainConfig) -> int:
    moment = parse_moment(options.at, config.zone())
    faults: list[dict[str, object]] = []
    recorded = 0
    sequence = None
    with _open_brain(config) as brain, Catalog.open(config.catalog_path) as catalog:
        for number, fields in _events_of(options, faults):
            try:
                event = _event(brain, catalog, fields, options, moment)
            except (ProtocolError, ConfigError) as fault:
                faults.append({"line": number, "error": str(fault)})
                continue
            sequence = brain.observe(event).sequence
            recorded += 1
        brain.flush()
    for fault in faults:
        print(f"omega-edge: line {fault['line']}: {fault['error']}", file=sys.stderr)
    if options.json:
        write_json({"recorded": recorded, "last_sequence": sequence, "durable": True, "malformed": faults})
    else:
        print(
            f"{counted(recorded, 'viewing')} recorded" + (f", {counted(len(faults), 'line')} refused" if faults else "")
        )
    return EXIT_DATA if faults else EXIT_OK


def _events_of(options: argparse.Namespace, faults: list[dict[str, object]]) -> Iterator[tuple[int, dict]]:
    """(line number, fields) of each viewing to record; lines that are no object go to faults."""
    if options.content_id is not None:
        fields = {
            "content_id": options.content_id,
            "watch_percentage": options.watched,
            "duration_seconds": options.duration,
        }
        yield 1, {**fields, "content_title": options.title} if options.title is not None else fields
        return
    for number, line in _bounded_lines(sys.stdin.buffer):
        if line is None:
            faults.append({"line": number, "error": f"expected at most {MAX_LINE_BYTES} bytes"})
            continue
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            faults.append({"line": number, "error": f"expected a JSON object: {error}"})
            continue
        if not isinstance(fields, dict):
            faults.append({"line": number, "error": f"expected a JSON object, got {type(fields).__name__}"})
            continue
        yield number, fields


def _bounded_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """(number, line) of each line, None for a line over MAX_LINE_BYTES, which is skipped without being held."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) <= MAX_LINE_BYTES:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE_BYTES)
        yield number, None


def _event(
    brain: OmegaBrain, catalog: Catalog, fields: dict, options: argparse.Namespace, moment: int | None
) -> ViewingEvent:
    """The ViewingEvent that an object describes. ProtocolError or ConfigError says what is wrong with it."""
    _refuse_unknown("viewing", fields, _EVENT_KEYS)
    missing = sorted({"content_id", "watch_percentage", "duration_seconds"} - set(fields))
    if missing:
        raise ProtocolError(f"viewing: expected {', '.join(missing)}")
    timestamp = check_timestamp("timestamp", fields.get("timestamp", wall_clock_ms() if moment is None else moment))
    content_id = check_content_id("content_id", fields["content_id"])
    said = fields.get("context", {})
    if not isinstance(said, dict):
        raise ProtocolError(f"context: expected an object, got {type(said).__name__}")
    _refuse_unknown("context", said, _CONTEXT_KEYS)
    derived = brain.now_context(fields.get("profile", options.profile), at=timestamp)
    recent = said.get("recent_watches", derived.recent_watches)
    context = ViewContext(
        time_of_day=said.get("time_of_day", derived.time_of_day),
        day_of_week=said.get("day_of_week", derived.day_of_week),
        recent_watches=tuple(recent) if isinstance(recent, list) else recent,
        mood_hint=said.get("mood_hint", options.mood),
        profile=derived.profile,
    )
    row = catalog.row_of(content_id)
    return ViewingEvent(
        content_id=content_id,
        content_title=fields.get("content_title", catalog.name(row) if row >= 0 else content_id),
        watch_percentage=fields["watch_percentage"],
        duration_seconds=fields["duration_seconds"],
        timestamp=timestamp,
        context=context,
    )


def _refuse_unknown(what: str, fields: dict, known: frozenset[str]) -> None:
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ProtocolError(f"{what}: expected only {', '.join(sorted(known))}, got {', '.join(unknown)[:80]}")


def _feedback(options: argparse.Namespace, config: BrainConfig) -> int:
    with _open_brain(config) as brain:
        recorded = brain.feedback(options.content_id, options.kind, options.profile, options.title)
        brain.flush()
    if options.json:
        write_json({"sequence": recorded.sequence, "durable": True})
    else:
        print(f"{options.kind.replace('_', ' ')}: noted for {options.profile}")
    return EXIT_OK


# Profiles --------------------------------------------------------------------------------------------------


def _list_profiles(options: argparse.Namespace, config: BrainConfig) -> int:
    with _open_brain(config) as brain:
        profiles = brain.profiles()
    if options.json:
        write_json({"profiles": profiles})
        return EXIT_OK
    rows = [
        (each.id, each.name, "none" if each.max_age_rating is None else f"{each.max_age_rating} years")
        for each in profiles
    ]
    Screen(sys.stdout).table(("id", "name", "age limit"), rows, (32, 30, 10), "lll")
    return EXIT_OK


def _set_profile(options: argparse.Namespace, config: BrainConfig) -> int:
    profile = Profile(options.id, options.name, options.max_age_rating)
    with _open_brain(config) as brain:
        brain.set_profile(profile)
        brain.flush()
    if options.json:
        write_json({"profile": profile})
    else:
        print(f"profile {profile.id} is set")
    return EXIT_OK


# The household's data --------------------------------------------------------------------------------------


def _export(options: argparse.Namespace, config: BrainConfig) -> int:
    with _open_brain(config) as brain:
        exported = brain.export()
    if options.out is None:
        write_json(exported)
        return EXIT_OK
    temporary = options.out.with_name(f".{options.out.name}.{os.getpid()}.tmp")
    try:
        # The file names what the household watched: for its owner only.
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            write_json(exported, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, options.out)
    finally:
        temporary.unlink(missing_ok=True)
    size_bytes = options.out.stat().st_size
    if options.json:
        write_json({"file": options.out, "bytes": size_bytes})
    else:
        print(f"{options.out}: {in_bytes(size_bytes)}")
    return EXIT_OK


def _import(options: argparse.Namespace, config: BrainConfig) -> int:
    if options.file == "-":
        content = sys.stdin.buffer.read(MAX_IMPORT_BYTES + 1)
    else:
        require_file(Path(options.file), "import", "name a file that `omega-edge export` wrote, or -")
        with open(options.file, "rb") as file:
            content = file.read(MAX_IMPORT_BYTES + 1)
    if len(content) > MAX_IMPORT_BYTES:
        raise ProtocolError(f"import: expected at most {MAX_IMPORT_BYTES} bytes")
    try:
        exported = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"import: expected the JSON that `omega-edge export` wrote: {error}") from None
    if not isinstance(exported, dict):
        raise ProtocolError(f"import: expected a JSON object, got {type(exported).__name__}")
    with _open_brain(config) as brain:
        brain.import_export(exported, replace_existing=options.replace)
        stats = brain.stats()
    if options.json:
        write_json({"imported": True, "memory": stats["memory"]})
    else:
        print("imported; `omega-edge stats` shows what is stored now")
    return EXIT_OK


def _forget(options: argparse.Namespace, config: BrainConfig) -> int:
    with _open_brain(config) as brain:
        brain.forget(content_id=options.title, profile=options.profile, everything=options.everything)
    what = "everything" if options.everything else options.title or options.profile
    if options.json:
        write_json({"forgotten": what})
    else:
        print(f"forgotten: {what}. No file under {config.storage_path} names it any more.")
    return EXIT_OK


def _stats(options: argparse.Namespace, config: BrainConfig) -> int:
    with _open_brain(config) as brain:
        stats = brain.stats()
        withheld = {profile.id: brain.withheld_counts(profile.id) for profile in brain.profiles()}
    stats = {**stats, "withheld": withheld}
    if options.json:
        write_json(stats)
        return EXIT_OK
    screen = Screen(sys.stdout)
    _show_tree(screen, as_plain(stats))
    return EXIT_OK


def _show_tree(screen: Screen, value: dict, indent: int = 0) -> None:
    for key, item in value.items():
        name = " " * indent + str(key).replace("_", " ")
        if isinstance(item, dict):
            screen.line(screen.style(name, "bold") if not indent else name)
            _show_tree(screen, item, indent + 2)
        elif isinstance(item, list):
            screen.line(f"{fit(name, 32)} {'none' if not item else ''}")
            for part in item:
                screen.paragraph(str(part), indent=" " * (indent + 2))
        else:
            screen.line(f"{fit(name, 32)} {'none' if item is None else item}")


def _show_settings(options: argparse.Namespace, settings: tuple[Setting, ...]) -> int:
    brain_config(settings)
    if options.json:
        write_json({setting.name: {"value": setting.value, "origin": setting.origin} for setting in settings})
        return EXIT_OK
    screen = Screen(sys.stdout)
    for setting in settings:
        value = "none" if setting.value is None else str(as_plain(setting.value))
        screen.line(f"{fit(setting.name, 24)} {value}  {screen.style('(' + setting.origin + ')', 'dim')}")
    return EXIT_OK


_VERBS = {
    "recommend": _recommend,
    "explain": _explain,
    "observe": _observe,
    "feedback": _feedback,
    "export": _export,
    "import": _import,
    "forget": _forget,
    "stats": _stats,
}
