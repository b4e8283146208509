"""A shard's part in the federation, a step each minute: pull what comes down, count what is new, publish it."""

from __future__ import annotations

from collections.abc import Callable

from cloud.configuration import ServerConfig
from cloud.downstream import Downstream
from cloud.knowledge_files import KnowledgeFiles
from cloud.publication import Publication
from cloud.shard_counter import CountingSettings, ShardCounter
from cloud.storage import PatternStorage
from omega_edge.errors import ConfigError


class ShardFederation:
    """Counts and pulls for one shard. Without PUBLICATION_DIR it does neither; without a bundle there is nothing to count.

    faults: by what they are about, of the last step. A pull that fails stops no counting.
    """

    def __init__(
        self, config: ServerConfig, storage: PatternStorage, knowledge: KnowledgeFiles, clock: Callable[[], int]
    ) -> None:
        """Raises ConfigError where PUBLICATION_DIR is set without what it needs, or what needs it without it."""
        self._storage, self._knowledge, self._clock = storage, knowledge, clock
        self._settings = CountingSettings(retention_days=config.shard.retention_days)
        self._publication: Publication | None = None
        self._counter: ShardCounter | None = None
        self._downstream: Downstream | None = None
        self.faults: dict[str, str] = {}
        if config.publication_dir is None:
            needy = {
                "SIGNING_KEY_FILE": config.signing_key, "FEDERATION_SECRET": config.federation_secret,
                "FEDERATION_URL": config.federation_url,
            }  # fmt: skip
            for name, value in needy.items():
                if value is not None:
                    raise ConfigError(f"{name}: expected PUBLICATION_DIR beside it, got nothing")
            return
        if config.federation_url is not None:
            if config.bundle_dir is None:
                raise ConfigError("BUNDLE_DIR: expected a folder for the bundles of FEDERATION_URL, got nothing")
            folder, bundles = config.publication_dir, config.bundle_dir
            self._downstream = Downstream(config.federation_url, config.trusted_keys, folder, bundles, config.lineage)
        if config.signing_key is not None and config.federation_secret is not None:
            source = f"shard-{config.shard.shard_id}"
            self._publication = Publication(
                config.publication_dir, source, config.signing_key, config.federation_secret
            )
        elif config.signing_key is not None or config.federation_secret is not None:
            raise ConfigError("PUBLICATION_DIR: expected SIGNING_KEY_FILE and FEDERATION_SECRET together, got one of them")

    def step(self) -> bool:
        """Whether anything was pulled or published. Raises StoreError and OSError."""
        changed, self.faults = False, {}
        if self._downstream is not None:
            changed = self._downstream.pull()
            self.faults = {f"upstream {name}": fault for name, fault in self._downstream.faults.items()}
        self._knowledge.refresh()
        catalog = self._knowledge.catalog
        if self._publication is None or catalog is None:
            return changed
        counter, self._counter = self._counter, None
        if counter is None or not counter.take_titles(catalog):
            counter = ShardCounter(self._storage, self._publication, self._settings, catalog, self._clock)
        # One that fails is given up: what it had taken in and not published, the next one takes in again.
        changed |= counter.run_once()
        self._counter = counter
        return changed

    @property
    def held(self) -> dict[str, int]:
        """How much is in memory: devices, votes, reports; empty where nothing is counted."""
        return {} if self._counter is None else self._counter.held
