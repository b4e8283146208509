"""The novelty knob: against its definition, and through the brain."""

from __future__ import annotations

import numpy as np
import pytest

from omega_edge.config import BrainConfig
from omega_edge.errors import ConfigError
from omega_edge.ranker import Ranker
from omega_edge.ranking import History, Moment
from omega_edge.second_stage import CANDIDATES
from tests.brains import bundle, listed, opened, watch  # noqa: F401
from tests.synthetic import catalog_of


def ranked_by_hand(novelty: float) -> list[int]:
    """The whole order of the definition: scaled score of the candidates less novelty times popularity."""
    catalog = catalog_of(150)
    everything = np.full(19, 255, np.uint8)
    plain = Ranker(catalog).rank(History.empty(), Moment(slot=2), everything, CANDIDATES, 0.0)
    relevance = plain_relevance(plain.raw) - novelty * catalog.popularity[plain.rows]
    return plain.rows[np.argsort(-relevance, kind="stable")].tolist()


def plain_relevance(raw: np.ndarray) -> np.ndarray:
    return (raw - raw.min()) / (raw.max() - raw.min())


@pytest.fixture
def without_second_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of the fusion alone, which the order by hand is made of."""
    original = Ranker.__init__

    def unstaged(self: Ranker, catalog) -> None:
        original(self, catalog)
        self._stage = None

    monkeypatch.setattr(Ranker, "__init__", unstaged)


@pytest.mark.parametrize("novelty", [0.0, 0.2, 1.0])
@pytest.mark.usefixtures("without_second_stage")
def test_candidates_are_judged_by_score_less_popularity(novelty: float) -> None:
    catalog = catalog_of(150)
    ranker, everything = Ranker(catalog), np.full(19, 255, np.uint8)
    found = ranker.rank(History.empty(), Moment(slot=2), everything, 20, 0.0, novelty)
    assert found.rows.tolist() == ranked_by_hand(novelty)[:20]


def test_more_novelty_lists_less_popular_titles_of_the_same_hundred(opened) -> None:  # noqa: F811
    popularity = catalog_of(120).popularity
    means, hundred = [], None
    for number, novelty in enumerate((0.0, 0.3, 1.0)):
        brain = opened(f"home {number}", novelty=novelty, diversity=0.0)
        watch(brain, [1, 2, 5, 8])
        means.append(np.mean([popularity[int(content_id[1:])] for content_id in listed(brain, 10)]))
        assert hundred in (None, set(listed(brain, 100)))
        hundred = set(listed(brain, 100))
    assert means[0] > means[1] > means[2]


def test_the_knob_is_bounded() -> None:
    with pytest.raises(ConfigError, match="novelty: expected a number from 0 to 1"):
        BrainConfig(storage_path="a", catalog_path="b", novelty=1.1)
