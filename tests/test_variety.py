"""The novelty knob: against its definition, and through the brain."""

from __future__ import annotations

import numpy as np
import pytest

from omega_edge.catalog import Catalog
from omega_edge.config import BrainConfig
from omega_edge.errors import ConfigError
from omega_edge.ranker import Ranker
from omega_edge.ranking import History, Moment
from omega_edge.second_stage import CANDIDATES
from tests.brains import bundle, listed, opened, watch  # noqa: F401
from tests.synthetic import catalog_of, sections_of


def without_second_stage() -> Catalog:
    """A catalogue whose lists are the fusion's alone, so that the order can be made by hand."""
    sections, meta = sections_of(150)
    return Catalog.from_sections({name: made for name, made in sections.items() if "second_stage" not in name}, meta)


@pytest.mark.parametrize("novelty", [0.0, 0.2, 1.0])
def test_candidates_are_judged_by_score_less_popularity(novelty: float) -> None:
    catalog = without_second_stage()
    ranker, everything = Ranker(catalog), np.full(19, 255, np.uint8)
    plain = ranker.rank(History.empty(), Moment(slot=2), everything, CANDIDATES, 0.0)
    relevance = (plain.raw - plain.raw.min()) / (plain.raw.max() - plain.raw.min())
    by_hand = plain.rows[np.argsort(-(relevance - novelty * catalog.popularity[plain.rows]), kind="stable")]
    found = ranker.rank(History.empty(), Moment(slot=2), everything, 20, 0.0, novelty)
    assert found.rows.tolist() == by_hand[:20].tolist()


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
