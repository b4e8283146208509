"""Matrix factorisation by the library `implicit`: weighted alternating least squares and pairwise ranking.

iALS: Hu, Koren and Volinsky, "Collaborative Filtering for Implicit Feedback Datasets" (ICDM 2008). BPR: Rendle et al.,
"BPR: Bayesian Personalized Ranking from Implicit Feedback" (UAI 2009). A household of the replay has a history newer
than the model, so its vector is made anew for each query from the titles' vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from scipy import sparse
from threadpoolctl import threadpool_limits

from bench.replay.baselines.evidence import LastSolution, check_positive, check_weighting, weights_of_past
from bench.replay.method import Past, TrendEvents
from omega_edge.datasets import Events

FACTORS = 64
SEED = 20_260_101
IALS_GRID = ((1.0, 3.0), (1.0, 10.0), (4.0, 10.0), (4.0, 30.0))
"""(what an event adds to the confidence of 1 of no event, regularisation)."""
IALS_ITERATIONS = 12
BPR_GRID = ((0.02, 0.01), (0.05, 0.01), (0.05, 0.002))
"""(learning rate, regularisation)."""
BPR_ITERATIONS = 60
FOLD_IN_SCALES = (0.3, 1.0, 3.0)
LIFETIMES_EVENTS = (math.inf, 10.0, 5.0, 3.0)


def watched(events: Events, title_count: int, value: float) -> sparse.csr_matrix:
    """csr float32[households, n]: value where the household watched the title, once or more often."""
    shape = int(events.household.max(initial=-1)) + 1, title_count
    matrix = sparse.csr_matrix((np.ones(len(events), np.float32), (events.household, events.title)), shape=shape)
    matrix.data[:] = value
    return matrix


def learn_ials(
    events: Events, title_count: int, cut_ms: int, confidence: float, regularisation: float
) -> AlternatingLeastSquares:
    """The library's model, with one thread and a fixed seed."""
    check_positive(confidence=confidence, regularisation=regularisation)
    with threadpool_limits(limits=1, user_api="blas"):
        model = AlternatingLeastSquares(
            factors=FACTORS, regularization=regularisation, iterations=IALS_ITERATIONS, num_threads=1, random_state=SEED
        )
        model.fit(watched(events, title_count, 1.0 + confidence), show_progress=False)
    return model


@dataclass(slots=True)
class Ials:
    """score = household vector . title vector; the household's is solved for by the library from its weighted past.

    An event has the confidence 1 + confidence * weight (see weights_of_past).
    """

    confidence: float
    regularisation: float
    lifetime_events: float
    failure_weight: float = 1.0
    shared: LastSolution[AlternatingLeastSquares] = field(default_factory=LastSolution)
    name: str = field(init=False)
    _model: AlternatingLeastSquares | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        check_weighting(self.lifetime_events, self.failure_weight)
        check_positive(confidence=self.confidence, regularisation=self.regularisation)
        self.name = f"{self._label()} lifetime={self.lifetime_events:g} failure={self.failure_weight:g}"

    def _label(self) -> str:
        return f"ials confidence={self.confidence:g} regularisation={self.regularisation:g}"

    def fit(self, events: Events, title_count: int, cut_ms: int) -> None:
        """Factorise."""
        solve = partial(learn_ials, confidence=self.confidence, regularisation=self.regularisation)
        self._model = self.shared.of(solve, self._label(), events, title_count, cut_ms)

    def scores(self, past: Past, trend_events: TrendEvents) -> np.ndarray:
        """float32[n]."""
        assert self._model is not None, "fit comes first"
        titles, weights = weights_of_past(past, self.lifetime_events, self.failure_weight)
        values = (1.0 + self.confidence * weights).astype(np.float32)
        row = sparse.csr_matrix((values, titles, [0, len(titles)]), shape=(1, len(self._model.item_factors)))
        return self._model.item_factors @ self._model.recalculate_user(0, row)


def learn_bpr(
    events: Events, title_count: int, cut_ms: int, learning_rate: float, regularisation: float
) -> BayesianPersonalizedRanking:
    """The library's model, with one thread and a fixed seed."""
    check_positive(learning_rate=learning_rate, regularisation=regularisation)
    model = BayesianPersonalizedRanking(
        factors=FACTORS, learning_rate=learning_rate, regularization=regularisation, iterations=BPR_ITERATIONS,
        num_threads=1, random_state=SEED,
    )  # fmt: skip
    with threadpool_limits(limits=1, user_api="blas"):
        model.fit(watched(events, title_count, 1.0), show_progress=False)
    return model


@dataclass(slots=True)
class Bpr:
    """score = scale * (weighted mean of the past's title vectors) . title vector + the title's bias.

    The library knows no household that came after its training, so the mean stands for what training would give.
    """

    learning_rate: float
    regularisation: float
    scale: float
    lifetime_events: float
    shared: LastSolution[BayesianPersonalizedRanking] = field(default_factory=LastSolution)
    name: str = field(init=False)
    _vectors: np.ndarray | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        check_weighting(self.lifetime_events, 1.0)
        check_positive(learning_rate=self.learning_rate, regularisation=self.regularisation, scale=self.scale)
        self.name = f"{self._label()} scale={self.scale:g} lifetime={self.lifetime_events:g}"

    def _label(self) -> str:
        return f"bpr learning_rate={self.learning_rate:g} regularisation={self.regularisation:g}"

    def fit(self, events: Events, title_count: int, cut_ms: int) -> None:
        """Factorise."""
        solve = partial(learn_bpr, learning_rate=self.learning_rate, regularisation=self.regularisation)
        self._vectors = self.shared.of(solve, self._label(), events, title_count, cut_ms).item_factors

    def scores(self, past: Past, trend_events: TrendEvents) -> np.ndarray:
        """float32[n]."""
        assert self._vectors is not None, "fit comes first"
        titles, weights = weights_of_past(past, self.lifetime_events, 1.0)
        share = weights / max(weights.sum(), 1e-12)
        # The library keeps the bias as the last column.
        mean = self.scale * (share.astype(np.float32) @ self._vectors[titles, :-1])
        return self._vectors[:, :-1] @ mean + self._vectors[:, -1]


def candidates() -> list[Ials]:
    """The grid of iALS."""
    shared: LastSolution[AlternatingLeastSquares] = LastSolution()
    return [
        Ials(confidence, regularisation, lifetime, 1.0, shared)
        for confidence, regularisation in IALS_GRID
        for lifetime in LIFETIMES_EVENTS
    ]


def bpr_candidates() -> list[Bpr]:
    """The grid of BPR."""
    shared: LastSolution[BayesianPersonalizedRanking] = LastSolution()
    return [
        Bpr(rate, regularisation, scale, lifetime, shared)
        for rate, regularisation in BPR_GRID
        for scale in FOLD_IN_SCALES
        for lifetime in LIFETIMES_EVENTS
    ]
