"""Import of a memory: an export, see exporting.py, is checked value by value, then put in place in one step."""

from __future__ import annotations

import base64
import binascii
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import cbor2

from omega_edge.centroids import Held
from omega_edge.changes import Change, Tier, tombstone_row
from omega_edge.codebook_record import Codebook
from omega_edge.entries import MAX_DECISION_LATENCY_MS
from omega_edge.episodes import CatalogueLookup, Episode, EpisodeKind
from omega_edge.errors import ProtocolError
from omega_edge.exporting import FORMAT, VERSION
from omega_edge.forgetting import kept_states, replace_records, whole_or_not
from omega_edge.keeper import Keeper, new_epoch, state_rows
from omega_edge.protocol import (
    DEFAULT_PROFILE,
    EMBEDDING_BYTES,
    EMBEDDING_DIMENSIONS,
    MAX_DURATION_SECONDS,
    MAX_MOOD_HINT_BYTES,
    MAX_TITLE_BYTES,
    FeedbackKind,
    Profile,
    TimeOfDay,
    TitleReference,
    ViewingPattern,
    check_content_id,
    check_profile_id,
    check_timestamp,
)
from omega_edge.reasoning import ReasoningPattern
from omega_edge.sharing_state import HOME_STATES, finished_row, sharing_row
from omega_edge.skill_records import MAX_MEMBERS, Member, PartOfDay, Skill
from omega_edge.store import Row
from omega_edge.tier_policy import Standing
from omega_edge.validation import (
    check_distinct,
    check_enum,
    check_finite,
    check_integer,
    check_share,
    check_text,
    refuse,
)
from omega_edge.viewers import MAX_PROFILES, Viewer, viewer_rows

_U32_MAX = (1 << 32) - 1
_COUNT_MAX = 1 << 52
"""Half of what every JSON reader keeps exact, so that counters can go on from here."""
_SKILL_ID_MAX = 1 << 31
_SKILL_IDS_AHEAD = 1 << 20
"""How far the next skill's id may be ahead of every one in use."""
_SAMPLES_MAX = 1 << 31
_MICRO = 1_000_000
_MAX_STATE_BYTES = 1 << 20
_MAX_STATE_DEPTH = 32


def import_records(keeper: Keeper, exported: object) -> None:
    """Check an export, then put it in the place of everything but this home's own states. Raises ProtocolError; then
    nothing has changed."""
    rows = _Importer(exported, keeper.catalogued, keeper.codebook).rows(keeper.last_sequence)
    with whole_or_not(keeper):
        replace_records(keeper, [*rows, *kept_states(keeper, HOME_STATES)])


class _Fields:
    """A JSON object whose fields are taken one by one, each with its check; a field too many or too few is refused."""

    def __init__(self, name: str, value: object) -> None:
        if not isinstance(value, dict):
            raise refuse(name, "an object", value)
        self._name = name
        self._left = dict(value)

    def take(self, field: str, check: Callable[..., Any], *bounds: object) -> Any:
        """The field's value, checked."""
        if field not in self._left:
            raise ProtocolError(f"{self._name}.{field}: expected it, it is missing")
        return check(f"{self._name}.{field}", self._left.pop(field), *bounds)

    def end(self) -> None:
        """Every field must have been taken."""
        if self._left:
            raise ProtocolError(f"{self._name}: unknown field {min(map(str, self._left))!r}")


def _optional(name: str, value: object, check: Callable[..., Any], *bounds: object) -> Any:
    return None if value is None else check(name, value, *bounds)


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise refuse(name, "true or false", value)
    return value


def _list(name: str, value: object) -> list:
    if not isinstance(value, list):
        raise refuse(name, "a list", value)
    return value


def _object(name: str, value: object) -> dict:
    if not isinstance(value, dict):
        raise refuse(name, "an object", value)
    return value


def _count(name: str, value: object) -> int:
    return check_integer(name, value, 0, _COUNT_MAX)


def _number_of(text: str) -> int:
    """The u32 that is the key of an acknowledged pattern."""
    plain = isinstance(text, str) and len(text) <= 10 and text.isascii() and text.isdecimal()
    if not plain or int(text) > _U32_MAX or text != str(int(text)):
        raise refuse("acknowledged", "ids of patterns, as decimal text", text)
    return int(text)


def _check_plain(name: str, state: dict) -> None:
    """A state may hold what JSON, CBOR and UTF-8 all can, nested at most _MAX_STATE_DEPTH deep."""
    level: list[object] = [state]
    for _depth in range(_MAX_STATE_DEPTH):
        for value in level:
            if isinstance(value, str):
                _check_unicode(name, value)
            elif type(value) is int:
                check_integer(name, value, -(1 << 63), (1 << 64) - 1)
            elif isinstance(value, float):
                check_finite(name, value)
            elif isinstance(value, dict):
                for key in value:
                    _check_unicode(f"{name}: key", key)
            elif not (value is None or isinstance(value, (bool, list))):
                raise refuse(name, "only what JSON can hold", value)
        holders = [value for value in level if isinstance(value, (dict, list))]
        level = [item for value in holders for item in (value.values() if isinstance(value, dict) else value)]
        if not level:
            return
    raise refuse(name, f"values nested at most {_MAX_STATE_DEPTH} deep", state)


def _check_unicode(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise refuse(name, "text", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise refuse(name, "text that UTF-8 can hold (no lone surrogates)", value) from None


def _base64(name: str, value: object, length: int) -> bytes:
    try:
        found = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        found = b""
    if len(found) != length:
        raise refuse(name, f"base64 of {length} bytes", value)
    return found


def _vector(name: str, value: object) -> tuple[bytes, float]:
    fields = _Fields(name, value)
    code = fields.take("code", _base64, EMBEDDING_DIMENSIONS)
    scale = fields.take("scale", check_finite)
    fields.end()
    norm = math.sqrt(sum((byte - 256 if byte > 127 else byte) ** 2 for byte in code))
    if 128 in code or not abs(scale * norm - 1) < 1e-3:
        raise refuse(name, "a code from -127 to 127 whose scale is 1 / its norm", scale)
    return code, scale


def _references(name: str, value: object) -> tuple[TitleReference, ...]:
    found = []
    for item in _list(name, value):
        fields = _Fields(name, item)
        found.append(TitleReference(fields.take("content_id", check_content_id), fields.take("weight", check_share)))
        fields.end()
    return tuple(found)


def _part_of_day(name: str, value: object) -> PartOfDay:
    for part in PartOfDay:
        if value == part.name.lower():
            return part
    raise refuse(name, "day or late", value)


class _Importer:
    """Turns an export into records."""

    def __init__(self, exported: object, catalogued: CatalogueLookup, codebook: Codebook) -> None:
        self._catalogued = catalogued
        self._codebook = codebook
        self._all = _Fields("export", exported)
        for field, expected in (("format", FORMAT), ("version", VERSION)):
            found = self._all.take(field, lambda _name, value: value)
            if found != expected:
                raise refuse(f"export.{field}", f"{expected!r}", found)
        self._changes: list[Change] = []
        self._versions: list[int] = []
        self._profiles: list[str] = []
        self._seen_sequences: list[int] = []
        self._highest_skill_id = 0

    def rows(self, sequence_used: int) -> list[Row]:
        """Every record of the export. Sequences go on behind what this memory has used, whatever the export says."""
        counters = self._all.take("counters", _Fields)
        last_sequence = counters.take("last_sequence", _count)
        local_version = counters.take("local_version", _count)
        next_skill_id = counters.take("next_skill_id", check_integer, 1, _SKILL_ID_MAX)
        complete_from = counters.take("complete_from", check_integer, 0, local_version)
        counters.end()
        rows: list[Row] = []
        for position, value in enumerate(self._all.take("profiles", _list)):
            rows += viewer_rows(self._viewer(position, value, last_sequence))
        check_distinct("export.profiles", self._profiles)
        check_distinct("export.profiles: seen, sequences", self._seen_sequences)
        if DEFAULT_PROFILE not in self._profiles or len(self._profiles) > MAX_PROFILES:
            raise refuse("export.profiles", f"1 to {MAX_PROFILES}, among them {DEFAULT_PROFILE!r}", self._profiles)
        rows += [self._episode(value, last_sequence, next_skill_id) for value in self._all.take("episodes", _list)]
        rows += [self._skill(value, last_sequence, next_skill_id) for value in self._all.take("skills", _list)]
        check_integer("counters.next_skill_id", next_skill_id, 1, self._highest_skill_id + _SKILL_IDS_AHEAD)
        for value in self._all.take("patterns", _list):
            rows += self._reasoning(value)
        rows += self._removed(self._all.take("removed", _list))
        rows += self._sharing(self._all.take("sharing", _Fields), local_version)
        rows += self._states(self._all.take("states", _object))
        self._all.end()
        self._check_changes(local_version)
        last_sequence = max(last_sequence, sequence_used)
        counted = (last_sequence, local_version, next_skill_id, new_epoch(), complete_from)
        return rows + state_rows(*counted, wipe_wanted=True)

    def _known_profile(self, name: str, value: object) -> str:
        if value not in self._profiles:
            raise refuse(name, f"one of {', '.join(self._profiles)}", value)
        return value

    def _note(self, fields: _Fields, tier: Tier, key: int, deleted: bool = False) -> int:
        version = fields.take("version", check_integer, 1, _COUNT_MAX)
        self._changes.append(Change(version, tier, key, deleted))
        return version

    def _check_changes(self, local_version: int) -> None:
        self._versions += [change.version for change in self._changes]
        check_distinct("export: versions", [version for version in self._versions if version])
        check_distinct("export: records", [(change.tier, change.key) for change in self._changes])
        for version in self._versions:
            check_integer("export: version", version, 0, local_version)

    def _viewer(self, position: int, value: object, last_sequence: int) -> Viewer:
        fields = _Fields("profile", value)
        profile = Profile(
            fields.take("id", check_profile_id),
            fields.take("name", check_text, MAX_TITLE_BYTES),
            fields.take("max_age_rating", lambda _name, limit: limit),
        )
        viewer = Viewer(profile, position, deque(maxlen=1), fields.take("event_count", _count))
        for content_id, seen in fields.take("seen", _object).items():
            last = _Fields("seen", seen)
            viewer.seen[check_content_id("seen", content_id)] = last.take("timestamp", check_timestamp)
            viewer.seen_sequence[content_id] = last.take("sequence", check_integer, 1, last_sequence)
            last.end()
        self._seen_sequences += viewer.seen_sequence.values()
        viewer.finished = {check_content_id("finished", item) for item in fields.take("finished", _list)}
        if not viewer.finished <= viewer.seen.keys():
            raise refuse("profile.finished", "only titles that are seen", sorted(viewer.finished - viewer.seen.keys()))
        for content_id, hidden in fields.take("hidden", _object).items():
            reason = _Fields("hidden", hidden)
            kind = reason.take("kind", check_enum, FeedbackKind)
            until = reason.take("until", _optional, check_timestamp)
            reason.end()
            if kind is FeedbackKind.LIKE or (until is None) != (kind is not FeedbackKind.NOT_NOW):
                raise refuse("hidden", "dislike or never without an end, or not_now with one", kind)
            viewer.hidden[check_content_id("hidden", content_id)] = (kind, until)
        fields.end()
        self._profiles.append(profile.id)
        return viewer

    def _episode(self, value: object, last_sequence: int, next_skill_id: int) -> Row:
        fields = _Fields("episode", value)
        sequence = fields.take("sequence", check_integer, 1, last_sequence)
        code, scale = fields.take("vector", _optional, _vector) or (None, 0.0)
        episode = Episode(
            sequence,
            fields.take("profile", self._known_profile),
            fields.take("content_id", check_content_id),
            fields.take("content_title", check_text, MAX_TITLE_BYTES),
            fields.take("watch_percentage", _optional, check_share),
            fields.take("duration_seconds", check_integer, 0, MAX_DURATION_SECONDS),
            fields.take("timestamp", check_timestamp),
            fields.take("time_of_day", check_enum, TimeOfDay),
            fields.take("day_of_week", check_integer, 0, 6),
            fields.take("mood_hint", _optional, check_text, MAX_MOOD_HINT_BYTES),
            fields.take("engagement", check_share),
            fields.take("kind", check_enum, EpisodeKind),
            fields.take("skill_id", check_integer, 0, next_skill_id - 1),
            code,
            scale,
            self._note(fields, Tier.EPISODES, sequence),
        )
        fields.end()
        if (episode.watch_percentage is None) and episode.kind is EpisodeKind.WATCHED:
            raise refuse("episode.watch_percentage", "a number for a title that was watched", None)
        self._highest_skill_id = max(self._highest_skill_id, episode.skill_id)
        must_store = code is not None and self._catalogued(episode.content_id) != (code, scale)
        return episode.row((code, scale) if must_store else None)

    def _skill(self, value: object, last_sequence: int, next_skill_id: int) -> Row:
        fields = _Fields("skill", value)
        skill_id = fields.take("skill_id", check_integer, 1, next_skill_id - 1)
        code, scale = fields.take("vector", _vector)
        members = [self._member(title, last_sequence) for title in fields.take("titles", _list)]
        check_distinct("skill: titles", [content_id for content_id, _member in members])
        skill = Skill(
            skill_id,
            fields.take("profile", self._known_profile),
            fields.take("part_of_day", _part_of_day),
            Held(Standing.new(0), code, scale),
            fields.take("successes", check_integer, 0, _SAMPLES_MAX),
            fields.take("failures", check_integer, 0, _SAMPLES_MAX),
            fields.take("reward_micro", _count),
            fields.take("created_at", check_timestamp),
            fields.take("updated_at", check_timestamp),
            fields.take("last_sequence", check_integer, 1, last_sequence),
            dict(members),
            self._note(fields, Tier.SKILLS, skill_id),
        )
        fields.end()
        skill.centroid.standing = Standing.new(skill.last_sequence)
        check_integer("skill: successes and failures", skill.sample_count, 1, _SAMPLES_MAX)
        check_integer("skill.reward_micro", skill.reward_micro, 0, skill.sample_count * _MICRO)
        check_integer("skill: titles", len(skill.titles), 1, MAX_MEMBERS)
        named = skill.titles.values()
        successes, episodes = sum(member.successes for member in named), sum(member.episodes for member in named)
        check_integer("skill: successes of its titles", successes, 0, skill.successes)
        check_integer("skill: failures of its titles", episodes - successes, 0, skill.failures)
        check_integer("skill: reward_micro of its titles", sum(one.reward_micro for one in named), 0, skill.reward_micro)
        self._highest_skill_id = max(self._highest_skill_id, skill_id)
        return skill.row(self._codebook)

    def _member(self, value: object, last_sequence: int) -> tuple[str, Member]:
        fields = _Fields("skill.title", value)
        content_id = fields.take("content_id", check_content_id)
        member = Member(
            fields.take("content_title", check_text, MAX_TITLE_BYTES),
            fields.take("episodes", check_integer, 1, _SAMPLES_MAX),
            fields.take("successes", _count),
            fields.take("reward_micro", _count),
            fields.take("last_sequence", check_integer, 1, last_sequence),
        )
        fields.end()
        check_integer("skill.title.successes", member.successes, 0, member.episodes)
        check_integer("skill.title.reward_micro", member.reward_micro, 0, member.episodes * _MICRO)
        return content_id, member

    def _reasoning(self, value: object) -> list[Row]:
        fields = _Fields("pattern", value)
        pattern_id = fields.take("pattern_id", check_integer, 0, _U32_MAX)
        code, scale = fields.take("vector", _vector)
        pattern = ReasoningPattern(
            pattern_id,
            fields.take("success_rate", check_share),
            fields.take("sample_count", check_integer, 1, _U32_MAX),
            fields.take("created_at", check_timestamp),
            fields.take("updated_at", check_timestamp),
            fields.take("references", _references),
            code,
            scale,
            fields.take("followed", check_integer, 0, _SAMPLES_MAX),
            fields.take("followed_reward_micro", _count),
            fields.take("not_followed", check_integer, 0, _SAMPLES_MAX),
            fields.take("not_followed_reward_micro", _count),
            fields.take("latency_ms_sum", _count),
            fields.take("outcome_version", _count),
            self._note(fields, Tier.REASONING, pattern_id),
        )
        fields.end()
        check_integer("pattern.followed_reward_micro", pattern.followed_reward_micro, 0, pattern.followed * _MICRO)
        not_followed_most = pattern.not_followed * _MICRO
        check_integer("pattern.not_followed_reward_micro", pattern.not_followed_reward_micro, 0, not_followed_most)
        latest = pattern.outcomes * MAX_DECISION_LATENCY_MS
        check_integer("pattern.latency_ms_sum", pattern.latency_ms_sum, 0, latest)
        self._versions.append(pattern.outcome_version)
        return [pattern.row(), pattern.outcome_row()] if pattern.outcomes else [pattern.row()]

    def _removed(self, values: list) -> list[Row]:
        rows: list[Row] = []
        for value in values:
            fields = _Fields("removed", value)
            tier, key = fields.take("tier", check_enum, Tier), fields.take("key", _count)
            version = self._note(fields, tier, key, deleted=True)
            fields.end()
            rows.append(tombstone_row(version, tier, key))
            if tier is Tier.REASONING:
                rows.append(("graves", check_integer("removed.key", key, 0, _U32_MAX).to_bytes(4, "big"), {1: version}))
        return rows

    def _sharing(self, fields: _Fields, local_version: int) -> list[Row]:
        titles = fields.take("titles", _boolean)
        acknowledged_version = fields.take("acknowledged_version", _count)
        rows: list[Row] = []
        for value in fields.take("finished", _list):
            entry = _Fields("finished", value)
            rows.append(
                finished_row(
                    entry.take("version", check_integer, 1, local_version),
                    entry.take("content_id", check_content_id),
                    entry.take("timestamp", check_timestamp),
                    entry.take("profile", self._known_profile),
                )
            )
            entry.end()
        check_distinct("finished: versions", [key for _table, key, _fields in rows])
        acknowledged = {}
        for text, value in fields.take("acknowledged", _object).items():
            number = _number_of(text)
            acknowledged[number] = None if value is None else _pattern(number, value)
        fields.end()
        return [*rows, sharing_row(titles, acknowledged_version, acknowledged)]

    def _states(self, states: dict) -> list[Row]:
        rows: list[Row] = []
        for name, state in states.items():
            check_text("states: name", name, MAX_MOOD_HINT_BYTES)
            if name in HOME_STATES:
                raise refuse("states: name", "none of those that stay in their home", name)
            _check_plain("state", _object("state", state))
            if len(cbor2.dumps(state)) > _MAX_STATE_BYTES:
                raise refuse("state", f"at most {_MAX_STATE_BYTES} bytes", state)
            rows.append(("states", name.encode(), {1: state}))
        return rows


def _pattern(number: int, value: object) -> ViewingPattern:
    fields = _Fields("acknowledged", value)
    pattern = ViewingPattern(
        number,
        fields.take("success_rate", check_share),
        fields.take("sample_count", check_integer, 1, _U32_MAX),
        fields.take("created_at", check_timestamp),
        fields.take("updated_at", check_timestamp),
        fields.take("embedding", _optional, _base64, EMBEDDING_BYTES),
        fields.take("references", _references),
    )
    fields.end()
    return pattern
