"""Signed objects: what is sealed comes back, and everything else is refused with its fault named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omega_edge import ConfigError, SignatureError, signing
from omega_edge.signing import HEADER_BYTES, SigningKey, public_key, seal, unseal

KEY = SigningKey(bytes(range(32)))
OTHER = SigningKey(bytes(range(1, 33)))
TRUSTED = (public_key(KEY),)
MAX_BYTES = 4096


@given(st.sampled_from(signing.KINDS), st.binary(max_size=300))
def test_what_is_sealed_comes_back(kind, payload):
    assert unseal(seal(kind, payload, KEY), kind, TRUSTED, MAX_BYTES) == payload


def test_equal_payloads_give_equal_bytes():
    # Ed25519 is deterministic: an object that has not changed keeps its ETag.
    assert seal("counts", b"payload", KEY) == seal("counts", b"payload", KEY)


def test_the_layout_is_the_documented_one():
    data = seal("counts", b"payload", KEY)
    assert data[:8] == b"OMSO\x01\0\0\0"
    assert data[8:24] == b"counts" + bytes(10)
    assert data[24:32] == (7).to_bytes(8, "big")
    assert data[32:64] == public_key(KEY)
    assert data[HEADER_BYTES:] == b"payload"


@pytest.mark.parametrize("place", range(HEADER_BYTES + 7))
def test_every_changed_byte_is_refused(place):
    data = bytearray(seal("counts", b"payload", KEY))
    data[place] ^= 1
    with pytest.raises(SignatureError):
        unseal(bytes(data), "counts", TRUSTED, MAX_BYTES)


@pytest.mark.parametrize("length", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 6])
def test_every_shorter_object_is_refused(length):
    with pytest.raises(SignatureError):
        unseal(seal("counts", b"payload", KEY)[:length], "counts", TRUSTED, MAX_BYTES)


def test_bytes_after_the_payload_are_refused():
    with pytest.raises(SignatureError, match="length"):
        unseal(seal("counts", b"payload", KEY) + b"\0", "counts", TRUSTED, MAX_BYTES)


def test_another_kind_is_refused_and_named():
    with pytest.raises(SignatureError, match="manifest.*of kind counts"):
        unseal(seal("counts", b"payload", KEY), "manifest", TRUSTED, MAX_BYTES)


def test_an_untrusted_key_is_refused_and_named():
    with pytest.raises(SignatureError, match=public_key(OTHER).hex()):
        unseal(seal("counts", b"payload", OTHER), "counts", TRUSTED, MAX_BYTES)


def test_a_trusted_name_on_another_keys_signature_is_refused():
    forged = bytearray(seal("counts", b"payload", OTHER))
    forged[32:64] = public_key(KEY)
    with pytest.raises(SignatureError, match="changed"):
        unseal(bytes(forged), "counts", TRUSTED, MAX_BYTES)


def test_too_large_an_object_is_refused():
    with pytest.raises(SignatureError, match="128 to 4096 bytes, got 4097"):
        unseal(seal("counts", bytes(4097 - HEADER_BYTES), KEY), "counts", TRUSTED, MAX_BYTES)


def test_an_unknown_kind_is_refused_by_the_writer_too():
    with pytest.raises(SignatureError, match="expected one of counts"):
        seal("recipe", b"", KEY)


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_with_that_error_alone(data):
    with pytest.raises(SignatureError):
        unseal(data, "counts", TRUSTED, MAX_BYTES)


def test_keys_are_kept_in_files(tmp_path):
    path = tmp_path / "signing.key"
    key = signing.create_signing_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert bytes(signing.read_signing_key(path)) == bytes(key)
    with pytest.raises(FileExistsError):
        signing.create_signing_key(path)


def test_a_damaged_key_file_is_an_error(tmp_path):
    (tmp_path / "signing.key").write_text("not a key")
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        signing.read_signing_key(tmp_path / "signing.key")
    with pytest.raises(FileNotFoundError):
        signing.read_signing_key(tmp_path / "missing.key")


def test_public_keys_are_read_from_text():
    keys = (public_key(KEY), public_key(OTHER))
    assert signing.read_public_keys(f" {keys[0].hex()},\n{keys[1].hex()} ") == keys
    assert signing.read_public_keys("") == ()
    with pytest.raises(ConfigError, match="abc"):
        signing.read_public_keys("abc")
