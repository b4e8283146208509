"""The simulation that the hour's worth is tested on."""

from __future__ import annotations

import numpy as np

from bench.context import EVENTS_KEPT, MIN_EVENTS, simulated_homes
from cloud.replay import Timeline
from cloud.signals import slots_of
from omega_edge.datasets import Events


def test_simulated_members_keep_their_own_order_and_hours() -> None:
    random = np.random.default_rng(3)
    sizes = np.concatenate((np.full(9, 70), [MIN_EVENTS - 1]))
    household = np.repeat(np.arange(10), sizes).astype(np.int32)
    title = random.integers(0, 500, len(household)).astype(np.int32)
    order = random.permutation(len(household))
    events = Events(household[order], title[order], np.ones(len(order)), np.arange(len(order)))
    shares = random.random((500, 3)).astype(np.float32)
    made, member = simulated_homes(events, shares)
    assert set(member.tolist()) == set(range(9)), "who has too few events is no member"
    assert np.all(np.diff(made.timestamp) >= 0)
    slots = slots_of(made.timestamp)
    for one in range(9):
        mine = made.title[member == one]
        assert mine.tolist() == events.title[events.household == one][:EVENTS_KEPT].tolist()
        busiest = np.sort(np.bincount(slots[member == one], minlength=8))[::-1]
        assert busiest[:2].sum() >= 0.65 * EVENTS_KEPT, "four of five viewings fall into two of the eight slots"
        assert len(set(made.household[member == one].tolist())) == 1
    homes = [set(member[made.household == home].tolist()) for home in np.unique(made.household)]
    assert all(1 <= len(people) <= 3 for people in homes) and sum(map(len, homes)) == 9
    assert Timeline.of(made, slots).before.max() >= 2 * EVENTS_KEPT - 1, "members watch on one shared profile"
