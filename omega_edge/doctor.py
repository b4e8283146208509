"""`omega-edge doctor`: is this television fit to recommend? Every check uses the real part; nothing is changed.

Each check answers ok, degraded (recommending works, with less) or failed (it does not, or wrongly).
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from omega_edge.cli_codes import EXIT_FOUND_FAULT, EXIT_OK
from omega_edge.cli_output import Screen, counted, in_bytes, write_json
from omega_edge.config import BrainConfig
from omega_edge.configuration import brain_config, settings_of
from omega_edge.errors import CatalogError, ModelUnavailable, StoreBusyError, StoreError

OK, DEGRADED, FAILED = "ok", "degraded", "failed"
_STYLES = {OK: "good", DEGRADED: "warn", FAILED: "bad"}
ROOMY_BYTES, TIGHT_BYTES = 64_000_000, 8_000_000
"""Free space below the first is degraded, below the second failed: LMDB copies the store when it forgets."""
EARLIEST_CLOCK_SECONDS = 1_735_689_600
"""1 January 2025: a clock before this was never set. Availability and trends then go wrong."""
MIN_EMBEDDING_COSINE = 0.98
"""The model's own vector of a title against the bundle's 8-bit code of it; int8 codes alone lose less than 0.001."""

_ELF_CLASSES = {1: 32, 2: 64}
_ELF_MACHINES = {3: "i686", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_MACHINE_ALIASES = {"amd64": "x86_64", "arm64": "aarch64", "armv7l": "arm", "armv8l": "arm", "i386": "i686"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. state: ok, degraded or failed."""

    check: str
    state: str
    detail: str


def read_elf(path: Path) -> tuple[int, str]:
    """(bits, machine) of a shared object's ELF header. ValueError if the file has none."""
    header = path.open("rb").read(20)
    if len(header) < 20 or header[:4] != b"\x7fELF" or header[4] not in _ELF_CLASSES:
        raise ValueError(f"{path}: expected an ELF file")
    order = "<" if header[5] == 1 else ">"
    (machine,) = struct.unpack_from(order + "H", header, 18)
    return _ELF_CLASSES[header[4]], _ELF_MACHINES.get(machine, f"machine {machine}")


def _check_binary() -> Finding:
    # Found on disk rather than imported: a library for another machine cannot be imported, and that is the fault.
    folder = Path(__file__).resolve().parent / "_simd"
    libraries = sorted(folder.glob("_kernels*.so"))
    if not libraries:
        return Finding("core binary", FAILED, f"no compiled core in {folder}; install the wheel for this machine")
    try:
        bits, machine = read_elf(libraries[0])
    except ValueError as error:
        return Finding("core binary", FAILED, str(error))
    here = platform.machine().lower()
    expected = (struct.calcsize("P") * 8, _MACHINE_ALIASES.get(here, here))
    # A 64-bit kernel reports its own name to a 32-bit process.
    if expected[0] == 32:
        expected = (32, {"aarch64": "arm", "x86_64": "i686"}.get(expected[1], expected[1]))
    text = f"{libraries[0].name}: ELF {bits}-bit {machine}"
    if (bits, machine) != expected:
        return Finding("core binary", FAILED, f"{text}, but this Python is {expected[0]}-bit {expected[1]}")
    return Finding("core binary", OK, text)


def _check_search() -> Finding:
    """Search 2,000 random codes and compare rows and scores with plain integer arithmetic in numpy."""
    import numpy as np

    try:
        from omega_edge._simd import isa_names, kernels
    except ImportError as error:
        return Finding("core search", FAILED, f"the core cannot be loaded: {error}")
    random = np.random.default_rng(20260301)
    codes = random.integers(-127, 128, (2_000, 384), np.int8)
    query = random.integers(-127, 128, 384, np.int8)
    wide = codes.astype(np.int64)
    scale = (1.0 / np.sqrt((wide**2).sum(axis=1))).astype(np.float32)
    query_scale = np.float32(1.0 / np.sqrt((query.astype(np.int64) ** 2).sum()))
    rows, scores = np.empty(50, np.uint32), np.empty(50, np.float32)
    started = time.perf_counter()
    found = kernels.search(codes, scale, query, float(query_scale), None, 50, rows, scores)
    elapsed_ms = (time.perf_counter() - started) * 1000
    naive = (wide @ query.astype(np.int64)) * scale.astype(np.float64) * float(query_scale)
    order = np.lexsort((np.arange(2_000), -naive))[:50]
    if (
        found != 50
        or not np.allclose(naive[rows], naive[order], atol=1e-6)
        or not np.allclose(scores, naive[rows], atol=1e-6)
    ):
        return Finding(
            "core search", FAILED, f"instruction set {kernels.isa}: the search differs from plain arithmetic"
        )
    others = ", ".join(isa_names())
    return Finding(
        "core search",
        OK,
        f"{kernels.isa} (built in: {others}): top 50 of 2,000 equals plain arithmetic, {elapsed_ms:.2f} ms",
    )


def _check_catalog(config: BrainConfig) -> Finding:
    from omega_edge.catalog import Catalog

    try:
        with Catalog.open(config.catalog_path) as catalog:
            age_days = (time.time() * 1000 - catalog.built_at) / 86_400_000
            detail = f"{counted(catalog.count, 'title')}, version {catalog.version}, all checksums match"
            detail += f", {in_bytes(config.catalog_path.stat().st_size)}, newest data {age_days:,.0f} days old"
    except CatalogError as error:
        return Finding("catalogue", FAILED, str(error))
    return Finding("catalogue", OK, detail)


def _check_model(config: BrainConfig) -> Finding:
    if config.model_path is None:
        return Finding("text model", DEGRADED, "no model_path: titles outside the catalogue have no vector")
    from omega_edge.inference import InferenceEngine

    try:
        with InferenceEngine(config.model_path) as engine:
            engine.embed("warm")
            started = time.perf_counter()
            engine.embed("The quick brown fox (1931): Adventure, Comedy")
            elapsed_ms = (time.perf_counter() - started) * 1000
            cosine = _cosine_to_bundle(engine, config)
    except ModelUnavailable as error:
        return Finding("text model", DEGRADED, str(error))
    detail = f"{engine.model_version}: all checksums match, one text in {elapsed_ms:.1f} ms"
    if cosine is None:
        return Finding("text model", OK, detail)
    detail += f", cosine to the catalogue's own vectors {cosine:.3f}"
    return Finding("text model", OK if cosine >= MIN_EMBEDDING_COSINE else DEGRADED, detail)


def _cosine_to_bundle(engine: object, config: BrainConfig) -> float | None:
    """The least cosine of the model's vectors of four titles to the catalogue's codes; None without a catalogue."""
    from omega_edge.catalog import Catalog
    from omega_edge.datasets import DatasetTitle
    from omega_edge.protocol import title_embedding_text

    try:
        catalog = Catalog.open(config.catalog_path)
    except CatalogError:
        return None
    with catalog:
        cosines = []
        for row in range(0, catalog.count, max(1, catalog.count // 4)):
            title = catalog.title(row)
            bare = DatasetTitle(title.content_id, title.name, title.year, title.genres).bare_name
            vector = engine.embed(title_embedding_text(bare, title.year, title.genres))
            cosines.append(float((catalog.codes[row].astype("f4") * catalog.scale[row]) @ vector))
    return min(cosines)


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that is there; the root at last."""
    absolute = Path(os.path.abspath(path))
    # os.path.exists, since Path.exists raises PermissionError below a folder that may not be entered.
    return next((each for each in (absolute, *absolute.parents) if os.path.exists(each)), Path("/"))


def _check_store(config: BrainConfig) -> Finding:
    """Open the store read-only, which reads every record and checks it, and count what is sound."""
    from omega_edge.store import DATABASE_NAME, Store

    ground = _nearest(config.storage_path)
    if not ground.is_dir():
        return Finding("store", FAILED, f"{config.storage_path}: expected a folder, {ground} is none; see --storage")
    if not os.path.exists(config.storage_path / DATABASE_NAME):
        if not os.access(ground, os.W_OK | os.X_OK):
            return Finding("store", DEGRADED, f"{config.storage_path}: it cannot be made, {ground} cannot be written")
        return Finding("store", OK, f"{config.storage_path}: nothing stored yet; it is made at the first use")
    try:
        store = Store(config.storage_path, read_only=True)
        try:
            damage, episodes, size_bytes = store.damage, store.count("episodes"), store.size_bytes()
        finally:
            store.close()
    except StoreBusyError as error:
        return Finding("store", DEGRADED, f"not checked: {error}")
    except StoreError as error:
        return Finding("store", FAILED, str(error))
    if damage.records:
        return Finding("store", FAILED, "; ".join(damage.notes))
    return Finding(
        "store", OK, f"{counted(episodes, 'episode')}, every record is sound, {in_bytes(size_bytes)} on disk"
    )


def _check_disk(config: BrainConfig) -> Finding:
    folder = _nearest(config.storage_path)
    usage = shutil.disk_usage(folder)
    if os.statvfs(folder).f_flag & os.ST_RDONLY or not os.access(folder, os.W_OK):
        return Finding("disk", DEGRADED, f"{folder} cannot be written: it recommends, and learns nothing new")
    detail = f"{in_bytes(usage.free)} free under {folder}"
    if usage.free < TIGHT_BYTES:
        return Finding("disk", FAILED, f"{detail}; at least {in_bytes(TIGHT_BYTES)} are needed")
    return Finding("disk", OK if usage.free >= ROOMY_BYTES else DEGRADED, detail)


def _check_clock(config: BrainConfig) -> Finding:
    config.zone()
    if time.time() < EARLIEST_CLOCK_SECONDS:
        return Finding("clock", DEGRADED, f"the clock says {time.strftime('%Y-%m-%d')}: it was never set")
    return Finding("clock", OK, f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, time zone {config.time_zone}")


def findings(config: BrainConfig) -> Iterator[Finding]:
    """Every check in turn, the cheapest and most basic first."""
    yield Finding(
        "python", OK, f"{platform.python_version()} on {platform.machine()}, {platform.libc_ver()[0] or 'libc'}"
    )
    yield _check_binary()
    yield _check_search()
    checks: tuple[Callable[[BrainConfig], Finding], ...] = (
        _check_catalog,
        _check_model,
        _check_store,
        _check_disk,
        _check_clock,
    )
    for check in checks:
        yield check(config)


def run(options: argparse.Namespace) -> int:
    """The verb: print every finding; 1 if one failed."""
    config = brain_config(settings_of(options))
    screen = Screen(sys.stdout)
    found = []
    for finding in findings(config):
        found.append(finding)
        if not options.json:
            mark = screen.style(f"{finding.state:9}", _STYLES[finding.state])
            screen.line(f"{mark} {finding.check:12} {finding.detail}")
    failed = any(finding.state == FAILED for finding in found)
    worst = FAILED if failed else DEGRADED if any(each.state == DEGRADED for each in found) else OK
    if options.json:
        write_json({"state": worst, "checks": found})
    else:
        screen.line(f"doctor: {worst}")
    return EXIT_FOUND_FAULT if failed else EXIT_OK
