"""Patterns and trends of messages ⇄ columns: one byte string for each field of all patterns together."""

from __future__ import annotations

from collections.abc import Sequence

from omega_edge.columns import (
    TitleNumbering,
    TitlePacker,
    TitleReader,
    pack_times,
    pack_varints,
    read_times,
    read_varints,
)
from omega_edge.errors import ProtocolError
from omega_edge.protocol import (
    EMBEDDING_BYTES,
    MAX_REFERENCES_PER_PATTERN,
    MAX_SIMILAR_PATTERNS,
    MAX_TREND_SIGNALS,
    PATTERN_CODE_BYTES,
    U32_MAX,
    GlobalPatterns,
    TitleReference,
    TrendSignal,
    ViewingPattern,
)
from omega_edge.wire_fields import Fields, check_length

RATE_STEPS = 250
WEIGHT_STEPS = 255
SCORE_STEPS = 65_535
CODED = 9
"""Stands in the column of reference counts for a pattern that has a code."""


def _steps(share: float, steps: int) -> int:
    """A share (0 to 1) in whole steps; one above 0 is never rounded to 0."""
    return max(round(share * steps), 1 if share > 0 else 0)


def pack_patterns(patterns: Sequence[ViewingPattern], packer: TitlePacker) -> dict[int, object]:
    """The columns of these patterns, their titles by this packer."""
    references = [reference for pattern in patterns for reference in pattern.references]
    fields: dict[int, object] = {
        1: pack_varints(pattern.id for pattern in patterns),
        2: bytes(round(pattern.success_rate * RATE_STEPS) for pattern in patterns),
        3: pack_varints(pattern.sample_count for pattern in patterns),
        4: pack_times([pattern.created_at for pattern in patterns]),
        5: pack_times([pattern.updated_at for pattern in patterns]),
        6: bytes(CODED if pattern.code is not None else len(pattern.references) for pattern in patterns),
    }
    if references:
        fields[7] = packer.pack([reference.content_id for reference in references])
        fields[8] = bytes(_steps(reference.weight, WEIGHT_STEPS) for reference in references)
    if any(pattern.embedding is not None for pattern in patterns):
        fields[9] = b"".join(pattern.embedding or b"" for pattern in patterns)
    coded = [pattern for pattern in patterns if pattern.code is not None]
    if coded:
        fields[11] = b"".join(pattern.code for pattern in coded)
        books = [pattern.codebook for pattern in coded]
        fields[12] = books[0] if len(set(books)) == 1 else books
    return fields


def read_patterns(name: str, value: object, reader: TitleReader, max_count: int) -> tuple[ViewingPattern, ...]:
    """The patterns of their columns, at most max_count; ProtocolError where the columns are no such patterns."""
    fields = Fields(name, value)
    ids = read_varints(f"{name}.id", fields.take(1, "id", bytes), max_count, U32_MAX)
    forms = fields.take(6, "forms", bytes)
    columns = {
        "success_rate": fields.take(2, "success_rate", bytes),
        "sample_count": read_varints(
            f"{name}.sample_count", fields.take(3, "sample_count", bytes), max_count, U32_MAX
        ),
        "created_at": read_times(f"{name}.created_at", fields.take(4, "created_at", bytes), max_count),
        "updated_at": read_times(f"{name}.updated_at", fields.take(5, "updated_at", bytes), max_count),
        "forms": forms,
    }
    for column, values in columns.items():
        check_length(f"{name}.{column}", values, len(ids))
    contents = _read_contents(name, fields, forms, reader)
    return tuple(
        ViewingPattern(pattern_id, rate / RATE_STEPS, samples, created_at, updated_at, **content)
        for pattern_id, rate, samples, created_at, updated_at, content in zip(
            ids, *(columns[column] for column in ("success_rate", "sample_count", "created_at", "updated_at")), contents,
            strict=True,
        )
    )


def _read_contents(name: str, fields: Fields, forms: bytes, reader: TitleReader) -> list[dict[str, object]]:
    """What each pattern says, as arguments of ViewingPattern: references, an embedding or a code."""
    if any(form > CODED for form in forms):
        raise ProtocolError(f"{name}.references: expected at most {MAX_REFERENCES_PER_PATTERN} a pattern, got more")
    references = sum(forms) - CODED * forms.count(CODED)
    weights = fields.take(8, "weights", bytes, default=b"")
    check_length(f"{name}.weights", weights, references)
    cited = reader.read(f"{name}.references", fields.take(7, "references", list, default=[]), references)
    check_length(f"{name}.references", cited, references)
    embeddings = fields.take(9, "embeddings", bytes, default=b"")
    check_length(f"{name}.embeddings", embeddings, forms.count(0) * EMBEDDING_BYTES)
    codes = fields.take(11, "codes", bytes, default=b"")
    check_length(f"{name}.codes", codes, forms.count(CODED) * PATTERN_CODE_BYTES)
    books = fields.take(12, "codebook", int, list, default=[])
    if type(books) is int:
        books = [books] * forms.count(CODED)
    check_length(f"{name}.codebook", books, forms.count(CODED))
    contents: list[dict[str, object]] = []
    reference = embedding = code = 0
    for form in forms:
        if form == CODED:
            start = code * PATTERN_CODE_BYTES
            contents.append({"code": codes[start : start + PATTERN_CODE_BYTES], "codebook": books[code]})
            code += 1
        elif form == 0:
            contents.append({"embedding": embeddings[embedding : embedding + EMBEDDING_BYTES]})
            embedding += EMBEDDING_BYTES
        else:
            places = range(reference, reference + form)
            cited_here = tuple(TitleReference(cited[place], weights[place] / WEIGHT_STEPS) for place in places)
            contents.append({"references": cited_here})
            reference += form
    return contents


def pack_global_patterns(patterns: GlobalPatterns, titles: TitleNumbering | None) -> dict[int, object]:
    """The fields of global patterns."""
    packer = TitlePacker(titles)
    fields: dict[int, object] = {1: patterns.global_version}
    if patterns.similar:
        fields[2] = pack_patterns(patterns.similar, packer)
    if patterns.trending:
        highest = max(signal.score for signal in patterns.trending)
        steps = [round(signal.score / highest * SCORE_STEPS) if highest else 0 for signal in patterns.trending]
        fields[3] = packer.pack([signal.content_id for signal in patterns.trending])
        fields[4] = highest
        fields[5] = b"".join(step.to_bytes(2, "little") for step in steps)
        fields[6] = pack_varints(signal.window_hours for signal in patterns.trending)
    if packer.numbered:
        fields[7] = packer.lineage()
    return fields


def read_global_patterns(value: object, titles: TitleNumbering | None) -> GlobalPatterns:
    """The global patterns of their fields; ProtocolError where these are no such patterns."""
    fields = Fields("GlobalPatterns", value)
    reader = fields.reader(7, titles)
    similar = fields.take(2, "similar", dict, default=None)
    trending = reader.read("GlobalPatterns.trending", fields.take(3, "trending", list, default=[]), MAX_TREND_SIGNALS)
    highest = fields.take(4, "highest_score", float, int) if trending else 0.0
    steps = fields.take(5, "scores", bytes, default=b"")
    windows = read_varints(
        "GlobalPatterns.window_hours", fields.take(6, "window_hours", bytes, default=b""), MAX_TREND_SIGNALS, U32_MAX
    )
    check_length("GlobalPatterns.scores", steps, 2 * len(trending))
    check_length("GlobalPatterns.window_hours", windows, len(trending))
    shares = (int.from_bytes(steps[at : at + 2], "little") / SCORE_STEPS for at in range(0, len(steps), 2))
    return GlobalPatterns(
        global_version=fields.take(1, "global_version", int),
        similar=(
            read_patterns("GlobalPatterns.similar", similar, reader, MAX_SIMILAR_PATTERNS) if similar is not None else ()
        ),
        trending=tuple(
            TrendSignal(content_id, highest * share, window)
            for content_id, share, window in zip(trending, shares, windows, strict=True)
        ),
    )
