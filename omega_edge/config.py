"""The brain's options: what they are, what they may be, what holds where none is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from omega_edge.errors import ConfigError
from omega_edge.exploration import MAX_EXPLORATION
from omega_edge.protocol import (
    COUNT_EPSILON,
    EMBEDDING_DIMENSIONS,
    MAX_SYNC_INTERVAL_SECONDS,
    MIN_SYNC_INTERVAL_SECONDS,
)

SHARING_WORDS = {
    "receive": "Nothing derived from your viewing leaves this television.",
    "counts": (
        f"Once a day one deliberately falsified title leaves this television (epsilon {COUNT_EPSILON:g} a report, at most "
        f"{COUNT_EPSILON * 365.25:,.0f} a year); it feeds popularity and trends only."
    ),
    "titles": (
        "This is your viewing history: the titles you finish, in order, leave this television under a random number and are "
        "kept for a stated time, 400 days unless the operator says otherwise. A few titles can identify a home."
    ),
}
"""What each sharing mode lets leave the home, in words for whoever chooses."""
SHARING_MODES = tuple(SHARING_WORDS)
_OPTIONAL_PATHS = ("model_path", "catalog_keys_path")
MIN_EPISODES = 1_000
"""Fewer would leave out, after a restart, episodes that the ranking reads: each profile's newest 65 are kept, up to 15
profiles."""


@dataclass(frozen=True, slots=True)
class BrainConfig:
    """Options of OmegaBrain.open. Every value is checked here; an unknown option is a ConfigError.

    storage_path: folder of the household's memory, made if missing. catalog_path: the bundle file.
    model_path: folder of the text model, or None to go without. dimensions: 384, the only size of this
    protocol. max_episodes, max_patterns (skills), max_reasoning: records kept in the three tiers.
    sync_interval_secs: 60 to 86,400. sharing: what may leave the home, one of SHARING_MODES. time_zone: IANA
    name. durability_window_secs: how long an observation may stay unsynced, so what a power cut can take; 0
    syncs each one before observe returns. diversity: 0 (order of scores) to 1 (only variety). novelty: 0 to 1, how much
    a candidate's scaled score is lowered by its log-popularity, for lists that reach further into the catalogue.
    exploration: chance, 0 to 0.2, that a list shows one title that the ranking would not have put there; see
    exploration.py.
    background_maintenance: whether a thread does the timed work; without it, call maintain().
    constellation_url: the shard to sync with, https://host/, or None to stay alone. sync_timeout_secs: 1 to 600, for one
    request and its answer. catalog_keys_path: file with the public keys, in hexadecimal digits, of those who sign catalogue
    bundles; None: the bundle is never replaced by a sync.
    """

    storage_path: Path
    catalog_path: Path
    model_path: Path | None = None
    dimensions: int = EMBEDDING_DIMENSIONS
    max_episodes: int = 1_000
    max_patterns: int = 10_000
    max_reasoning: int = 500
    sync_interval_secs: int = 300
    sharing: str = "receive"
    time_zone: str = "UTC"
    durability_window_secs: int = 300
    diversity: float = 0.1
    novelty: float = 0.0
    exploration: float = 0.0
    background_maintenance: bool = True
    constellation_url: str | None = None
    sync_timeout_secs: int = 30
    catalog_keys_path: Path | None = None

    def __post_init__(self) -> None:
        for name in ("storage_path", "catalog_path", *_OPTIONAL_PATHS):
            value = getattr(self, name)
            if name in _OPTIONAL_PATHS and value is None:
                continue
            if not isinstance(value, (str, Path)) or not str(value) or "\0" in str(value):
                raise ConfigError(f"{name}: expected a path, got {value!r}")
            object.__setattr__(self, name, Path(value))
        self._check_integer("dimensions", EMBEDDING_DIMENSIONS, EMBEDDING_DIMENSIONS)
        self._check_integer("max_episodes", MIN_EPISODES, 1_000_000)
        self._check_integer("max_patterns", 10, 1_000_000)
        self._check_integer("max_reasoning", 10, 100_000)
        self._check_integer("sync_interval_secs", MIN_SYNC_INTERVAL_SECONDS, MAX_SYNC_INTERVAL_SECONDS)
        self._check_integer("durability_window_secs", 0, 3600)
        self._check_integer("sync_timeout_secs", 1, 600)
        if self.constellation_url is not None:
            from omega_edge.sync_address import shard_url  # here, because a home that stays alone needs none of it

            shard_url(self.constellation_url)
        if self.sharing not in SHARING_MODES:
            raise ConfigError(f"sharing: expected one of {', '.join(SHARING_MODES)}, got {self.sharing!r}")
        self._check_number("diversity", 1)
        self._check_number("novelty", 1)
        self._check_number("exploration", MAX_EXPLORATION)
        if not isinstance(self.background_maintenance, bool):
            raise ConfigError(f"background_maintenance: expected true or false, got {self.background_maintenance!r}")
        self.zone()

    def _check_integer(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or not low <= value <= high:
            wanted = f"{low}" if low == high else f"an integer from {low} to {high}"
            raise ConfigError(f"{name}: expected {wanted}, got {value!r}")

    def _check_number(self, name: str, high: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= high:
            raise ConfigError(f"{name}: expected a number from 0 to {high:g}, got {value!r}")

    def zone(self) -> ZoneInfo:
        """The household's time zone."""
        try:
            return ZoneInfo(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
            raise ConfigError(
                f"time_zone: expected an IANA name such as Europe/Berlin that this system knows, got {self.time_zone!r}"
            ) from None

    @classmethod
    def from_mapping(cls, options: Mapping[str, object]) -> BrainConfig:
        """Options from a mapping, such as a parsed file. Unknown or missing names are ConfigErrors."""
        if not isinstance(options, Mapping):
            raise ConfigError(f"options: expected a mapping of names to values, got {type(options).__name__}")
        known = {option.name for option in fields(cls)}
        unknown = sorted(str(name) for name in set(options) - known)
        if unknown:
            raise ConfigError(f"unknown option {', '.join(unknown)}: expected one of {', '.join(sorted(known))}")
        missing = [name for name in ("storage_path", "catalog_path") if name not in options]
        if missing:
            raise ConfigError(f"{' and '.join(missing)}: expected a path, got nothing")
        return cls(**options)

    def as_dict(self) -> dict[str, object]:
        """The options in force, paths as text."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
