"""Publications: signed objects in a folder, and how others read them there or over HTTP.

    index                                  what there is, written last: every other object's kind, sequence and SHA-256
    counts.LINEAGE                         counts.py, one for each lineage of titles that the source counts
    lists.LINEAGE.SHARD.DAY.PART           lists.py, relayed untouched
    collective                             collective.py, made by the hub
    patterns                               global patterns, made by the model job
    bundles/LINEAGE/manifest, …            catalogue bundles, made by the model job; in the index as manifest.LINEAGE

Every file is written beside its place, synced and renamed, so a reader and a killed writer's successor find the old or
the new one whole. Objects carry a sequence inside their signature: a reader never goes back. Over HTTP the objects are at
…/api/v1/federation/NAME, bundles at …/api/v1/bundles/LINEAGE/FILE, for whoever asks: so counts, which no threshold has seen
yet, and lists, which are viewing histories, are encrypted (XSalsa20-Poly1305) under the operator's federation secret. The
nonce is a keyed hash of what is encrypted, so that equal payloads give equal bytes, and no nonce serves two.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from nacl.bindings import crypto_secretbox_NONCEBYTES
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from cloud import counts as counts_
from cloud import lists as lists_
from cloud import objects
from cloud.counts import Counts
from cloud.lists import Lists, Segment
from cloud.names import LINEAGE, OBJECT, SOURCE
from omega_edge import signing
from omega_edge.errors import ConfigError, OmegaError, ProtocolError, SignatureError
from omega_edge.protocol import MAX_TIMESTAMP_MS, U64_MAX
from omega_edge.signing import SigningKey

INDEX = "index"
MAX_INDEX_BYTES = 16 << 20
MAX_ENTRIES = 100_000
MAX_SMALL_BYTES = 64 << 10
"""Of a collective, patterns or manifest object."""
MAX_BYTES = {
    "counts": counts_.MAX_COUNTS_BYTES,
    "lists": lists_.MAX_SEGMENT_BYTES,
    "index": MAX_INDEX_BYTES,
    "collective": MAX_SMALL_BYTES,
    "patterns": MAX_SMALL_BYTES,
    "manifest": MAX_SMALL_BYTES,
}
"""Of a whole object by its kind."""
ENCRYPTED = ("counts", "lists")
"""Kinds that only holders of the federation secret can read."""
NAMES = {
    "counts": re.compile(rf"counts\.{LINEAGE.pattern}"),
    "lists": re.compile(rf"lists\.{LINEAGE.pattern}\.{SOURCE.pattern}\.[0-9]{{1,9}}\.[0-9]{{1,3}}"),
    "collective": re.compile("collective"),
    "patterns": re.compile("patterns"),
    "manifest": re.compile(rf"manifest\.{LINEAGE.pattern}"),
}
"""What an object of each kind can be called."""
MIN_SECRET_BYTES = 16
TIMEOUT_SECONDS = 10.0

_CHUNK_BYTES = 1 << 20
_HASH_BYTES = 16


class SourceUnavailable(OmegaError):
    """A source that does not answer, answers too slowly, too much, or with an error."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of an index. digest: the first 16 bytes of the whole object's SHA-256."""

    kind: str
    sequence: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Index:
    """What a source publishes, by name."""

    source: str
    sequence: int
    made_ms: int
    entries: dict[str, Entry]


class Reader(Protocol):
    """Where objects are read: a folder or a server."""

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """The bytes of an object or bundles/LINEAGE/FILE, None where there is none. Raises SourceUnavailable."""


class FolderReader:
    """Reads a publication's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """See Reader."""
        try:
            with open(self._folder / name, "rb") as file:
                data = file.read(max_bytes + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SourceUnavailable(f"{self._folder}: expected to read {name}, got {error.strerror}") from None
        if len(data) > max_bytes:
            raise SourceUnavailable(f"{self._folder}: expected at most {max_bytes} bytes of {name}, got more")
        return data


class HttpReader:
    """Reads a publication at http(s)://HOST/api/v1/federation/.

    timeout_seconds: for each object, from its request to its last byte, so that no server can hold a reader for longer.
    Redirections are not followed.
    """

    def __init__(self, url: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f"source: expected http://HOST/api/v1/federation/ or a folder, got {url!r}")
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._path = parts.path.rstrip("/")
        self._timeout = timeout_seconds
        self._shown = f"{parts.hostname}:{parts.port or (443 if self._secure else 80)}"

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """See Reader."""
        deadline = time.monotonic() + self._timeout
        connect = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = connect(self._host, self._port, timeout=self._timeout)
        try:
            connection.request("GET", self._path_of(name), headers={"Accept-Encoding": "identity"})
            response = connection.getresponse()
            if response.status == http.HTTPStatus.NOT_FOUND:
                return None
            if response.status != http.HTTPStatus.OK:
                raise SourceUnavailable(f"{self._shown}: expected status 200 for {name}, got {response.status}")
            return b"".join(self._chunks(response, name, max_bytes, deadline))
        except (OSError, http.client.HTTPException) as error:
            raise SourceUnavailable(f"{self._shown}: expected {name}, got {type(error).__name__}: {error}") from None
        finally:
            connection.close()

    def _path_of(self, name: str) -> str:
        if name.startswith("bundles/"):
            return f"{self._path.rsplit('/', 1)[0]}/{name}"
        return f"{self._path}/{name}"

    def _chunks(self, response: http.client.HTTPResponse, name: str, max_bytes: int, deadline: float) -> Iterator[bytes]:
        left = max_bytes
        if (response.length or 0) > left:
            raise SourceUnavailable(f"{self._shown}: expected at most {max_bytes} bytes of {name}, got {response.length}")
        while chunk := response.read1(min(_CHUNK_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise SourceUnavailable(f"{self._shown}: expected at most {max_bytes} bytes of {name}, got more")
            if time.monotonic() > deadline:
                raise SourceUnavailable(f"{self._shown}: expected {name} within {self._timeout:g} s; it is too slow")
            yield chunk
        if response.length:
            raise SourceUnavailable(f"{self._shown}: expected the whole of {name}, got {response.length} bytes less")


def reader_of(location: str | os.PathLike[str], timeout_seconds: float = TIMEOUT_SECONDS) -> Reader:
    """The reader of a URL or a folder. Raises ConfigError for a URL of another form."""
    text = os.fspath(location)
    return HttpReader(text, timeout_seconds) if "://" in text else FolderReader(Path(text))


def read_index(reader: Reader, trusted: Collection[bytes]) -> Index | None:
    """A source's index, verified; None where it has none yet.

    Raises SourceUnavailable, SignatureError (nobody trusted signed it) and ProtocolError (its signer wrote nonsense).
    """
    data = reader.read(INDEX, MAX_INDEX_BYTES)
    return None if data is None else decode_index(signing.unseal(data, INDEX, trusted, MAX_INDEX_BYTES))


def read_object(
    reader: Reader, name: str, kind: str, trusted: Collection[bytes], secret: bytes
) -> tuple[bytes, bytes] | None:
    """(the whole object, its payload), verified and decrypted; None where there is none. Raises SourceUnavailable and
    SignatureError."""
    data = reader.read(name, MAX_BYTES[kind])
    return None if data is None else (data, opened(data, kind, trusted, secret))


def sealed(kind: str, payload: bytes, key: SigningKey, secret: bytes) -> bytes:
    """The signed object of a payload, encrypted where its kind is."""
    if kind in ENCRYPTED:
        nonce = hashlib.blake2b(payload, digest_size=crypto_secretbox_NONCEBYTES, key=_derived(secret, b"nonce")).digest()
        payload = bytes(SecretBox(_derived(secret, b"box")).encrypt(payload, nonce))
    return signing.seal(kind, payload, key)


def opened(data: bytes, kind: str, trusted: Collection[bytes], secret: bytes) -> bytes:
    """The payload of a signed object, decrypted where its kind is. Raises SignatureError for any other bytes."""
    payload = signing.unseal(data, kind, trusted, MAX_BYTES[kind])
    if kind not in ENCRYPTED:
        return payload
    try:
        return SecretBox(_derived(secret, b"box")).decrypt(payload)
    except (CryptoError, ValueError):
        raise SignatureError(f"{kind}: expected it encrypted under this FEDERATION_SECRET, got other bytes") from None


def check_secret(secret: bytes) -> bytes:
    """The federation secret, if it is long enough. Raises ConfigError."""
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError(f"FEDERATION_SECRET: expected {MIN_SECRET_BYTES} bytes or more, got {len(secret)}")
    return secret


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return hashlib.blake2b(check_secret(secret), digest_size=32, person=b"omega " + purpose).digest()


def read_lists(
    location: str | os.PathLike[str], trusted: Collection[bytes], secret: bytes, lineage: str | None = None
) -> Lists:
    """The lists of all homes in the publication of a hub or region, folder or URL; see lists.Lists for the arrays.

    trusted: public keys (signing.read_public_keys) of the shards and of who publishes. secret: the federation's. lineage: of whose titles, where there may be several;
    None: of the only one. Empty lists where nothing is published. Raises SourceUnavailable, SignatureError, ProtocolError.
    """
    return lists_.union(read_segments(location, trusted, secret, lineage))


def read_segments(
    location: str | os.PathLike[str], trusted: Collection[bytes], secret: bytes, lineage: str | None = None
) -> Iterator[Segment]:
    """The segments that read_lists() unites, one after the other."""
    reader = reader_of(location)
    index = read_index(reader, trusted)
    for name, entry in sorted(index.entries.items()) if index is not None else ():
        if entry.kind == "lists" and (lineage is None or name.split(".")[1] == lineage):
            found = read_object(reader, name, "lists", trusted, secret)
            if found is not None:  # else it was withdrawn since the index was read
                segment = decode_segment(name, found[1])
                _check_sequence(name, segment.sequence, entry)
                yield segment


def read_counts(
    location: str | os.PathLike[str], trusted: Collection[bytes], secret: bytes, lineage: str | None = None
) -> Counts | None:
    """The counts in the publication of a hub, region or shard, folder or URL; None where there are none.

    lineage: of whose titles; None: of the only one. Raises ProtocolError where there are several, SourceUnavailable and
    SignatureError.
    """
    reader = reader_of(location)
    index = read_index(reader, trusted)
    entries = index.entries.items() if index is not None else ()
    named = {name: entry for name, entry in entries if entry.kind == "counts" and lineage in (None, name.split(".")[1])}
    if not named:
        return None
    if len(named) > 1:
        raise ProtocolError(f"counts: expected those of one lineage, got {', '.join(sorted(named))}; choose one")
    ((name, entry),) = named.items()
    found = read_object(reader, name, "counts", trusted, secret)
    if found is None:
        return None
    counts = decode_counts(name, found[1])
    _check_sequence(name, counts.sequence, entry)
    return counts


def _check_sequence(name: str, sequence: int, entry: Entry) -> None:
    """Refuse an object that is older than its index says, as one from before a device was erased; a newer one may be on its way."""
    if sequence < entry.sequence:
        raise ProtocolError(f"{entry.kind}: expected sequence {entry.sequence} or more of {name}, got {sequence}: an old one")


def decode_segment(name: str, payload: bytes) -> Segment:
    """The segment of a payload. Raises ProtocolError for other bytes, and where it belongs under another name."""
    segment = lists_.decode(payload)
    if segment.name != name:
        raise ProtocolError(f"lists: expected {name}, got {segment.name} under that name")
    return segment


def decode_counts(name: str, payload: bytes) -> Counts:
    """The counts of a payload. Raises ProtocolError for other bytes, and where they belong under another name."""
    counts = counts_.decode(payload)
    if counts.name != name:
        raise ProtocolError(f"counts: expected {name}, got {counts.name} under that name")
    return counts


def encode_index(index: Index) -> bytes:
    """The payload of an index."""
    entries = {name: [entry.kind, entry.sequence, entry.digest] for name, entry in index.entries.items()}
    return objects.pack({1: index.source, 2: index.sequence, 3: index.made_ms, 4: entries})


def decode_index(payload: bytes) -> Index:
    """The index of a payload. Raises ProtocolError for any other bytes."""
    fields = objects.unpack(INDEX, payload, MAX_INDEX_BYTES * 4)
    source, listed = fields.take(1, "source", str), fields.take(4, "entries", dict)
    if not SOURCE.fullmatch(source):
        raise ProtocolError("index.source: expected up to 32 lower-case letters, digits and hyphens, got something else")
    if len(listed) > MAX_ENTRIES:
        raise ProtocolError(f"index.entries: expected at most {MAX_ENTRIES}, got {len(listed)}")
    sequence = objects.take_integer(fields, 2, "sequence", 0, U64_MAX)
    made_ms = objects.take_integer(fields, 3, "made_ms", 0, MAX_TIMESTAMP_MS)
    return Index(source, sequence, made_ms, {name: _entry(name, value) for name, value in listed.items()})


def _entry(name: object, value: object) -> Entry:
    if type(name) is not str or not OBJECT.fullmatch(name) or type(value) is not list or len(value) != 3:
        raise ProtocolError("index.entries: expected [kind, sequence, digest] under a name, got something else")
    kind, sequence, digest = value
    if type(kind) is not str or kind not in NAMES or not NAMES[kind].fullmatch(name):
        raise ProtocolError(f"index.entries: expected a name of its kind, got {name}")
    if type(sequence) is not int or not 0 <= sequence <= U64_MAX:
        raise ProtocolError(f"index.entries: expected a sequence of 64 bits for {name}, got another value")
    if type(digest) is not bytes or len(digest) != _HASH_BYTES:
        raise ProtocolError(f"index.entries: expected a digest of {_HASH_BYTES} bytes for {name}, got another")
    return Entry(kind, sequence, digest)


def digest_of(data: bytes) -> bytes:
    """The first 16 bytes of the SHA-256 of an object, as an index tells them."""
    return hashlib.sha256(data).digest()[:_HASH_BYTES]


def write_file(path: Path, data: bytes) -> None:
    """Put a file in its place, whole and durable, or not at all; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Publication:
    """A folder of signed objects and its one writer.

    Others (the model job) may put files into the folder too; only what commit() is told of is in the index.
    """

    def __init__(self, folder: Path, source: str, key: SigningKey, secret: bytes) -> None:
        """Open or make the folder. Raises ConfigError for a source of another form.

        An index that this key did not sign counts as none: everything is then written anew.
        """
        if not SOURCE.fullmatch(source):
            raise ConfigError(f"source: expected up to 32 lower-case letters, digits and hyphens, got {source!r}")
        self.folder, self.source, self._key, self.secret = folder, source, key, check_secret(secret)
        self._given = 0
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("counts", "lists", INDEX):
            for left_over in folder.glob(f".{name}*.new"):
                left_over.unlink(missing_ok=True)
        self._reader, self._trusted = FolderReader(folder), (signing.public_key(key),)
        try:
            self.index = read_index(self._reader, self._trusted) or Index(source, 0, 0, {})
        except (SignatureError, ProtocolError):
            self.index = Index(source, 0, 0, {})
        for kind in ("counts", "lists"):  # written, or withdrawn, by a process that ended before it had finished
            for path in folder.glob(f"{kind}.*"):
                if path.name not in self.index.entries:
                    path.unlink(missing_ok=True)

    def next_sequence(self, now_ms: int) -> int:
        """Above every sequence of this source so far, each time, even where its folder was lost: the clock's milliseconds, or
        one more than the last."""
        self._given = max(self._given + 1, self.index.sequence + 1, now_ms)
        return self._given

    def stored(self, name: str, entry: Entry | None) -> bytes | None:
        """The payload of one's own object, of index.entries or put() since; None where there is none that is sound."""
        try:
            found = None if entry is None else read_object(self._reader, name, entry.kind, self._trusted, self.secret)
        except (SignatureError, SourceUnavailable):
            return None
        return None if found is None else found[1]

    def put(self, name: str, kind: str, sequence: int, payload: bytes) -> Entry:
        """Sign and write an object; it is published with the next commit()."""
        return self.relay(name, kind, sequence, sealed(kind, payload, self._key, self.secret))

    def relay(self, name: str, kind: str, sequence: int, data: bytes) -> Entry:
        """Write an object that another signed, and the caller verified, as it is."""
        assert OBJECT.fullmatch(name) and name != INDEX, name
        write_file(self.folder / name, data)
        return Entry(kind, sequence, digest_of(data))

    def commit(self, entries: dict[str, Entry], now_ms: int) -> bool:
        """Publish exactly these objects, and delete files that were published and no longer are. Whether anything changed."""
        if entries == self.index.entries:
            return False
        index = Index(self.source, self.next_sequence(now_ms), now_ms, dict(entries))
        write_file(self.folder / INDEX, signing.seal(INDEX, encode_index(index), self._key))
        withdrawn = self.index.entries.keys() - entries.keys()
        self.index = index
        for name in withdrawn:
            (self.folder / name).unlink(missing_ok=True)
        return True
