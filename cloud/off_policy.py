"""What another way of filling list positions would have earned, from lists that explored with known chances.

Every logged slot is a title shown at a position, with its propensity (the chance that it was shown there, exact by
construction: see omega_edge/exploration.py), its reward (the share watched afterwards, 0 if it was not), and the
probability with which the policy in question would have shown the same title there. Inverse propensity scoring
(Horvitz and Thompson, 1952) weighs each reward by target / propensity: unbiased wherever the target shows only what
could be shown. Its self-normalised form divides by the sum of the weights (Hesterberg, 1995): slightly biased, with
less spread. Slots of one household are alike, so the intervals resample households (see bootstrap.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cloud.bootstrap import paired_interval, ratio_interval
from omega_edge.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean reward of a slot under the target policy: ips and self_normalised, each (value, low, high) with a 95 %
    interval; effective_slots: (sum of weights)^2 / sum of squared weights, how many plain slots these are worth."""

    slots: int
    effective_slots: float
    ips: tuple[float, float, float]
    self_normalised: tuple[float, float, float]


def estimate(
    reward: np.ndarray,
    propensity: np.ndarray,
    target: np.ndarray,
    household: np.ndarray,
    seed: int = 0,
    resamples: int = 2_000,
) -> Estimate:
    """The target policy's mean reward a slot, from q logged slots.

    reward: float64[q], finite. propensity: float64[q] in (0, 1]. target: float64[q] in 0 to 1, the probability that
    the target policy shows what was shown, given the same moment; some above 0. household: int64[q]. Raises ConfigError
    for anything else.
    """
    reward, propensity, target = (np.asarray(values, np.float64) for values in (reward, propensity, target))
    if not reward.shape == propensity.shape == target.shape == np.shape(household) or reward.ndim != 1:
        raise ConfigError("estimate: expected reward, propensity, target and household of one length")
    for name, values, holds in (
        ("propensity", propensity, (propensity > 0) & (propensity <= 1)),
        ("target", target, (target >= 0) & (target <= 1)),
    ):
        if not np.all(holds):
            wrong = float(values[~holds][0])
            raise ConfigError(f"{name}: expected probabilities{' above 0' * (name == 'propensity')}, got {wrong}")
    weights = target / propensity
    if not np.any(weights):
        raise ConfigError("target: expected a policy that shows some of what was shown, got one that never does")
    return Estimate(
        slots=len(reward),
        effective_slots=float(weights.sum() ** 2 / (weights**2).sum()),
        ips=paired_interval(weights * reward, household, seed, resamples),
        self_normalised=ratio_interval(weights * reward, weights, household, seed, resamples),
    )
