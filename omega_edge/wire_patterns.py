"""Patterns and trends of messages ⇄ columns: one byte string for each field of all patterns together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from omega_edge.columns import (
    TitleNumbering,
    TitlePacker,
    TitleReader,
    pack_varints,
    read_times,
    read_varints,
)
from omega_edge.errors import ProtocolError
from omega_edge.halfbytes import HalfBytesReader, HalfBytesWriter
from omega_edge.patterns import (
    LOW_RATE_STEPS,
    RATE_STEPS,
    WEEK_MS,
    WEIGHT_STEPS,
    count_of_step,
    count_step,
    life_step,
    rate_steps,
    weeks_of_step,
    weight_steps,
)
from omega_edge.protocol import (
    EMBEDDING_BYTES,
    MAX_REFERENCES_PER_PATTERN,
    MAX_SIMILAR_PATTERNS,
    MAX_TIMESTAMP_MS,
    MAX_TREND_SIGNALS,
    MIN_QUALITY_THRESHOLD,
    PATTERN_CODE_BYTES,
    U32_MAX,
    GlobalPatterns,
    TitleReference,
    TrendSignal,
    ViewingPattern,
)
from omega_edge.wire_fields import Fields, check_length

SCORE_STEPS = 65_535
EMBEDDED, CODED, EACH_ITS_OWN = 0, 9, 15
"""Forms of patterns beside 1 to 8 references; the last says that the forms differ and follow one by one."""

_LEAST_RATE_STEPS = round(MIN_QUALITY_THRESHOLD * RATE_STEPS)
_BYTE_WEIGHT_STEPS = 255
_CODEBOOK_BYTES = 4
_MAX_WEEK = MAX_TIMESTAMP_MS // WEEK_MS
_MAX_LIFE_STEP = count_step(_MAX_WEEK + 1)
_MAX_COUNT_STEP = count_step(U32_MAX)


def pack_patterns(patterns: Sequence[ViewingPattern], packer: TitlePacker) -> dict[int, object]:
    """The columns of these patterns, their titles by this packer."""
    fields: dict[int, object] = {13: _pack_facts(patterns)}
    if any(pattern.success_rate < MIN_QUALITY_THRESHOLD for pattern in patterns):
        fields[2] = bytes(rate_steps(pattern.success_rate) for pattern in patterns)
    cited = [reference.content_id for pattern in patterns for reference in pattern.references]
    if cited:
        fields[7] = packer.pack(cited)
    if any(pattern.embedding is not None for pattern in patterns):
        fields[9] = b"".join(pattern.embedding or b"" for pattern in patterns)
    books = [pattern.codebook for pattern in patterns if pattern.codebook is not None]
    if len(set(books)) == 1:
        fields[13] += books[0].to_bytes(_CODEBOOK_BYTES, "little")
    elif books:
        fields[12] = books
    fields[13] += b"".join(pattern.code for pattern in patterns if pattern.code is not None)
    return fields


def _pack_facts(patterns: Sequence[ViewingPattern]) -> bytes:
    """All that is small of the patterns, field by field, in half-bytes (see facts in wire.cddl)."""
    column = HalfBytesWriter()
    forms = [_form(pattern) for pattern in patterns]
    column.number(len(patterns))
    mixed = any(pattern.id <= before.id for before, pattern in pairwise(patterns))
    column.half(mixed)
    before = 0
    for pattern in patterns:
        column.signed(pattern.id - before) if mixed else column.number(pattern.id - before)
        before = pattern.id + 1
    alike = len(set(forms)) == 1
    for form in forms[:1] if alike else (EACH_ITS_OWN, *forms):
        column.half(form)
    if all(pattern.success_rate >= MIN_QUALITY_THRESHOLD for pattern in patterns):
        for pattern in patterns:
            column.half(rate_steps(pattern.success_rate) * RATE_STEPS // LOW_RATE_STEPS - _LEAST_RATE_STEPS)
    for pattern in patterns:
        column.number(count_step(pattern.sample_count))
    before = 0
    for pattern in patterns:
        column.signed(pattern.created_at // WEEK_MS - before)
        before = pattern.created_at // WEEK_MS
    for pattern in patterns:
        column.number(life_step(pattern))
    for pattern in patterns:
        for reference in pattern.references:
            column.half(weight_steps(reference.weight))
    return column.packed()


def _form(pattern: ViewingPattern) -> int:
    """1 to 8: this many references; else EMBEDDED or CODED."""
    return EMBEDDED if pattern.embedding is not None else CODED if pattern.code is not None else len(pattern.references)


def read_patterns(name: str, value: object, reader: TitleReader, max_count: int) -> tuple[ViewingPattern, ...]:
    """The patterns of their columns, at most max_count; ProtocolError where the columns are no such patterns."""
    fields = Fields(name, value)
    read = _read_facts if 13 in fields else _read_byte_columns
    ids, rates, samples, created, updated, forms, weights, codes = read(name, fields, max_count)
    contents = _read_contents(name, fields, forms, weights, codes, reader)
    return tuple(
        ViewingPattern(pattern_id, rate, count, created_at, updated_at, **content)
        for pattern_id, rate, count, created_at, updated_at, content in zip(
            ids, rates, samples, created, updated, contents, strict=True
        )
    )


def _read_facts(name: str, fields: Fields, max_count: int) -> tuple[Sequence, ...]:
    """ids, rates, samples, created, updated, forms and weights out of half-bytes, and the bytes behind them."""
    column = HalfBytesReader(f"{name}.facts", fields.take(13, "facts", bytes))
    count = column.number(max_count)
    places = range(count)
    mixed = column.half()
    if mixed > 1:
        raise ProtocolError(f"{name}.id: expected ids that rise (0) or do not (1), got {mixed}")
    ids, before = [], 0
    for _ in places:
        ids.append(before + (column.signed(U32_MAX + 1) if mixed else column.number(U32_MAX)))
        before = ids[-1] + 1
    form = column.half() if count else EACH_ITS_OWN
    forms = [form] * count if form != EACH_ITS_OWN else [column.half() for _ in places]
    low_rates = fields.take(2, "success_rate", bytes, default=None)
    if low_rates is None:
        rates = [(column.half() + _LEAST_RATE_STEPS) / RATE_STEPS for _ in places]
    else:
        check_length(f"{name}.success_rate", low_rates, count)
        rates = [steps / LOW_RATE_STEPS for steps in low_rates]
    samples = [count_of_step(column.number(_MAX_COUNT_STEP)) for _ in places]
    created, week = [], 0
    for _ in places:
        week += column.signed(_MAX_WEEK)
        created.append(week * WEEK_MS)
    updated = [at + weeks_of_step(column.number(_MAX_LIFE_STEP)) * WEEK_MS for at in created]
    weights = [column.half() / WEIGHT_STEPS for _ in range(_references(name, forms))]
    return ids, rates, samples, created, updated, forms, weights, column.rest()


def _read_byte_columns(name: str, fields: Fields, max_count: int) -> tuple[Sequence, ...]:
    """The same out of columns of whole bytes, as the first writers had them."""
    ids = read_varints(f"{name}.id", fields.take(1, "id", bytes), max_count, U32_MAX)
    forms = fields.take(6, "forms", bytes)
    rates = fields.take(2, "success_rate", bytes)
    samples = read_varints(f"{name}.sample_count", fields.take(3, "sample_count", bytes), max_count, U32_MAX)
    created = read_times(f"{name}.created_at", fields.take(4, "created_at", bytes), max_count)
    updated = read_times(f"{name}.updated_at", fields.take(5, "updated_at", bytes), max_count)
    columns = {"forms": forms, "success_rate": rates, "sample_count": samples, "created_at": created, "updated_at": updated}
    for column, values in columns.items():
        check_length(f"{name}.{column}", values, len(ids))
    weights = fields.take(8, "weights", bytes, default=b"")
    check_length(f"{name}.weights", weights, _references(name, forms))
    return (
        ids, [steps / LOW_RATE_STEPS for steps in rates], samples, created, updated, forms,
        [steps / _BYTE_WEIGHT_STEPS for steps in weights], b"",
    )  # fmt: skip


def _references(name: str, forms: Sequence[int]) -> int:
    """How many references the patterns of these forms have together."""
    if any(form > CODED for form in forms):
        raise ProtocolError(f"{name}.references: expected at most {MAX_REFERENCES_PER_PATTERN} a pattern, got more")
    return sum(form for form in forms if form != CODED)


def _read_contents(
    name: str, fields: Fields, forms: Sequence[int], weights: Sequence[float], codes: bytes, reader: TitleReader
) -> list[dict[str, object]]:
    """What each pattern says, as arguments of ViewingPattern: references, an embedding or a code."""
    cited = reader.read(f"{name}.references", fields.take(7, "references", list, default=[]), len(weights))
    check_length(f"{name}.references", cited, len(weights))
    embeddings = fields.take(9, "embeddings", bytes, default=b"")
    check_length(f"{name}.embeddings", embeddings, forms.count(EMBEDDED) * EMBEDDING_BYTES)
    coded = forms.count(CODED)
    books = fields.take(12, "codebooks", list, default=[])
    if coded and not books:
        books, codes = [int.from_bytes(codes[:_CODEBOOK_BYTES], "little")] * coded, codes[_CODEBOOK_BYTES:]
    check_length(f"{name}.codebooks", books, coded)
    check_length(f"{name}.codes", codes, coded * PATTERN_CODE_BYTES)
    contents: list[dict[str, object]] = []
    reference = embedding = code = 0
    for form in forms:
        if form == CODED:
            start = code * PATTERN_CODE_BYTES
            contents.append({"code": codes[start : start + PATTERN_CODE_BYTES], "codebook": books[code]})
            code += 1
        elif form == EMBEDDED:
            contents.append({"embedding": embeddings[embedding : embedding + EMBEDDING_BYTES]})
            embedding += EMBEDDING_BYTES
        else:
            places = range(reference, reference + form)
            cited_here = tuple(TitleReference(cited[place], weights[place]) for place in places)
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
    highest = fields.take_number(4, "highest_score") if trending else 0.0
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
