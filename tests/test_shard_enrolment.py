"""How a new device comes by its token, from a real shard over HTTP."""

from __future__ import annotations

import os

import pytest

from cloud.enrolment import BURST, TOKENS_PER_SECOND, Enrolment
from omega_edge.sync_identity import device_token
from tests.shard_processes import DEVICE_KEY, Television, running

PATH = "/api/v1/devices"


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    with running(tmp_path_factory.mktemp("shard")) as started:
        yield started


def test_a_new_device_gets_the_token_that_its_syncs_are_checked_by(shard):
    device_id = os.urandom(16)
    answer = shard.call("POST", PATH, device_id)
    assert (answer.status, answer.body) == (201, device_token(DEVICE_KEY, device_id))
    assert shard.call("POST", PATH, device_id).body == answer.body, "a lost reply can be asked for again"


def test_the_token_of_a_device_in_use_is_given_to_nobody(shard):
    television = Television(shard)
    television.tell("t001")
    assert shard.call("POST", PATH, television.device_id).status == 409


@pytest.mark.parametrize("body", [b"", b"x" * 15, b"x" * 17, b"x" * 3_000])
def test_what_is_no_device_id_gets_none(shard, body):
    assert shard.call("POST", PATH, body).status == (400 if len(body) < 16 else 413)


def test_other_methods_are_told_which(shard):
    assert shard.call("GET", PATH).status == 405


def test_closed_enrolment_gives_none(tmp_path):
    with running(tmp_path, ENROLMENT="closed") as closed:
        assert closed.call("POST", PATH, b"d" * 16).status == 403


class NoDevices:
    """A store that knows nobody."""

    def device(self, device_id: bytes) -> None:
        return None


def test_tokens_are_given_at_a_bounded_rate():
    now = [0.0]
    enrolment = Enrolment(True, DEVICE_KEY, NoDevices(), lambda: now[0])
    statuses = [enrolment.answer(number.to_bytes(16, "big")).status for number in range(BURST + 1)]
    assert statuses == [201] * BURST + [503]
    now[0] = 3 / TOKENS_PER_SECOND
    assert [enrolment.answer(number.to_bytes(16, "big")).status for number in range(4)] == [201, 201, 201, 503]
