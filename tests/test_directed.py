"""Directed rows against the least squares that define them."""

from __future__ import annotations

import numpy as np

from cloud.directed import FALL, FUTURE_EVENTS, PAST_EVENTS, directed_weights

RIDGE = 3.0


def least_squares(
    household: np.ndarray, title: np.ndarray, evidence: np.ndarray, weight: np.ndarray, chosen: np.ndarray
) -> np.ndarray:
    """float64[t, t]: at each place of each household, what was finished next is foretold from what came last."""
    lines, wanted, counts = [], [], []
    place = {int(row): index for index, row in enumerate(chosen)}
    for home in np.unique(household):
        mine = [event for event in np.flatnonzero(household == home) if int(title[event]) in place]
        for at in range(len(mine)):
            past, future = np.zeros(len(chosen)), np.zeros(len(chosen))
            for back in range(min(PAST_EVENTS, at + 1)):
                event = mine[at - back]
                past[place[int(title[event])]] += FALL**back * evidence[event]
            for step in range(1, FUTURE_EVENTS + 1):
                if at + step < len(mine) and evidence[mine[at + step]] == 1.0:
                    future[place[int(title[mine[at + step]])]] += FALL ** (step - 1)
            lines.append(past)
            wanted.append(future)
            counts.append(np.sqrt(weight[mine[at]]))
    scaled = np.array(counts)[:, None]
    inputs = np.concatenate((np.array(lines) * scaled, np.sqrt(RIDGE) * np.eye(len(chosen))))
    outputs = np.concatenate((np.array(wanted) * scaled, np.zeros((len(chosen), len(chosen)))))
    found = np.linalg.lstsq(inputs, outputs, rcond=None)[0]
    np.fill_diagonal(found, 0.0)
    return found


def stream(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "household": rng.integers(0, 9, 300),
        "title": rng.integers(0, 20, 300),
        "evidence": rng.choice([1.0, 0.25], 300),
        "weight": rng.random(300),
    }


def test_directed_rows_are_the_weighed_ridge_regression_of_what_comes_next_on_what_came_last():
    events, chosen = stream(1), np.array([0, 2, 3, 5, 8, 11, 12, 19])
    found = directed_weights(**events, chosen=chosen, title_count=20, ridge=RIDGE)
    np.testing.assert_allclose(found, least_squares(**events, chosen=chosen), rtol=1e-8, atol=1e-10)


def test_the_order_of_two_titles_is_known():
    """Title 1 always follows title 0, and 0 never follows 1."""
    household, title = np.repeat(np.arange(50), 2), np.tile([0, 1], 50)
    found = directed_weights(household, title, np.ones(100), np.ones(100), np.arange(2), 2, RIDGE)
    assert found[0, 1] > 0.5 and found[1, 0] <= 0.0


def test_no_chosen_title_and_no_event_make_no_rows():
    nothing, none = np.empty(0, np.int64), np.empty(0)
    assert directed_weights(nothing, nothing, none, none, nothing, 5, RIDGE).shape == (0, 0)
    found = directed_weights(nothing, nothing, none, none, np.arange(3), 5, RIDGE)
    assert found.shape == (3, 3) and not found.any()
