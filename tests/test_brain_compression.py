"""What a brain tells of its vectors' encodings, and that its lists do not depend on them."""

from __future__ import annotations

import numpy as np

from omega_edge import codebook_record
from omega_edge.brain import OmegaBrain
from omega_edge.catalog import write_bundle
from omega_edge.config import BrainConfig
from tests import codebooks
from tests.brains import EVENING, Clock, watch
from tests.synthetic import sections_of


class TestVectorCompression:
    def test_a_bundle_without_a_codebook_is_told(self, opened):
        stats = opened().stats()
        assert any("vector compression: this bundle brings no codebook" in line for line in stats["degraded"])
        assert stats["memory"]["vectors"]["codebook"] == {"bytes": 0, "kept": False}

    def test_no_list_depends_on_an_encoding(self, opened, tmp_path, monkeypatch):
        """Ranking reads the newest of each profile, which are never coarse."""
        monkeypatch.setattr(codebook_record, "PAYS_FROM_SKILLS", 0)
        sections, meta = sections_of(120)
        sections["codes"] = np.rint(codebooks.vectors(120, seed=31) * 500).clip(-127, 127).astype(np.int8)
        sections["code_scale"] = (1 / np.linalg.norm(sections["codes"].astype(np.float64), axis=1)).astype(np.float32)
        lists = []
        for name, codebook in (("plain", {}), ("tiered", codebooks.sections())):
            write_bundle(tmp_path / f"{name}.bundle", {**sections, **codebook}, meta)
            config = BrainConfig(tmp_path / name, tmp_path / f"{name}.bundle", background_maintenance=False)
            with OmegaBrain.open(config, Clock()) as brain:
                watch(brain, [(row * 7) % 60 for row in range(900)])
                lists.append([(shown.content_id, shown.score, shown.reason) for shown in brain.recommend(EVENING, 20)])
                stored = brain.stats()["memory"]["vectors"]["episodes"]["stored"]
        assert stored["pq48"]["vectors"] > 0 and lists[0] == lists[1]
