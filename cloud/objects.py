"""What is inside the federation's signed objects: a CBOR map with integer keys, many numbers of one kind in one column.

A column is little-endian integers of one width, stored byte plane by byte plane (the lowest bytes of all numbers first),
which zstd packs far better than whole numbers. Objects come from whoever holds a trusted key, so they are verified before
anything here reads them; sizes are capped before anything is inflated all the same.
"""

from __future__ import annotations

import cbor2
import numpy as np
import zstandard

from omega_edge.errors import ProtocolError
from omega_edge.wire_fields import Fields, check_length

MAX_INFLATED_BYTES = 256 << 20
"""Of one object. The fullest, 35 days of votes for 2^20 titles, has 440 MB and is refused by its writer; 9,000 titles need
5 MB."""
_WINDOW_LOG = 23
_LEVEL = 3


def pack(fields: dict[int, object]) -> bytes:
    """The payload of these fields. Equal fields give equal bytes with one version of zstd."""
    body = cbor2.dumps(fields, canonical=True)
    if len(body) > MAX_INFLATED_BYTES:
        raise ProtocolError(f"object: expected at most {MAX_INFLATED_BYTES} bytes, got {len(body)}; count fewer days")
    parameters = zstandard.ZstdCompressionParameters.from_level(_LEVEL, window_log=_WINDOW_LOG, write_content_size=1)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(body)


def unpack(name: str, payload: bytes, max_inflated: int = MAX_INFLATED_BYTES) -> Fields:
    """The fields of a payload, unchecked but for being a map with integer keys. Raises ProtocolError for other bytes."""
    try:
        size = zstandard.get_frame_parameters(payload).content_size
        if size > max_inflated:  # an undeclared size reads as 2^64 - 1
            raise ProtocolError(f"{name}: expected a declared size of at most {max_inflated} bytes, got {size}")
        reader = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG).stream_reader(payload)
        body = reader.read(size + 1)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"{name}: expected a zstd frame, got an error: {error}") from None
    if len(body) != size:
        raise ProtocolError(f"{name}: expected {size} bytes in the zstd frame, got {len(body)}")
    try:
        return Fields(name, cbor2.loads(body))
    except (cbor2.CBORDecodeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"{name}: expected a CBOR map with integer keys, got an error: {error}") from None


def column(numbers: np.ndarray, dtype: str) -> bytes:
    """The column of integers [n] in a dtype such as "<u4", which must hold them."""
    narrow = np.ascontiguousarray(numbers, dtype)
    return np.ascontiguousarray(narrow.view(np.uint8).reshape(len(narrow), narrow.itemsize).T).tobytes()


def take_column(fields: Fields, key: int, name: str, dtype: str, count: int | None = None) -> np.ndarray:
    """The numbers of a column, in its dtype [n]; count: how many there must be. Raises ProtocolError for another length."""
    data = fields.take(key, name, bytes)
    width = np.dtype(dtype).itemsize
    check_length(name, data, (len(data) // width if count is None else count) * width)
    planes = np.frombuffer(data, np.uint8).reshape(width, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype)


def take_integer(fields: Fields, key: int, name: str, low: int, high: int) -> int:
    """An integer from low to high. Raises ProtocolError for anything else."""
    value = fields.take(key, name, int)
    if not low <= value <= high:
        raise ProtocolError(f"{name}: expected an integer from {low} to {high}, got {value}")
    return value
