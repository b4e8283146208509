"""What leaves the home, and nothing else: the one place that composes a delta.

In the sharing mode `receive`, and in `counts`, whose daily falsified title is not a delta, nothing is composed.
"""

from __future__ import annotations

from omega_edge.errors import ConfigError
from omega_edge.memory import AgentMemory, Skill
from omega_edge.protocol import (
    MAX_REFERENCES_PER_PATTERN,
    MAX_TITLES_FINISHED_PER_PAGE,
    FinishedTitle,
    PatternDelta,
    TitleReference,
    ViewingPattern,
)


def pattern_of(skill: Skill) -> ViewingPattern:
    """A skill as it is shared: its heaviest member titles as weighted references, the heaviest weighing 1."""
    members = sorted(skill.members.items(), key=lambda member: (-member[1], member[0]))[:MAX_REFERENCES_PER_PATTERN]
    heaviest = members[0][1]
    return ViewingPattern(
        id=skill.skill_id,
        success_rate=skill.success_rate,
        sample_count=skill.sample_count,
        created_at=skill.created_at,
        updated_at=skill.updated_at,
        references=tuple(TitleReference(content_id, weight / heaviest) for content_id, weight in members),
    )


class DeltaComposer:
    """Composes what the cloud has not acknowledged yet. Callers hold the brain's write lock."""

    def __init__(self, memory: AgentMemory, sharing: str) -> None:
        self._memory = memory
        self._sharing = sharing
        self._prepared: dict[int, tuple[PatternDelta, dict[int, ViewingPattern]]] = {}
        memory.set_sharing_titles(sharing == "titles")

    def prepare(self) -> PatternDelta | None:
        """The difference between the shared set that the cloud acknowledged and today's, and a page of titles."""
        if self._sharing != "titles":
            return None
        finished = self._memory.titles_finished_since_acknowledged(MAX_TITLES_FINISHED_PER_PAGE + 1)
        page = finished[:MAX_TITLES_FINISHED_PER_PAGE]
        shared = {skill.skill_id: pattern_of(skill) for skill in self._memory.shared_skills()}
        before = self._memory.acknowledged_shared_set()
        delta = PatternDelta(
            local_version=self._memory.local_version,
            titles_finished=tuple(FinishedTitle(title.content_id, title.finished_at) for title in page),
            patterns_added=tuple(pattern for key, pattern in sorted(shared.items()) if key not in before),
            patterns_updated=tuple(
                pattern for key, pattern in sorted(shared.items()) if key in before and before[key] != pattern
            ),
            patterns_removed=tuple(sorted(before.keys() - shared.keys())),
            more_pages=len(finished) > len(page),
        )
        self._prepared = {delta.local_version: (delta, shared)}
        return delta

    def acknowledge(self, local_version: int) -> None:
        """The cloud holds the delta prepared last. Raises ConfigError for any other version."""
        prepared = self._prepared.pop(local_version, None)
        if prepared is None:
            raise ConfigError(
                f"local_version: expected that of the delta prepared last, got {local_version}; prepare another"
            )
        delta, shared = prepared
        self._memory.acknowledge(local_version, len(delta.titles_finished), shared)
