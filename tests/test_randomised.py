"""The falsified count report: its hash, its chances, its privacy bound; and who a request is from."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import numpy as np
import pytest

from omega_edge import sync_identity
from omega_edge.protocol import COUNT_CATEGORIES, COUNT_EPSILON
from omega_edge.randomised import (
    GOLDEN_64,
    MIX_FIRST_64,
    MIX_SECOND_64,
    NOTHING_FINISHED,
    category,
    falsified,
    keep_probability,
    mixed,
    title_hash,
)

KEY = bytes(range(32))
DEVICE = bytes.fromhex("243f6a8885a308d313198a2e03707344")


def test_hashes_are_those_of_every_version() -> None:
    """Other values would make the reports of older televisions count for other titles."""
    assert title_hash("2543164") == 0x22B40362FEA074CB
    assert title_hash("Amélie") == 0x77F1EF9BFF7ADC32
    assert NOTHING_FINISHED == 0xB4B2797457A0A6E4
    assert [category(seed, title_hash("2543164")) for seed in (0, 1, 2, 0xFFFFFFFF)] == [16, 2, 48, 18]


def test_numpy_computes_the_same_categories() -> None:
    random = Random(1)
    seeds = [random.getrandbits(32) for _ in range(500)]
    hashes = [random.getrandbits(64) for _ in range(500)]

    def mixed_all(numbers: np.ndarray) -> np.ndarray:
        numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(MIX_FIRST_64)
        numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(MIX_SECOND_64)
        return numbers ^ numbers >> np.uint64(31)

    keys = mixed_all((np.array(seeds, np.uint64) + np.uint64(1)) * np.uint64(GOLDEN_64))
    found = (mixed_all(np.array(hashes, np.uint64) ^ keys) >> np.uint64(32)) * np.uint64(COUNT_CATEGORIES) >> np.uint64(32)
    assert found.tolist() == [category(seed, hashed) for seed, hashed in zip(seeds, hashes, strict=True)]


def test_two_titles_share_a_category_as_often_as_chance() -> None:
    """Else the estimate of one title would count another's viewers."""
    first, second = title_hash("t001"), title_hash("t002")
    shared = sum(category(seed, first) == category(seed, second) for seed in range(100_000)) / 100_000
    assert shared == pytest.approx(1 / COUNT_CATEGORIES, abs=5 * math.sqrt(1 / COUNT_CATEGORIES / 100_000))
    values = Counter(category(seed, first) for seed in range(100_000))
    assert set(values) == set(range(COUNT_CATEGORIES))
    assert max(abs(count - 100_000 / COUNT_CATEGORIES) for count in values.values()) < 5 * math.sqrt(100_000 / COUNT_CATEGORIES)


def test_mixing_is_one_to_one_where_it_could_be_looked_at() -> None:
    assert len({mixed(number) for number in range(10_000)}) == 10_000


def test_a_report_tells_the_truth_with_the_stated_chance_and_else_anything_alike() -> None:
    random, hashed, count = Random(7), title_hash("t001"), 200_000
    distances = Counter()
    for _ in range(count):
        seed, value = falsified(hashed, random)
        assert 0 <= seed < 1 << 32 and 0 <= value < COUNT_CATEGORIES
        distances[(value - category(seed, hashed)) % COUNT_CATEGORIES] += 1
    kept = keep_probability()
    assert distances[0] / count == pytest.approx(kept, abs=5 * math.sqrt(kept * (1 - kept) / count))
    each = (1 - kept) / (COUNT_CATEGORIES - 1)
    assert len(distances) == COUNT_CATEGORIES
    assert all(
        abs(distances[other] / count - each) < 5 * math.sqrt(each / count) for other in range(1, COUNT_CATEGORIES)
    )


def test_no_report_is_more_than_e_to_the_epsilon_as_likely_for_one_title_as_for_another() -> None:
    kept = keep_probability()
    assert kept / ((1 - kept) / (COUNT_CATEGORIES - 1)) == pytest.approx(math.exp(COUNT_EPSILON))


class TestIdentity:
    def test_known_answers(self) -> None:
        token = sync_identity.device_token(KEY, DEVICE)
        assert len(token) == 32 and len(sync_identity.request_mac(token, b"body")) == sync_identity.MAC_BYTES
        header = sync_identity.authorization(DEVICE, token, b"body")
        assert header.startswith("Omega ") and len(header) == 49
        assert sync_identity.parse_authorization(header) == (DEVICE, sync_identity.request_mac(token, b"body"))

    def test_token_and_proof_depend_on_all_they_stand_for(self) -> None:
        token = sync_identity.device_token(KEY, DEVICE)
        assert token != sync_identity.device_token(KEY[::-1], DEVICE)
        assert token != sync_identity.device_token(KEY, DEVICE[::-1])
        assert sync_identity.request_mac(token, b"body") != sync_identity.request_mac(token, b"bodY")

    @pytest.mark.parametrize(
        "header",
        ["", "Omega", "Omega ", "omega " + "A" * 43, "Basic " + "A" * 43, "Omega " + "A" * 42, "Omega " + "A" * 44]
        + ["Omega " + "=" * 43, "Omega " + "A" * 42 + "é", "Omega " + "A" * 42 + "+"],
    )
    def test_other_headers_are_nobodys(self, header: str) -> None:
        assert sync_identity.parse_authorization(header) is None
