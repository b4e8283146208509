"""What to leave out of a message that does not fit, and how to split finished titles into pages. No bytes here: whether
a message fits is asked of a function that wire.py passes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from omega_edge.errors import ProtocolError
from omega_edge.protocol import GlobalPatterns, PatternDelta


def largest(count: int, fits: Callable[[int], bool]) -> int:
    """The largest n from 0 to count that fits, -1 if not even 0 does; by bisection, fits(n) being tested for the n."""
    low, high = -1, count
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def first_titles(delta: PatternDelta, count: int) -> PatternDelta:
    """The delta with only its first count finished titles, more_pages set if that leaves some out."""
    if count == len(delta.titles_finished):
        return delta
    return replace(delta, titles_finished=delta.titles_finished[:count], more_pages=True)


def titles_that_fit(delta: PatternDelta, fits: Callable[[PatternDelta], bool]) -> int:
    """How many of the finished titles fit beside all the patterns; -1 if the patterns alone do not."""
    return largest(len(delta.titles_finished), lambda count: fits(first_titles(delta, count)))


def delta_too_large(name: str, delta: PatternDelta, max_bytes: int, fits: Callable[[PatternDelta], bool]) -> ProtocolError:
    """The error for a delta that does not fit: how many titles, or all titles and how many patterns, are too many."""
    total = len(delta.titles_finished)
    kept = titles_that_fit(delta, fits)
    if kept >= 0:
        return ProtocolError(
            f"{name}: expected at most {max_bytes} bytes, got more; drop the last {total - kept} of {total} finished "
            "titles into a later page (split_delta)"
        )
    bare = replace(delta, titles_finished=())
    shared = len(delta.patterns_added) + len(delta.patterns_updated)

    def with_patterns(count: int) -> PatternDelta:
        added = delta.patterns_added[:count]
        return replace(bare, patterns_added=added, patterns_updated=delta.patterns_updated[: count - len(added)])

    kept = max(0, largest(shared, lambda count: fits(with_patterns(count))))
    titles = f"all {total} finished titles and " if total else ""
    return ProtocolError(
        f"{name}: expected at most {max_bytes} bytes, got more; drop {titles}{shared - kept} of {shared} patterns"
    )


def global_patterns_too_large(
    name: str, patterns: GlobalPatterns, max_bytes: int, fits: Callable[[GlobalPatterns], bool]
) -> ProtocolError:
    """The error for global patterns that do not fit: how many trends, or all trends and how many patterns, to drop."""
    trends, similar = len(patterns.trending), len(patterns.similar)
    kept = largest(trends, lambda count: fits(replace(patterns, trending=patterns.trending[:count])))
    if kept >= 0:
        return ProtocolError(
            f"{name}: expected at most {max_bytes} bytes, got more; drop the last {trends - kept} of {trends} trends"
        )
    bare = replace(patterns, trending=())
    kept = max(0, largest(similar, lambda count: fits(replace(bare, similar=patterns.similar[:count]))))
    trends_too = f"all {trends} trends and " if trends else ""
    return ProtocolError(
        f"{name}: expected at most {max_bytes} bytes, got more; drop {trends_too}{similar - kept} of {similar} patterns"
    )


def split(
    delta: PatternDelta, title_versions: Sequence[int], max_bytes: int, fits: Callable[[PatternDelta], bool]
) -> tuple[PatternDelta, ...]:
    """The pages of a delta, in the order to send them; see split_delta in wire.py."""
    _check_versions(delta, title_versions)
    pages: list[PatternDelta] = []
    rest, versions = delta, list(title_versions)
    while not fits(rest):
        total = len(rest.titles_finished)

        def page(count: int, rest: PatternDelta = rest, versions: list[int] = versions) -> PatternDelta:
            return PatternDelta(versions[count - 1], rest.titles_finished[:count], more_pages=True)

        # The last title stays with the patterns: its version may be the delta's, which the last page needs.
        count = 1 + largest(total - 2, lambda more, page=page: fits(page(more + 1)))
        if count < 1:
            raise delta_too_large("PatternDelta", rest, max_bytes, fits)
        pages.append(page(count))
        rest, versions = replace(rest, titles_finished=rest.titles_finished[count:]), versions[count:]
    return (*pages, rest)


def _check_versions(delta: PatternDelta, title_versions: Sequence[int]) -> None:
    if len(title_versions) != len(delta.titles_finished):
        raise ProtocolError(
            f"title_versions: expected one for each of {len(delta.titles_finished)} titles, got {len(title_versions)}"
        )
    rising = all(before < after for before, after in pairwise(title_versions))
    if title_versions and not (rising and title_versions[-1] <= delta.local_version):
        raise ProtocolError(
            f"title_versions: expected rising versions up to the delta's {delta.local_version}, got other ones"
        )
