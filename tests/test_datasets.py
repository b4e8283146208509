"""Reading data sets: formats, odd names, bad lines, and what is refused."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest

from omega_edge.datasets import MAX_LINE_BYTES, DatasetTitle, read_dataset, year_of
from omega_edge.errors import DatasetError
from omega_edge.protocol import SUCCESS_THRESHOLD

DATA = Path(__file__).resolve().parent.parent / "bench" / "data" / "movietweetings-70k"

MOVIES = [
    "0001::Amélie (2001)::Comedy|Romance",
    "0002::Face::Off (1997)::Action",
    "0003::Ōkami (1972)::",
    "0004::Untitled::Drama",
]
RATINGS = ["7::0001::10::2000", "7::0002::7::1000", "9::0001::6::1000", "7::0001::9::3000"]


def movietweetings(folder: Path, movies: list[str] | bytes, ratings: list[str] | bytes) -> Path:
    for name, content in (("movies.dat", movies), ("ratings.dat", ratings)):
        data = content if isinstance(content, bytes) else ("\n".join(content) + "\n").encode()
        (folder / name).write_bytes(data)
    return folder


def many_ratings(count: int) -> list[str]:
    return [f"{index % 50}::0001::{index % 11}::{index}" for index in range(count)]


def test_names_with_separators_accents_and_no_year(tmp_path):
    titles = read_dataset(movietweetings(tmp_path, MOVIES, RATINGS)).titles
    assert titles == (
        DatasetTitle("0001", "Amélie (2001)", 2001, ("Comedy", "Romance")),
        DatasetTitle("0002", "Face::Off (1997)", 1997, ("Action",)),
        DatasetTitle("0003", "Ōkami (1972)", 1972, ()),
        DatasetTitle("0004", "Untitled", None, ("Drama",)),
    )
    assert [title.bare_name for title in titles] == ["Amélie", "Face::Off", "Ōkami", "Untitled"]


def test_events_are_ordered_by_time_then_by_line(tmp_path):
    dataset = read_dataset(movietweetings(tmp_path, MOVIES, RATINGS))
    events = dataset.events
    assert dataset.households == ("7", "9")
    assert events.timestamp.tolist() == [1_000_000, 1_000_000, 2_000_000, 3_000_000]
    assert events.household.tolist() == [0, 1, 0, 0]
    assert events.title.tolist() == [1, 0, 0, 0]
    assert events.watch_percentage.tolist() == [0.7, 0.6, 1.0, 0.9]


def test_a_rating_of_seven_is_success_as_a_python_float_too(tmp_path):
    # In float32 0.7 is below the threshold once it is widened again.
    events = read_dataset(movietweetings(tmp_path, MOVIES, RATINGS)).events
    assert float(events.watch_percentage[0]) >= SUCCESS_THRESHOLD


def test_a_second_rating_is_a_second_viewing_but_a_repeated_line_is_not(tmp_path):
    ratings = [*many_ratings(300), "7::0002::7::1000", "7::0002::8::2000", "7::0002::7::1000"]
    dataset = read_dataset(movietweetings(tmp_path, MOVIES, ratings))
    assert np.count_nonzero(dataset.events.title == 1) == 2
    assert [(fault.line, "repeats" in fault.why) for fault in dataset.malformed] == [(303, True)]


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_compressed_files_read_alike(tmp_path, ending, pack):
    plain = read_dataset(movietweetings(tmp_path, MOVIES, RATINGS))
    for name in ("movies.dat", "ratings.dat"):
        (tmp_path / (name + ending)).write_bytes(pack((tmp_path / name).read_bytes()))
        (tmp_path / name).unlink()
    packed = read_dataset(tmp_path)
    assert packed.titles == plain.titles and packed.households == plain.households
    for field in ("household", "title", "watch_percentage", "timestamp"):
        np.testing.assert_array_equal(getattr(packed.events, field), getattr(plain.events, field))


def test_byte_order_mark_windows_lines_and_blank_lines(tmp_path):
    movies = b"\xef\xbb\xbf" + "\r\n".join(MOVIES).encode() + b"\r\n\r\n"
    dataset = read_dataset(movietweetings(tmp_path, movies, RATINGS))
    assert dataset.titles[0].content_id == "0001" and len(dataset.titles) == 4 and dataset.malformed == ()


BAD_RATINGS = {
    "7::0001::11::1000": "from 0 to 10",
    "7::0001::-1::1000": "from 0 to 10",
    "7::0001::nan::1000": "from 0 to 10",
    "7::0001::good::1000": "expected a rating",
    "7::0001::5::1e3": "whole Unix seconds",
    "7::0001::5::-5": "whole Unix seconds",
    "7::0001::5::99999999999999": "time",
    "7::0001::5": "got 3 fields",
    "7::0009::5::1000": "not in movies.dat",
    "::0001::5::1000": "household",
}


def test_bad_lines_are_left_out_and_listed_with_number_and_reason(tmp_path):
    ratings = many_ratings(2000)
    for index, line in enumerate(BAD_RATINGS):
        ratings.insert(index * 100, line)
    dataset = read_dataset(movietweetings(tmp_path, MOVIES, ratings))
    assert len(dataset.events) == 2000
    assert [fault.line for fault in dataset.malformed] == [index * 100 + 1 for index in range(len(BAD_RATINGS))]
    for fault, expected in zip(dataset.malformed, BAD_RATINGS.values()):
        assert fault.file == "ratings.dat" and expected in fault.why


def test_bytes_that_are_not_utf8_are_a_bad_line(tmp_path):
    movies = [f"{index:04d}::Title {index}::Drama".encode() for index in range(1, 201)]
    movies[150] = b"0151::Am\xe9lie (2001)::Drama"
    dataset = read_dataset(movietweetings(tmp_path, b"\n".join(movies), RATINGS))
    assert len(dataset.titles) == 199
    assert [(fault.line, fault.why) for fault in dataset.malformed] == [(151, "not UTF-8 at byte 8")]


def test_a_title_listed_twice_counts_once(tmp_path):
    movies = [f"{index:04d}::Title {index}::Drama" for index in range(1, 201)] + ["0007::Another::Comedy"]
    dataset = read_dataset(movietweetings(tmp_path, movies, RATINGS))
    assert len(dataset.titles) == 200 and dataset.titles[6].name == "Title 7"
    assert dataset.malformed[0].line == 201 and "listed already" in dataset.malformed[0].why


def test_one_percent_of_bad_lines_is_the_limit(tmp_path):
    good = many_ratings(198)
    read_dataset(movietweetings(tmp_path, MOVIES, [*good, "junk", "junk"]))
    with pytest.raises(DatasetError, match=r"3 of 201 lines.*line 199: expected household") as refused:
        read_dataset(movietweetings(tmp_path, MOVIES, [*good, "junk", "junk", "junk"]))
    assert "1%" in str(refused.value)


MOVIELENS_TITLES = """movieId,title,genres
1,Toy Story (1995),Adventure|Animation|Children
11,"American President, The (1995)",Comedy|Drama
12,"Say ""Yes"" (2006–2008)",(no genres listed)
"""
MOVIELENS_RATINGS = "userId,movieId,rating,timestamp\n1,1,3.5,964982703\n1,11,0.5,964982700\n2,12,5.0,964982703\n"


def test_movielens(tmp_path):
    (tmp_path / "movies.csv").write_text(MOVIELENS_TITLES, encoding="utf-8")
    (tmp_path / "ratings.csv").write_text(MOVIELENS_RATINGS, encoding="utf-8")
    dataset = read_dataset(tmp_path)
    assert dataset.titles == (
        DatasetTitle("1", "Toy Story (1995)", 1995, ("Adventure", "Animation", "Children")),
        DatasetTitle("11", "American President, The (1995)", 1995, ("Comedy", "Drama")),
        DatasetTitle("12", 'Say "Yes" (2006–2008)', 2006, ()),
    )
    assert dataset.events.watch_percentage.tolist() == [0.1, 0.7, 1.0]
    assert dataset.events.timestamp.tolist() == [964_982_700_000, 964_982_703_000, 964_982_703_000]
    assert dataset.name.startswith("MovieLens")


def test_movielens_columns_are_found_by_name(tmp_path):
    (tmp_path / "movies.csv").write_text("genres,title,movieId\nDrama,One (1990),5\n", encoding="utf-8")
    (tmp_path / "ratings.csv").write_text("timestamp,rating,tag,movieId,userId\n10,4,x,5,77\n", encoding="utf-8")
    dataset = read_dataset(tmp_path)
    assert dataset.titles == (DatasetTitle("5", "One (1990)", 1990, ("Drama",)),)
    assert dataset.households == ("77",) and dataset.events.watch_percentage.tolist() == [0.8]


def test_movielens_without_a_header_is_refused(tmp_path):
    (tmp_path / "movies.csv").write_text("1,Toy Story (1995),Drama\n", encoding="utf-8")
    (tmp_path / "ratings.csv").write_text(MOVIELENS_RATINGS, encoding="utf-8")
    with pytest.raises(DatasetError, match=r"expected the columns movieId, title in the first line"):
        read_dataset(tmp_path)


def test_movielens_without_genres(tmp_path):
    (tmp_path / "movies.csv").write_text("movieId,title\n1,Toy Story (1995)\n", encoding="utf-8")
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,3.5,964982703\n", encoding="utf-8")
    assert read_dataset(tmp_path).titles == (DatasetTitle("1", "Toy Story (1995)", 1995, ()),)


ITEMS = """item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq
1\tToy Story\t1995\tAnimation Children's Comedy
2\tNobody's Film\t\t
3\tLand Before Time III (1995)\tV\tSci-Fi
"""
INTERACTIONS = """user_id:token\titem_id:token\trating:float\ttimestamp:float
196\t3\t3\t881250949
186\t1\t4.5\t881250940.0
196\t2\t5\t881250949
"""


def atomic(folder: Path, items: str = ITEMS, interactions: str = INTERACTIONS, stem: str = "ml-100k") -> Path:
    (folder / f"{stem}.item").write_text(items, encoding="utf-8")
    (folder / f"{stem}.inter").write_text(interactions, encoding="utf-8")
    return folder


def test_atomic_files(tmp_path):
    dataset = read_dataset(atomic(tmp_path), expected="MovieLens")
    assert dataset.titles == (
        DatasetTitle("1", "Toy Story", 1995, ("Animation", "Children's", "Comedy")),
        DatasetTitle("2", "Nobody's Film", None, ()),
        DatasetTitle("3", "Land Before Time III (1995)", 1995, ("Sci-Fi",)),
    )
    assert dataset.name.startswith("MovieLens") and dataset.households == ("196", "186") and dataset.malformed == ()
    assert dataset.events.timestamp.tolist() == [881_250_940_000, 881_250_949_000, 881_250_949_000]
    assert dataset.events.title.tolist() == [0, 2, 1] and dataset.events.watch_percentage.tolist() == [0.9, 0.6, 1.0]


def test_atomic_files_without_genres_and_years_in_another_order(tmp_path):
    items = "movie_title:token_seq\titem_id:token\nSolaris (1972)\t7\n"
    interactions = "timestamp:float\trating:float\titem_id:token\tuser_id:token\n5\t4\t7\tA\n"
    dataset = read_dataset(atomic(tmp_path, items, interactions, "films"))
    assert dataset.titles == (DatasetTitle("7", "Solaris (1972)", 1972, ()),)
    assert dataset.households == ("A",) and dataset.events.timestamp.tolist() == [5000]


def test_bad_lines_of_atomic_files_are_listed_with_their_numbers(tmp_path):
    lines = [f"{index % 50}\t{1 + index % 3}\t{1 + index % 5}\t{index}" for index in range(800)]
    bad = {2: "1\t1\t6\t5", 100: "1\t9\t3\t5", 300: "1\t1\t3", 500: "1\t1\t3\t5.5", 700: lines[0]}
    for number, text in bad.items():
        lines.insert(number - 2, text)
    header = INTERACTIONS.splitlines()[0]
    dataset = read_dataset(atomic(tmp_path, interactions="\n".join([header, *lines]) + "\n"))
    reasons = ["from 0 to 5", "not in ml-100k.item", "4 columns or more, got 3", "whole Unix seconds", "repeats an earlier"]
    assert [(fault.file, fault.line) for fault in dataset.malformed] == [("ml-100k.inter", number) for number in bad]
    for fault, expected in zip(dataset.malformed, reasons, strict=True):
        assert expected in fault.why
    assert len(dataset.events) == 800


def test_atomic_files_need_a_header_and_one_pair(tmp_path):
    with pytest.raises(DatasetError, match=r"expected the columns item_id, movie_title in the first line, item_id, movie"):
        read_dataset(atomic(tmp_path, items="1\tToy Story\t1995\tComedy\n"))
    (tmp_path / "ml-100k.inter").unlink()
    with pytest.raises(DatasetError, match=r"expected ml-100k\.inter"):
        read_dataset(tmp_path)
    atomic(tmp_path)
    atomic(tmp_path, stem="ml-1m")
    with pytest.raises(DatasetError, match=r"expected one pair of \.item and \.inter, found ml-100k, ml-1m"):
        read_dataset(tmp_path)


def test_compressed_atomic_files(tmp_path):
    (tmp_path / "a.item.gz").write_bytes(gzip.compress(ITEMS.encode()))
    (tmp_path / "a.inter.xz").write_bytes(lzma.compress(INTERACTIONS.encode()))
    assert len(read_dataset(tmp_path).events) == 3


def test_another_format_than_the_expected_one_is_an_error(tmp_path):
    movietweetings(tmp_path, MOVIES, RATINGS)
    assert read_dataset(tmp_path, expected="MovieTweetings").titles
    with pytest.raises(DatasetError, match=r"form of MovieLens, found movies\.dat and ratings\.dat, which is that of Movie"):
        read_dataset(tmp_path, expected="MovieLens")


def test_viewings_out_of_order_are_ordered_and_the_first_of_repeated_lines_counts(tmp_path):
    ratings = [*(f"7::0001::9::{5000 - index}" for index in range(300)), "7::0001::2::5000", "8::0002::8::4800"]
    dataset = read_dataset(movietweetings(tmp_path, MOVIES, ratings))
    assert np.all(np.diff(dataset.events.timestamp) >= 0) and len(dataset.events) == 301
    assert [(fault.line, "repeats" in fault.why) for fault in dataset.malformed] == [(301, True)]
    assert dataset.events.watch_percentage[-1] == 0.9, "the repetition at 5000 has another rating and is left out"
    # Two at 4800: that of line 201 comes before that of line 302.
    both = np.flatnonzero(dataset.events.timestamp == 4_800_000)
    assert dataset.events.household[both].tolist() == [0, 1]


def test_ratings_of_another_scale_are_refused(tmp_path):
    stars = [f"{index % 50}::0001::{1 + index % 5}::{index}" for index in range(1000)]
    with pytest.raises(DatasetError, match=r"expected ratings up to 10, the highest of 1000 is 5"):
        read_dataset(movietweetings(tmp_path, MOVIES, stars))


@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_a_damaged_archive_is_refused(tmp_path, ending):
    movietweetings(tmp_path, MOVIES, many_ratings(5000))
    plain = (tmp_path / "ratings.dat").read_bytes()
    packed = (gzip if ending == ".gz" else lzma).compress(plain)
    (tmp_path / "ratings.dat").unlink()
    for damaged in (packed[: len(packed) // 2], b"not an archive", packed[:40] + b"\xff" * 40 + packed[80:]):
        (tmp_path / f"ratings.dat{ending}").write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"ratings\.dat\.[gx]z: "):
            read_dataset(tmp_path)


def test_an_endless_line_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="line 2 is longer than"):
        read_dataset(movietweetings(tmp_path, [MOVIES[0], "x" * (MAX_LINE_BYTES + 1)], RATINGS))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "found none of these"),
        (("movies.dat",), "expected ratings.dat"),
        (("ratings.csv",), "expected movies.csv"),
    ],
)
def test_a_missing_file_is_named(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_text("1::A::B\n")
    with pytest.raises(DatasetError, match=message):
        read_dataset(tmp_path)


def test_no_directory_no_titles_no_ratings(tmp_path):
    with pytest.raises(DatasetError, match="expected a directory"):
        read_dataset(tmp_path / "absent")
    with pytest.raises(DatasetError, match="expected titles, found none"):
        read_dataset(movietweetings(tmp_path, b"\n", RATINGS))
    with pytest.raises(DatasetError, match="expected ratings, found none"):
        read_dataset(movietweetings(tmp_path, MOVIES, b"\n"))


@pytest.mark.parametrize(
    ("name", "year"),
    [
        ("Arrival (2016)", 2016),
        ("Dark (2017-2020)", 2017),
        ("Dark (2017– )", 2017),
        ("1984 (1956)", 1956),
        ("2012", None),
        ("Room (1408)", None),
        ("(500) Days", None),
    ],
)
def test_year_of(name, year):
    assert year_of(name) == year


def test_the_committed_data_set_is_whole():
    """Counts taken from the files by other means: lines, and distinct first fields."""
    with lzma.open(DATA / "movies.dat.xz", "rt", encoding="utf-8") as file:
        ids = [line.split("::", 1)[0] for line in file]
    with lzma.open(DATA / "ratings.dat.xz", "rt", encoding="utf-8") as file:
        rows = [line.split("::") for line in file]
    progress = []
    dataset = read_dataset(DATA, lambda what, lines: progress.append((what, lines)))
    assert [title.content_id for title in dataset.titles] == ids and len(ids) == 8795
    assert len(dataset.events) == len(rows) == 70_000 and dataset.malformed == ()
    assert set(dataset.households) == {row[0] for row in rows}
    assert np.count_nonzero(dataset.events.watch_percentage >= SUCCESS_THRESHOLD) == sum(int(row[2]) >= 7 for row in rows)
    assert np.all(np.diff(dataset.events.timestamp) >= 0)
    assert ("ratings", 70_000) in progress
    assert dataset.licence is not None and "MIT" in dataset.licence
