"""Export and import of a memory: everything, as plain values that JSON can hold.

The form, version 1:

    format "omega-edge-memory", version 1
    counters   last_sequence, local_version, next_skill_id, complete_from
    profiles   id, name, max_age_rating, event_count, seen {content id: {timestamp, sequence}}, finished [content id],
               hidden {content id: {kind, until}}
    episodes, skills, patterns    the records of the three tiers; their fields as in the classes
    removed    version, tier, key: records that are gone, for readers of the change log
    sharing    titles, acknowledged_version, finished [version, content id, time, profile], acknowledged {id: pattern, or null}
    states     {name: dict}; not those by which this home is known when it shares

Times are Unix milliseconds. A vector is {"code": base64 of int8[384], "scale": number}, or null: what is held coarse,
or more precisely, is written as int8 too, and goes on from there after an import, so that no export needs a codebook.
All other numbers are written as they are held, so an import restores every record as it was.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

from omega_edge.episodes import Episode, Vector
from omega_edge.keeper import Keeper
from omega_edge.protocol import TitleReference, ViewingPattern
from omega_edge.reasoning import ReasoningPattern
from omega_edge.sharing_state import HOME_STATES
from omega_edge.skills import Skill
from omega_edge.viewers import Viewer

FORMAT = "omega-edge-memory"
VERSION = 1


def holds_anything(keeper: Keeper) -> bool:
    """Whether a household has left anything in the memory."""
    return bool(
        keeper.last_sequence
        or len(keeper.reasoning)
        or len(keeper.skills)
        or len(list(keeper.viewers)) > 1
        or any(key.decode() not in HOME_STATES for key, _fields in keeper.store.items("states"))
    )


def export_records(keeper: Keeper) -> dict[str, object]:
    """Everything. To be called when nothing is unsaved."""
    sharing = keeper.sharing
    return {
        "format": FORMAT,
        "version": VERSION,
        "counters": {
            "last_sequence": keeper.last_sequence,
            "local_version": keeper.changes.local_version,
            "next_skill_id": keeper.skills.next_id,
            "complete_from": keeper.changes.complete_from,
        },
        "profiles": [_exported_viewer(viewer) for viewer in keeper.viewers],
        "episodes": [_exported_episode(episode, keeper.episodes.vector_of(episode)) for episode in keeper.episodes],
        "skills": [_exported_skill(skill) for skill in keeper.skills],
        "patterns": [_exported_reasoning(pattern) for pattern in keeper.reasoning],
        "removed": [
            {"version": change.version, "tier": change.tier.value, "key": change.key}
            for change in keeper.changes.removed_since(0)
        ],
        "sharing": {
            "titles": sharing.titles,
            "acknowledged_version": sharing.acknowledged_version,
            "finished": [
                {"version": version, "content_id": entry[0], "timestamp": entry[1], "profile": entry[2]}
                for version, entry in sharing.log()
            ],
            "acknowledged": {
                str(number): None if pattern is None or pattern.code is not None else _exported_pattern(pattern)
                for number, pattern in sharing.acknowledged.items()
            },
        },
        "states": {key.decode(): fields[1] for key, fields in keeper.store.items("states") if key.decode() not in HOME_STATES},
    }


def _exported_viewer(viewer: Viewer) -> dict[str, object]:
    return {
        "id": viewer.profile.id,
        "name": viewer.profile.name,
        "max_age_rating": viewer.profile.max_age_rating,
        "event_count": viewer.event_count,
        "seen": {
            content_id: {"timestamp": timestamp, "sequence": viewer.seen_sequence[content_id]}
            for content_id, timestamp in viewer.seen.items()
        },
        "finished": sorted(viewer.finished),
        "hidden": {
            content_id: {"kind": kind.value, "until": until} for content_id, (kind, until) in viewer.hidden.items()
        },
    }


def _exported_vector(vector: Vector | None) -> dict[str, object] | None:
    return None if vector is None else {"code": base64.b64encode(vector[0]).decode("ascii"), "scale": vector[1]}


def _exported_episode(episode: Episode, vector: Vector | None) -> dict[str, object]:
    return {
        "sequence": episode.sequence,
        "profile": episode.profile,
        "content_id": episode.content_id,
        "content_title": episode.content_title,
        "watch_percentage": episode.watch_percentage,
        "duration_seconds": episode.duration_seconds,
        "timestamp": episode.timestamp,
        "time_of_day": episode.time_of_day.value,
        "day_of_week": episode.day_of_week,
        "mood_hint": episode.mood_hint,
        "engagement": episode.engagement,
        "kind": episode.kind.value,
        "skill_id": episode.skill_id,
        "version": episode.version,
        "vector": _exported_vector(vector),
    }


def _exported_skill(skill: Skill) -> dict[str, object]:
    return {
        "skill_id": skill.skill_id,
        "profile": skill.profile,
        "part_of_day": skill.part_of_day.name.lower(),
        "successes": skill.successes,
        "failures": skill.failures,
        "reward_micro": skill.reward_micro,
        "created_at": skill.created_at,
        "updated_at": skill.updated_at,
        "last_sequence": skill.last_sequence,
        "version": skill.version,
        "vector": _exported_vector((skill.code, skill.scale)),
        "titles": [
            {
                "content_id": content_id,
                "content_title": member.content_title,
                "episodes": member.episodes,
                "successes": member.successes,
                "reward_micro": member.reward_micro,
                "last_sequence": member.last_sequence,
            }
            for content_id, member in skill.titles.items()
        ],
    }


def _exported_references(references: Iterable[TitleReference]) -> list[dict[str, object]]:
    return [{"content_id": reference.content_id, "weight": reference.weight} for reference in references]


def _exported_reasoning(pattern: ReasoningPattern) -> dict[str, object]:
    return {
        "pattern_id": pattern.pattern_id,
        "success_rate": pattern.success_rate,
        "sample_count": pattern.sample_count,
        "created_at": pattern.created_at,
        "updated_at": pattern.updated_at,
        "references": _exported_references(pattern.references),
        "vector": _exported_vector((pattern.code_bytes, pattern.scale)),
        "followed": pattern.followed,
        "followed_reward_micro": pattern.followed_reward_micro,
        "not_followed": pattern.not_followed,
        "not_followed_reward_micro": pattern.not_followed_reward_micro,
        "latency_ms_sum": pattern.latency_ms_sum,
        "outcome_version": pattern.outcome_version,
        "version": pattern.merge_version,
    }


def _exported_pattern(pattern: ViewingPattern) -> dict[str, object]:
    embedding = None if pattern.embedding is None else base64.b64encode(pattern.embedding).decode("ascii")
    return {
        "success_rate": pattern.success_rate,
        "sample_count": pattern.sample_count,
        "created_at": pattern.created_at,
        "updated_at": pattern.updated_at,
        "embedding": embedding,
        "references": _exported_references(pattern.references),
    }
