"""How sources, lineages and objects of the federation are called."""

from __future__ import annotations

import re

from omega_edge.columns import LINEAGE_BYTES
from omega_edge.errors import ProtocolError

SOURCE = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
"""A shard, region or hub."""
OBJECT = re.compile(r"[a-z0-9][a-z0-9.-]{0,119}")
"""An object of a publication: also its file's name, so no slash and no dot in front."""
LINEAGE = re.compile(r"[0-9a-f]{16}")


def check_lineage(value: bytes) -> str:
    """The lineage of 8 bytes in hexadecimal digits. Raises ProtocolError for another length."""
    if len(value) != LINEAGE_BYTES:
        raise ProtocolError(f"lineage: expected {LINEAGE_BYTES} bytes, got {len(value)}")
    return value.hex()
