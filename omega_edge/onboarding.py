"""What a new home is shown, so that its first picks say the most: the bundle's list, less what policy withholds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omega_edge.catalog import Catalog, Title
from omega_edge.errors import ConfigError
from omega_edge.policy import Policy, Withheld
from omega_edge.profile_view import ProfileView
from omega_edge.protocol import check_content_id

SHOWN = 24
"""Titles offered at once."""
MAX_PICKS = 20


def titles_to_offer(catalog: Catalog, policy: Policy, view: ProfileView, now_ms: int, k: int) -> list[Title]:
    """Up to k titles, the most informative first: those of the bundle's list, then the most popular of the others.

    Only what the profile may be offered now, and nothing that it watched, liked or disliked.
    """
    allowed = np.unpackbits(policy.allowed(view.household, now_ms), count=catalog.count, bitorder="little").astype(bool)
    allowed[view.history.rows[view.history.rows >= 0]] = False
    listed = catalog.onboarding.astype(np.int64)
    rows = listed[allowed[listed]][:k]
    if len(rows) < k:
        allowed[listed] = False
        others = np.flatnonzero(allowed)
        order = np.argsort(-catalog.popularity[others], kind="stable")
        rows = np.concatenate((rows, others[order][: k - len(rows)]))
    return [catalog.title(row) for row in rows.tolist()]


def check_favourites(
    catalog: Catalog, policy: Policy, view: ProfileView, content_ids: Sequence[str], now_ms: int
) -> None:
    """ConfigError unless the picked titles are 1 to MAX_PICKS different ones of the catalogue that the profile's age limit
    allows."""
    listed = isinstance(content_ids, Sequence) and not isinstance(content_ids, str)
    if not listed or not 1 <= len(content_ids) <= MAX_PICKS:
        raise ConfigError(f"favourites: expected a list of 1 to {MAX_PICKS} content ids, got {content_ids!r}")
    for content_id in content_ids:
        row = catalog.row_of(check_content_id("favourites", content_id))
        if row < 0 or policy.withheld(view.household, row, now_ms) in (Withheld.AGE_RATING, Withheld.UNRATED):
            raise ConfigError(f"favourites: expected titles of the catalogue that the profile may see, got {content_id!r}")
    if len(set(content_ids)) < len(content_ids):
        raise ConfigError("favourites: expected each title once")
