"""The policy of encodings: monotone, deterministic, with hysteresis, whatever the uses."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omega_edge.compression import Encoding
from omega_edge.tier_policy import DEMOTE, MINIMUM_STAY, PROMOTE, Standing, score, wanted_encoding

ENCODINGS = st.sampled_from(Encoding)
USES = st.lists(st.integers(0, 400), min_size=1, max_size=60)


def lived(gaps: list[int], considered_every: int = 7) -> list[tuple[int, Encoding, bool]]:
    """The moves of a vector that is used after each of these gaps of events: event, encoding, whether at a use."""
    standing, now, uses, moves = Standing.new(0), 0, 1, []

    def consider(used: bool) -> None:
        wanted = wanted_encoding(standing, score(standing, uses, now), now, used=used)
        if wanted is not standing.encoding:
            standing.enter(wanted, now)
            moves.append((now, wanted, used))

    for gap in gaps:
        for _ in range(gap):
            now += 1
            if now % considered_every == 0:
                consider(False)
        standing.use(now)
        uses += 1
        consider(True)
    return moves


@given(gaps=USES)
@settings(deadline=None, derandomize=True)
def test_a_vector_never_flaps(gaps):
    """However it is used: after any move it stays, but for a use that brings it back to what searches compare."""
    moves = lived(gaps)
    for (before, _from, _used), (at, encoding, used) in pairwise(moves):
        assert at - before >= MINIMUM_STAY or (used and encoding is Encoding.INT8)
    downward = [at for at, encoding, _used in moves if encoding.coarse]
    assert all(later - earlier >= MINIMUM_STAY for earlier, later in pairwise(downward))


@given(gaps=USES)
@settings(deadline=None, derandomize=True)
def test_the_same_uses_make_the_same_moves(gaps):
    assert lived(gaps) == lived(list(gaps))


@given(
    encoding=ENCODINGS, since=st.integers(0, 500), now=st.integers(0, 1000), low=st.floats(0, 1), high=st.floats(0, 1)
)
@settings(derandomize=True)
def test_more_use_never_means_a_coarser_encoding(encoding, since, now, low, high):
    standing = Standing(encoding, since, since)
    low, high = min(low, high), max(low, high)
    assert wanted_encoding(standing, high, now) <= wanted_encoding(standing, low, now)


@given(age=st.integers(0, 5000), more=st.integers(0, 5000), heat=st.floats(0, 50), uses=st.integers(0, 5000))
@settings(derandomize=True)
def test_the_score_is_a_share_and_only_falls_with_time(age, more, heat, uses):
    standing = Standing(Encoding.INT8, 0, 0, heat)
    assert 0 <= score(standing, uses, age + more) <= score(standing, uses, age) <= 1
    assert score(standing, uses, age) <= score(standing, uses + 1, age)
    assert score(standing, uses, age) <= score(Standing(Encoding.INT8, 0, 0, heat + 1), uses, age)


def test_the_thresholds_lie_apart():
    for upper in (Encoding.FLOAT32, Encoding.FLOAT16):
        assert PROMOTE[Encoding(upper + 1)] >= DEMOTE[upper] + 0.1
    assert PROMOTE[Encoding.PQ48] == PROMOTE[Encoding.ONE_BIT] >= DEMOTE[Encoding.INT8] + 0.1


def test_a_score_between_the_thresholds_moves_nothing():
    for encoding in Encoding:
        between = (DEMOTE.get(encoding, 0.0) + PROMOTE.get(encoding, 1.0)) / 2
        assert wanted_encoding(Standing(encoding, 0, 0), between, 10_000) is encoding


@pytest.mark.parametrize("encoding", [Encoding.PQ48, Encoding.ONE_BIT])
def test_a_use_brings_a_coarse_vector_to_int8_at_once(encoding):
    assert wanted_encoding(Standing(encoding, 100, 100), 0.0, 100, used=True) is Encoding.INT8
    assert wanted_encoding(Standing(encoding, 100, 100), 1.0, 100) is encoding


def test_what_nobody_uses_goes_all_the_way_down():
    assert [encoding.label for _at, encoding, _used in lived([6000])[:2]] == ["pq48", "one_bit"]


def test_what_is_used_all_the_time_goes_all_the_way_up():
    assert [encoding.label for _at, encoding, _used in lived([8] * 60)] == ["float16", "float32"]


@given(gaps=USES)
@settings(deadline=None, derandomize=True)
def test_a_standing_is_read_as_it_was_written(gaps):
    standing, now = Standing.new(3), 3
    for gap in gaps:
        now += gap
        standing.use(now)
    standing.note_fidelity(0.95678, 0.92345)
    assert Standing.unpacked(copy.deepcopy(standing.packed())) == standing
    assert standing.fidelity <= 0.95678 and standing.next_fidelity <= 0.92345
