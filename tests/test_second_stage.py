"""The second stage against a plain restatement: its inputs, its order, what it leaves alone, and its absence."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest

from omega_edge import ranking
from omega_edge.brain import OmegaBrain
from omega_edge.catalog import Catalog, write_bundle
from omega_edge.catalog_checks import stage_input_names
from omega_edge.config import BrainConfig
from omega_edge.ranker import Ranker
from omega_edge.ranking import FEATURES, History, Moment
from omega_edge.second_stage import StageTable
from tests.brains import EVENING, Clock, listed, watch
from tests.synthetic import PARAMETERS, second_stage_of, sections_of
from tests.test_ranking import random_history


def staged_catalog(titles: int = 160, change=lambda sections: None, **options) -> Catalog:
    (sections, meta), (stage, inputs) = sections_of(titles), second_stage_of(**options)
    change(stage)
    return Catalog.from_sections(sections | stage, meta | inputs)


def bitmap(mask: np.ndarray) -> np.ndarray:
    return np.packbits(mask, bitorder="little")


def everything(catalog: Catalog) -> np.ndarray:
    return bitmap(np.ones(catalog.count, bool))


def plain_inputs(catalog: Catalog, history: History, moment: Moment, rows: list[int]) -> dict[str, list[float]]:
    """Every input of every candidate by its name, from the definitions."""
    matrix = ranking.features(catalog, history, moment, PARAMETERS)
    raw = ranking.raw_scores(matrix, catalog.fusion, history.count, moment)
    lists = {name: [float(matrix[number, row]) for row in rows] for number, name in enumerate(FEATURES)}
    found = {f"value:{name}": values for name, values in lists.items()}
    for name, values in (lists | {"score": [float(raw[row]) for row in rows]}).items():
        found[f"rank:{name}"] = [math.log(1 + sum(other > value for other in values)) for value in values]
    newest = max(catalog.title(row).year or 0 for row in range(catalog.count))
    years = [catalog.title(row).year for row in rows]
    found["age_years"] = [-1.0 if year is None else float(min(max(newest - year, 0), 60)) for year in years]
    window = history.success[:64].tolist()
    found["log_history"] = [math.log(1 + history.count)] * len(rows)
    found["success_rate"] = [sum(window) / len(window) if window else 0.5] * len(rows)
    return found


def plain_scores(catalog: Catalog, inputs: dict[str, list[float]], count: int) -> list[float]:
    """The sum of the leaves of every candidate, by walking each tree."""
    trees = catalog.second_stage
    sums = []
    for candidate in range(count):
        total = 0.0
        for root in trees.roots.tolist():
            node = root
            while node >= 0:
                value = np.float32(inputs[trees.inputs[trees.feature[node]]][candidate])
                node = int(trees.children[node, 0 if value <= trees.threshold[node] else 1])
            total += float(trees.leaves[~node])
        sums.append(total)
    return sums


def plain_order(catalog: Catalog, history: History, moment: Moment, mask: np.ndarray, k: int) -> list[int]:
    """The list without diversity: fusion, then, where nothing is wished for, the best 100 of it by the trees, then the rest."""
    raw = ranking.raw_scores(ranking.features(catalog, history, moment, PARAMETERS), catalog.fusion, history.count, moment)
    fused = sorted(np.flatnonzero(mask).tolist(), key=lambda row: (-raw[row], row))
    if moment.mood_genre >= 0:
        return fused[:k]
    best = fused[:100]
    scores = plain_scores(catalog, plain_inputs(catalog, history, moment, best), len(best))
    order = sorted(range(len(best)), key=lambda place: (-scores[place], place))
    return ([best[place] for place in order] + fused[100:])[:k]


MOMENTS = (
    Moment(slot=4),
    Moment(slot=0, mood_genre=2, recent_rows=(3, 9)),
    Moment(slot=1, pattern_rows=np.array([5, 7], np.uint32), pattern_weights=np.array([0.5, 1], np.float32)),
)


@pytest.mark.parametrize("events", [0, 1, 4, 5, 30, 80])
@pytest.mark.parametrize("moment", MOMENTS)
def test_inputs_equal_their_definitions(events: int, moment: Moment) -> None:
    sections, meta = sections_of(40)
    sections["years"][:9] = [0, 0, 1895, 1900, 1950, 1958, 1959, 1960, 2019]
    catalog = Catalog.from_sections(sections, meta)
    history, rows = random_history(catalog, events, seed=events), [31, 0, 7, 2, 3, 8, 39, 5]
    names = stage_input_names(FEATURES)
    matrix = ranking.features(catalog, history, moment, PARAMETERS)
    raw = ranking.raw_scores(matrix, catalog.fusion, history.count, moment)
    found = StageTable(catalog).inputs(names, matrix[:, rows], raw[rows], np.array(rows, np.uint32), history)
    expected = plain_inputs(catalog, history, moment, rows)
    assert found.shape == (len(names), len(rows)) and found.dtype == np.float32
    for place, name in enumerate(names):
        np.testing.assert_allclose(found[place], expected[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("events", [0, 3, 12, 70])
@pytest.mark.parametrize("k", [1, 20, 100, 130])
def test_the_list_is_the_fusion_s_best_hundred_in_the_order_of_the_trees(events: int, k: int) -> None:
    catalog = staged_catalog()
    history = random_history(catalog, events, seed=events)
    mask = np.arange(catalog.count) % 7 != 3
    for moment in MOMENTS:
        ranked = Ranker(catalog).rank(history, moment, bitmap(mask), k, diversity=0.0)
        assert ranked.rows.tolist() == plain_order(catalog, history, moment, mask, k)
        matrix = ranking.features(catalog, history, moment, PARAMETERS)
        # Score and features are the fusion's.
        np.testing.assert_array_equal(ranked.raw, ranking.raw_scores(matrix, catalog.fusion, events, moment)[ranked.rows])
        read = [feature for feature in range(len(FEATURES)) if ranked.features[feature].any()]
        np.testing.assert_array_equal(ranked.features[read], matrix[read][:, ranked.rows])


def test_a_wish_is_granted_as_without_a_second_stage() -> None:
    """Trees that knew of none put other genres among the first ten."""
    catalog = staged_catalog()
    plain, ours = Ranker(Catalog.from_sections(*sections_of(160))), Ranker(catalog)
    history, mask = random_history(catalog, 12, seed=1), everything(catalog)
    for genre in range(len(catalog.genres)):
        wish = Moment(slot=2, mood_genre=genre)
        assert ours.rank(history, wish, mask, 10, 0.1).rows.tolist() == plain.rank(history, wish, mask, 10, 0.1).rows.tolist()
        assert ours.places(history, wish, mask, 0) is None
    assert ours.rank(history, Moment(slot=2), mask, 10, 0.1).rows.tolist() != plain.rank(
        history, Moment(slot=2), mask, 10, 0.1
    ).rows.tolist()


def test_trees_that_say_nothing_keep_the_order_of_the_fusion() -> None:
    catalog = staged_catalog(change=lambda stage: stage["second_stage_leaves"].fill(0))
    history, moment = random_history(catalog, 12, seed=1), Moment(slot=2)
    plain = Ranker(Catalog.from_sections(*sections_of(160)))
    ours = Ranker(catalog).rank(history, moment, everything(catalog), 30, 0.0)
    assert ours.rows.tolist() == plain.rank(history, moment, everything(catalog), 30, 0.0).rows.tolist()


def test_a_bucket_that_the_stage_does_not_serve_is_ranked_by_the_fusion() -> None:
    catalog = staged_catalog(change=lambda stage: stage["second_stage_buckets"].__setitem__(slice(None), [1, 0, 0, 1]))
    plain, moment = Ranker(Catalog.from_sections(*sections_of(160))), Moment(slot=2)
    served = []
    for events in (0, 2, 10, 40):
        history = random_history(catalog, events, seed=events)
        ours = Ranker(catalog).rank(history, moment, everything(catalog), 30, 0.2).rows.tolist()
        served.append(ours != plain.rank(history, moment, everything(catalog), 30, 0.2).rows.tolist())
    assert served == [True, False, False, True]


def test_trees_read_features_that_have_no_weight() -> None:
    (sections, meta), (stage, inputs) = sections_of(160), second_stage_of(("value:context",))
    stage["second_stage_threshold"] *= 0.05  # about as large as the lifts are
    sections["fusion_weights"][:, ranking.CONTEXT] = 0
    catalog = Catalog.from_sections(sections | stage, meta | inputs)
    history, mask = random_history(catalog, 30, seed=2), np.ones(160, bool)
    ranked = Ranker(catalog).rank(history, MOMENTS[0], bitmap(mask), 100, diversity=0.0)
    assert ranked.rows.tolist() == plain_order(catalog, history, MOMENTS[0], mask, 100)
    assert ranked.rows.tolist() != sorted_by_fusion(catalog, history, MOMENTS[0])


def test_diversity_spreads_by_the_scores_of_the_second_stage() -> None:
    """Greedy maximal marginal relevance, restated over the trees' scores scaled to 0 to 1."""
    catalog, moment, diversity = staged_catalog(), Moment(slot=2), 0.3
    history, mask = random_history(catalog, 25, seed=9), np.ones(160, bool)
    best = plain_order(catalog, history, moment, mask, 100)
    scores = plain_scores(catalog, plain_inputs(catalog, history, moment, sorted_by_fusion(catalog, history, moment)), 100)
    scores = np.sort(np.array(scores))[::-1]
    relevance = dict(zip(best, (scores - scores.min()) / (scores.max() - scores.min()), strict=True))
    vectors = catalog.codes.astype(float) * catalog.scale[:, None]
    picked: list[int] = []
    while len(picked) < 20:
        left = [row for row in best if row not in picked]
        near = {row: max((float(vectors[row] @ vectors[other]) for other in picked), default=0.0) for row in left}
        picked.append(max(left, key=lambda row: (1 - diversity) * relevance[row] - diversity * near[row]))
    assert Ranker(catalog).rank(history, moment, everything(catalog), 20, diversity).rows.tolist() == picked


def sorted_by_fusion(catalog: Catalog, history: History, moment: Moment) -> list[int]:
    raw = ranking.raw_scores(ranking.features(catalog, history, moment, PARAMETERS), catalog.fusion, history.count, moment)
    return sorted(range(catalog.count), key=lambda row: (-raw[row], row))[:100]


def test_past_the_hundred_relevance_goes_on_below_and_a_long_list_is_whole() -> None:
    catalog, moment = staged_catalog(), Moment(slot=2)
    history = random_history(catalog, 25, seed=9)
    rows = Ranker(catalog).rank(history, moment, everything(catalog), 150, 0.1).rows.tolist()
    assert len(set(rows)) == 150
    head = set(sorted_by_fusion(catalog, history, moment))
    assert len(head.intersection(rows[:60])) > 45


def test_one_title_or_none_allowed() -> None:
    catalog, moment = staged_catalog(), Moment(slot=2)
    for allowed in ([], [11], [11, 40]):
        mask = np.zeros(160, bool)
        mask[allowed] = True
        for diversity in (0.0, 0.5):
            found = Ranker(catalog).rank(History.empty(), moment, bitmap(mask), 5, diversity).rows.tolist()
            assert sorted(found) == allowed


# In a whole television -------------------------------------------------------------------------------------


def write(path, staged: bool = True, titles: int = 160) -> None:
    (sections, meta), (stage, inputs) = sections_of(titles), second_stage_of()
    write_bundle(path, *((sections | stage, meta | inputs) if staged else (sections, meta)))


def open_brain(folder, bundle) -> OmegaBrain:
    return OmegaBrain.open(BrainConfig(folder, bundle, background_maintenance=False), Clock())


def test_a_corrupted_stage_leaves_the_fusion_serving_and_is_named(tmp_path) -> None:
    write(tmp_path / "plain", staged=False)
    write(tmp_path / "staged")
    data = (tmp_path / "staged").read_bytes()
    for entry in range(64, 64 + 128 * struct.unpack_from("<I", data, 12)[0], 128):
        if data[entry : entry + 32].rstrip(b"\0") == b"second_stage_children":
            place = struct.unpack_from("<Q", data, entry + 80)[0] + 9
    (tmp_path / "damaged").write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
    lists, degraded = {}, {}
    for name in ("plain", "staged", "damaged"):
        with open_brain(tmp_path / f"store {name}", tmp_path / name) as brain:
            watch(brain, [3, 17, 5, 22, 40, 41])
            lists[name], degraded[name] = listed(brain, 20), brain.stats()["degraded"]
    assert lists["damaged"] == lists["plain"] != lists["staged"]
    named = [fault for fault in degraded["damaged"] if fault.startswith("second_stage: ")]
    assert len(named) == 1 and "second_stage_children damaged: its checksum does not match" in named[0]
    assert not any(fault.startswith("second_stage") for fault in degraded["plain"] + degraded["staged"])


def test_explain_tells_both_places_and_none_where_the_stage_had_no_say(tmp_path) -> None:
    write(tmp_path / "plain", staged=False)
    write(tmp_path / "staged")
    with open_brain(tmp_path / "a", tmp_path / "staged") as brain:
        watch(brain, [3, 17, 5, 22, 40, 41])
        allowed = {f"t{row:03d}": brain.explain(f"t{row:03d}", EVENING) for row in range(0, 160, 1)}
        scored = sorted(
            (told for told in allowed.values() if told.withheld is None), key=lambda told: -told.raw_score
        )
        for place, told in enumerate(scored[:100], start=1):
            assert told.place_by_score == place
        assert sorted(told.place_in_second_stage for told in scored[:100]) == list(range(1, 101))
        assert any(told.place_by_score != told.place_in_second_stage for told in scored[:100])
        others = [told for told in allowed.values() if told.withheld is not None] + scored[100:]
        assert others and all((told.place_by_score, told.place_in_second_stage) == (None, None) for told in others)
        first = listed(brain, 1)[0]
        assert allowed[first].place_in_second_stage == 1
        # Score and confidence stay the fusion's: they are those of the same bundle without the stage.
        with open_brain(tmp_path / "b", tmp_path / "plain") as other:
            watch(other, [3, 17, 5, 22, 40, 41])
            same = other.explain(first, EVENING)
            assert (same.raw_score, same.confidence, same.reason) == (
                allowed[first].raw_score, allowed[first].confidence, allowed[first].reason
            )  # fmt: skip
            assert (same.place_by_score, same.place_in_second_stage) == (None, None)
