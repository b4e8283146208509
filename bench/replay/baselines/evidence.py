"""What a household's past says, as weights of titles, for methods that take no order of events of their own."""

from __future__ import annotations

import math

import numpy as np

from bench.replay.method import Past


def weights_of_past(past: Past, lifetime_events: float, failure_weight: float) -> tuple[np.ndarray, np.ndarray]:
    """(titles int64[k], each once, weights float64[k]): exp(-events since / lifetime), times failure_weight if it failed.

    Of several viewings of one title the last one counts. lifetime_events: infinite weighs all events alike.
    """
    titles, newest_first = np.unique(past.titles[::-1], return_index=True)
    weights = np.exp(-newest_first / lifetime_events)
    weights[~past.success[::-1][newest_first]] *= failure_weight
    return titles, weights


def check_weighting(lifetime_events: float, failure_weight: float) -> None:
    """Raises ValueError unless lifetime_events > 0 and failure_weight is from -1 to 1."""
    if not lifetime_events > 0:
        raise ValueError(f"lifetime_events: expected above 0 (infinite: no decay), got {lifetime_events!r}")
    if not -1 <= failure_weight <= 1:
        raise ValueError(f"failure_weight: expected from -1 to 1, got {failure_weight!r}")


def check_positive(**settings: float) -> None:
    """Raises ValueError naming the first setting that is not a number above 0, infinity included."""
    for name, value in settings.items():
        if math.isnan(value) or not value > 0:
            raise ValueError(f"{name}: expected above 0, got {value!r}")
