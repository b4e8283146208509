"""`python -m cloud model`: trains the next bundle of a lineage and publishes it where it gains.

    python -m cloud model --hub DIR|URL --seed DATA_DIR --signing-key FILE [--bundles DIR] [--first FILE] …

Environment: FEDERATION_SECRET or FEDERATION_SECRET_FILE (required: lists are encrypted under it), TRUSTED_KEYS,
SIGNING_KEY_FILE where --signing-key is not given, and ALLOWED_TITLES and WITHHELD_TITLES, as the hub has them.

Exit code 0: published. 1: an error. 2: called wrongly. 3: not published, because the candidate does not gain on held-out
viewings of sharers, or there are too few of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from omega_edge.errors import ConfigError, OmegaError

NOT_PUBLISHED = 3
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""One thread for linear algebra, or the same input would not give the same bytes."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code."""
    options = _parser().parse_args(arguments)
    if any(os.environ.get(name) != "1" for name in THREAD_VARIABLES):
        _restart_with_one_thread(list(arguments))
    started = time.monotonic()

    def progress(what: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {what}", file=sys.stderr, flush=True)

    try:
        told = _run(options, progress)
    except (OmegaError, OSError) as error:
        print(f"python -m cloud model: {error}", file=sys.stderr)
        return 1
    print(json.dumps(told, sort_keys=True) if options.json else _in_words(told))
    return 0 if told["published"] else NOT_PUBLISHED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cloud model", description=__doc__.splitlines()[0])
    parser.add_argument("--hub", required=True, help="publication of the hub: its folder, or …/api/v1/federation/")
    parser.add_argument("--seed", type=Path, help="the operator's seed data set; it stays in every training run")
    parser.add_argument("--bundles", type=Path, help="folder to publish bundles in, as LINEAGE/ (HUB/bundles)")
    parser.add_argument("--patterns", type=Path, help="folder to publish the global patterns in (HUB)")
    parser.add_argument("--first", type=Path, help="bundle to begin with, where none is out yet")
    parser.add_argument("--titles", type=Path, help="bundle of the same titles and further ones, which are appended")
    parser.add_argument("--lineage", help="which titles, where the hub knows several: 16 hexadecimal digits")
    parser.add_argument("--signing-key", type=Path, help="file of the key to sign with, see `keygen` (SIGNING_KEY_FILE)")
    parser.add_argument("--trusted", default=os.environ.get("TRUSTED_KEYS", ""), help="public keys of the shards and the hub")
    parser.add_argument("--min-devices", type=int, default=50, help="distinct homes behind all that sharers add, 2 or more (50)")
    parser.add_argument("--quick", action="store_true", help="keep settings, encoder and second stage of the present bundle")
    parser.add_argument("--now-ms", type=int, help="the time, Unix ms (the clock's)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _restart_with_one_thread(arguments: list[str]) -> None:
    """Replace this process by one in which linear algebra has a single thread; numpy reads that only at import."""
    sys.stdout.flush()
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
    os.execve(sys.executable, [sys.executable, "-m", "cloud", "model", *arguments], environment)


def _folders(options: argparse.Namespace) -> tuple[Path, Path]:
    """Where bundles and patterns go."""
    local = None if "://" in options.hub else Path(options.hub)
    bundles = options.bundles or (local and local / "bundles")
    if bundles is None:
        raise ConfigError("--bundles: expected a folder to publish in, as the hub is at a URL")
    return bundles, options.patterns or local or bundles


def _run(options: argparse.Namespace, progress) -> dict:
    """Train, judge, publish; what came of it."""
    from cloud.bundle_folder import BundleFolder, write_patterns
    from cloud.environment import listed, secret, signing_key
    from cloud.next_bundle import NextSettings, next_bundle
    from cloud.publication import read_counts, read_lists
    from omega_edge import signing
    from omega_edge.datasets import read_dataset

    key = signing_key(os.environ) if options.signing_key is None else signing.read_signing_key(options.signing_key)
    shared = secret(os.environ, "FEDERATION_SECRET")
    if key is None or shared is None:
        raise ConfigError("expected --signing-key or SIGNING_KEY_FILE, and FEDERATION_SECRET or FEDERATION_SECRET_FILE")
    trusted = (*signing.read_public_keys(options.trusted), signing.public_key(key))
    bundles, patterns = _folders(options)
    lineage = options.lineage or _lineage(bundles, options.first)
    folder = BundleFolder(bundles / lineage, key, trusted)
    if folder.manifest() is None:
        if options.first is None:
            raise ConfigError(f"--first: expected a bundle to begin with, since none is out in {folder.folder}")
        manifest = folder.publish_first(options.first)
        return {"published": True, "version": manifest.version, "first": True, "bytes": manifest.size}
    settings = NextSettings(
        min_devices=options.min_devices, quick=options.quick,
        allowed_titles=listed(os.environ, "ALLOWED_TITLES"), withheld_titles=listed(os.environ, "WITHHELD_TITLES"),
    )  # fmt: skip
    lists = read_lists(options.hub, trusted, shared, lineage)
    counts = read_counts(options.hub, trusted, shared, lineage)
    seed = None if options.seed is None else rows_of(folder.present(), read_dataset(options.seed))
    now_ms = time.time_ns() // 1_000_000 if options.now_ms is None else options.now_ms
    made = next_bundle(folder.present(), seed, lists, counts, settings, now_ms, options.titles, progress)
    told = {"published": made.publish, "gate": made.gate.report(), "homes": len(lists.pseudonyms), "titles": len(lists.row)}
    if not made.publish:
        return told
    manifest = folder.publish(made)
    write_patterns(patterns, made, folder.folder / manifest.file, key)
    deltas = {str(delta.from_version): delta.size for delta in manifest.deltas}
    return told | {
        "version": manifest.version, "bytes": manifest.size, "delta_bytes": deltas, "patterns": len(made.patterns),
        "pattern_gate": made.pattern_gate.report(),
    }


def rows_of(present: Path, dataset):
    """A data set's events with titles as rows of the present bundle; events of titles that it does not hold are left out.

    Raises ConfigError where it holds none: a seed that taught nothing would go unseen.
    """
    import numpy as np

    from cloud.learning_stream import chosen
    from omega_edge.catalog import Catalog
    from omega_edge.datasets import Events

    with Catalog.open(present) as catalog:
        rows = np.array([catalog.row_of(title.content_id) for title in dataset.titles], np.int32)
    events = dataset.events
    known = np.flatnonzero(rows[events.title] >= 0)
    if not len(known):
        raise ConfigError(f"--seed: expected a data set of the bundle's titles, got {len(rows)} titles of which it has none")
    kept = chosen(events, known)
    return Events(kept.household, rows[kept.title], kept.watch_percentage, kept.timestamp)


def _lineage(bundles: Path, first: Path | None) -> str:
    """The only lineage in the folder, else that of the first bundle."""
    from omega_edge.catalog import Catalog

    found = sorted(path.parent.name for path in bundles.glob("*/manifest"))
    if len(found) == 1:
        return found[0]
    if found or first is None:
        raise ConfigError(f"--lineage: expected which titles, as {bundles} holds {', '.join(found) or 'none'}")
    with Catalog.open(first) as catalog:
        return catalog.lineage


def _in_words(told: dict) -> str:
    if told.get("first"):
        return f"published version {told['version']}, the first: {told['bytes']:,} bytes"
    gain, low, high = told["gate"]["ndcg_at_10_gain"]
    judged = f"gain in NDCG@10 on {told['gate']['queries']} held-out viewings of sharers: {gain:+.4f} [{low:+.4f}, {high:+.4f}]"
    if not told["published"]:
        return f"not published: {told['gate'].get('why') or judged}"
    deltas = ", ".join(f"{size:,} from version {version}" for version, size in told["delta_bytes"].items())
    return (
        f"published version {told['version']}: {told['bytes']:,} bytes; deltas: {deltas}\n{judged}\n"
        f"{told['homes']:,} homes shared {told['titles']:,} titles; {told['patterns']} global patterns, which "
        f"{'gain in young homes' if told['pattern_gate']['ships'] else 'gain nothing and have no weight'}"
    )
