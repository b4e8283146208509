"""What each process of a shard opens for itself: the files of collective knowledge, and the store."""

from __future__ import annotations

from collections.abc import Callable

from cloud.configuration import ServerConfig
from cloud.knowledge_files import KnowledgeFiles
from cloud.lmdb_storage import LmdbStorage
from cloud.shard_titles import vector_of_stored


def open_knowledge(config: ServerConfig) -> KnowledgeFiles:
    """The collective and the bundles, as they are now."""
    return KnowledgeFiles(config.publication_dir, config.bundle_dir, config.trusted_keys, config.lineage)


def open_storage(config: ServerConfig, clock: Callable[[], int], knowledge: KnowledgeFiles) -> LmdbStorage:
    """The shard's store. An environment of LMDB must not be shared over a fork, so each process opens it after its own."""
    return LmdbStorage(
        config.shard.store_folder(),
        clock=clock,
        region=config.shard.region,
        lineage=knowledge.manifest.lineage if knowledge.manifest is not None else "",
        max_devices=config.shard.max_devices,
        retention_days=config.shard.retention_days,
        vectors=lambda stored: vector_of_stored(stored, knowledge.catalog),
    )
