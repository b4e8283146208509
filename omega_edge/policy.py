"""What a profile may be shown: the one filter that every row, reason and export goes through.

A title is withheld from a profile when its age rating is above the profile's limit, when it has no rating and
the profile has a limit, when it is outside its availability window, when the profile hid it, or when the
profile has seen it. A reason may name a title that was seen or has left the catalogue, but never one that is
hidden or above the limit.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from omega_edge.catalog import UNRATED, Catalog
from omega_edge.protocol import MAX_TIMESTAMP_MS, Profile


class Withheld(str, enum.Enum):
    """Why a title is not offered, in the order in which the reasons are given."""

    AGE_RATING = "age_rating"
    UNRATED = "unrated"
    NOT_AVAILABLE = "not_available"
    HIDDEN = "hidden"
    SEEN = "seen"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Household:
    """What policy knows of one profile: its limit, what it saw and what it hid.

    seen: bool[n] by catalogue row. hidden_until: int64[n], Unix milliseconds until which a title is hidden, 0
    for never hidden. outside_hidden_until: the same for titles outside the catalogue, by content id.
    """

    profile: Profile
    seen: np.ndarray
    hidden_until: np.ndarray
    outside_hidden_until: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _OnOffer:
    """Which titles are available from one moment to another, Unix ms, [since, until): bool[n]."""

    since: int
    until: int
    titles: np.ndarray


class Policy:
    """The filter over one catalogue. Stateless but for caches of the age masks and of what is available now."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._age_masks: dict[int | None, np.ndarray] = {}
        self._on_offer = _OnOffer(0, 0, np.empty(0, bool))

    def _age_allowed(self, max_age_rating: int | None) -> np.ndarray:
        """bool[n]: titles whose rating is within the limit; without a limit, all."""
        mask = self._age_masks.get(max_age_rating)
        if mask is None:
            ratings = self._catalog.age_ratings
            mask = np.ones(len(ratings), bool) if max_age_rating is None else ratings <= min(max_age_rating, 254)
            self._age_masks[max_age_rating] = mask
        return mask

    def _available(self, now_ms: int) -> np.ndarray:
        """bool[n]: what is on offer now; read only. It stays so until the next title comes or goes."""
        known = self._on_offer
        if not known.since <= now_ms < known.until:
            start, end = self._catalog.available_from, self._catalog.available_until
            past, ended = start <= now_ms, end <= now_ms
            since = max(start[past].max(initial=0), end[ended].max(initial=0))
            until = min(start[~past].min(initial=MAX_TIMESTAMP_MS), end[~ended].min(initial=MAX_TIMESTAMP_MS))
            known = _OnOffer(int(since), int(until), past & ~ended)
            self._on_offer = known  # replaced whole: another thread sees the one or the other
        return known.titles

    def allowed(self, household: Household, now_ms: int, also_withheld: tuple[int, ...] = ()) -> np.ndarray:
        """Filter bitmap uint8[ceil(n/8)] of what the profile may be offered now, bit row & 7 of byte row >> 3."""
        mask = self._age_allowed(household.profile.max_age_rating) & self._available(now_ms)
        mask &= ~household.seen
        mask &= household.hidden_until <= now_ms
        if also_withheld:
            mask[list(also_withheld)] = False
        return np.packbits(mask, bitorder="little")

    def withheld(self, household: Household, row: int, now_ms: int) -> Withheld | None:
        """The first reason why the title at a row is not offered now, or None. row -1: outside the catalogue."""
        if row < 0:
            return Withheld.UNKNOWN
        rating = int(self._catalog.age_ratings[row])
        if not self._age_allowed(household.profile.max_age_rating)[row]:
            return Withheld.UNRATED if rating == UNRATED else Withheld.AGE_RATING
        if not self._catalog.available_from[row] <= now_ms < self._catalog.available_until[row]:
            return Withheld.NOT_AVAILABLE
        if household.hidden_until[row] > now_ms:
            return Withheld.HIDDEN
        return Withheld.SEEN if household.seen[row] else None

    def withheld_counts(self, household: Household, now_ms: int) -> dict[str, int]:
        """How many titles of the catalogue each reason withholds, each title counted at its first reason."""
        left = np.ones(self._catalog.count, bool)
        age_refused = ~self._age_allowed(household.profile.max_age_rating)
        unrated = self._catalog.age_ratings == UNRATED
        counts = {}
        for reason, refused in (
            (Withheld.AGE_RATING, age_refused & ~unrated),
            (Withheld.UNRATED, age_refused & unrated),
            (Withheld.NOT_AVAILABLE, ~self._available(now_ms)),
            (Withheld.HIDDEN, household.hidden_until > now_ms),
            (Withheld.SEEN, household.seen),
        ):
            counts[reason.value] = int(np.count_nonzero(left & refused))
            left &= ~refused
        return counts

    def may_name(self, household: Household, content_ids: Sequence[str], rows: np.ndarray, now_ms: int) -> np.ndarray:
        """bool[m]: whether a reason, or a profile's own export, may name these titles to the profile.

        rows: int32[m], their rows in the catalogue, -1 outside. A title outside the catalogue has no rating:
        it is named only to a profile without a limit.
        """
        inside = rows >= 0
        if inside.all():
            return self._age_allowed(household.profile.max_age_rating)[rows] & (household.hidden_until[rows] <= now_ms)
        known = rows[inside]
        named = np.empty(len(rows), bool)
        named[inside] = self._age_allowed(household.profile.max_age_rating)[known]
        named[inside] &= household.hidden_until[known] <= now_ms
        limited = household.profile.max_age_rating is not None
        for index in np.flatnonzero(~inside):
            hidden = household.outside_hidden_until.get(content_ids[index], 0) > now_ms
            named[index] = not limited and not hidden
        return named
