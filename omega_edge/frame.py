"""Frames: a CBOR map with integer keys ⇄ a few bytes, with every bound checked before memory is spent.

    byte 0   format version, 1
    byte 1   kind of message (wire.py)
    byte 2   body: 0 the CBOR itself, 1 the CBOR as one zstd frame, where that is smaller by a few bytes
    byte 3   zstd dictionary: 0 none; 1 wire_1.dictionary, and then the zstd frame's magic number is left out
    byte 4…  body

What a reader refuses, in this order: a frame over the cap of its direction; a foreign header; a zstd body that is not
exactly one frame with a declared content size of at most MAX_INFLATED_BYTES, no window above it, no dictionary and no
checksum; CBOR that is not one complete definite-length item of few items, shallow, without tags. Only then is anything
inflated, and only then is any object made.
"""

from __future__ import annotations

import functools
import threading
from pathlib import Path

import cbor2
import zstandard

from omega_edge.errors import ProtocolError

FORMAT_VERSION = 1
HEADER_BYTES = 4
MAX_INFLATED_BYTES = 16 * 1024
MAX_DEPTH = 8
"""Containers inside containers. The deepest message today has 4."""
MAX_ITEMS = 2048
"""CBOR items in one body. The fullest message, every title as text, has about 1,700."""

BODY_RAW = 0
BODY_ZSTD = 1
DICTIONARY_NONE, DICTIONARY = 0, 1
LEAST_DEFLATED_BYTES = 96
LEAST_SAVED_BYTES = 8
"""Smaller bodies are mostly random numbers, and a few bytes are not worth the time of inflating them."""

_ZSTD_LEVEL = 19
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_MAX_HEADER_BYTES = 18
_RLE_BLOCK = 1

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_SIMPLE_ALLOWED = frozenset({20, 21, 22, 25, 26, 27})
"""false, true, null, and the three widths of float."""


def pack(kind: int, fields: dict[int, object], max_bytes: int) -> bytes | None:
    """The frame of a message, or None where it would exceed max_bytes or inflate to more than MAX_INFLATED_BYTES.

    The CBOR is the deterministic encoding of RFC 8949, section 4.2.1: equal fields give equal bytes. zstd output may
    differ between versions of that library, so only frames with a raw body are the same everywhere.
    """
    body = cbor2.dumps(fields, canonical=True)
    if len(body) > MAX_INFLATED_BYTES:
        return None
    header, smallest = bytes((FORMAT_VERSION, kind, BODY_RAW, DICTIONARY_NONE)), body
    if len(body) >= LEAST_DEFLATED_BYTES:
        deflated = _deflated(body)
        if len(deflated) + LEAST_SAVED_BYTES <= len(body):
            header, smallest = bytes((FORMAT_VERSION, kind, BODY_ZSTD, DICTIONARY)), deflated
    frame = header + smallest
    return frame if len(frame) <= max_bytes else None


def pack_raw(kind: int, fields: dict[int, object], max_bytes: int) -> bytes | None:
    """The frame of a message whose body stays as it is, or None where it would exceed max_bytes."""
    frame = bytes((FORMAT_VERSION, kind, BODY_RAW, DICTIONARY_NONE)) + cbor2.dumps(fields, canonical=True)
    return frame if len(frame) <= max_bytes else None


def unpack(data: bytes, kind: int, max_bytes: int) -> dict[int, object]:
    """The fields of a frame of this kind, at most max_bytes long; ProtocolError for any other bytes.

    The fields hold int, float, bool, None, bytes, str, lists and dicts of these, and are otherwise unchecked.
    """
    body = content(data, kind, max_bytes)
    _check_structure(body)
    try:
        fields = cbor2.loads(body, allow_duplicate_keys=False)
    except cbor2.CBORDecodeError as error:
        raise ProtocolError(f"frame: expected well-formed CBOR, got an {error}") from None
    if type(fields) is not dict:
        raise ProtocolError(f"frame: expected a CBOR map, got {type(fields).__name__}")
    return fields


def content(data: bytes, kind: int, max_bytes: int) -> bytes:
    """The CBOR of a frame, inflated but unchecked; ProtocolError unless it is a frame of this kind within its bounds."""
    if type(data) is not bytes:
        raise ProtocolError(f"frame: expected bytes, got {type(data).__name__}")
    if not HEADER_BYTES < len(data) <= max_bytes:
        raise ProtocolError(f"frame: expected {HEADER_BYTES + 1} to {max_bytes} bytes, got {len(data)}")
    version, kind_found, marker, dictionary = data[:HEADER_BYTES]
    if version != FORMAT_VERSION:
        raise ProtocolError(f"frame: expected format version {FORMAT_VERSION}, got {version}; update the older side")
    if kind_found != kind:
        raise ProtocolError(f"frame: expected a message of kind {kind}, got kind {kind_found}")
    if dictionary not in (DICTIONARY_NONE, DICTIONARY):
        raise ProtocolError(
            f"frame: expected dictionary {DICTIONARY_NONE} (none) or {DICTIONARY}, got {dictionary}, which is unknown"
        )
    body = data[HEADER_BYTES:]
    if marker == BODY_ZSTD:
        body = _inflate(body) if dictionary == DICTIONARY_NONE else _inflate(_ZSTD_MAGIC + body, _dictionary())
    elif marker != BODY_RAW:
        raise ProtocolError(f"frame: expected a body marked {BODY_RAW} (CBOR) or {BODY_ZSTD} (zstd), got {marker}")
    elif dictionary != DICTIONARY_NONE:
        raise ProtocolError(f"frame: expected dictionary {DICTIONARY_NONE} (none) beside CBOR, got {dictionary}")
    if len(body) > MAX_INFLATED_BYTES:
        raise ProtocolError(f"frame: expected at most {MAX_INFLATED_BYTES} bytes of CBOR, got {len(body)}")
    return body


@functools.cache
def _dictionary() -> zstandard.ZstdCompressionDict:
    """The dictionary of this format version, read once."""
    content = Path(__file__).with_name(f"wire_{DICTIONARY}.dictionary").read_bytes()
    return zstandard.ZstdCompressionDict(content, dict_type=zstandard.DICT_TYPE_FULLDICT)


class _Decompressors(threading.local):
    """Each thread's own: one can do one thing at a time, and making one costs more than a small frame."""

    def __init__(self) -> None:
        self._plain: zstandard.ZstdDecompressor | None = None
        self._by_dictionary: zstandard.ZstdDecompressor | None = None

    def of(self, dictionary: zstandard.ZstdCompressionDict | None) -> zstandard.ZstdDecompressor:
        """The one with this dictionary, which is the only one there is, or without."""
        if dictionary is None:
            self._plain = self._plain or zstandard.ZstdDecompressor(max_window_size=MAX_INFLATED_BYTES)
            return self._plain
        if self._by_dictionary is None:
            self._by_dictionary = zstandard.ZstdDecompressor(dictionary, max_window_size=MAX_INFLATED_BYTES)
        return self._by_dictionary


_decompressors = _Decompressors()


def _deflated(body: bytes) -> bytes:
    """The body as a zstd frame by the dictionary, without its magic number."""
    compressor = zstandard.ZstdCompressor(
        level=_ZSTD_LEVEL, dict_data=_dictionary(), write_checksum=False, write_content_size=True, write_dict_id=False
    )
    return compressor.compress(body)[len(_ZSTD_MAGIC) :]


def _inflate(deflated: bytes, dictionary: zstandard.ZstdCompressionDict | None = None) -> bytes:
    """The content of a zstd body, every size checked first.

    The header is judged before the decoder sees it: python-zstandard's one-shot decompress allocates whatever size the
    header declares, whatever its max_output_size, and then writes no byte more. A content that is not as long as declared
    is an error.
    """
    if deflated[:4] != _ZSTD_MAGIC:
        raise ProtocolError("frame: expected a zstd frame, got another magic number")
    try:
        parameters = zstandard.get_frame_parameters(deflated[:_MAX_HEADER_BYTES])
        header_bytes = zstandard.frame_header_size(deflated[:_MAX_HEADER_BYTES])
    except zstandard.ZstdError as error:
        raise ProtocolError(f"frame: expected a zstd frame header, got an error: {error}") from None
    for name, value in (("content", parameters.content_size), ("window", parameters.window_size)):
        if value > MAX_INFLATED_BYTES:  # an undeclared content size reads as 2^64 - 1
            raise ProtocolError(f"frame: expected a zstd {name} size of at most {MAX_INFLATED_BYTES}, got {value}")
    if parameters.dict_id or parameters.has_checksum:
        raise ProtocolError("frame: expected a zstd frame without dictionary id and checksum, got one that has them")
    _check_blocks(deflated, header_bytes)
    try:
        body = _decompressors.of(dictionary).decompress(deflated)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"frame: expected a sound zstd frame, got an error: {error}") from None
    if len(body) != parameters.content_size:
        raise ProtocolError(f"frame: expected {parameters.content_size} bytes in the zstd frame, got {len(body)}")
    return body


def _check_blocks(deflated: bytes, position: int) -> None:
    """ProtocolError unless the blocks from position on end, with one marked last, exactly where the bytes end.

    That leaves no room for trailing bytes or a second frame. A block's head is 3 bytes, little-endian: bit 0 last,
    bits 1–2 type, the rest its size; an RLE block holds one byte whatever its size (RFC 8878, section 3.1.1.2).
    """
    last = False
    while not last:
        head = int.from_bytes(deflated[position : position + 3], "little")
        last, block_type, size = bool(head & 1), head >> 1 & 3, head >> 3
        position += 3 + (1 if block_type == _RLE_BLOCK else size)
        if position > len(deflated):
            raise ProtocolError("frame: expected whole zstd blocks, got a truncated one")
    if position != len(deflated):
        raise ProtocolError(f"frame: expected one zstd frame, got {len(deflated) - position} bytes after it")


def _sizes() -> tuple[int, ...]:
    """By an item's first byte: how many bytes it has, if the byte tells that and the item holds no other; else 0."""
    sizes = [0] * 256
    for first in range(256):
        major, argument = first >> 5, first & 31
        width = 0 if argument < 24 else 1 << argument - 24 if argument < 28 else None
        if width is None:
            continue
        if major in (_UNSIGNED, _NEGATIVE) or (major == _SIMPLE and argument in _SIMPLE_ALLOWED):
            sizes[first] = 1 + width
        elif major in (_BYTES, _TEXT) and argument < 24:
            sizes[first] = 1 + argument
    return tuple(sizes)


_SIZES = _sizes()


def _check_structure(body: bytes) -> None:
    """ProtocolError unless the bytes are one complete CBOR item within MAX_DEPTH and MAX_ITEMS, of definite lengths,
    without tags (which can make a decoder build big numbers, dates, regular expressions or cycles).
    """
    position, items, end = 0, 0, len(body)
    waiting = 1
    outer: list[int] = []
    """waiting: items still to come in the innermost open container; outer: in those around it, outermost first."""
    while True:
        while waiting == 0:
            if not outer:
                if position != end:
                    raise ProtocolError(f"frame: expected one CBOR item, got {end - position} bytes after it")
                return
            waiting = outer.pop()
        if position >= end:
            raise ProtocolError("frame: expected complete CBOR, got a truncated item")
        waiting -= 1
        items += 1
        first = body[position]
        size = _SIZES[first]
        if size:
            position += size
        else:
            position, inner = _step_into(body, position, first)
            if inner is not None:
                outer.append(waiting)
                waiting = inner
        if position > end or items + waiting > MAX_ITEMS or len(outer) > MAX_DEPTH:
            raise ProtocolError(
                f"frame: expected whole CBOR items, at most {MAX_ITEMS} of them and {MAX_DEPTH} deep, got more"
            )


def _step_into(body: bytes, position: int, first: int) -> tuple[int, int | None]:
    """Where the item after this one begins, or its first inner one, and how many inner ones a container has (else None)."""
    major, argument = first >> 5, first & 31
    position += 1
    if major == _TAG or (major == _SIMPLE and argument not in _SIMPLE_ALLOWED):
        raise ProtocolError("frame: expected CBOR without tags and unassigned simple values, got one")
    if argument > 27:
        raise ProtocolError("frame: expected CBOR of definite lengths, got an indefinite or reserved length")
    if argument > 23:
        width = 1 << argument - 24
        argument = int.from_bytes(body[position : position + width], "big")
        position += width
    if major in (_BYTES, _TEXT):
        return position + argument, None
    return position, argument * 2 if major == _MAP else argument
