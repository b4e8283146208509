"""`omega-edge sync`: speak to the shard once, or at its interval until interrupted."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from omega_edge.brain import OmegaBrain
from omega_edge.cli_codes import EXIT_BUSY, EXIT_CONFIG, EXIT_DATA, EXIT_OK, EXIT_UNAVAILABLE
from omega_edge.cli_output import Screen, as_plain, counted, write_json
from omega_edge.cli_process import say_error
from omega_edge.cli_session import open_brain
from omega_edge.collective import check_ranks
from omega_edge.config import SHARING_WORDS, BrainConfig
from omega_edge.errors import ConfigError
from omega_edge.sync_http import required_aiohttp

if TYPE_CHECKING:
    from omega_edge.sync import SyncClient, SyncReport

MAX_KEY_FILE_BYTES = 4096
INSTALLED = "installed"


def sync(options: argparse.Namespace, config: BrainConfig) -> int:
    """Run the verb; returns the exit code."""
    if config.constellation_url is None:
        raise ConfigError(
            "constellation_url: expected the shard's URL, none is given. Pass --constellation-url, set "
            "OMEGA_CONSTELLATION_URL, or write constellation_url = ... into the configuration file"
        )
    try:
        required_aiohttp()
    except ModuleNotFoundError as missing:
        say_error(str(missing))
        return EXIT_UNAVAILABLE
    return asyncio.run(_watch(options, config) if options.watch else _once(options, config))


def client_of(brain: OmegaBrain, config: BrainConfig) -> SyncClient:
    """The client that these options describe. Raises ConfigError, and FileNotFoundError for a key file that is missing."""
    from omega_edge.sync import SyncClient, SyncConfig
    from omega_edge.updates import UpdateClient

    updates = None
    if config.catalog_keys_path is not None:
        from omega_edge.signing import read_public_keys

        trusted = read_public_keys(_key_text(config.catalog_keys_path, "catalog_keys_path"))
        updates = UpdateClient(config.constellation_url, trusted, config.catalog_path, check_ranks)
    return SyncClient(
        brain,
        SyncConfig(
            constellation_url=config.constellation_url,
            sync_interval_secs=config.sync_interval_secs,
            timeout_secs=config.sync_timeout_secs,
        ),
        updates,
    )


def _key_text(path: Path, option: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEY_FILE_BYTES).decode("ascii", "replace")
    except FileNotFoundError:
        raise FileNotFoundError(f"{option}: expected the file {path}, there is none") from None


async def _once(options: argparse.Namespace, config: BrainConfig) -> int:
    with open_brain(config) as brain:
        report = await client_of(brain, config).first_sync()
    if options.json:
        write_json({"sharing": config.sharing, "meaning": SHARING_WORDS[config.sharing], **_plain(report)})
    else:
        screen = Screen(sys.stdout)
        screen.line(screen.style(f"Sharing: {config.sharing}", "bold"))
        screen.paragraph(SHARING_WORDS[config.sharing])
        screen.line(_in_words(report))
        if report.next_sync_secs is not None:
            screen.line(f"The shard wants to hear again in {report.next_sync_secs:,} s.")
    return exit_code_of(report)


async def _watch(options: argparse.Namespace, config: BrainConfig) -> int:
    watching, told_to_end = asyncio.current_task(), asyncio.Event()

    def end() -> None:
        told_to_end.set()
        watching.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
    screen = Screen(sys.stdout)
    if not options.json:
        screen.line(screen.style(f"Sharing: {config.sharing}", "bold"))
        screen.paragraph(SHARING_WORDS[config.sharing])
        screen.line("The first sync comes at a random moment within 300 s, so that homes that start together do not speak together.")
        sys.stdout.flush()

    def show(report: SyncReport) -> bool:
        if options.json:
            sys.stdout.write(json.dumps(as_plain({"sharing": config.sharing, **_plain(report)})) + "\n")
        else:
            screen.line(f"{datetime.now(config.zone()):%H:%M:%S}  {_in_words(report)}")
        sys.stdout.flush()
        return report.catalog_update == INSTALLED

    try:
        while True:  # a new catalogue is opened by a new brain
            with open_brain(config, timed_work=True) as brain:
                await client_of(brain, config).run(show)
    except asyncio.CancelledError:
        if not told_to_end.is_set():
            raise  # Ctrl-C, which the door answers
        return EXIT_OK


def _plain(report: SyncReport) -> dict[str, object]:
    return as_plain(report)


def _in_words(report: SyncReport) -> str:
    sent = f"Sent {counted(report.bytes_up, 'byte')}"
    told = [
        counted(count, noun)
        for count, noun in ((report.titles, "title"), (report.patterns, "pattern"), (report.reports, "falsified report"))
        if count
    ]
    sent += f" with {' and '.join(told)}" if told else ", nothing of what was watched"
    got = f"got {counted(report.bytes_down, 'byte')}"
    got += f" with {report.changed:,} patterns and trends that are new here" if report.changed else ""
    catalog = "" if report.catalog_update is None else f" Newer catalogue: {report.catalog_update}."
    return f"{sent}; {got}: {report.outcome}.{catalog}"


def exit_code_of(report: SyncReport) -> int:
    """The exit code that one sync ends with."""
    if report.outcome == "done":
        return EXIT_OK
    if not report.connected:
        return EXIT_UNAVAILABLE
    return {401: EXIT_CONFIG, 429: EXIT_BUSY, 503: EXIT_BUSY}.get(report.status, EXIT_DATA)
