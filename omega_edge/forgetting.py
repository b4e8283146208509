"""Forgetting: what a title, a profile or everything has left in the store is taken out of it.

The database is written anew, because LMDB leaves old bytes in freed pages and in the gaps of live ones. The new file
replaces the old at once; it says that the journal is still to be wiped, which is done next or, after a crash, at the
next open. So a forget is done wholly or not at all, and once acknowledged it is done.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from omega_edge.episodes import Episode
from omega_edge.keeper import Keeper, new_epoch
from omega_edge.protocol import EMBEDDING_DIMENSIONS
from omega_edge.skills import MIN_EPISODES, Skill
from omega_edge.store import Row


def forget_title(keeper: Keeper, content_id: str) -> None:
    """Forget a title for every profile, and in what came from the cloud."""
    keeper.commit()
    removed = [episode for episode in keeper.episodes if episode.content_id == content_id]
    _remove_episodes(keeper, removed)
    for skill in list(keeper.skills):
        if content_id in skill.titles:
            _take_title_out(keeper, skill, content_id)
    for pattern in list(keeper.reasoning):
        kept = tuple(reference for reference in pattern.references if reference.content_id != content_id)
        if len(kept) < len(pattern.references):
            if any(reference.weight > 0 for reference in kept):
                keeper.reasoning.keep(replace(pattern, references=kept))
            else:
                keeper.reasoning.remove(pattern)
    keeper.viewers.forget_title(content_id, removed)
    keeper.sharing.forget(content_id, None)
    _rewrite(keeper, [(table, key, {1: {name: _without(item, content_id) for name, item in fields[1].items()}}) for table, key, fields in _states(keeper)])


def forget_profile(keeper: Keeper, profile: str) -> None:
    """Forget a profile with all that it watched; of the default one, all that it watched."""
    keeper.commit()
    _remove_episodes(keeper, [episode for episode in keeper.episodes if episode.profile == profile])
    for skill in list(keeper.skills):
        if skill.profile == profile:
            keeper.skills.remove(skill.skill_id)
    keeper.viewers.forget_profile(profile)
    keeper.sharing.forget(None, profile)
    _rewrite(keeper, _states(keeper))


def forget_everything(keeper: Keeper) -> None:
    """Forget all, profiles, global patterns and states included. The counters go on, in a new epoch."""
    keeper.commit()
    keeper.epoch = new_epoch()
    keeper.changes.advance()
    keeper.changes.complete_from = keeper.changes.local_version
    replace_records(keeper, keeper.state_rows(wipe_wanted=True))


def replace_records(keeper: Keeper, rows: list[Row]) -> None:
    """Put a new database of these rows in the place of the old, and remove every trace of that."""
    try:
        keeper.store.rebuild(rows)
        keeper.finish_forgetting()
    finally:
        keeper.forget_vectors()
        keeper.load()


def _rewrite(keeper: Keeper, states: list[Row]) -> None:
    replace_records(keeper, [*keeper.all_rows(), *states, *keeper.state_rows(wipe_wanted=True)])


def _states(keeper: Keeper) -> list[Row]:
    return [("states", key, fields) for key, fields in keeper.store.items("states")]


def _remove_episodes(keeper: Keeper, removed: list[Episode]) -> None:
    for episode in removed:
        keeper.episodes.remove(episode)


def _take_title_out(keeper: Keeper, skill: Skill, content_id: str) -> None:
    """Take a title's part out of a skill's counts, and make its centroid anew from the titles that stay.

    What is left of a skill with fewer than 3 episodes is no skill: its episodes wait again.
    """
    member = skill.titles.pop(content_id)
    skill.successes -= member.successes
    skill.failures -= member.episodes - member.successes
    skill.reward_micro -= member.reward_micro
    vector = np.zeros(EMBEDDING_DIMENSIONS, np.float32)
    for other_id, other in skill.titles.items():
        found = keeper.vector_of(other_id, other.content_title)
        if found is not None:
            vector += np.frombuffer(found[0], np.int8) * np.float32(found[1] * other.episodes)
    if skill.sample_count >= MIN_EPISODES and np.any(vector):
        keeper.skills.keep_changed(skill, vector)
        return
    keeper.skills.remove(skill.skill_id)
    for episode in keeper.episodes:
        if episode.skill_id == skill.skill_id:
            episode.skill_id = 0
            keeper.episodes.note_change(episode)


def _without(value: object, content_id: str) -> object:
    """A plain value less what names a title: an item that is the id, or a list or dict that directly holds it."""
    if isinstance(value, dict):
        return {
            key: _without(item, content_id)
            for key, item in value.items()
            if key != content_id and not _names(item, content_id)
        }
    if isinstance(value, list):
        return [_without(item, content_id) for item in value if not _names(item, content_id)]
    return value


def _names(item: object, content_id: str) -> bool:
    if isinstance(item, dict):
        return content_id in item.values()
    if isinstance(item, list):
        return content_id in item
    return item == content_id
