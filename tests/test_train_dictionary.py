"""The trainer of the wire's dictionary: what it makes is small, the same each time, and as good as the one shipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import zstandard

from omega_edge import frame
from toolchain import wire_dictionary

SHIPPED = Path(frame.__file__).with_name(f"wire_{frame.DICTIONARY}.dictionary")


@pytest.fixture(scope="module")
def trained() -> bytes:
    return wire_dictionary.trained()


def deflated_bytes(dictionary: bytes, bodies: list[bytes]) -> int:
    """What the bodies come to by a dictionary."""
    loaded = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_FULLDICT)
    compressor = zstandard.ZstdCompressor(level=19, dict_data=loaded, write_checksum=False, write_dict_id=False)
    return sum(len(compressor.compress(body)) for body in bodies)


def test_it_is_small_and_the_same_each_time(trained) -> None:
    assert len(trained) <= 8 * 1024 and len(SHIPPED.read_bytes()) <= 8 * 1024
    assert wire_dictionary.trained() == trained


def test_the_one_shipped_is_as_good_as_one_trained_now(trained) -> None:
    # Another zstd library may train another one; the file itself never changes.
    bodies = wire_dictionary.made_bodies(seed=2)[:400]
    assert deflated_bytes(SHIPPED.read_bytes(), bodies) <= 1.02 * deflated_bytes(trained, bodies)


def test_it_helps_messages_it_was_not_trained_on() -> None:
    bodies = [body for body in wire_dictionary.made_bodies(seed=3) if len(body) >= frame.LEAST_DEFLATED_BYTES][:300]
    plain = sum(len(zstandard.ZstdCompressor(level=19, write_checksum=False).compress(body)) for body in bodies)
    assert deflated_bytes(SHIPPED.read_bytes(), bodies) < 0.98 * plain


def test_a_file_that_is_there_is_left_alone(tmp_path, capsys) -> None:
    path = tmp_path / "wire_9.dictionary"
    assert wire_dictionary.main([str(path)]) == 0
    written = path.read_bytes()
    assert wire_dictionary.main([str(path)]) == 1
    assert path.read_bytes() == written and "expected no such file" in capsys.readouterr().err
