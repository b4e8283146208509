"""Builds the wheel of this machine's own kind, for the image of a shard: `python -m toolchain.host_wheel --out DIR`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from toolchain.cross_wheel import DEFAULT_EPOCH, BuildError, wheel_of_a_copy


def main(arguments: list[str] | None = None) -> int:
    """Build one wheel and print its path; 0, or 70 if the build failed."""
    parser = argparse.ArgumentParser(prog="python -m toolchain.host_wheel", description=__doc__.split(":")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the wheel")
    options = parser.parse_args(arguments)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", DEFAULT_EPOCH), "PYTHONHASHSEED": "0"}
    try:
        print(wheel_of_a_copy(options.out, environment, []))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 70
    return 0


if __name__ == "__main__":
    sys.exit(main())
