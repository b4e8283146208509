"""The tokenizer against the reference implementation, the `tokenizers` package with the model's own tokenizer.json."""

from __future__ import annotations

import lzma
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from omega_edge.errors import ConfigError, ModelUnavailable
from omega_edge.protocol import title_embedding_text
from omega_edge.tokenizer import WordPieceTokenizer
from toolchain.export_model import installed_source

TITLES = Path(__file__).resolve().parent.parent / "bench" / "data" / "movietweetings-70k" / "movies.dat.xz"
UNLIMITED = 1 << 30
SURROGATES = range(0xD800, 0xE000)
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

NASTY = (
    "",
    " \t\r\n\u00a0\u2003\u3000\u2028",
    "\u200b\u200d\ufeff\u00ad\x00\x07\x7f\x85\ufffd",
    "tab\tnew\nline\rfeed\x0bpage\x0cunit\x1fend",
    "🍿 film 🎬🎬 night🙂",
    "👩‍👩‍👧‍👦 family 👍🏽 🇫🇷 ❤️ 1️⃣",
    "서울의 봄 한국어",
    "\u1112\u1161\u11ab\u1100\u1173\u11af jamo",
    "فيلم عن الصَّحراء والنُّجوم",
    "סרט על יְרוּשָׁלַיִם",
    "東京物語は、静かな映画です。「がぎぐげご」ﾊﾝｶｸ",
    "\u4e00x\u3400y\uf900z\U00020000\U0002b820\U0002b920\u9fff",
    "हिन्दी फ़िल्म क़ ড়",
    "ภาพยนตร์กรุงเทพ",
    "Σίσυφος ΟΔΟΣ ΟΔΥΣΣΕΥΣ ς",
    "İstanbul'un IŞIKLARI ı",
    "Straße ẞ ŉ ǰ ﬁlm ﬀ Ǆ ⅷ ℌ K Å",
    "e\u0301e\u0323\u0302o\u0327\u0304\u0301 Z\u0351\u036b\u0343a\u0321\u0322l\u0348g\u0337o",
    "\u0301 leading mark \u0323",
    "≠ ≮ ≯ ` ; \u037e \u1fef \u00b4 «ça» ¿qué? — – … • · ‽ ⁂ § ¶",
    "$9.99+tax=<10>^2|~`x`",
    "new marks \u08e1 \u1abf\u1ac0 \U0001e2ae \U00011938 letters \ua7cb \u1c89 \U00016ea0",
    "changed categories \u1734 \u1885 \ua9bd \U000111c9 \u166d",
    "private \ue000 \U000f0000 noncharacter \uffff \U0010ffff unassigned \u0378",
    "[CLS] x [SEP] y[PAD]z [MASK]s [[UNK]] [REC] [mask] [ CLS ]",
    "a" * 100,
    "a" * 101,
    "é" * 100 + " " + "é" * 101,
    "한" * 50 + " " + "한" * 34,
    "x" * 5000,
    "unaffable ##able # ## ###",
    "WALL·E, Se7en, (500) Days of Summer, 8½, M*A*S*H",
)


@pytest.fixture(scope="module")
def reference() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(installed_source() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer(installed_source() / "vocab.txt")


def title_texts() -> list[str]:
    """Every title of the data set, as its name stands there and as the text that is embedded."""
    texts = []
    with lzma.open(TITLES, "rt", encoding="utf-8") as file:
        for line in file:
            _, name, genres = line.rstrip("\n").split("::")
            bare, year = re.fullmatch(r"(.*) \((\d{4})\)", name).groups()
            texts += (name, title_embedding_text(bare, int(year), tuple(genres.split("|"))))
    return texts


def test_published_examples(tokenizer: WordPieceTokenizer) -> None:
    # Ids that the documentation of BERT's uncased vocabulary gives for these words.
    assert tokenizer.encode("Hello world") == [101, 7592, 2088, 102]
    assert tokenizer.encode("[MASK]") == [101, 103, 102]
    assert tokenizer.vocabulary_size == 30522


def test_every_title_of_the_catalogue(tokenizer: WordPieceTokenizer, reference: Tokenizer) -> None:
    texts = title_texts()
    assert len(texts) == 2 * 8795
    expected = [encoding.ids for encoding in reference.encode_batch(texts)]
    assert [tokenizer.encode(text) for text in texts] == expected


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_nasty_text(tokenizer: WordPieceTokenizer, reference: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text, UNLIMITED) == reference.encode(text).ids


def test_every_character_of_unicode(tokenizer: WordPieceTokenizer, reference: Tokenizer) -> None:
    # Between letters of known words: a character that is dropped joins them, one that separates splits them, and any
    # other makes the word unknown. This tells every class of character apart, with whatever Unicode Python has.
    # Planes 4 to 16 hold no characters but tags and private ones: there a sample of the blocks will do.
    codes = [*range(0x40000), *range(0xE0000, 0xE0200), *range(0x40000, 0x110000, 61), 0x10FFFD, 0x10FFFE, 0x10FFFF]
    characters = [chr(code) for code in codes if code not in SURROGATES]
    block = 1024
    for start in range(0, len(characters), block):
        text = " ".join(f"fi{character}lm" for character in characters[start : start + block])
        if tokenizer.encode(text, UNLIMITED) != reference.encode(text).ids:
            wrong = [
                f"U+{ord(character):04X}"
                for character in characters[start : start + block]
                if tokenizer.encode(f"fi{character}lm") != reference.encode(f"fi{character}lm").ids
            ]
            pytest.fail(f"other ids than the reference for {wrong}")


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.text())
def test_any_text(tokenizer: WordPieceTokenizer, reference: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text, UNLIMITED) == reference.encode(text).ids


MIXED = st.one_of(
    st.sampled_from(
        [
            "film",
            "ing",
            "##ing",
            " ",
            "\u0301",
            "\u200d",
            "é",
            "Σ",
            "İ",
            "ﬁ",
            "한",
            "東",
            "-",
            "a" * 60,
            *SPECIAL_TOKENS,
        ]
    ),
    st.characters(exclude_categories=["Cs"], max_codepoint=0x2FFF),
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(MIXED, max_size=30).map("".join), st.integers(2, 12))
def test_mixed_text_cut_to_any_length(
    tokenizer: WordPieceTokenizer, reference: Tokenizer, text: str, max_tokens: int
) -> None:
    reference.enable_truncation(max_length=max_tokens)
    try:
        expected = reference.encode(text).ids
    finally:
        reference.no_truncation()
    assert tokenizer.encode(text, max_tokens) == expected
    assert len(expected) <= max_tokens


def test_table_of_characters_stays_bounded(tokenizer: WordPieceTokenizer) -> None:
    tokenizer.encode("".join(map(chr, range(0x10000, 0x20000))))
    assert len(tokenizer._replacements) == tokenizer._replacements.limit


@pytest.mark.parametrize("text", ["\ud800", "film \udfff", "\ud83c\udf7f"])
def test_lone_surrogate_is_refused(tokenizer: WordPieceTokenizer, text: str) -> None:
    with pytest.raises(ConfigError, match="lone surrogate at character"):
        tokenizer.encode(text)


def test_room_for_the_frame_is_needed(tokenizer: WordPieceTokenizer) -> None:
    assert tokenizer.encode("film", 2) == [101, 102]
    with pytest.raises(ConfigError, match="max_tokens: expected 2 or more"):
        tokenizer.encode("film", 1)


SPECIAL_LINES = "\n".join(SPECIAL_TOKENS)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "special tokens"),
        (b"film\nnight\n", "special tokens, .* not found"),
        (SPECIAL_LINES.replace("[SEP]", "[sep]").encode(), r"special tokens, \[SEP\] not found"),
        (f"{SPECIAL_LINES}\nfilm\nnight\nfilm\n".encode(), "'film' twice"),
        (f"{SPECIAL_LINES}\n".encode() + b"fi\xfflm\n", "expected UTF-8"),
        (SPECIAL_LINES.encode("utf-16"), "expected UTF-8"),
        (b"x" * ((1 << 22) + 1), "at most"),
    ],
)
def test_damaged_vocabulary_is_named(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(ModelUnavailable, match=fault) as caught:
        WordPieceTokenizer(path)
    assert str(path) in str(caught.value)
    assert "toolchain.export_model" in str(caught.value)


def test_missing_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"vocab\.txt: expected a readable vocabulary: No such file"):
        WordPieceTokenizer(tmp_path / "vocab.txt")


def test_small_vocabulary_splits_longest_first(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text(f"{SPECIAL_LINES}\nun\n##aff\n##able\n##affa\n##ble\nunable", encoding="utf-8")
    unknown, begin, end, un, able, affa, ble = (1, 2, 3, 5, 7, 8, 9)
    tokenizer = WordPieceTokenizer(path)
    assert tokenizer.encode("unaffable UNABLE, unx") == [begin, un, affa, ble, 10, unknown, unknown, end]
    assert tokenizer.encode("unable unaffable un able") == [begin, 10, un, affa, ble, un, unknown, end]
    assert able not in tokenizer.encode("unaffable")
