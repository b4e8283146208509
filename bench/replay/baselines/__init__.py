"""What the replay measures beside the recommender: methods that others trust, each with a small grid to be tuned on."""

from __future__ import annotations

import numpy as np

from bench.replay.method import ScoredMethod


def families(vectors: np.ndarray) -> dict[str, list[ScoredMethod]]:
    """Every baseline by its name, with its grid of unfitted candidates.

    vectors: float32[n, d], the text model's for each title. Candidates of one family share what they learn, so a family
    is cheapest in one process and in the order given. Needs the extra `model`.
    """
    from bench.replay.baselines import content, ease, factors, item_knn, popularity, sasrec, slist

    return {
        "popularity": popularity.candidates(),
        "popularity-window": popularity.window_candidates(),
        "content-knn": content.candidates(vectors),
        "item-knn": item_knn.candidates(),
        "ease-plain": ease.candidates(decay=False),
        "ease": ease.candidates(),
        "slist": slist.candidates(),
        "ials": factors.candidates(),
        "bpr": factors.bpr_candidates(),
        "sasrec": sasrec.candidates(),
    }
