"""The next bundle of a lineage: from the present one, the operator's seed data, and what televisions shared.

Everything is trained on one stream (learning_stream.py): the seed stays in every run, because a handful of sharing homes
alone trains worse rows than an old data set does. Popularity and trends come from the newest days alone, each as the
logarithm's share of its strongest title, so that they mean the same whether one home in ten shares or all. Fusion weights
are pulled to the seed's (shrinkage.py); the calibration stays the seed's, since lists hold no failures.

Published is only what helps homes that did not teach it: the newest part of what sharers finished since the present bundle
is held out by time, a candidate is trained on all before it, and both bundles rank for the televisions of the sharers, each
with the live trends of its days. The lower household bound of the gain in NDCG@10 must lie above 0. The bundle that ships is
then trained on everything.

Two ways: `quick` learns rows, factors, popularity, trends and weights anew and carries over the present bundle's settings,
sequence encoder and second stage: half a minute for 9,000 titles and 70,000 viewings. Else the whole model job (model.py)
runs, twice. Nothing reads a clock or draws at random: same input, same bundle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cloud.counts import Counts
from cloud.fusion_fit import PATTERN_WEIGHTS, FitSet
from cloud.global_patterns import PATTERN_SECTIONS, CohortPatterns, cohort_patterns
from cloud.judging import Gate
from cloud.knowledge import TitleData, knowledge_before, row_sections
from cloud.learning_stream import PairSupport, Stream, backed_titles, chosen, stream_of, usable, without_entries
from cloud.list_gains import HeldOut, held_out, list_gains
from cloud.lists import Lists
from cloud.model import EarlierWork, train
from cloud.settings import ModelSettings
from cloud.shrinkage import HALF_AT, shrunk, shrunk_weights
from cloud.signals import DAY_MS, HOUR_MS, log_share
from cloud.trending import LEAST_MIN_DEVICES, reported_homes, rows_of
from cloud.velocity import alarms
from omega_edge import bundle
from omega_edge.catalog import Catalog, RowSet, write_bundle
from omega_edge.catalog_checks import SHAPES, TOLERATED_GROUPS
from omega_edge.datasets import Events
from omega_edge.errors import CatalogError, ConfigError
from omega_edge.ranking import CONTEXT, FEATURES, PATTERNS, SEQUENCE, bucket_of

TITLE_SECTIONS = (
    *("content_id_offsets", "content_id_bytes", "content_id_order", "name_offsets", "name_bytes", "genre_masks", "years"),
    *("age_ratings", "available_from", "available_until", "codes", "code_scale"),
)
"""What a bundle says of its titles whatever was watched."""
CARRIED = ("licence", *(name for name in SHAPES if name.startswith("quantiser_")))
CARRIED_META = ("name", "lineage", "genres", "embedding_model", "demonstration_values")
HALF_LIVES = (1.0, 4.0)
"""Times the seed's, tried in a quick run; which one ranks better with the seed's weights is taken. The fewer homes share, the
longer a viewing says something: on MovieTweetings, months after the seed, four times 15 days gained +.0097 [+.0044, +.0151]
NDCG@10 over the seed's rows with 10 % sharing, 15 days +.0041 [-.0016, +.0101]; both had the same live trends."""
PARTS = 4
"""Of the homes that judge: the weights that a part is judged with come from the others."""
LEAST_HELD_OUT = 50
"""Viewings to judge by; with fewer nothing is published."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class NextSettings:
    """What the job can be told.

    min_devices: distinct homes behind whatever sharers add: a title, an entry of a row, a title of a trend, of a pattern; 2 or more.
    allowed_titles, withheld_titles: content ids that no alarm, or every alarm, is for.
    quick: see the module. held_out_share: of what sharers finished since the present bundle, the newest part that judges.
    least_gain: that the lower bound of the gain in NDCG@10 must exceed. half_at: see shrinkage.py. popularity_days: that
    popularity counts. queries: at most so many viewings judge. cohorts: of global patterns. tune, sequence, second_stage: of
    the model job where it is not quick, see ModelSettings.
    """

    min_devices: int = 50
    quick: bool = False
    held_out_share: float = 0.3
    least_gain: float = 0.0
    half_at: float = HALF_AT
    popularity_days: int = 28
    queries: int = 1_500
    queries_per_household: int = 20
    cohorts: int = 8
    tune: bool = True
    sequence: bool = True
    second_stage: bool = True
    allowed_titles: tuple[str, ...] = ()
    withheld_titles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("min_devices", "popularity_days", "queries", "queries_per_household", "cohorts"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name}: expected an integer, 1 or more, got {value!r}")
        if self.min_devices < LEAST_MIN_DEVICES:
            raise ConfigError(f"min_devices: expected {LEAST_MIN_DEVICES} or more, got {self.min_devices}")
        if not 0.0 < self.held_out_share < 1.0:
            raise ConfigError(f"held_out_share: expected a number between 0 and 1, got {self.held_out_share!r}")
        if not self.half_at > 0.0:
            raise ConfigError(f"half_at: expected a number above 0, got {self.half_at!r}")


@dataclass(frozen=True, slots=True)
class NextBundle:
    """What the job made. publish: whether the gate lets it out; gate: of the candidate over the present bundle; pattern_gate: of
    the cohorts' patterns over none, in young homes: without it they have no weight; sections and meta: of the bundle, as write_bundle takes them, empty where it is not to be published; patterns: of the cohorts."""

    publish: bool
    gate: Gate
    pattern_gate: Gate
    sections: dict[str, np.ndarray] = field(default_factory=dict)
    meta: dict = field(default_factory=dict)
    patterns: CohortPatterns = field(default_factory=CohortPatterns.none)

    def write(self, path: Path) -> None:
        """Write the bundle's file. Raises CatalogError where there is none to write, OSError if the disk refuses."""
        if not self.publish:
            raise CatalogError(f"{path}: not written: the candidate is not better than the present bundle")
        write_bundle(path, self.sections, self.meta)


def next_bundle(
    present: Path,
    seed: Events | None,
    lists: Lists,
    counts: Counts | None,
    settings: NextSettings,
    now_ms: int,
    titles: Path | None = None,
    progress: Progress = lambda what: None,
) -> NextBundle:
    """Train the bundle that follows the present one, from all that was finished before the last midnight (UTC).

    seed: titles are rows of the present bundle. titles: a bundle whose titles begin with those of the present one; further
    ones are appended. Raises CatalogError for a bundle that is not sound or not of one lineage, ConfigError for lists of
    another one.
    """
    opened = Present.open(present)
    lists = usable(lists, now_ms // DAY_MS, settings.popularity_days, _held_back(opened, counts, settings, now_ms))
    stream = stream_of(seed, lists, opened.titles.count, settings.min_devices, opened.titles.lineage)
    return _Run(opened, stream, counts, settings, now_ms, progress).run(titles)


def next_bundle_of(
    present: Path, stream: Stream, counts: Counts | None, settings: NextSettings, now_ms: int,
    progress: Progress = lambda what: None,
) -> NextBundle:  # fmt: skip
    """The same from a stream that is there already, as of a log that holds more than lists can."""
    return _Run(Present.open(present), stream, counts, settings, now_ms, progress).run(None)


@dataclass(frozen=True, slots=True)
class Present:
    """The bundle that is out. seed_weights: what the weights are pulled to, by the prefix of their sections ("", or "sequence_"
    where it has an encoder)."""

    catalog: Catalog
    sections: dict[str, np.ndarray]
    titles: TitleData
    seed_weights: dict[str, np.ndarray]

    @staticmethod
    def open(path: Path) -> Present:
        """From a bundle's file. Raises CatalogError."""
        catalog = Catalog.open(path)
        sections, _damaged = bundle.read(path, frozenset(SHAPES))
        if catalog.fusion.features != FEATURES:
            raise CatalogError(f"{path}: expected weights for {', '.join(FEATURES)}; build the bundle again")
        titles = _titles_of(sections, catalog.meta)
        learned = catalog.meta.get("learned", {})
        weights = {
            prefix: np.array(learned.get("seed_weights", {}).get(prefix, sections[f"{prefix}fusion_weights"]), np.float32)
            for prefix in ("", "sequence_")
            if f"{prefix}fusion_weights" in sections
        }
        return Present(catalog, sections, titles, weights)

    def model_settings(self) -> ModelSettings:
        """The settings that it was trained with, as far as it says; trend windows in whole days, as counts are."""
        told = self.catalog.meta.get("held_out", {}).get("settings", {})
        short, long = (max(round(one.window_hours / 24), 1) * 24 for one in self.catalog.trends)
        base = ModelSettings()
        return replace(
            base,
            half_life_days=float(told.get("half_life_days", base.half_life_days)),
            ridge=float(told.get("ridge", base.ridge)),
            trend_window_hours=(short, max(long, short + 24)),
            parameters=dict(self.catalog.fusion.parameters),
        )


def _titles_of(sections: dict[str, np.ndarray], meta: dict) -> TitleData:
    return TitleData({name: sections[name] for name in TITLE_SECTIONS}, tuple(meta["genres"]), meta["lineage"])


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A bundle trained before the held-out viewings, and these as it sees them."""

    settings: ModelSettings
    sections: dict[str, np.ndarray]
    meta: dict
    catalog: Catalog
    held: HeldOut


class _Run:
    """One run of the job."""

    def __init__(
        self, present: Present, stream: Stream, counts: Counts | None, settings: NextSettings, now_ms: int, progress: Progress
    ) -> None:
        self._present, self._settings, self._progress = present, settings, progress
        self._midnight = now_ms // DAY_MS * DAY_MS
        self._stream = stream.until(self._midnight)
        self._counts, self._held_back = counts, _held_back(present, counts, settings, now_ms)
        self._earlier = EarlierWork()
        self._model = replace(
            present.model_settings(), popularity_days=settings.popularity_days, tune=settings.tune and not settings.quick,
            sequence=settings.sequence, second_stage=settings.second_stage,
        )

    def run(self, titles: Path | None) -> NextBundle:
        """All of it, as the module's first lines say."""
        start = self._first_held_out()
        self._progress(f"{len(self._stream.events)} viewings, of which {int(self._stream.shared.sum())} were shared")
        gate, pattern_gate, weights = self._judged(start)
        if not (gate.ships and gate.low > self._settings.least_gain):
            return NextBundle(False, gate, pattern_gate)
        self._progress("training on everything")
        described = self._present.titles if titles is None else self._further_titles(titles)
        sections, meta = self._learned(self._stream, described, weights, self._model)
        sections |= self._current(described.count)
        self._guard_rows(sections, described.count)
        patterns = cohort_patterns(
            self._stream, sections, self._settings.cohorts, self._settings.min_devices, self._midnight
        )
        sections |= patterns.sections() | _with_pattern_weights(sections, pattern_gate.ships)
        meta |= self._meta(gate) | patterns.meta()
        meta["global_patterns"]["gate"] = pattern_gate.report()
        return NextBundle(True, gate, pattern_gate, sections, meta, patterns)

    # The gate ------------------------------------------------------------------------------------

    def _first_held_out(self) -> int:
        """Index of the first event that judges."""
        events = self._stream.events
        new = np.flatnonzero(self._stream.shared & (events.timestamp >= self._present.catalog.built_at))
        if not len(new):
            return len(events)
        first = new[min(int(len(new) * (1.0 - self._settings.held_out_share)), len(new) - 1)]
        return int(np.searchsorted(events.timestamp, events.timestamp[first]))

    def _judged(self, start: int) -> tuple[Gate, Gate, dict[str, np.ndarray]]:
        """Whether a candidate trained before the held-out events beats the present bundle on them, and patterns of its cohorts
        no patterns; and, of a quick run, the weights of the fusion to ship, by prefix."""
        few = Gate.closed(f"fewer than {LEAST_HELD_OUT} new viewings of sharers to judge by")
        if np.count_nonzero(self._stream.shared[start:]) < LEAST_HELD_OUT:
            return few, few, {}
        before = self._stream.until(int(self._stream.events.timestamp[start]))
        tried = [self._candidate(before, start, factor) for factor in (HALF_LIVES if self._settings.quick else (1.0,))]
        held = tried[0].held
        if len(held.asked) < LEAST_HELD_OUT:
            return few, few, {}
        self._progress(f"judging on {len(held.asked)} viewings")
        theirs = list_gains(self._present.catalog, held.asked)
        plain = [list_gains(one.catalog, held.asked) for one in tried]
        best = max(range(len(tried)), key=lambda place: float(plain[place].mean()))
        self._model = tried[best].settings
        if self._settings.quick:
            ours = self._cross_fitted(tried[best])
            fitting = tried[best].held.fitting
            weights = {prefix: self._fitted(fitting, prefix) for prefix in self._present.seed_weights}
        else:
            ours, weights = plain[best], {}
        gate = Gate.of(ours, theirs, held.households)
        self._progress(f"gain in NDCG@10: {gate.gain:+.4f} [{gate.low:+.4f}, {gate.high:+.4f}]")
        return gate, self._pattern_gate(tried[best], before), weights

    def _pattern_gate(self, candidate: _Candidate, before: Stream) -> Gate:
        """Whether young homes gain by patterns of the cohort that they are nearest to."""
        at_ms, settings = int(before.events.timestamp[-1]) + 1, self._settings
        patterns = cohort_patterns(before, candidate.sections, settings.cohorts, settings.min_devices, at_ms)
        young = tuple(one for one in candidate.held.asked if PATTERN_WEIGHTS[bucket_of(one.history.count)] > 0.0)
        if not len(patterns) or not young:
            return Gate.closed("no patterns, or no young home to judge them by")
        sections = candidate.sections | patterns.sections()
        with_, without = (
            list_gains(self._catalog(sections | _with_pattern_weights(sections, heard), candidate.meta), young)
            for heard in (True, False)
        )
        return Gate.of(with_, without, np.array([one.household for one in young], np.int64))

    def _candidate(self, before: Stream, start: int, factor: float) -> _Candidate:
        """A candidate with the seed's weights, its half-life so many times the seed's, and the viewings that judge it."""
        settings = replace(self._model, half_life_days=factor * self._model.half_life_days)
        sections, meta = self._learned(before, self._present.titles, dict(self._present.seed_weights), settings)
        catalog = self._catalog(sections, meta)
        most, of_a_household = self._settings.queries, self._settings.queries_per_household
        held = held_out(self._stream, start, catalog, settings, most, of_a_household)
        return _Candidate(settings, sections, meta, catalog, held)

    def _cross_fitted(self, candidate: _Candidate) -> np.ndarray:
        """NDCG@10 float64[q] of a candidate, each part of the homes with weights that the other parts taught."""
        held = candidate.held
        part = np.unique(held.households, return_inverse=True)[1] % PARTS
        gains = np.zeros(len(part))
        for judged in range(PARTS):
            taught = _some_lists(held.fitting, part != judged)
            weights = {f"{prefix}fusion_weights": self._fitted(taught, prefix) for prefix in self._present.seed_weights}
            mine = np.flatnonzero(part == judged)
            catalog = self._catalog(candidate.sections | weights, candidate.meta)
            gains[mine] = list_gains(catalog, tuple(held.asked[place] for place in mine.tolist()))
        return gains

    def _fitted(self, queries: FitSet, prefix: str) -> np.ndarray:
        left_out = frozenset((CONTEXT,) if prefix else (CONTEXT, SEQUENCE))
        return shrunk_weights(queries, self._present.seed_weights[prefix], left_out, self._settings.half_at)

    def _catalog(self, sections: dict[str, np.ndarray], meta: dict) -> Catalog:
        return Catalog.from_sections(sections, self._meta(Gate.closed("")) | meta)

    # What is learned -----------------------------------------------------------------------------

    def _learned(
        self, stream: Stream, titles: TitleData, weights: dict[str, np.ndarray], settings: ModelSettings
    ) -> tuple[dict[str, np.ndarray], dict]:
        """Sections and meta that a stream teaches. weights: of the fusion, by prefix, in a quick run."""
        carried = {name: self._present.sections[name] for name in CARRIED if name in self._present.sections}
        if self._settings.quick:
            found = knowledge_before(titles, stream.timeline(), len(stream.events), settings)
            found |= self._carried_stages(titles.count)
            found |= {f"{prefix}fusion_weights": array for prefix, array in weights.items()}
            meta = {name: self._present.catalog.meta[name] for name in _STAGE_META if name in self._present.catalog.meta}
            meta |= {
                "trend_window_hours": list(settings.trend_window_hours),
                "fusion_features": list(FEATURES),
                "fusion_parameters": settings.parameters,
                "held_out": self._present.catalog.meta.get("held_out", {}),
            }
            return titles.sections | carried | found, meta
        model = train(titles, stream.events, settings, self._progress, self._earlier)
        found = dict(model.sections)
        buckets = self._shared_lists(stream)
        for prefix in ("", "sequence_"):
            if f"{prefix}fusion_weights" in found:
                towards = self._present.seed_weights.get(prefix, self._present.seed_weights[""])
                if prefix in self._present.seed_weights:
                    found[f"{prefix}fusion_weights"] = shrunk(
                        found[f"{prefix}fusion_weights"], towards, buckets, self._settings.half_at
                    )
                found[f"{prefix}fusion_calibration"] = self._calibration(prefix)
        return titles.sections | carried | found, dict(model.meta)

    def _shared_lists(self, stream: Stream) -> np.ndarray:
        """int64[q]: history buckets of the sharers' first finishes, of which each home counts as many as the fit takes."""
        timeline = stream.timeline()
        wanted = timeline.queries(0, len(stream.events), None, self._settings.queries_per_household)
        wanted = wanted[stream.shared[wanted]]
        return np.searchsorted([1, 5, 20], timeline.before[wanted], side="right")

    def _calibration(self, prefix: str) -> np.ndarray:
        """The present bundle's, with or without an encoder: lists of finished titles know of no failure."""
        sections = self._present.sections
        return sections.get(f"{prefix}fusion_calibration", sections["fusion_calibration"])

    def _carried_stages(self, title_count: int) -> dict[str, np.ndarray]:
        """The present bundle's encoder, second stage, calibration and list for new homes; further titles have no embedding."""
        groups = frozenset().union(*TOLERATED_GROUPS.values()) | {"fusion_calibration", "onboarding"}
        found = {name: array for name, array in self._present.sections.items() if name in groups}
        for name in ("sequence_codes", "sequence_scale", "sequence_bias"):
            if name in found and len(found[name]) < title_count:
                room = np.zeros((title_count - len(found[name]), *found[name].shape[1:]), found[name].dtype)
                found[name] = np.concatenate((found[name], room))
        return found

    def _further_titles(self, path: Path) -> TitleData:
        sections, _damaged = bundle.read(path, frozenset(SHAPES))
        with Catalog.open(path) as other:
            titles = _titles_of(sections, other.meta | {"lineage": self._present.titles.lineage})
            same = other.numbers_alike(self._present.catalog) and titles.genres == self._present.titles.genres
        if not same:
            raise CatalogError(f"{path}: expected the titles of the present bundle in its order, then further ones")
        return titles

    # What sharers add, guarded by the threshold ---------------------------------------------------

    def _current(self, title_count: int) -> dict[str, np.ndarray]:
        """popularity and trend_scores up to the last midnight, of titles that enough homes stand for."""
        popularity = self._devices(24 * self._settings.popularity_days, title_count)
        trends = np.stack([self._devices(hours, title_count) for hours in self._model.trend_window_hours])
        trends[:, sorted(rows_of(self._present.catalog, self._settings.withheld_titles))] = 0.0
        return {"popularity": log_share(popularity), "trend_scores": np.stack([log_share(one) for one in trends])}

    def _devices(self, hours: int, title_count: int) -> np.ndarray:
        """float64[n]: how often titles were finished in so many hours: by homes of the seed; by sharers, where both together are
        enough distinct homes; and by homes that only count, where enough of them are certain and no alarm is."""
        events, least = self._stream.events, self._settings.min_devices
        finished = self._stream.timeline().success & (events.timestamp >= self._midnight - hours * HOUR_MS)
        by_seed, by_sharers = finished & ~self._stream.shared, finished & self._stream.shared
        backed = backed_titles(chosen(events, by_seed), events.title[by_sharers], title_count, least)
        found = np.bincount(events.title[by_seed], minlength=title_count).astype(np.float64)
        found[backed] += np.bincount(events.title[by_sharers], minlength=title_count)[backed]
        if self._counts is not None:
            told, certain = reported_homes(self._counts, self._midnight // DAY_MS, hours // 24)
            certain[self._held_back[self._held_back < len(certain)]] = 0.0
            found[: len(certain)] += np.where(certain >= least, told.above_noise, 0.0)[:title_count]
        return found

    def _guard_rows(self, sections: dict[str, np.ndarray], title_count: int) -> None:
        """Take out entries of rows that too few homes stand for."""
        support = PairSupport(self._stream, title_count)
        for prefix in ("row", "slist"):
            rows = RowSet(*(sections[f"{prefix}_{part}"] for part in ("offsets", "columns", "values", "scale")))
            sections |= row_sections(prefix, without_entries(rows, support.unbacked(rows, self._settings.min_devices)))

    def _meta(self, gate: Gate) -> dict:
        present, stream = self._present.catalog, self._stream
        return {name: present.meta[name] for name in CARRIED_META if name in present.meta} | {
            "version": present.version + 1,
            "built_at": self._midnight,
            "learned": {
                "seed_weights": {prefix: array.tolist() for prefix, array in self._present.seed_weights.items()},
                "viewings": len(stream.events),
                "viewings_shared": int(stream.shared.sum()),
                "homes_sharing": len(np.unique(stream.events.household[stream.shared])),
                "min_devices": self._settings.min_devices,
                "half_life_days": self._model.half_life_days,
                "gain_over_previous": gate.report(),
            },
        }


_STAGE_META = ("second_stage_inputs",)


def _held_back(present: Present, counts: Counts | None, settings: NextSettings, now_ms: int) -> np.ndarray:
    """int64[k]: rows of which sharers and counting homes are not believed. A surge alone is for the day after it, not for a bundle."""
    allowed, withheld = (rows_of(present.catalog, ids) for ids in (settings.allowed_titles, settings.withheld_titles))
    if counts is None:
        return np.array(sorted(withheld), np.int64)
    found = alarms(counts, now_ms // DAY_MS, settings.popularity_days, allowed, withheld)
    return np.array([alarm.row for alarm in found if alarm.reason != "surge"], np.int64)


def _with_pattern_weights(sections: dict[str, np.ndarray], heard: bool) -> dict[str, np.ndarray]:
    """The fusion's weights with those of the patterns, or without."""
    found = {}
    for name in ("fusion_weights", "sequence_fusion_weights"):
        if name in sections:
            found[name] = sections[name].copy()
            found[name][:, PATTERNS] = PATTERN_WEIGHTS if heard else 0.0
    return found


def _some_lists(queries: FitSet, which: np.ndarray) -> FitSet:
    """Some of a set of successful viewings, bool[q]."""
    some = FitSet()
    for name, values in vars(queries).items():
        getattr(some, name).extend(value for value, kept in zip(values, which.tolist(), strict=True) if kept)
    return some


assert PATTERN_SECTIONS <= SHAPES.keys()
