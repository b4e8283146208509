"""Who a sync request is from: the device's token, and the proof over the request's body that it holds the token.

The shard holds one key for all devices and derives each token from it, so it keeps no table of tokens; a television holds its
own token alone. A request's
proof covers the whole body, so nothing in it, the device id and the epoch included, can be another's.
Used by television and cloud; only the standard library is imported.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

from omega_edge.terms import DEVICE_ID_BYTES

SCHEME = "Omega"
MAC_BYTES, TOKEN_BYTES = 16, 32
_HEADER = re.compile(rf"{SCHEME} ([A-Za-z0-9_-]{{43}})", re.ASCII)


def device_token(key: bytes, device_id: bytes) -> bytes:
    """The 32-byte token of a device (id of 16 bytes) under the shards' key."""
    return hmac.digest(key, device_id, hashlib.sha256)


def request_mac(token: bytes, body: bytes) -> bytes:
    """The 16-byte proof that whoever sends this body holds the token."""
    return hmac.digest(token, body, hashlib.sha256)[:MAC_BYTES]


def authorization(device_id: bytes, token: bytes, body: bytes) -> str:
    """The value of the header Authorization for this body: "Omega " and 43 characters of base64url."""
    proof = base64.urlsafe_b64encode(device_id + request_mac(token, body))
    return f"{SCHEME} {proof.rstrip(b'=').decode('ascii')}"


def parse_authorization(header: str) -> tuple[bytes, bytes] | None:
    """Device id and proof of a header that authorization() could have made; None for any other text."""
    found = _HEADER.fullmatch(header)
    if found is None:
        return None
    proof = base64.urlsafe_b64decode(found[1] + "=")
    return proof[:DEVICE_ID_BYTES], proof[DEVICE_ID_BYTES:]
