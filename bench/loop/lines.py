"""From levels to figures: one JSON line a measure, with intervals by household and the gates of the closed loop.

Where homes of a level are told apart, `group` says so: "sharing" or "receiving"; without it a line is of all of them, and
`mode` is what the level is named by. Every interval comes from the same resampled households.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.loop.outcome import Outcome
from bench.loop.population import Population
from bench.metrics import judged
from bench.replay.measures import RESAMPLES, Estimate, mean_by_household, ndcg_at_10
from cloud.bootstrap import ratio_interval
from omega_edge.protocol import COUNT_EPSILON

SHARINGS = (0.0, 0.1, 0.3, 0.5, 1.0)
LIST_BYTES_P99_LIMIT = 150.0
FULL_LOG_SHARE_LIMIT = 0.98
IDLE_BYTES_LIMIT = 350.0
NOT_BELOW_AT, ABOVE_AT = 0.1, 0.3
FULL_LOG, COUNTS = "full-log", "counts"


def level_name(sharing: float) -> str:
    """The name of the level at a participation."""
    return f"sharing-{round(100 * sharing):03d}"


@dataclass(frozen=True, slots=True)
class Judge:
    """Makes the lines. levels: by name; seed: of the resampled households."""

    population: Population
    levels: Mapping[str, Outcome]
    seed: int

    def lines(self) -> list[dict]:
        """All of them."""
        made = []
        for sharing in SHARINGS:
            if level_name(sharing) in self.levels:
                made += self._level(sharing)
        if COUNTS in self.levels:
            made += self._counts()
        made += self._against_full_log()
        return made + self._bytes()

    @property
    def _household(self) -> np.ndarray:
        return self.population.dataset.events.household[self.population.queries].astype(np.int64)

    def _values(self, name: str) -> np.ndarray:
        return ndcg_at_10(self.levels[name].rank)

    def _line(self, metric: str, estimate: Estimate, queries: int, level: str, **where: object) -> dict:
        faults = self.levels[level].faults
        line = judged(metric, estimate.value, "", "; ".join(faults[:3]) or None)
        interval = {"low": round(estimate.low, 4), "high": round(estimate.high, 4), "queries": queries}
        return line | where | interval

    def _mean(self, metric: str, values: np.ndarray, chosen: np.ndarray, level: str, **where: object) -> dict:
        estimate = mean_by_household(values[chosen], self._household[chosen], self.seed)
        return self._line(metric, estimate, int(chosen.sum()), level, **where)

    def _level(self, sharing: float) -> list[dict]:
        name, frozen = level_name(sharing), self._values(level_name(0.0))
        values, every = self._values(name), np.ones(len(self._household), bool)
        mode = "titles" if sharing else "receive"
        facts = {key: value for key, value in self.levels[name].facts.items() if key != "seconds_by_part"}
        made = [self._mean("ndcg_at_10", values, every, name, sharing=sharing, mode=mode, **facts)]
        if not sharing:
            return made
        sharers = np.isin(self._household, self.population.homes[self.population.sharers(sharing)])
        for group, chosen, of in (("sharing", sharers, "titles"), ("receiving", ~sharers, "receive")):
            if chosen.any():
                made.append(self._mean("ndcg_at_10", values, chosen, name, sharing=sharing, mode=of, group=group))
                made.append(
                    self._mean(
                        "ndcg_at_10_minus_frozen_seed", values - frozen, chosen, name, sharing=sharing, mode=of, group=group
                    )
                )
        gain = self._mean("ndcg_at_10_minus_frozen_seed", values - frozen, every, name, sharing=sharing, mode=mode)
        if sharing == NOT_BELOW_AT:
            gain |= {"limit": 0.0, "met": gain["value"] >= 0.0, "at_least": True}
        elif sharing == ABOVE_AT:
            gain |= {"limit": 0.0, "met": gain["low"] > 0.0, "at_least": True}
        return [*made, gain]

    def _counts(self) -> list[dict]:
        values, frozen = self._values(COUNTS), self._values(level_name(0.0))
        every = np.ones(len(values), bool)
        where = {"sharing": 1.0, "mode": "counts", "epsilon_per_report": COUNT_EPSILON}
        facts = {key: value for key, value in self.levels[COUNTS].facts.items() if key != "seconds_by_part"}
        return [
            self._mean("ndcg_at_10", values, every, COUNTS, **where, **facts),
            self._mean("ndcg_at_10_minus_frozen_seed", values - frozen, every, COUNTS, **where),
        ]

    def _against_full_log(self) -> list[dict]:
        if FULL_LOG not in self.levels or level_name(1.0) not in self.levels:
            return []
        lists, full = self._values(level_name(1.0)), self._values(FULL_LOG)
        every = np.ones(len(full), bool)
        share = Estimate(*ratio_interval(lists, full, self._household, self.seed, RESAMPLES))
        gate = self._line("ndcg_at_10_share_of_full_log", share, len(full), level_name(1.0), sharing=1.0, mode="titles")
        gate |= {"limit": FULL_LOG_SHARE_LIMIT, "met": share.value >= FULL_LOG_SHARE_LIMIT, "at_least": True}
        difference = lists - full
        return [
            self._mean("ndcg_at_10_full_log", full, every, FULL_LOG, **self.levels[FULL_LOG].facts),
            gate,
            self._mean("ndcg_at_10_minus_full_log", difference, every, level_name(1.0), sharing=1.0, mode="titles"),
        ]

    def _bytes(self) -> list[dict]:
        made = []
        for name, mode, sharing in (
            (level_name(1.0), "titles", 1.0), (level_name(0.0), "receive", 0.0), (COUNTS, "counts", 1.0)
        ):  # fmt: skip
            if name not in self.levels or not len(self.levels[name].syncs.get("up", ())):
                continue
            syncs, faults = self.levels[name].syncs, self.levels[name].faults
            for direction in ("up", "down"):
                values, body = syncs[direction], syncs[f"body_{direction}"]
                line = judged("bytes_per_sync_p99", _percentile(values, 99), "B", "; ".join(faults[:3]) or None)
                where = {"direction": direction, "mode": mode, "sharing": sharing, "syncs": len(values)}
                p50 = {"p50": _percentile(values, 50), "max": int(values.max())}
                made.append(line | where | p50 | {"body_p99": _percentile(body, 99), "body_max": int(body.max())})
        if level_name(1.0) in self.levels:
            made += self._lists(self.levels[level_name(1.0)])
        if level_name(0.0) in self.levels:
            syncs = self.levels[level_name(0.0)].syncs
            if len(syncs.get("up", ())):
                both = syncs["up"] + syncs["down"]
                made.append(judged("idle_sync_bytes", float(both.max()), "B", None, IDLE_BYTES_LIMIT) | {"mode": "receive"})
        return made

    @staticmethod
    def _lists(level: Outcome) -> list[dict]:
        """Bodies of requests that carry titles: alone, and those that carry changed patterns too."""
        syncs, made = level.syncs, []
        telling = syncs["titles"] > 0
        for label, chosen in (("alone", telling & (syncs["patterns"] == 0)), ("with patterns", telling & (syncs["patterns"] > 0))):
            if chosen.any():
                bytes_up = syncs["body_up"][chosen]
                limit = LIST_BYTES_P99_LIMIT if label == "alone" else None
                line = judged("list_bytes_p99", _percentile(bytes_up, 99), "B", None, limit)
                titles = syncs["titles"][chosen]
                more = {"p50": _percentile(bytes_up, 50), "max": int(bytes_up.max()), "titles_max": int(titles.max())}
                made.append(line | {"lists": label, "syncs": int(chosen.sum())} | more)
        return made


def _percentile(values: np.ndarray, percent: float) -> float:
    """A value that was measured: the least that so many percent are not above."""
    return float(np.percentile(values, percent, method="inverted_cdf"))
