"""What every verb of `omega-edge` that needs the brain begins with: files that must be there, the moment, the brain."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from omega_edge.brain import OmegaBrain, wall_clock_ms
from omega_edge.config import BrainConfig
from omega_edge.errors import ConfigError, ProtocolError
from omega_edge.protocol import check_timestamp
from omega_edge.sync_held_bundle import HeldBundle


def require_file(path: Path, what: str, remedy: str) -> None:
    """FileNotFoundError, in words, if there is no such file."""
    if not path.exists():
        raise FileNotFoundError(f"{what}: expected the file {path}, there is none; {remedy}")


def open_brain(config: BrainConfig, moment: int | None = None, timed_work: bool = False) -> OmegaBrain:
    """The household's brain; `moment` (Unix ms) stands for now if it is given. timed_work: for a verb that goes on."""
    require_file(config.catalog_path, "catalogue", "./run builds one in a source tree, --catalog names another")
    # A verb ends within a second: a thread for timed work would only be waited for. close() makes all durable.
    config = replace(config, background_maintenance=timed_work and config.background_maintenance)
    clock = wall_clock_ms if moment is None else lambda: moment
    if config.catalog_keys_path is None:
        return OmegaBrain.open(config, clock)
    # A sync may have put another bundle in the place of this one, which has to prove itself.
    return HeldBundle(config.catalog_path).open_on_trial(
        lambda path: OmegaBrain.open(replace(config, catalog_path=path), clock)
    )


def parse_moment(text: str | None, zone: ZoneInfo) -> int | None:
    """Unix milliseconds of --at: a number as it is, ISO 8601 in the given zone unless it has an offset."""
    if text is None:
        return None
    try:
        # Other scripts' digits, and more of them than int() takes, are ValueErrors here too.
        if text.isascii() and text.isdigit():
            return check_timestamp("--at", int(text))
        moment = datetime.fromisoformat(text)
    except ProtocolError:
        raise
    except ValueError:
        raise ConfigError(f"--at: expected a time such as 2026-03-01T20:15, or Unix ms, got {text[:80]!r}") from None
    moment = moment.replace(tzinfo=zone) if moment.tzinfo is None else moment
    return check_timestamp("--at", int(moment.timestamp() * 1000))
