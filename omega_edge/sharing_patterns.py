"""A skill as it is shared: weighted titles of the catalogue, else a code that only the same codebook can read."""

from __future__ import annotations

import numpy as np

from omega_edge.catalog import Catalog
from omega_edge.codes import USUAL_REFERENCES, as_code, pattern_fingerprint
from omega_edge.memory import Skill
from omega_edge.protocol import TitleReference, ViewingPattern


def pattern_of(skill: Skill, catalog: Catalog) -> ViewingPattern:
    """A skill's heaviest member titles as weighted references, the heaviest weighing 1.

    Where one of them is outside the catalogue, whose id would say nothing to anybody else, the code of the skill's vector
    takes their place, if the bundle brings a codebook.
    """
    members = sorted(skill.members.items(), key=lambda member: (-member[1], member[0]))[:USUAL_REFERENCES]
    heaviest = members[0][1]
    pattern = ViewingPattern(
        id=skill.skill_id,
        success_rate=skill.success_rate,
        sample_count=skill.sample_count,
        created_at=skill.created_at,
        updated_at=skill.updated_at,
        references=tuple(TitleReference(content_id, weight / heaviest) for content_id, weight in members),
    )
    if catalog.quantiser is None or all(catalog.row_of(content_id) >= 0 for content_id, _weight in members):
        return pattern
    vector = np.frombuffer(skill.code, np.int8).astype(np.float32) * np.float32(skill.scale)
    return as_code(pattern, catalog.quantiser, vector)


def says_the_same(known: ViewingPattern | None, pattern: ViewingPattern) -> bool:
    """Whether a receiver that has the one would learn nothing from the other."""
    return known is not None and pattern_fingerprint(known) == pattern_fingerprint(pattern)
