"""Demonstration values for what a data set of ratings does not have: age ratings and availability windows.

They are derived from genre and year alone, so that profiles and policy have something to act on. They are not the
ratings of any board and not the windows of any rights holder; the bundle's meta says so under "demonstration_values".
"""

from __future__ import annotations

from datetime import UTC, datetime

from omega_edge.protocol import MAX_TIMESTAMP_MS

FAMILY = frozenset(("Family", "Children", "Children's"))
TENSE = frozenset(("Thriller", "Crime", "War", "Film-Noir", "Mystery"))
GROWN_UP = frozenset(("Action", "Drama", "Romance", "Sci-Fi", "Western"))
PLAYFUL = frozenset(("Animation", "Adventure", "Comedy", "Fantasy", "Music", "Musical", "Short", "Sport"))
FACTUAL = frozenset(("Documentary", "Music", "Musical", "Sport", "Short", "News", "History", "Biography"))
SHORT_LIVED = frozenset(("News", "Talk-Show", "Reality-TV", "Game-Show"))
SHORT_LIVED_YEARS = 2

RULES = {
    "age_ratings": "derived from genres by age_rating in toolchain/title_rules.py; not a rating board's",
    "availability": "derived from year and genres by availability in toolchain/title_rules.py; not a real window",
}
"""For the bundle's meta."""


def age_rating(genres: tuple[str, ...]) -> int | None:
    """Demonstration age rating in years; None, unrated, without genres. The first line that fits holds:

    18  Adult
    16  Horror, or Thriller together with Crime or War; 12 instead if it is Family too
    12  Thriller, Crime, War, Film-Noir or Mystery
     0  Family without Action, Drama, Romance, Sci-Fi and Western
     6  Family
     6  Animation with nothing but Adventure, Comedy, Fantasy, Music, Musical, Short and Sport
     6  nothing but Documentary, Music, Musical, Sport, Short, News, History and Biography
    12  all else
    """
    of = frozenset(genres)
    if not of:
        return None
    if "Adult" in of:
        return 18
    if "Horror" in of or ("Thriller" in of and of & {"Crime", "War"}):
        return 12 if of & FAMILY else 16
    if of & TENSE:
        return 12
    if of & FAMILY:
        return 6 if of & GROWN_UP else 0
    if of <= FACTUAL or ("Animation" in of and of <= PLAYFUL):
        return 6
    return 12


def availability(genres: tuple[str, ...], year: int | None) -> tuple[int, int]:
    """Demonstration window [from, until) in Unix ms: from 1 January of the year (UTC) on, without an end.

    News, Talk-Show, Reality-TV and Game-Show leave SHORT_LIVED_YEARS years later. Without a year, or before 1970:
    from the start of Unix time; without a year nothing leaves.
    """
    if year is None:
        return 0, MAX_TIMESTAMP_MS
    until = _new_year_ms(year + SHORT_LIVED_YEARS) if SHORT_LIVED & frozenset(genres) else MAX_TIMESTAMP_MS
    return _new_year_ms(year), until


def _new_year_ms(year: int) -> int:
    return max(int(datetime(year, 1, 1, tzinfo=UTC).timestamp() * 1000), 0)
