"""What leaves the home, and nothing else: the one place that composes a delta.

In the sharing mode `receive`, and in `counts`, whose daily falsified title is not a delta, nothing is composed.
"""

from __future__ import annotations

from dataclasses import dataclass

from omega_edge.errors import ConfigError, StoreError
from omega_edge.memory import AgentMemory, Skill
from omega_edge.protocol import (
    MAX_REFERENCES_PER_PATTERN,
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


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A delta that awaits its acknowledgement. titles: how many finished titles it carries."""

    local_version: int
    titles: int
    shared: dict[int, ViewingPattern]


class DeltaComposer:
    """Composes what the cloud has not acknowledged yet. Callers hold the brain's write lock."""

    def __init__(self, memory: AgentMemory, sharing: str) -> None:
        self._memory = memory
        self._sharing = sharing
        self._prepared: _Prepared | None = None
        self.fault: str | None = None
        self.restart()

    def restart(self) -> None:
        """Begin anew after an import or a forget: what was prepared is void, and the log of finished titles is kept
        exactly if titles are shared, whatever the memory says. fault: why nothing can be shared, or None."""
        self._prepared = None
        self.fault = None
        try:
            self._memory.set_sharing_titles(self._sharing == "titles")
        except StoreError as fault:
            self.fault = str(fault)

    def prepare(self, max_titles: int) -> PatternDelta | None:
        """The difference between the shared set that the cloud acknowledged and today's, and a page of titles.

        A page that holds back titles carries the version of its last one, so that a page cut otherwise has another
        version, and no acknowledgement can stand for titles that were not in it.
        """
        if self._sharing != "titles" or self.fault is not None:
            return None
        finished = self._memory.titles_finished_since_acknowledged(max_titles + 1)
        page, held_back = finished[:max_titles], len(finished) > max_titles
        version = self._memory.finished_version(max_titles) if held_back else self._memory.local_version
        shared = {skill.skill_id: pattern_of(skill) for skill in self._memory.shared_skills()}
        before = self._memory.acknowledged_shared_set()
        delta = PatternDelta(
            local_version=version,
            titles_finished=tuple(page),
            patterns_added=tuple(pattern for key, pattern in sorted(shared.items()) if key not in before),
            patterns_updated=tuple(
                pattern for key, pattern in sorted(shared.items()) if key in before and before[key] != pattern
            ),
            patterns_removed=tuple(sorted(before.keys() - shared.keys())),
            more_pages=held_back,
        )
        self._prepared = _Prepared(version, len(page), shared)
        return delta

    def acknowledge(self, local_version: int) -> None:
        """The cloud holds the delta prepared last. Raises ConfigError for any other version."""
        prepared = self._prepared
        if prepared is None or type(local_version) is not int or local_version != prepared.local_version:
            raise ConfigError(
                f"local_version: expected that of the delta prepared last, got {local_version!r}; prepare another"
            )
        self._memory.acknowledge(local_version, prepared.titles, prepared.shared)
        self._prepared = None
