"""The demonstration's second part: two televisions and a shard. Run by the source tree, as the wheel holds no cloud.

The shard, the hub and the televisions are those of bench/loop/demonstration.py, in a process of its own; what it tells as
JSON becomes a part of the demonstration. Where it cannot run, the demonstration says that this part is left out, and why.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from omega_edge.configuration import source_checkout

SECONDS = 900.0
"""The first time a catalogue is trained; later it takes some ten seconds."""
PACKAGES = ("aiohttp", "nacl", "usearch", "prometheus_client")
"""What a shard needs beside the television's packages."""


def two_televisions(
    data: Path, catalog: Path, model: Path | None, household: str, progress: Callable[[str], None]
) -> dict[str, object]:
    """What two televisions and a shard did, or {"left_out": why}. household: id of television A's."""
    root = source_checkout()
    if root is None or not (root / "cloud").is_dir() or not (root / "bench" / "loop").is_dir():
        return {"left_out": "this installation has no source tree beside it, and the wheel holds no shard"}
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        return {"left_out": f"a shard needs {', '.join(missing)}, not installed here; ./run installs what is missing"}
    if model is None or not model.is_dir():
        return {"left_out": "the catalogue of some weeks ago is trained with the text model, and there is none"}
    progress("two televisions and a shard")
    command = [sys.executable, "-m", "bench.loop.demonstration", "--data", str(data.resolve())]
    command += ["--bundle", str(catalog.resolve()), "--model", str(model.resolve()), "--cache", str(root / "build")]
    try:
        ended = subprocess.run(
            [*command, "--household", household], cwd=root, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            encoding="utf-8", timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"left_out": f"it was not done within {SECONDS:.0f} s"}
    if ended.returncode:
        said = ended.stderr.strip().splitlines()
        return {"left_out": f"it failed with exit code {ended.returncode}: {said[-1] if said else 'nothing was said'}"}
    return json.loads(ended.stdout)
