"""The manifest of a lineage of bundles: which bundle is the newest, and how a television gets it. A JSON object, signed.

    {"format": 1, "lineage": 16 hex digits, "version": of the bundle, "sequence": of the manifest, "built_at": Unix ms,
     "file": name, "size": bytes, "sha256": 64 hex digits,
     "deltas": [{"from_sha256": of the bundle that it is for, "from_version", "file", "size", "sha256"}, ...]}

Each manifest of a lineage has a greater sequence than the one before it, and never a lower version. Unknown keys are
ignored.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

from omega_edge.bundle_delta import MAX_BUNDLE_BYTES, MAX_DELTA_BYTES
from omega_edge.errors import CatalogError
from omega_edge.protocol import MAX_TIMESTAMP_MS

FORMAT = 1
KIND = "manifest"
"""Of the signed object."""
MAX_MANIFEST_BYTES = 16 * 1024
MAX_DELTAS = 16
MAX_COUNTER = (1 << 53) - 1
"""JSON's whole numbers are exact up to here in every language."""

_LINEAGE = re.compile(r"[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}(\.[a-z]{1,16})?")


@dataclass(frozen=True, slots=True)
class DeltaFile:
    """A delta from one older bundle. sha256: of the delta's file."""

    from_version: int
    from_sha256: str
    file: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The newest bundle of a lineage. size: bytes of its file; built_at: Unix ms."""

    lineage: str
    version: int
    sequence: int
    built_at: int
    file: str
    size: int
    sha256: str
    deltas: tuple[DeltaFile, ...] = ()

    def to_bytes(self) -> bytes:
        """The payload to sign: same manifest, same bytes. CatalogError where a reader would refuse it."""
        payload = json.dumps({"format": FORMAT} | asdict(self), sort_keys=True, separators=(",", ":")).encode("ascii")
        read_manifest(payload)
        return payload


def read_manifest(payload: bytes) -> Manifest:
    """The manifest in the payload of a signed object. CatalogError, and nothing else, for any other bytes."""
    if len(payload) > MAX_MANIFEST_BYTES:
        raise _unfit(f"at most {MAX_MANIFEST_BYTES} bytes", len(payload))
    try:
        fields = json.loads(payload.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _unfit("a JSON object", type(error).__name__) from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise _unfit(f"a JSON object of format {FORMAT}", "another")
    deltas = fields.get("deltas")
    if not isinstance(deltas, list) or len(deltas) > MAX_DELTAS or not all(isinstance(delta, dict) for delta in deltas):
        raise _unfit(f"deltas: a list of at most {MAX_DELTAS} objects", "something else")
    whole = {name: _checked(name, fields.get(name)) for name in _FIELDS if not name.startswith("from_")}
    parts = ("from_version", "from_sha256", "file", "size", "sha256")
    return Manifest(
        **whole,
        deltas=tuple(DeltaFile(**{name: _checked(name, delta.get(name)) for name in parts}) for delta in deltas),
    )


def _text(form: re.Pattern[str]):
    return lambda value: isinstance(value, str) and form.fullmatch(value) is not None


def _number(most: int):
    return lambda value: type(value) is int and 0 <= value <= most


_FIELDS = {
    "lineage": ("16 hex digits", _text(_LINEAGE)),
    "version": ("a whole number", _number(MAX_COUNTER)),
    "sequence": ("a whole number", _number(MAX_COUNTER)),
    "built_at": ("Unix ms", _number(MAX_TIMESTAMP_MS)),
    "file": ("a file name of letters, digits, '-' and '_'", _text(_FILE)),
    "size": (f"at most {MAX_BUNDLE_BYTES} bytes", _number(min(MAX_BUNDLE_BYTES, MAX_DELTA_BYTES))),
    "sha256": ("64 hex digits", _text(_SHA256)),
    "from_version": ("a whole number", _number(MAX_COUNTER)),
    "from_sha256": ("64 hex digits", _text(_SHA256)),
}
"""Of each field: what is expected, and whether a value is that."""


def _checked(name: str, value: object) -> object:
    expected, fits = _FIELDS[name]
    if not fits(value):
        raise _unfit(f"{name}: {expected}", repr(value)[:80])
    return value


def _unfit(expected: str, got: object) -> CatalogError:
    return CatalogError(f"manifest: expected {expected}, got {got}")
