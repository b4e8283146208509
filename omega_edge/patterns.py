"""What messages are made of: weighted titles, patterns, finished titles, trends."""

from __future__ import annotations

from dataclasses import dataclass

from omega_edge.errors import ProtocolError
from omega_edge.terms import (
    MAX_REFERENCES_PER_PATTERN,
    MAX_WINDOW_HOURS,
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
    (1 to 8 titles, each once) and code (48 bytes, product-quantised, by the codebook of this version, u32) is given. updated_at may lie before created_at: clocks of televisions
    jump, and nothing orders by them.
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
