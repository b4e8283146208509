"""Forgetting: what a title, a profile or everything has left in the store is taken out of it.

The database is written anew, because LMDB leaves old bytes in freed pages and in the gaps of live ones. The new file
replaces the old at once; it says that the journal is still to be wiped, which is done next or, after an error, before
the next entry or with the next checkpoint, or, after a crash, at the next open. So a forget is done wholly or not at all, and once acknowledged it is done.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from omega_edge.episodes import Episode
from omega_edge.keeper import Keeper, new_epoch
from omega_edge.protocol import DEFAULT_PROFILE, EMBEDDING_DIMENSIONS, Profile
from omega_edge.sharing_state import IDENTITY_STATE
from omega_edge.skills import MIN_EPISODES, Skill
from omega_edge.store import Row
from omega_edge.viewers import Viewer, viewer_rows


def forget_title(keeper: Keeper, content_id: str) -> None:
    """Forget a title for every profile, and in what came from the cloud."""
    with whole_or_not(keeper):
        removed = [episode for episode in keeper.episodes if episode.content_id == content_id]
        _remove_episodes(keeper, removed)
        for skill in list(keeper.skills):
            counted = [episode for episode in removed if episode.skill_id == skill.skill_id]
            if counted or content_id in skill.titles:
                _take_title_out(keeper, skill, content_id, counted)
        for pattern in list(keeper.reasoning):
            kept = tuple(reference for reference in pattern.references if reference.content_id != content_id)
            if len(kept) < len(pattern.references):
                if any(reference.weight > 0 for reference in kept):
                    keeper.reasoning.keep(replace(pattern, references=kept))
                else:
                    keeper.reasoning.remove(pattern)
        keeper.viewers.forget_title(content_id, removed)
        keeper.sharing.forget(content_id, None)
        _rewrite(keeper, [(table, key, _state_without(fields, content_id)) for table, key, fields in _states(keeper)])


def forget_profile(keeper: Keeper, profile: str) -> None:
    """Forget a profile with all that it watched; of the default one, all that it watched."""
    with whole_or_not(keeper):
        _remove_episodes(keeper, [episode for episode in keeper.episodes if episode.profile == profile])
        for skill in list(keeper.skills):
            if skill.profile == profile:
                keeper.skills.remove(skill.skill_id)
        keeper.viewers.forget_profile(profile)
        keeper.sharing.forget(None, profile)
        _rewrite(keeper, [(table, key, _state_without_profile(fields, profile)) for table, key, fields in _states(keeper)])


def forget_everything(keeper: Keeper) -> None:
    """Forget all, profiles, global patterns and states included, but for what is to be erased elsewhere. The counters go
    on, in a new epoch."""
    with whole_or_not(keeper):
        keeper.epoch = new_epoch()
        keeper.changes.advance()
        keeper.changes.complete_from = keeper.changes.local_version
        household = Viewer(Profile(DEFAULT_PROFILE, "Household"), 0, deque())
        kept = kept_states(keeper, (IDENTITY_STATE,))
        replace_records(keeper, [*viewer_rows(household), *kept, *keeper.state_rows(wipe_wanted=True)])


def kept_states(keeper: Keeper, names: Iterable[str]) -> list[Row]:
    """The records of those of these states that are stored."""
    found = [("states", name.encode(), keeper.store.get("states", name.encode())) for name in names]
    return [row for row in found if row[2] is not None]


@contextmanager
def whole_or_not(keeper: Keeper) -> Iterator[None]:
    """Around a change that ends in replace_records(): whatever is raised within, RAM is then as the database is."""
    keeper.commit()
    try:
        yield
    finally:
        keeper.forget_vectors()
        keeper.load()


def replace_records(keeper: Keeper, rows: list[Row]) -> None:
    """Put a new database of these rows in the place of the old, and remove every trace of that."""
    keeper.store.rebuild(rows)
    keeper.finish_forgetting()


def _rewrite(keeper: Keeper, states: list[Row]) -> None:
    replace_records(keeper, [*keeper.all_rows(), *states, *keeper.state_rows(wipe_wanted=True)])


def _states(keeper: Keeper) -> list[Row]:
    return [("states", key, fields) for key, fields in keeper.store.items("states")]


def _state_without(fields: dict, content_id: str) -> dict:
    return {1: {name: _without(item, content_id) for name, item in fields[1].items()}}


def _state_without_profile(fields: dict, profile: str) -> dict:
    """A state less the records of a profile: objects of a list of the state that say "profile" is it."""

    def kept(item: object) -> bool:
        return not (isinstance(item, dict) and item.get("profile") == profile)

    return {1: {name: list(filter(kept, item)) if isinstance(item, list) else item for name, item in fields[1].items()}}


def _remove_episodes(keeper: Keeper, removed: list[Episode]) -> None:
    for episode in removed:
        keeper.episodes.remove(episode)


def _take_title_out(keeper: Keeper, skill: Skill, content_id: str, counted: list[Episode]) -> None:
    """Take a title's part out of a skill's counts, and make its centroid anew from what stays.

    counted: the title's episodes that the skill counts, as far as they were kept, oldest first. Where the skill names
    the title, its newest ones are in the name's counts; the others the skill counted while it did not name it.
    What is left of a skill with fewer than 3 episodes is no skill: its episodes wait again.
    """
    member = skill.titles.pop(content_id, None)
    if member is not None:
        skill.successes -= member.successes
        skill.failures -= member.episodes - member.successes
        skill.reward_micro -= member.reward_micro
        counted = counted[: max(len(counted) - member.episodes, 0)]
    for episode in counted:
        skill.count(episode, -1)
    kept = [episode for episode in keeper.episodes if episode.skill_id == skill.skill_id]
    vector = _sum_of_vectors(keeper, skill, kept)
    if skill.sample_count >= MIN_EPISODES and min(skill.successes, skill.failures) >= 0 and np.any(vector):
        keeper.skills.keep_changed(skill, vector)
        return
    keeper.skills.remove(skill.skill_id)
    for episode in kept:
        episode.skill_id = 0
        keeper.episodes.note_change(episode)


def _sum_of_vectors(keeper: Keeper, skill: Skill, kept: list[Episode]) -> np.ndarray:
    """The vectors, float32[384], of a skill's kept episodes and of those evicted whose titles it names."""
    vector = np.zeros(EMBEDDING_DIMENSIONS, np.float32)
    weights = Counter({content_id: member.episodes for content_id, member in skill.titles.items()})
    for episode in kept:
        weights[episode.content_id] -= 1
        held = keeper.episodes.vector_of(episode)
        if held is not None:
            vector += np.frombuffer(held[0], np.int8) * np.float32(held[1])
    for content_id, evicted in weights.items():
        if evicted > 0:
            found = keeper.vector_of(content_id, skill.titles[content_id].content_title)
            if found is not None:
                vector += np.frombuffer(found[0], np.int8) * np.float32(found[1] * evicted)
    return vector


def _without(value: object, content_id: str) -> object:
    """A plain value less what names a title: an item that is the id, or a list or dict that directly holds it.

    What stands under "profile" names a profile, which may be called as a title is.
    """
    if isinstance(value, dict):
        return {
            key: _without(item, content_id)
            for key, item in value.items()
            if key == "profile" or (key != content_id and not _names(item, content_id))
        }
    if isinstance(value, list):
        return [_without(item, content_id) for item in value if not _names(item, content_id)]
    return value


def _names(item: object, content_id: str) -> bool:
    if isinstance(item, dict):
        return any(value == content_id for key, value in item.items() if key != "profile")
    if isinstance(item, list):
        return content_id in item
    return item == content_id
