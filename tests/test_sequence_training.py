"""The training of the sequence encoder: that it learns, repeats itself, goes on, and trains what a television runs."""

from __future__ import annotations

import numpy as np
import pytest

from cloud import sequence_training
from cloud.knowledge import knowledge_before, unfitted_catalog
from cloud.replay import Timeline
from cloud.sequence_sections import sequence_sections
from cloud.sequence_training import Encoder, train_encoder
from cloud.settings import ModelSettings
from cloud.signals import slots_of
from omega_edge.ranking import SEQUENCE, History, Moment, features
from tests.encoders import encode
from tests.test_model_job import random_events, titles_of

TITLES = 40
PAIRS = TITLES // 2
HOMES, PAIRS_OF_HOME = 150, 10


def pairs_of_titles(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Households, titles and successes in time order: whoever watches an even title watches the next one right after it.
    Which pair comes after a pair is chance."""
    rng = np.random.default_rng(seed)
    pairs = np.concatenate([rng.permutation(PAIRS)[:PAIRS_OF_HOME] for _ in range(HOMES)])
    title = np.stack((2 * pairs, 2 * pairs + 1), axis=1).ravel()
    return np.repeat(np.arange(HOMES), 2 * PAIRS_OF_HOME), title, np.ones(len(title), bool)


def trained(steps: int, before: Encoder | None = None, chosen=None, seed: int = 3, stream: int = 1) -> Encoder:
    """So many steps on the pairs."""
    household, title, success = pairs_of_titles(stream)
    chosen = np.arange(TITLES) if chosen is None else chosen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence_training, "FIRST_STEPS", steps)
        patch.setattr(sequence_training, "FURTHER_STEPS", steps)
        found = train_encoder(household, title, success, np.ones(len(title)), chosen, TITLES + 3, before, seed)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def learned() -> Encoder:
    """An encoder of the pairs."""
    return trained(120)


def unrounded(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters by title as sections would be if nothing had to be rounded."""
    codes = {"codes": "E", "success": "S", "distance": "R", "norms": "norms", "feed_in": "W1", "feed_in_bias": "b1"}
    codes |= {"feed_out": "W2", "feed_out_bias": "b2", "input_scale": "input_scale"}
    found = {f"sequence_{section}": parameters[name] for section, name in codes.items()}
    found["sequence_attention"] = np.stack([parameters[name] for name in ("Wq", "Wk", "Wv", "Wo")])
    widths = {"scale": (len(parameters["E"]),), "attention_scale": (4, 64), "feed_in_scale": 128, "feed_out_scale": 64}
    return found | {f"sequence_{name}": np.ones(width) for name, width in widths.items()}


def scores(encoder: Encoder, rows: list[int], success: list[bool]) -> np.ndarray:
    """float64[n] of titles after events, newest first, in float64 and without rounding."""
    parameters = encoder.by_title()
    embedding, bias = parameters["E"].astype(np.float64), parameters["B"].astype(np.float64)
    state = encode(unrounded(parameters), rows, success) if rows else parameters["start"].astype(np.float64)
    return embedding @ state + bias


def rule_hits(encoder: Encoder) -> float:
    """How often the second of a pair leads the unseen titles, on new homes that just watched the first."""
    _, title, _ = pairs_of_titles(99)
    hits = []
    for past in title.reshape(HOMES, 2 * PAIRS_OF_HOME)[:40]:
        seen = past[:7]
        found = scores(encoder, seen[::-1].tolist(), [True] * 7)[:TITLES]
        found[seen] = -np.inf
        hits.append(int(np.argmax(found)) == past[7])
    return float(np.mean(hits))


def test_the_rule_that_one_title_follows_another_is_learned(learned):
    assert rule_hits(learned) > 0.9
    assert rule_hits(trained(0)) < 0.3


def test_training_again_gives_the_same_bytes_and_another_seed_others():
    first, again, other = trained(4), trained(4), trained(4, seed=4)
    for name, array in first.parameters.items():
        assert array.tobytes() == again.parameters[name].tobytes(), name
    assert first.parameters["E"].tobytes() != other.parameters["E"].tobytes()


def test_going_on_begins_where_the_earlier_one_ended(learned):
    """Without a step nothing is forgotten, though the titles stand in other columns; with a few, the rule still holds."""
    chosen = np.array([*range(3, TITLES), TITLES + 2])
    same = trained(0, before=learned, chosen=chosen)
    before, after = learned.by_title(), same.by_title()
    for name in before.keys() - {"E", "B"}:
        assert (before[name] == after[name]).all(), name
    assert (before["E"][3:TITLES] == after["E"][3:TITLES]).all() and (before["B"][3:TITLES] == after["B"][3:TITLES]).all()
    assert not after["E"][:3].any() and after["E"][TITLES + 2].any() and not before["E"][TITLES + 2].any()
    assert rule_hits(trained(4, before=learned, stream=2)) > 0.9
    assert rule_hits(trained(4)) < 0.5


def test_too_few_targets_make_no_encoder():
    household, title, success = pairs_of_titles(1)

    def found(count: int, finished: np.ndarray) -> Encoder | None:
        some = household[:count], title[:count], finished[:count], np.ones(count)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sequence_training, "FIRST_STEPS", 0)
            return train_encoder(*some, np.arange(TITLES), TITLES)

    # Of the 20 events of a household all but the first are targets.
    homes = -(-sequence_training.LEAST_TARGETS // 19)
    assert found(20 * homes, success) is not None
    assert found(20 * (homes - 1), success) is None
    assert found(20 * homes, np.zeros(len(title), bool)) is None
    assert train_encoder(household, title, success, np.ones(len(title)), np.empty(0, np.int64), TITLES) is None


def test_a_title_outside_the_chosen_ones_has_no_embedding_and_a_low_bias(learned):
    parameters = learned.by_title()
    level = parameters["B"][:TITLES] + parameters["E"][:TITLES] @ parameters["start"]
    assert not parameters["E"][TITLES:].any()
    assert (parameters["B"][TITLES:] == np.percentile(level, 10).astype(np.float32)).all()


def test_beyond_the_most_that_are_trained_the_most_watched_are(monkeypatch):
    household, title, success = pairs_of_titles(1)
    monkeypatch.setattr(sequence_training, "MAX_TITLES", 30)
    monkeypatch.setattr(sequence_training, "FIRST_STEPS", 0)
    found = train_encoder(household, title, success, np.ones(len(title)), np.arange(TITLES), TITLES)
    counts = np.bincount(title, minlength=TITLES)
    trained_titles = found.columns >= 0
    assert trained_titles.sum() == 30 and counts[trained_titles].min() >= counts[~trained_titles].max()


def test_what_is_trained_is_what_is_defined(learned, monkeypatch):
    """The training's own forward pass, without dropout, at several places of sequences that begin before the window."""
    monkeypatch.setattr(sequence_training, "DROPOUT", 0.0)
    jax = sequence_training._jax()
    rng = np.random.default_rng(5)
    titles, success = rng.integers(0, TITLES, (2, 128)), rng.integers(0, 2, (2, 128))
    length, place = np.array([128, 50]), np.array([[0, 5, 63, 64, 127], [0, 1, 20, 48, 49]])
    inside = np.arange(128)[None] < length[:, None]
    places_of_titles = learned.columns[titles]
    found = sequence_training._asked(
        jax, learned.parameters, places_of_titles, success, inside, place, jax.random.PRNGKey(0)
    )
    parameters = unrounded(learned.by_title())
    for line in range(2):
        for at, newest in enumerate(place[line].tolist()):
            past = slice(newest, None, -1)
            expected = encode(parameters, titles[line, past], success[line, past])
            np.testing.assert_allclose(np.asarray(found)[line, at], expected, atol=1e-4)


def test_what_is_trained_is_what_a_television_serves(learned):
    """ranking.features with the bundle's sections against the unrounded parameters in float64."""
    titles, events, settings = titles_of(TITLES + 3), random_events(6, titles=TITLES), ModelSettings(tune=False)
    timeline = Timeline.of(events, slots_of(events.timestamp))
    sections = knowledge_before(titles, timeline, len(events), settings) | sequence_sections(learned.by_title())
    catalog = unfitted_catalog(titles, sections, settings)
    rng = np.random.default_rng(7)
    for length in (0, 1, 2, 7, 40, 70):
        rows, success = rng.integers(0, TITLES, length).tolist(), (rng.random(length) < 0.7).tolist()
        history = History.empty()
        for row, finished in zip(rows, success, strict=True):
            history = history.push(row, catalog.codes[row], catalog.scale[row], finished, 0)
        served = features(catalog, history, Moment(slot=0), settings.parameters)[SEQUENCE]
        expected = scores(learned, rows[::-1], success[::-1])
        # Of 8 bits, half a step of a column's largest weight, through six matrices and the title's own embedding.
        error = np.sqrt(np.mean((served - expected) ** 2)) / np.std(expected)
        assert error < 0.03, (length, error)


def test_a_failure_is_seen_but_never_a_target():
    household, title, success = pairs_of_titles(1)
    success[title % 2 == 1] = False
    stretches = sequence_training._Stretches.of(household, title, success, np.ones(len(title)))
    assert stretches.target_count and (stretches.targets[stretches.wanted] % 2 == 0).all()
    assert (stretches.titles % 2 == 1).any()


def test_stretches_hold_every_new_success_once_after_what_came_before_it():
    events = random_events(8, count=900, households=4, titles=30)
    household, title = events.household.astype(np.int64), events.title.astype(np.int64)
    success = events.watch_percentage >= 0.7
    stretches = sequence_training._Stretches.of(household, title, success, np.ones(len(title)))
    expected = []
    for home in range(4):
        mine = title[household == home].tolist()
        finished = success[household == home].tolist()
        for at in range(1, len(mine)):
            if finished[at] and mine[at] not in mine[:at]:
                expected.append((tuple(mine[max(at - 64, 0) : at]), mine[at], frozenset(mine[:at])))
    found = []
    for line in range(len(stretches.length)):
        for target in np.flatnonzero(stretches.wanted[line]).tolist():
            newest = int(stretches.offset[line]) + target
            shown = stretches.titles[line, : newest + 1].tolist()
            seen = set(shown) | (set(stretches.seen[line].tolist()) - {-1})
            found.append((tuple(shown[-64:]), int(stretches.targets[line, target]), frozenset(seen)))
    assert sorted(found, key=str) == sorted(expected, key=str)
