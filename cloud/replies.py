"""Bodies of replies. Response frames without patterns are made without a compressor: they are a few integers, the fields of
wire.cddl's response.
"""

from __future__ import annotations

import json

from cloud.storage import SyncOutcome
from omega_edge import frame, wire
from omega_edge.protocol import MAX_DOWNLOAD_BYTES, SyncResponse


def response_frame(
    outcome: SyncOutcome,
    version: int,
    global_version: int,
    next_sync_secs: int,
    catalog_version: int | None = None,
    patterns_frame: bytes | None = None,
) -> bytes:
    """The body of a reply. patterns_frame: of this global version, where the television has another."""
    if patterns_frame is not None:
        response = SyncResponse(
            version=version,
            global_version=global_version,
            next_sync_secs=next_sync_secs,
            server_time=outcome.server_time,
            acknowledged_local_version=outcome.acknowledged_local_version,
            catalog_version=catalog_version,
            reset=outcome.reset,
            snapshot_wanted=outcome.snapshot_wanted,
            erased=outcome.erased,
            counted=outcome.counted,
        )
        return wire.encode_response_with(response, patterns_frame)
    fields: dict[int, object] = {1: version, 2: global_version, 3: next_sync_secs, 4: outcome.server_time}
    if outcome.acknowledged_local_version is not None:
        fields[5] = outcome.acknowledged_local_version
    if catalog_version is not None:
        fields[8] = catalog_version
    for key, told in ((9, outcome.reset), (10, outcome.snapshot_wanted), (11, outcome.erased), (12, outcome.counted)):
        if told:
            fields[key] = True
    packed = frame.pack_raw(wire.KIND_RESPONSE, fields, MAX_DOWNLOAD_BYTES)
    assert packed is not None, "a response without patterns has less than 64 bytes"
    return packed


def error_body(words: str, retry_after: int | None = None) -> tuple[tuple[tuple[str, str], ...], bytes]:
    """Headers and body of an error: JSON with the first line of its words."""
    headers = [("Content-Type", "application/json")]
    if retry_after is not None:
        headers.append(("Retry-After", str(retry_after)))
    return tuple(headers), json.dumps({"error": words.splitlines()[0] if words else ""}, ensure_ascii=False).encode()
