"""The store that the measurements open: full, and made through the brain's own doors.

Episodes are observed one by one, global patterns are merged as a sync would bring them, and skills, of which one
household gathers some hundreds, are brought to their limit by importing an export to which groups of titles that real
households finished are added. It is built once and kept until anything that it depends on changes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from bench.machine import ROOT, files_under
from bench.viewing import Viewing, read_viewing
from omega_edge.brain import OmegaBrain
from omega_edge.catalog import Catalog
from omega_edge.config import BrainConfig
from omega_edge.protocol import (
    MAX_SIMILAR_PATTERNS,
    GlobalPatterns,
    TitleReference,
    ViewingPattern,
)

FULL, GATHERED = "full", "gathered"
"""Folders of the two stores: the second as it was before the import, with the skills that real viewing gathers."""
LISTED = 20
REFERENCE_WEIGHTS = (1.0, 0.8, 0.6, 0.4)
"""A pattern is four titles that one household finished one after another."""


def build(settings: dict) -> bool:
    """Make the store in the work folder unless it stands. Returns whether it had to be made."""
    work = Path(settings["work"])
    stamp = _stamp(settings)
    facts_path = work / "facts.json"
    if facts_path.exists() and json.loads(facts_path.read_text(encoding="utf-8"))["stamp"] == stamp:
        return False
    started = time.perf_counter()
    facts_path.unlink(missing_ok=True)
    for folder in (FULL, GATHERED):
        shutil.rmtree(work / folder, ignore_errors=True)
    facts = _filled(settings, work / FULL)
    facts_path.write_text(json.dumps(facts | {"stamp": stamp}, ensure_ascii=False), encoding="utf-8")
    _say(f"the store stands after {time.perf_counter() - started:.1f} s")
    return True


def _stamp(settings: dict) -> str:
    """What the store depends on: sizes, catalogue, data, and the code that writes and fills it."""
    digest = hashlib.sha256(json.dumps(settings["scale"], sort_keys=True).encode())
    code = [*(ROOT / "omega_edge").rglob("*.py"), *(ROOT / "bench").glob("*.py")]
    for path in (*sorted(code), *files_under([Path(settings["catalog"]), Path(settings["data"])])):
        digest.update(str(path).encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _filled(settings: dict, storage: Path) -> dict:
    scale = settings["scale"]
    viewing = read_viewing(Path(settings["data"]), scale["episodes"], scale["observes"])
    now_ms = viewing.stored[0].at_ms
    config = BrainConfig(storage, settings["catalog"], background_maintenance=False)
    with OmegaBrain.open(config, lambda: now_ms) as brain:
        _say(f"observing {scale['episodes']} viewings of {viewing.households} households")
        for watched in viewing.stored:
            now_ms = watched.at_ms
            brain.observe(watched.event())
            brain.maintain()
        _say(f"merging {scale['reasoning']} global patterns")
        patterns = global_patterns(viewing, scale["reasoning"], now_ms)
        for start in range(0, len(patterns), MAX_SIMILAR_PATTERNS):
            page = tuple(patterns[start : start + MAX_SIMILAR_PATTERNS])
            brain.apply_global_patterns(GlobalPatterns(global_version=1 + start, similar=page))
        exported = brain.export()
    shutil.copytree(storage, storage.with_name(GATHERED))
    with OmegaBrain.open(config, lambda: now_ms) as brain:
        _say(f"importing skills up to {scale['skills']}")
        brain.import_export(_with_skills(exported, config, viewing, scale["skills"]), replace_existing=True)
        brain.flush()
        recommended = [item.content_id for item in brain.recommend(k=LISTED)]
        held = brain.stats()["memory"]
    for name, expected in (("episodes", "episodes"), ("skills", "skills"), ("patterns", "reasoning")):
        if held[name] != scale[expected]:
            raise AssertionError(f"the store was to hold {scale[expected]} {name}, it holds {held[name]}")
    catalog = Catalog.open(settings["catalog"])
    return {
        "clock_ms": now_ms,
        "recommended": recommended,
        "genres": list(catalog.genres),
        "titles": catalog.count,
        "households": viewing.households,
        "patterns": [
            [pattern.success_rate, {reference.content_id: reference.weight for reference in pattern.references}]
            for pattern in patterns
        ],
        "skills_gathered": len(exported["skills"]),
    }


def global_patterns(viewing: Viewing, count: int, now_ms: int) -> list[ViewingPattern]:
    """As many different patterns of four titles, from as many households as it takes."""
    patterns: list[ViewingPattern] = []
    for group in viewing.groups:
        for start in range(0, len(group) - len(REFERENCE_WEIGHTS) + 1, len(REFERENCE_WEIGHTS)):
            titles = group[start : start + len(REFERENCE_WEIGHTS)]
            patterns.append(
                ViewingPattern(
                    id=len(patterns) + 1,
                    success_rate=0.7 + 0.3 * (start % 7) / 7,
                    sample_count=10 + len(group),
                    created_at=now_ms,
                    updated_at=now_ms,
                    references=tuple(
                        TitleReference(title, weight) for title, weight in zip(titles, REFERENCE_WEIGHTS, strict=True)
                    ),
                )
            )
            if len(patterns) == count:
                return patterns
    raise ValueError(f"expected {count} groups of {len(REFERENCE_WEIGHTS)} finished titles, found {len(patterns)}")


def _with_skills(exported: dict, config: BrainConfig, viewing: Viewing, count: int) -> dict:
    """The export with skills up to `count`: three titles each that a household finished one after another."""
    catalog = Catalog.open(config.catalog_path)
    counters = exported["counters"]
    newest = exported["episodes"][-1]
    skills = list(exported["skills"])
    groups = (group[start : start + 3] for group in viewing.groups for start in range(0, len(group) - 2, 2))
    for titles in groups:
        if len(skills) == count:
            break
        counters["local_version"] += 1
        skills.append(
            _skill(catalog, titles, newest, skill_id=counters["next_skill_id"], version=counters["local_version"])
        )
        counters["next_skill_id"] += 1
    return exported | {"skills": skills}


def _skill(catalog: Catalog, titles: tuple[str, ...], newest: dict, skill_id: int, version: int) -> dict:
    rows = [catalog.row_of(title) for title in titles]
    vector = (catalog.codes[rows] * catalog.scale[rows][:, None]).sum(axis=0)
    code = np.rint(vector * (127.0 / np.abs(vector).max())).astype(np.int8)
    return {
        "skill_id": skill_id,
        "profile": newest["profile"],
        "part_of_day": ("day", "late")[skill_id % 2],
        "successes": len(titles),
        "failures": 0,
        "reward_micro": 900_000 * len(titles),
        "created_at": newest["timestamp"],
        "updated_at": newest["timestamp"],
        "last_sequence": newest["sequence"],
        "version": version,
        "vector": {
            "code": base64.b64encode(code.tobytes()).decode("ascii"),
            "scale": float(1 / np.linalg.norm(code.astype(np.float64))),
        },
        "titles": [
            {
                "content_id": title,
                "content_title": catalog.name(row),
                "episodes": 1,
                "successes": 1,
                "reward_micro": 900_000,
                "last_sequence": newest["sequence"],
            }
            for title, row in zip(titles, rows, strict=True)
        ],
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
