"""The verb `observe`: one viewing by flags, or many as JSON lines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO

from omega_edge.brain import OmegaBrain, wall_clock_ms
from omega_edge.catalog import Catalog
from omega_edge.cli_codes import EXIT_DATA, EXIT_OK
from omega_edge.cli_output import counted, write_json
from omega_edge.cli_process import say_error
from omega_edge.cli_session import open_brain, parse_moment
from omega_edge.config import BrainConfig
from omega_edge.errors import ConfigError, ProtocolError
from omega_edge.protocol import ViewContext, ViewingEvent, check_content_id, check_timestamp

MAX_LINE_BYTES = 64 * 1024
"""A longer line is refused unread: no viewing comes near."""
_EVENT_KEYS = frozenset(
    ("content_id", "watch_percentage", "duration_seconds", "timestamp", "content_title", "profile", "context")
)
_CONTEXT_KEYS = frozenset(("time_of_day", "day_of_week", "mood_hint", "recent_watches"))


def observe(options: argparse.Namespace, config: BrainConfig) -> int:
    """Record what was watched; EXIT_DATA if a line of standard input could not be used."""
    moment = parse_moment(options.at, config.zone())
    faults: list[dict[str, object]] = []
    recorded = 0
    sequence = None
    with open_brain(config) as brain, Catalog.open(config.catalog_path) as catalog:
        for number, read_fields in _viewings_of(options):
            try:
                event = _event(brain, catalog, read_fields(), options, moment)
            except (ProtocolError, ConfigError) as fault:
                if options.content_id is not None:
                    raise
                faults.append({"line": number, "error": str(fault)})
                say_error(f"line {number}: {fault}")
                continue
            sequence = brain.observe(event).sequence
            recorded += 1
        brain.flush()
    if options.json:
        write_json({"recorded": recorded, "last_sequence": sequence, "durable": True, "malformed": faults})
    else:
        print(
            f"{counted(recorded, 'viewing')} recorded" + (f", {counted(len(faults), 'line')} refused" if faults else "")
        )
    return EXIT_DATA if faults else EXIT_OK


def _viewings_of(options: argparse.Namespace) -> Iterator[tuple[int, Callable[[], dict]]]:
    """(line number, call that gives the fields or raises ProtocolError) of each viewing to record."""
    if options.content_id is not None:
        fields = {
            "content_id": options.content_id,
            "watch_percentage": options.watched,
            "duration_seconds": options.duration,
        }
        if options.title is not None:
            fields["content_title"] = options.title
        yield 1, lambda: fields
        return
    for number, line in _bounded_lines(sys.stdin.buffer):
        if line is None or line.strip():
            yield number, partial(_parsed_line, line)


def _parsed_line(line: bytes | None) -> dict:
    if line is None:
        raise ProtocolError(f"expected at most {MAX_LINE_BYTES} bytes")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"expected a JSON object: {error}") from None
    if not isinstance(fields, dict):
        raise ProtocolError(f"expected a JSON object, got {type(fields).__name__}")
    return fields


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
