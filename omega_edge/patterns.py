"""What messages are made of: weighted titles, patterns, finished titles, trends."""

from __future__ import annotations

from dataclasses import dataclass, replace

from omega_edge.errors import ProtocolError
from omega_edge.terms import (
    DAY_MS,
    MAX_REFERENCES_PER_PATTERN,
    MAX_WINDOW_HOURS,
    MIN_QUALITY_THRESHOLD,
    PATTERN_CODE_BYTES,
    U32_MAX,
    check_content_id,
    check_embedding,
    check_timestamp,
)
from omega_edge.validation import (
    check_distinct,
    check_finite,
    check_integer,
    check_share,
    check_tuple,
    refuse,
)

RATE_STEPS, LOW_RATE_STEPS = 50, 250
"""A shared pattern's success rate travels in fiftieths, one below MIN_QUALITY_THRESHOLD in 250ths; .7 is both."""
WEIGHT_STEPS = 15
WEEK_MS = 7 * DAY_MS
"""Times of patterns travel in weeks since 1970: enough to age by, too little to tell an evening by."""


@dataclass(frozen=True, slots=True)
class TitleReference:
    """A catalogue title and its weight (0–1) in a pattern."""

    content_id: str
    weight: float

    def __post_init__(self) -> None:
        check_content_id("TitleReference.content_id", self.content_id)
        object.__setattr__(self, "weight", check_share("TitleReference.weight", self.weight))


@dataclass(frozen=True, slots=True)
class ViewingPattern:
    """Something a household, or many, like: an embedding or a weighted mixture of titles, and how it went.

    id: u32, unique within a device epoch. Exactly one of embedding (unit float32[384], little-endian bytes), references
    (1 to 8 titles, each once) and code (48 bytes, product-quantised, by the codebook of this version, u32) is given.
    updated_at may lie before created_at: clocks of televisions jump, and nothing orders by them.
    """

    id: int
    success_rate: float
    sample_count: int
    created_at: int
    updated_at: int
    embedding: bytes | None = None
    references: tuple[TitleReference, ...] = ()
    code: bytes | None = None
    codebook: int | None = None

    def __post_init__(self) -> None:
        check_integer("ViewingPattern.id", self.id, 0, U32_MAX)
        object.__setattr__(self, "success_rate", check_share("ViewingPattern.success_rate", self.success_rate))
        check_integer("ViewingPattern.sample_count", self.sample_count, 1, U32_MAX)
        check_timestamp("ViewingPattern.created_at", self.created_at)
        check_timestamp("ViewingPattern.updated_at", self.updated_at)
        check_tuple("ViewingPattern.references", self.references, TitleReference, MAX_REFERENCES_PER_PATTERN)
        if (self.embedding is not None) + bool(self.references) + (self.code is not None) != 1:
            raise ProtocolError("ViewingPattern: expected exactly one of embedding, references and code")
        if (self.code is None) != (self.codebook is None):
            raise ProtocolError("ViewingPattern: expected code and codebook together, or neither")
        if self.embedding is not None:
            check_embedding("ViewingPattern.embedding", self.embedding)
            return
        if self.code is not None:
            if not isinstance(self.code, bytes) or len(self.code) != PATTERN_CODE_BYTES:
                raise refuse("ViewingPattern.code", f"{PATTERN_CODE_BYTES} bytes", self.code)
            check_integer("ViewingPattern.codebook", self.codebook, 0, U32_MAX)
            return
        if not any(reference.weight > 0 for reference in self.references):
            raise ProtocolError("ViewingPattern.references: expected a weight above 0, all are 0")
        check_distinct("ViewingPattern.references", [reference.content_id for reference in self.references])


def rounded(pattern: ViewingPattern) -> ViewingPattern:
    """What a receiver gets of a pattern: weeks instead of moments, and success rate, counts and weights in few steps.

    Rounding again changes nothing, no rate crosses MIN_QUALITY_THRESHOLD downwards, and no weight above 0 becomes 0.
    """
    created_at = pattern.created_at - pattern.created_at % WEEK_MS
    return replace(
        pattern,
        success_rate=rate_steps(pattern.success_rate) / LOW_RATE_STEPS,
        sample_count=count_of_step(count_step(pattern.sample_count)),
        created_at=created_at,
        updated_at=created_at + weeks_of_step(life_step(pattern)) * WEEK_MS,
        references=tuple(
            TitleReference(reference.content_id, weight_steps(reference.weight) / WEIGHT_STEPS)
            for reference in pattern.references
        ),
    )


def rate_steps(rate: float) -> int:
    """A success rate (0 to 1) in 250ths, from MIN_QUALITY_THRESHOLD on a whole number of fiftieths."""
    if rate < MIN_QUALITY_THRESHOLD:
        return round(rate * LOW_RATE_STEPS)
    return round(rate * RATE_STEPS) * (LOW_RATE_STEPS // RATE_STEPS)


def count_step(count: int) -> int:
    """The number of the highest step up to a count of 1 or more. Two steps double it: 1, 2, 3, 4, 6, 8, 12, 16 …, so that
    rounding takes less than a third."""
    shift = max(count.bit_length() - 2, 0)
    return 2 * shift + (count >> shift) - 1


def count_of_step(step: int) -> int:
    """The count at a step of 0 or more."""
    shift = max((step - 1) // 2, 0)
    return (step + 1 - 2 * shift) << shift


def life_step(pattern: ViewingPattern) -> int:
    """The weeks from created_at to updated_at as a step: 0, 1, 2, 3, 5, 7, 11, 15 …; 0 where a clock jumped back."""
    return count_step(max(pattern.updated_at // WEEK_MS - pattern.created_at // WEEK_MS, 0) + 1)


def weeks_of_step(step: int) -> int:
    """The weeks at a step of 0 or more."""
    return count_of_step(step) - 1


def weight_steps(weight: float) -> int:
    """A weight (0 to 1) in whole WEIGHT_STEPS, at least 1 for one above 0."""
    return max(round(weight * WEIGHT_STEPS), 1 if weight > 0 else 0)


@dataclass(frozen=True, slots=True)
class FinishedTitle:
    """A title watched with success, and when."""

    content_id: str
    finished_at: int

    def __post_init__(self) -> None:
        check_content_id("FinishedTitle.content_id", self.content_id)
        check_timestamp("FinishedTitle.finished_at", self.finished_at)


@dataclass(frozen=True, slots=True)
class TrendSignal:
    """How much a title is watched now: score (0 or more) over a window of window_hours."""

    content_id: str
    score: float
    window_hours: int

    def __post_init__(self) -> None:
        check_content_id("TrendSignal.content_id", self.content_id)
        object.__setattr__(self, "score", check_finite("TrendSignal.score", self.score))
        if self.score < 0:
            raise refuse("TrendSignal.score", "0 or more", self.score)
        check_integer("TrendSignal.window_hours", self.window_hours, 1, MAX_WINDOW_HOURS)
