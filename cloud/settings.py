"""What the model job can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from omega_edge.errors import ConfigError
from omega_edge.protocol import MAX_WINDOW_HOURS
from omega_edge.ranking import DECAYS


def _number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What the job can be told.

    ridge: of EASE, in households. directed_ridge: of the directed rows, in events. half_life_days: after which a viewing
    counts half. min_events: a title with fewer has no rows, factors or embedding. row_budget_bytes: for all item-item
    rows in the bundle, and for all directed ones again. trend_window_hours: short and long. parameters: of
    ranking.features. queries_per_bucket: viewings of each history bucket kept for the fit, a block. tune: whether ridge,
    half_life_days, trend_window_hours and parameters are only where the search begins that tuning.py makes on the data's
    own past. sequence, second_stage: whether those stages are tried; whether they ship is for their gates to say.
    popularity_days: of the past that popularity counts; 0: all of it.
    """

    ridge: float = 30.0
    directed_ridge: float = 10.0
    half_life_days: float = 30.0
    min_events: int = 5
    row_budget_bytes: int = 600_000
    trend_window_hours: tuple[int, int] = (48, 168)
    parameters: dict[str, float] = field(
        default_factory=lambda: {
            "row_decay": 0.9, "content_decay": 0.9, "slist_decay": 0.7, "factor_decay": 0.9, "failure_weight": 0.5
        }
    )
    queries_per_bucket: int = 700
    tune: bool = True
    sequence: bool = True
    second_stage: bool = True
    popularity_days: int = 0

    def __post_init__(self) -> None:
        windows, parameters = self.trend_window_hours, self.parameters
        above_zero = {name: getattr(self, name) for name in ("ridge", "directed_ridge", "half_life_days")}
        counts = {"min_events": 1, "row_budget_bytes": 0, "queries_per_bucket": 1, "popularity_days": 0}
        expectations = [
            *((name, "a number above 0", _number(value) and value > 0) for name, value in above_zero.items()),
            *(
                (name, f"an integer, {least} or more", type(getattr(self, name)) is int and getattr(self, name) >= least)
                for name, least in counts.items()
            ),
            *((name, "True or False", type(getattr(self, name)) is bool) for name in ("tune", "sequence", "second_stage")),
            (
                "trend_window_hours",
                f"two integers, the second greater, 1 to {MAX_WINDOW_HOURS}",
                isinstance(windows, tuple)
                and [type(hours) for hours in windows] == [int, int]
                and 1 <= windows[0] < windows[1] <= MAX_WINDOW_HOURS,
            ),
            (
                "parameters",
                f"{', '.join(DECAYS)} above 0, at most 1, and failure_weight from -1 to 1",
                isinstance(parameters, dict)
                and all(_number(parameters.get(name)) and 0 < parameters[name] <= 1 for name in DECAYS)
                and _number(parameters.get("failure_weight"))
                and -1 <= parameters["failure_weight"] <= 1,
            ),
        ]
        for name, expected, holds in expectations:
            if not holds:
                raise ConfigError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
