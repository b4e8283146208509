"""The federation's upper levels: a region sums its shards, the hub sums its regions and makes the collective.

One pass (run_once) pulls what comes down, reads every source, sums what all of them said last, and publishes what changed,
the index last. Nothing depends on the order or number of passes: the sum is of the newest object of each source, and the
state is files written by rename, so a process killed anywhere goes on with its next pass.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low

from cloud import collective as collectives
from cloud import counts as counts_
from cloud.collective import Collective
from cloud.counts import Counts
from cloud.downstream import COLLECTIVE, Downstream, manifest_entries, read_collective, read_placed_manifest
from cloud.intake import ListsRelay, SourceIntake
from cloud.logs import log
from cloud.publication import Entry, Publication, SourceUnavailable, digest_of
from cloud.trending import Decisions, rows_of, trending
from cloud.votes import MAX_WINDOW_DAYS
from omega_edge import wire
from omega_edge.catalog import Catalog
from omega_edge.errors import CatalogError, ConfigError, ProtocolError, SignatureError
from omega_edge.patterns import count_step
from omega_edge.protocol import DAY_MS, MIN_QUALITY_THRESHOLD, ViewingPattern
from omega_edge.signing import SigningKey, public_key

ROLES = ("region", "hub")
DEFAULT_INTERVAL_SECONDS = {"region": 300, "hub": 900}
SETTLE_SECONDS = 30 * 60
"""After midnight, until what shards counted before it has come up: a minute, five and fifteen, and again as much."""
THREADS = 16
MOST_TITLES = 4
"""Times as many as the middle source knows; bundles grow by a few in a hundred between two versions."""


@dataclass(frozen=True, slots=True)
class FederationConfig:
    """One region or the hub. sources: URLs or folders. trusted: public keys that are believed; the own one is added.

    aggregation_interval_seconds: between passes, 0 for the role's own. daily_trends: whole days, told once a day; else of the
    present day too, told with every pass. settle_seconds: after midnight, before the day is told. allowed_titles, withheld_titles: content ids that no alarm, or every alarm, is for.
    """

    role: str
    name: str
    sources: tuple[str, ...]
    publication_dir: Path
    key: SigningKey = field(repr=False)
    secret: bytes = field(repr=False)
    trusted: tuple[bytes, ...] = ()
    upstream: str | None = None
    bundle_dir: Path | None = None
    lineage: str | None = None
    aggregation_interval_seconds: float = 0
    min_devices: int = 50
    min_pattern_quality: float = MIN_QUALITY_THRESHOLD
    window_days: int = 35
    retention_days: int = 400
    daily_trends: bool = True
    settle_seconds: float = SETTLE_SECONDS
    timeout_seconds: float = 10.0
    allowed_titles: tuple[str, ...] = ()
    withheld_titles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ConfigError(f"ROLE: expected region or hub, got {self.role!r}")
        if not self.sources:
            raise ConfigError("SOURCES: expected URLs or folders, separated by commas, got none")
        if len(set(self.sources)) < len(self.sources):
            raise ConfigError("SOURCES: expected each source once, got one twice")
        if self.role == "hub" and self.upstream is not None:
            raise ConfigError("FEDERATION_URL: expected none for a hub, which is above all others, got one")
        Decisions(self.min_devices)

    @property
    def interval_seconds(self) -> float:
        """Between passes."""
        return self.aggregation_interval_seconds or DEFAULT_INTERVAL_SECONDS[self.role]

    @property
    def bundles(self) -> Path:
        """The folder of bundles."""
        return self.bundle_dir or self.publication_dir / "bundles"


class FederationCoordinator:
    """Runs one region or hub, a pass at a time. clock: Unix milliseconds."""

    def __init__(self, config: FederationConfig, clock: Callable[[], int]) -> None:
        self._config, self._clock = config, clock
        self._trusted = (*config.trusted, public_key(config.key))
        self._publication = Publication(config.publication_dir, config.name, config.key, config.secret)
        state = config.publication_dir / ".sources"
        self._sources = [
            SourceIntake(location, state, self._trusted, config.secret, config.timeout_seconds)
            for location in config.sources
        ]
        self._relay = ListsRelay(self._publication)
        self._downstream = None
        if config.upstream is not None:
            folder, bundles = config.publication_dir, config.bundles
            self._downstream = Downstream(
                config.upstream, self._trusted, folder, bundles, config.lineage, config.timeout_seconds
            )
        self._catalog: Catalog | None = None
        self._catalog_digest = b""
        self._faults: dict[str, str] = {}
        self._alarms: list[dict[str, object]] = []
        self._held_back = 0
        self._passes = 0
        self._passed_ms: int | None = None
        self._stats = self._told()

    def run_once(self) -> bool:
        """One pass. Whether anything changed that is published. Raises OSError where the folder cannot be written."""
        now_ms = self._clock()
        today = now_ms // DAY_MS
        self._faults = {}
        if self._downstream is not None:
            self._downstream.pull()
        entries, faults = manifest_entries(self._config.bundles, self._trusted)
        self._faults |= faults
        if self._config.role == "hub":
            self._open_catalog(entries)
        self._fetch(today, now_ms)
        listed = {name for source in self._sources for name in source.listed}
        oldest = today - self._config.retention_days
        entries |= self._relay.keep({name for name in listed if int(name.split(".")[3]) >= oldest})
        for counts in self._sums(today, now_ms):
            entries[counts.name] = self._published(counts)
            if self._catalog is not None and counts.lineage == self._catalog.lineage:
                self._make_collective(counts, now_ms)
        entries |= self._collective_entry()
        changed = self._publication.commit(entries, now_ms)
        self._passes, self._passed_ms = self._passes + 1, now_ms
        self._stats = self._told()
        self._tell(changed)
        return changed

    @property
    def lineage(self) -> str | None:
        """Of the only titles that are taken; None while any are."""
        return self._config.lineage or (self._catalog.lineage if self._catalog is not None else None)

    @property
    def ready(self) -> bool:
        """Whether a pass was made since it was opened."""
        return self._passes > 0

    def stats(self) -> dict[str, object]:
        """What the last pass did and what it refused, for people. Any thread may ask. held_back: how many titles are; alarms:
        those of them that as many devices as the threshold asks for have voted for."""
        return self._stats

    def _told(self) -> dict[str, object]:
        down = self._downstream.faults if self._downstream is not None else {}
        names = [source.index.source for source in self._sources if source.index is not None]
        return {
            "role": self._config.role,
            "name": self._config.name,
            "passes": self._passes,
            "passed_ms": self._passed_ms,
            "sequence": self._publication.index.sequence,
            "published": len(self._publication.index.entries),
            "lineage": self.lineage,
            "min_devices": self._config.min_devices,
            "sources": [
                {
                    "location": source.location,
                    "name": source.index.source if source.index is not None else None,
                    "sequence": source.index.sequence if source.index is not None else None,
                    "made_ms": source.index.made_ms if source.index is not None else None,
                    "reached_ms": source.reached_ms,
                    "refusals": source.refusals,
                    "faults": source.faults,
                }
                for source in self._sources
            ],
            "named_twice": sorted({name for name in names if names.count(name) > 1}),
            "faults": self._faults | {f"upstream {name}": fault for name, fault in down.items()},
            "held_back": self._held_back,
            "alarms": self._alarms,
        }

    def _fetch(self, today: int, now_ms: int) -> None:
        oldest = today - self._config.retention_days
        lineage = self.lineage

        def fetch(source: SourceIntake) -> None:
            source.fetch(self._relay, lineage, oldest, today, now_ms)

        with ThreadPoolExecutor(min(THREADS, len(self._sources))) as pool:
            for _ in pool.map(fetch, self._sources):
                pass  # an error of the disk is raised here

    def _sums(self, today: int, now_ms: int) -> list[Counts]:
        """The sum of each lineage that is taken."""
        by_lineage: dict[str, list[Counts]] = {}
        for source in self._sources:
            for counts in source.counts.values():
                if self.lineage in (None, counts.lineage):
                    by_lineage.setdefault(counts.lineage, []).append(counts)
        longest = max((days for parts in by_lineage.values() for one in parts for _, days in one.windows), default=0)
        first_day = today - min(max(self._config.window_days, longest), MAX_WINDOW_DAYS)
        return [
            counts_.merged(self._config.name, 0, now_ms, self._credible(parts), first_day, today + 1)
            for _, parts in sorted(by_lineage.items())
        ]

    def _credible(self, parts: list[Counts]) -> list[Counts]:
        """Those that know at most MOST_TITLES times as many titles as the middle one: a sum has room for all that any knows."""
        most = MOST_TITLES * median_low(counts.title_count for counts in parts)
        for counts in parts:
            if counts.title_count > most:
                self._faults[f"counts of {counts.source}"] = f"expected at most {most} titles, got {counts.title_count}"
        return [counts for counts in parts if counts.title_count <= most]

    def _published(self, counts: Counts) -> Entry:
        """The entry of a sum: the one that is published where it says the same, else a new one."""
        entry = self._publication.index.entries.get(counts.name)
        payload = self._publication.stored(counts.name, entry)
        if payload is not None and counts_.same_content(counts_.decode(payload), counts):
            return entry
        sequence = self._publication.next_sequence(counts.made_ms)
        return self._publication.put(counts.name, "counts", sequence, counts_.encode(counts_.numbered(counts, sequence)))

    def _open_catalog(self, entries: dict[str, Entry]) -> None:
        """Open the newest bundle of the lineage, or of all, if it is not the one that is open."""
        manifests = [
            found[1]
            for name in entries
            if self._config.lineage in (None, name.partition(".")[2])
            and (found := read_placed_manifest(self._config.bundles / name.partition(".")[2], self._trusted)) is not None
        ]
        if not manifests:
            self._faults["bundle"] = f"expected a bundle and its manifest in {self._config.bundles}, found none yet"
            return
        newest = max(manifests, key=lambda manifest: (manifest.built_at, manifest.sequence))
        digest = bytes.fromhex(newest.sha256)
        if digest == self._catalog_digest:
            return
        try:
            self._catalog = Catalog.open(self._config.bundles / newest.lineage / newest.file)
            self._catalog_digest = digest
        except (CatalogError, OSError) as error:
            self._faults["bundle"] = str(error)

    def _patterns(self) -> tuple[tuple[ViewingPattern, ...], bytes]:
        """(the model job's patterns that are good enough and of enough homes, a hash of them)."""
        try:
            found = read_collective(self._config.publication_dir, self._trusted, "patterns")
            if found is None or self._catalog is None:
                return (), b""
            if found.lineage != self._catalog.lineage:
                raise ProtocolError(f"patterns: expected lineage {self._catalog.lineage}, got {found.lineage}: foreign titles")
            similar = wire.decode_global_patterns(found.frame, self._catalog).similar
        except (SignatureError, ProtocolError, SourceUnavailable) as error:
            self._faults["patterns"] = str(error)
            return (), b""
        least, homes = self._config.min_pattern_quality, count_step(self._config.min_devices)  # a frame rounds counts to steps
        kept = (one for one in similar if one.success_rate >= least and count_step(one.sample_count) >= homes)
        return tuple(kept), digest_of(found.frame)

    def _make_collective(self, counts: Counts, now_ms: int) -> None:
        """Write the collective anew where a day has passed, or what it is made from changed."""
        catalog, config = self._catalog, self._config
        decisions = Decisions(
            config.min_devices, rows_of(catalog, config.allowed_titles), rows_of(catalog, config.withheld_titles)
        )
        patterns, patterns_digest = self._patterns()
        decided = (decisions.min_devices, sorted(decisions.allowed), sorted(decisions.withheld))
        basis = hashlib.sha256(repr((self._catalog_digest, patterns_digest, decided)).encode()).digest()[:16]
        try:
            last = read_collective(config.publication_dir, self._trusted)
        except (SignatureError, ProtocolError, SourceUnavailable):
            last = None
        end_day = now_ms // DAY_MS + (not config.daily_trends)
        settled = now_ms % DAY_MS >= 1000 * config.settle_seconds
        windows, held = trending(counts, catalog, end_day, decisions)
        self._held_back = len(held)
        self._alarms = [
            {"title": catalog.content_id(alarm.row), "reason": alarm.reason, "day": alarm.day, "votes": alarm.votes}
            for alarm in held
            if alarm.row < catalog.count and (alarm.reason == "withheld" or alarm.votes >= config.min_devices)
        ]
        if last is not None and config.daily_trends and last.basis == basis and last.lineage == catalog.lineage:
            if last.day == end_day and last.trends:
                return
            if last.day == end_day - 1 and last.trends and not settled:
                return
        version = last.version if last is not None else 0
        frame, trends = collectives.compose(version, catalog, windows, patterns)
        if last is None or frame != last.frame:
            version = collectives.next_version(version, now_ms)
            frame, trends = collectives.compose(version, catalog, windows, patterns)
        elif (last.basis, last.day, last.trends) == (basis, end_day, trends):
            return
        made = Collective(version, catalog.lineage, catalog.version, frame, now_ms, end_day, trends, basis)
        self._publication.put(COLLECTIVE, COLLECTIVE, version, collectives.encode(made))

    def _collective_entry(self) -> dict[str, Entry]:
        """The collective as it is in the folder, whoever put it there."""
        try:
            found = read_collective(self._config.publication_dir, self._trusted)
        except (SignatureError, ProtocolError, SourceUnavailable) as error:
            self._faults[COLLECTIVE] = str(error)
            return {}
        if found is None:
            return {}
        data = (self._config.publication_dir / COLLECTIVE).read_bytes()
        return {COLLECTIVE: Entry(COLLECTIVE, found.version, digest_of(data))}

    def _tell(self, changed: bool) -> None:
        for source in self._sources:
            for name, fault in source.faults.items():
                log("a source has a fault", logging.WARNING, location=source.location, object=name, fault=fault)
        for name, fault in self._faults.items():
            log("a fault", logging.WARNING, object=name, fault=fault)
        log("passed", changed=changed, published=len(self._publication.index.entries), held_back=self._held_back)

