"""`python -m cloud federate`: a region or the hub, configured by the environment; passes on an interval, or one pass."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping

from cloud.environment import folder, integer, listed, named, secret, signing_key
from cloud.federation import DEFAULT_INTERVAL_SECONDS, ROLES, FederationConfig, FederationCoordinator
from cloud.logs import log, start_logging
from cloud.names import LINEAGE, SOURCE
from omega_edge.errors import ConfigError, OmegaError
from omega_edge.signing import read_public_keys

VARIABLES = {
    "ROLE": "region or hub (required)",
    "NAME": "of this region or hub: lower-case letters, digits and hyphens, up to 32 (region: REGION, hub: hub)",
    "SOURCES": "what is summed, by commas: …/api/v1/federation/ of shards or regions, or their PUBLICATION_DIRs (required)",
    "PUBLICATION_DIR": "folder of signed objects that this process writes (required)",
    "BUNDLE_DIR": "folder LINEAGE/manifest and bundles (PUBLICATION_DIR/bundles)",
    "LINEAGE": "16 hexadecimal digits: of the only titles that are summed (the hub: of the newest bundle)",
    "FEDERATION_URL": "of a region: where the collective and bundles are pulled, the hub's …/api/v1/federation/, or its folder",
    "SIGNING_KEY_FILE": "the key for what it publishes (required; see `keygen`)",
    "TRUSTED_KEYS": "public keys whose objects are believed, 64 hexadecimal digits each, by commas",
    "FEDERATION_SECRET_FILE": "32 to 128 hexadecimal digits that shards, regions, hub and model job share (required)",
    "AGGREGATION_INTERVAL_SECONDS": "between passes (region: 300, hub: 900)",
    "MIN_DEVICES": "distinct devices without which nothing is told, 2 or more (50)",
    "WINDOW_DAYS": "days of counts that are summed (35; more where the bundle's trends are longer)",
    "RETENTION_DAYS": "how long lists are relayed (400)",
    "TRENDS": "daily: whole UTC days, told once a day; live: of the present day too, with every pass (daily)",
    "TRENDS_SETTLE_SECONDS": "after midnight, before the day is told (1800)",
    "ALLOWED_TITLES": "content ids, by commas, that are told whatever alarm they raise",
    "WITHHELD_TITLES": "content ids, by commas, that are never told as trends",
    "TIMEOUT_SECONDS": "for one object of a source (10)",
    "HOST": "address to listen on (127.0.0.1)",
    "PORT": "port to serve the publication on, 0 for a free one (none: it is not served)",
    "LOG_LEVEL": "DEBUG, INFO, WARNING or ERROR (INFO)",
}
"""Every variable, in the words of the command's help."""

_WHOLE = {name: re.compile("|".join(values)) for name, values in {
    "ROLE": ROLES, "TRENDS": ("daily", "live"), "LOG_LEVEL": ("DEBUG", "INFO", "WARNING", "ERROR"),
}.items()}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run the command; the exit code. --once: one pass, then print the stats; 1 if a source had a fault."""
    if arguments in (["-h"], ["--help"]):
        width = max(map(len, VARIABLES))
        print("usage: python -m cloud federate [--once]\n\nEnvironment:")
        print("\n".join(f"  {name:<{width}}  {text}" for name, text in VARIABLES.items()))
        return 0
    if arguments not in ([], ["--once"]):
        print("python -m cloud federate: expected --once, --help or nothing", file=sys.stderr)
        return 2
    config = from_environment(os.environ)
    start_logging(_word(os.environ, "LOG_LEVEL") or "INFO")
    coordinator = FederationCoordinator(config, _now_ms)
    if arguments == ["--once"]:
        coordinator.run_once()
        stats = coordinator.stats()
        print(json.dumps(stats, ensure_ascii=False))
        return 1 if any(source["faults"] for source in stats["sources"]) else 0
    return _run(coordinator, config, os.environ)


def from_environment(environment: Mapping[str, str]) -> FederationConfig:
    """The configuration; ConfigError naming the first variable that is wrong."""
    role = _word(environment, "ROLE")
    publication_dir, key = folder(environment, "PUBLICATION_DIR"), signing_key(environment)
    shared = secret(environment, "FEDERATION_SECRET")
    given = {
        "ROLE": role, "PUBLICATION_DIR": publication_dir, "SIGNING_KEY_FILE": key, "FEDERATION_SECRET_FILE": shared,
    }  # fmt: skip
    for name, value in given.items():
        if value is None:
            raise ConfigError(f"{name}: expected {VARIABLES[name]}, got nothing")
    fallback = "hub" if role == "hub" else (environment.get("REGION", "").strip() or "region")
    name = named(environment, "NAME", SOURCE, "up to 32 lower-case letters, digits and hyphens") or fallback
    return FederationConfig(
        role=role,
        name=name,
        sources=listed(environment, "SOURCES"),
        publication_dir=publication_dir,
        key=key,
        secret=shared,
        trusted=read_public_keys(environment.get("TRUSTED_KEYS", "")),
        upstream=environment.get("FEDERATION_URL", "").strip() or None,
        bundle_dir=folder(environment, "BUNDLE_DIR"),
        lineage=named(environment, "LINEAGE", LINEAGE, "16 lower-case hexadecimal digits"),
        aggregation_interval_seconds=integer(
            environment, "AGGREGATION_INTERVAL_SECONDS", DEFAULT_INTERVAL_SECONDS[role], 1, 86_400
        ),
        min_devices=integer(environment, "MIN_DEVICES", 50, 2, 1_000_000),
        window_days=integer(environment, "WINDOW_DAYS", 35, 2, 200),
        retention_days=integer(environment, "RETENTION_DAYS", 400, 1, 3_650),
        daily_trends=_word(environment, "TRENDS") != "live",
        settle_seconds=integer(environment, "TRENDS_SETTLE_SECONDS", 1_800, 0, 86_399),
        timeout_seconds=integer(environment, "TIMEOUT_SECONDS", 10, 1, 3_600),
        allowed_titles=listed(environment, "ALLOWED_TITLES"),
        withheld_titles=listed(environment, "WITHHELD_TITLES"),
    )


def _word(environment: Mapping[str, str], name: str) -> str | None:
    return named(environment, name, _WHOLE[name], f"one of {_WHOLE[name].pattern.replace('|', ', ')}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _run(coordinator: FederationCoordinator, config: FederationConfig, environment: Mapping[str, str]) -> int:
    """Passes on the interval, and the server where there is a port, until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serving = None
    if environment.get("PORT", "").strip():
        from cloud.federation_server import FederationServer

        host = environment.get("HOST", "").strip() or "127.0.0.1"
        serving = FederationServer(coordinator, config, host, integer(environment, "PORT", 0, 0, 65_535))
    with contextlib.ExitStack() as stack:
        if serving is not None:
            print(f"listening on http://{stack.enter_context(serving)}", flush=True)
        while not stop.is_set():
            began = time.monotonic()
            try:
                coordinator.run_once()
            except (OmegaError, OSError) as fault:
                log("a pass failed; the next one tries again", level=40, kind=type(fault).__name__, text=str(fault))
            while not stop.wait(min(0.5, config.interval_seconds)):
                if time.monotonic() - began >= config.interval_seconds:
                    break
    return 0
