"""Episodes and skills in several encodings: moved by use alone, searched as one, durable, and never below a floor."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import zstandard

from omega_edge import codebook_record
from omega_edge.centroids import Held
from omega_edge.codebook_record import Codebook
from omega_edge.compression import BYTES, FLOORS, Encoding, cosines
from omega_edge.quantiser import ProductCode, Quantiser
from omega_edge.store import STORE_SCHEMA, Store
from omega_edge.tier_policy import Standing
from omega_edge.tiered_vectors import TieredVectors, coarse_form
from omega_edge.vectors import VectorStore, quantised
from tests import codebooks
from tests.households import START_MS, event, look_up, open_memory

VECTORS = codebooks.vectors(600, seed=21)
OLD_STORE = Path(__file__).parent / "vectors" / "memory" / "schema-1.tar.zst"


def title_vector(name: str, _title: str = "") -> tuple[np.ndarray, float]:
    """Titles whose vectors the codebook of the tests can hold."""
    return quantised(VECTORS[int(name[2:])])


@pytest.fixture(autouse=True)
def few_skills_pay(monkeypatch):
    monkeypatch.setattr(codebook_record, "PAYS_FROM_SKILLS", 1)


def opened(folder, **options):
    options = {"vector_lookup": title_vector, "quantiser": codebooks.quantiser(), **options}
    return open_memory(folder, **options)


def watch(memory, count: int, start: int = 0) -> None:
    """Titles of twelve kinds for a while, then of one kind only, each a new one."""
    for number in range(start, start + count):
        chosen = number if number < 120 else 12 * (number % 48)
        memory.record(event(chosen, (number % 11) / 10, START_MS + 60_000 * number))


def held(memory, tier: str) -> dict[str, int]:
    return {
        name: found["vectors"] for name, found in memory.stats()["vectors"][tier]["stored"].items() if found["vectors"]
    }


def everything(memory) -> tuple:
    """All that the tiers hold, their encodings included."""
    standings = [
        (skill.skill_id, skill.centroid.standing.packed(), skill.centroid.encoded) for skill in memory.skills()
    ]
    return memory.export_records(), standings, memory.stats()["vectors"]


@pytest.fixture(scope="module")
def aged_store(tmp_path_factory) -> Path:
    """A store whose first skills nobody has used for 1,500 events, checkpointed."""
    folder = tmp_path_factory.mktemp("tiered") / "aged"
    with pytest.MonkeyPatch.context() as patched, opened(folder) as memory:
        patched.setattr(codebook_record, "PAYS_FROM_SKILLS", 1)
        watch(memory, 1700)
        memory.checkpoint()
    return folder


@pytest.fixture
def aged(aged_store, tmp_path):
    """A memory over a copy of it."""
    shutil.copytree(aged_store, tmp_path / "aged")
    with opened(tmp_path / "aged") as memory:
        yield memory


def test_what_is_out_of_use_becomes_coarse_and_what_is_in_use_precise(aged):
    found = held(aged, "skills")
    assert found["pq48"] + found.get("one_bit", 0) >= 8 and found["float32"] + found.get("float16", 0) >= 1
    by_last_use = sorted(aged.skills(), key=lambda skill: skill.last_sequence)
    assert by_last_use[0].centroid.standing.encoding.coarse
    assert by_last_use[-1].centroid.standing.encoding < Encoding.INT8


def test_no_vector_is_below_the_floor_of_its_encoding(tmp_path, aged):
    """Against the memory that has no codebook and has seen the same."""
    tiered = aged
    with opened(tmp_path / "plain", quantiser=None) as plain:
        watch(plain, 1700)
        exact = {skill.skill_id: skill for skill in plain.skills()}
        coarse = [skill for skill in tiered.skills() if skill.centroid.standing.encoding.coarse]
        assert len(coarse) >= 8
        for skill in coarse:
            standing = skill.centroid.standing
            left, right = (
                np.frombuffer(one.code, np.int8).astype(np.float32)[None] for one in (skill, exact[skill.skill_id])
            )
            assert cosines(left, right)[0] >= standing.fidelity - 0.002 >= FLOORS[standing.encoding] - 0.002
            assert skill.members == exact[skill.skill_id].members


def test_a_vector_that_a_code_cannot_hold_stays(tmp_path):
    """Titles that lie anywhere: their centroids are not what the codebook was trained on."""
    with opened(tmp_path, vector_lookup=look_up) as memory:
        for number in range(900):
            memory.record(
                event(number % 40, 1.0, START_MS + number) if number < 60 else event(8 * (number % 5), 1.0, START_MS)
            )
        assert all(skill.centroid.standing.encoding <= Encoding.INT8 for skill in memory.skills())
        assert any(skill.last_sequence < 100 for skill in memory.skills())


def test_a_vector_that_comes_and_goes_stays_above_the_floor():
    """What is coarse again is judged by the angles of both losses together, not by their product."""
    noise = np.random.default_rng(3).normal(size=(60, 384)).astype(np.float32)
    cycles, code = 0, codebooks.quantiser().product
    for original in codebooks.vectors(60, seed=55) + np.float32(0.016) * noise:
        standing, unit = Standing.new(0), original / np.linalg.norm(original)
        for _ in range(3):
            encoded = coarse_form(unit, standing, Encoding.PQ48, codebooks.quantiser())
            if encoded is None:
                break
            decoded = code.decode(np.frombuffer(encoded, np.uint8)[None])
            true = cosines(decoded, original[None])[0]
            assert true >= FLOORS[Encoding.PQ48] - 1e-4 and true >= standing.fidelity - 1e-4
            rounded, scale = quantised(decoded[0])
            unit, cycles = rounded * np.float32(scale), cycles + 1
    assert cycles > 90


@pytest.mark.parametrize("encoding", [Encoding.FLOAT32, Encoding.FLOAT16])
def test_a_centroid_is_searched_as_who_reads_its_record_searches_it(tmp_path, encoding):
    """Else which skill an episode joins would depend on when the process was started."""
    store = Store(tmp_path)
    codebook = Codebook(store, None)
    held = Held(Standing.new(1), *_int8(VECTORS[0]))
    held.move(encoding, 1, codebook)
    for unit in VECTORS[1:40]:
        held.replace(unit)
        assert Held.unpacked(*held.packed(codebook), 1, codebook) == held
    held.move(Encoding.FLOAT16, 2, codebook)
    assert Held.unpacked(*held.packed(codebook), 1, codebook) == held
    store.close()


def _int8(unit: np.ndarray) -> tuple[bytes, float]:
    code, scale = quantised(unit)
    return code.tobytes(), scale


def test_centroids_that_are_only_searched_are_not_decoded(tmp_path, aged, monkeypatch):
    """A household's thousands are read when the first episode joins: decoded, they would take seconds."""
    found = held(aged, "skills")
    aged.close()
    decoded = []
    whole = ProductCode.decode
    monkeypatch.setattr(ProductCode, "decode", lambda code, codes: decoded.append(len(codes)) or whole(code, codes))
    with opened(tmp_path / "aged") as memory:
        assert len(memory.rank_skills(VECTORS[0], 5)) == 5 and held(memory, "skills") == found
        assert not decoded and found["pq48"] > 0
        assert len([skill.code for skill in memory.skills()]) > 10 and len(decoded) == found["pq48"]


def test_a_use_brings_a_centroid_back_to_8_bits(aged):
    coarse = next(skill for skill in aged.skills() if skill.centroid.standing.encoding.coarse)
    number, count = int(next(iter(coarse.members))[2:]), coarse.sample_count
    aged.record(event(number, 1.0, START_MS + 10**9))
    again = next(skill for skill in aged.skills() if skill.skill_id == coarse.skill_id)
    assert again.sample_count == count + 1
    assert again.centroid.standing.encoding is Encoding.INT8 and again.centroid.standing.last_use == 1701


def test_reading_is_no_use(aged):
    before = everything(aged)[:2]
    for vector in VECTORS[:30]:
        aged.retrieve(vector, 9)
        aged.rank_skills(vector, 9)
    aged.maintain()
    assert everything(aged)[:2] == before


def test_neither_crashes_nor_checkpoints_change_what_the_tiers_hold(tmp_path, aged):
    expected = everything(aged)[1]
    memory = opened(tmp_path / "0", checkpoint_events=90)
    for stores, start in enumerate(range(0, 1700, 170), start=1):
        watch(memory, 170, start)
        if start % 340 == 0:
            memory.stats()  # the tiers take in what the journal holds
        shutil.copytree(tmp_path / str(stores - 1), tmp_path / str(stores))  # what a killed process leaves
        memory.close()
        memory = opened(tmp_path / str(stores), checkpoint_events=90)
    with memory:
        assert everything(memory)[1] == expected
        assert memory.stats()["degraded"] == []


def test_few_records_are_rewritten_for_their_encoding(aged):
    """At most one skill is considered an event, and two episodes."""
    aged.checkpoint()
    moved = []
    written = aged._keeper.store.write
    aged._keeper.store.write = lambda rows: moved.append(list(rows)) or written(moved[-1])
    before = {skill.skill_id: skill.version for skill in aged.skills()}
    watch(aged, 100, 1700)
    aged.checkpoint()
    changed = {skill.skill_id for skill in aged.skills() if skill.version != before.get(skill.skill_id)}
    skills = {int.from_bytes(key, "big") for table, key, _fields in moved[-1] if table == "skills"}
    episodes = {int.from_bytes(key, "big") for table, key, _fields in moved[-1] if table == "episodes"}
    assert len(skills - changed) <= 100 and len(episodes) <= 300 and len(aged.skills()) > 10


def test_a_move_is_no_change_that_a_reader_of_the_log_sees(tmp_path):
    with opened(tmp_path) as memory:
        watch(memory, 500)
        encodings = {skill.skill_id: skill.centroid.standing.encoding for skill in memory.skills()}
        version = memory.local_version
        watch(memory, 1100, 500)
        seen = {change.key for change in memory.get_changes_since(version) if change.tier.value == "skills"}
        now = {skill.skill_id: skill.centroid.standing.encoding for skill in memory.skills()}
        moved = [skill_id for skill_id, encoding in now.items() if encodings[skill_id] is not encoding]
    assert len(moved) > 8 and any(skill_id not in seen for skill_id in moved)


def resident_kb(path: Path) -> int:
    """What of a mapped file is in this process's memory."""
    lines = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines()
    places = [place for place, line in enumerate(lines) if line.endswith(str(path))]
    if not places:
        pytest.skip("this system, which may be emulated, does not list the mapped file")
    sizes = [next(line for line in lines[place:] if line.startswith("Rss:")) for place in places]
    return sum(int(line.split()[1]) for line in sizes)


def test_the_sweep_leaves_no_pages_of_the_file_in_memory(tmp_path, aged):
    """It reads every record in turn; a checkpoint lets go of them."""
    assert len(aged.skills()) > 10
    read = resident_kb(tmp_path / "aged" / "memory.mdb")
    aged.record(event(590))
    aged.checkpoint()
    assert resident_kb(tmp_path / "aged" / "memory.mdb") < read


class TestBytes:
    def test_what_is_reported_is_what_is_held(self, aged):
        aged.checkpoint()
        report = aged.stats()["vectors"]
        records = [fields for _key, fields in aged._keeper.store.items("skills")]
        for encoding in Encoding:
            stored = [fields for fields in records if fields[13][0] == encoding]
            size = sum(len(fields[3]) + (4 if encoding is Encoding.INT8 else 0) for fields in stored)
            assert report["skills"]["stored"][encoding.label] == {"vectors": len(stored), "bytes": size}
            assert size == len(stored) * BYTES[encoding]
        assert report["codebook"] == {"bytes": codebooks.quantiser().nbytes, "kept": True}

    def test_the_codebook_is_kept_only_where_it_pays(self, tmp_path, monkeypatch):
        monkeypatch.setattr(codebook_record, "PAYS_FROM_SKILLS", 1_000)
        with opened(tmp_path) as memory:
            watch(memory, 1700)
            assert held(memory, "skills").keys() <= {"float32", "float16", "int8"}
            assert not memory.stats()["vectors"]["codebook"]["kept"]


class TestCodebooks:
    def test_another_bundle_s_codebook_changes_nothing(self, tmp_path, aged):
        """Nor none at all: the store goes on with its own."""
        expected = everything(aged)[:2]
        aged.close()
        for offered in (codebooks.quantiser(2), None):
            with opened(tmp_path / "aged", quantiser=offered) as memory:
                assert everything(memory)[:2] == expected and memory.stats()["degraded"] == []

    def test_a_lost_codebook_costs_the_coarse_vectors_alone_and_is_told(self, tmp_path, aged):
        expected = {skill.skill_id for skill in aged.skills() if not skill.centroid.standing.encoding.coarse}
        aged.checkpoint()
        aged._keeper.store.write([("meta", b"codebook", None)])
        aged.close()
        with opened(tmp_path / "aged", quantiser=None) as memory:
            assert {skill.skill_id for skill in memory.skills()} == expected
            stats = memory.stats()
            assert stats["damaged_records"] > 0 and any("damaged" in line for line in stats["degraded"])
            watch(memory, 30, 1700)
            memory.rank_skills(VECTORS[0], 5)
            assert memory.stats()["damaged_records"] == stats["damaged_records"]

    @pytest.mark.parametrize("lost", [None, {1: 7, 2: b"no codebook"}])
    def test_a_lost_codebook_that_the_bundle_has_is_kept_anew(self, tmp_path, aged, lost):
        """So that the next bundle, which may bring another, finds it in the store."""
        aged.checkpoint()
        expected = [(skill.skill_id, skill.code) for skill in aged.skills()]
        aged._keeper.store.write([("meta", b"codebook", lost)])
        aged.close()
        with opened(tmp_path / "aged") as memory:
            assert [(skill.skill_id, skill.code) for skill in memory.skills()] == expected
            memory.record(event(590))
            memory.checkpoint()
            expected = [(skill.skill_id, skill.code) for skill in memory.skills()]
        with opened(tmp_path / "aged", quantiser=codebooks.quantiser(2)) as memory:
            assert [(skill.skill_id, skill.code) for skill in memory.skills()] == expected
            assert memory.stats()["degraded"] == []

    def test_forgetting_keeps_it_and_forgetting_all_does_not(self, tmp_path, aged):
        aged.forget(content_id=event(500).content_id)
        assert held(aged, "skills")["pq48"] > 0
        aged.forget(everything=True)
        assert not aged.stats()["vectors"]["codebook"]["kept"]

    def test_an_export_needs_no_codebook(self, tmp_path, aged):
        exported = json.loads(json.dumps(aged.export_records()))
        with opened(tmp_path / "other", quantiser=None) as other:
            other.import_records(exported)
            assert other.export_records() == exported
            assert held(other, "skills").keys() == {"int8"}


def without_versions(exported: dict) -> dict:
    """Versions go on by a leap where a journal is taken in a second time; a scale is float32, as a catalogue's is."""
    del exported["counters"]
    for tier in ("episodes", "skills"):
        for record in exported[tier]:
            del record["version"]
            if record["vector"] is not None:
                record["vector"]["scale"] = float(np.float32(record["vector"]["scale"]))
    return exported


def test_a_store_of_the_version_before_opens_as_it_was(tmp_path):
    """Written by the software that knew one encoding, beside its own export."""
    with tarfile.open(fileobj=io.BytesIO(zstandard.decompress(OLD_STORE.read_bytes()))) as archive:
        for member in archive:
            (tmp_path / member.name).write_bytes(archive.extractfile(member).read())
    expected = json.loads((tmp_path / "export.json").read_text(encoding="utf-8"))
    in_catalogue = {"catalogue_lookup": lambda name: look_up(name) if int(name[2:]) % 2 else None}
    with open_memory(tmp_path, quantiser=codebooks.quantiser(), **in_catalogue) as memory:
        assert without_versions(memory.export_records()) == without_versions(expected)
        assert memory.stats()["degraded"] == []
        assert len(expected["skills"]) == len(memory.skills()) == 8
        for number in range(3):
            memory.record(event(number, 1.0, START_MS + 10**8 + number))
        memory.checkpoint()
        assert memory._keeper.store.get("meta", b"schema") == {1: STORE_SCHEMA}  # the software before must refuse it
    with open_memory(tmp_path, **in_catalogue) as memory:
        assert len(memory.episodes()) == len(expected["episodes"]) + 3


def test_episodes_of_catalogue_titles_are_exact_whatever_is_searched(tmp_path):
    with opened(tmp_path, catalogue_lookup=title_vector) as memory:
        watch(memory, 1000)
        memory.checkpoint()
        before = memory.episodes()
        standings = [episode.standing.encoding for episode in before]
        assert sum(encoding.coarse for encoding in standings) > 50
        assert all(
            (episode.code, episode.scale)
            == (title_vector(episode.content_id)[0].tobytes(), title_vector(episode.content_id)[1])
            for episode in before
        )
        assert not any(encoding.coarse for encoding in standings[-65:])
    with opened(tmp_path, catalogue_lookup=title_vector) as memory:
        assert memory.episodes() == before


def test_a_title_that_left_the_catalogue_keeps_what_its_code_says(tmp_path):
    """An episode that waits again, after a forget, is used when it founds a skill."""
    with opened(tmp_path, catalogue_lookup=title_vector) as memory:
        watch(memory, 1000)
        memory.checkpoint()
        coarse = next(episode for episode in memory.episodes() if episode.standing.encoding.coarse)

    def later(name: str, _title: str = "") -> tuple[np.ndarray, float] | None:
        return None if name == coarse.content_id else title_vector(name)

    with opened(tmp_path, vector_lookup=later, catalogue_lookup=later) as memory:
        keeper = memory._keeper
        keeper.episodes.use(keeper.episodes.get(coarse.sequence))
        keeper.episodes.note_change(keeper.episodes.get(coarse.sequence))
        memory.record(event(500))
        memory.checkpoint()
        kept = keeper.episodes.get(coarse.sequence).standing
        assert kept.encoding is Encoding.INT8 and kept.fidelity < 1
    with opened(tmp_path, vector_lookup=later, catalogue_lookup=later) as memory:
        again = memory._keeper.episodes.get(coarse.sequence)
        code, scale = memory._keeper.episodes.vector_of(again)
        exact = title_vector(coarse.content_id)
        both = [np.frombuffer(code, np.int8) * np.float32(scale), exact[0] * np.float32(exact[1])]
        assert cosines(*(vector.astype(np.float32)[None] for vector in both))[0] > FLOORS[Encoding.PQ48]


def test_a_codebook_that_knows_no_direction_makes_nothing_coarse():
    """A hostile bundle's: every code of it stands for a vector of zeros."""
    arrays = {name: array.copy() for name, array in codebooks.sections().items()}
    arrays["quantiser_mean"][:] = 0
    arrays["quantiser_rotation"][:] = 0
    standing = Standing.new(0)
    assert coarse_form(VECTORS[0], standing, Encoding.PQ48, Quantiser(arrays)) is None
    assert standing == Standing.new(0)


class TestSearch:
    @pytest.fixture
    def mixed(self, tmp_path):
        """300 vectors, a third in each encoding that is searched, and each as it is decoded."""
        quantiser = codebooks.quantiser()
        store = Store(tmp_path)
        vectors, decoded = TieredVectors(Codebook(store, quantiser)), {}
        for number, unit in enumerate(VECTORS[:300]):
            code, scale = quantised(unit)
            vectors.put_code(number, code, scale)
            decoded[number] = code * np.float32(scale)
        for encoding, code, start in ((Encoding.PQ48, quantiser.product, 0), (Encoding.ONE_BIT, quantiser.signs, 1)):
            ids = list(range(start, 300, 3))[::-1]
            codes = code.encode(VECTORS[ids])
            vectors.put_coarse(encoding, ids, codes)
            decoded |= dict(zip(ids, code.decode(codes), strict=True))
        yield vectors, decoded
        store.close()

    @pytest.mark.parametrize("chosen", [None, list(range(0, 300, 7)), [5], [], [999]])
    def test_it_is_that_of_what_is_decoded(self, mixed, chosen):
        vectors, decoded = mixed
        query = VECTORS[400]
        present = [number for number in decoded if chosen is None or number in chosen]
        found = vectors.search(query, 20, chosen)
        assert len(found) == min(20, len(present))
        true = {number: float(decoded[number] @ query) for number in present}
        assert all(abs(cosine - true[number]) < 0.01 for number, cosine in found)
        worst = min((true[number] for number, _cosine in found), default=0)
        missed = set(present) - {number for number, _cosine in found}
        assert all(true[number] <= worst + 0.02 for number in missed)
        assert [cosine for _number, cosine in found] == sorted((cosine for _number, cosine in found), reverse=True)
        shorter = vectors.search(query * np.float32(0.1), 20, chosen)
        assert [cosine for _number, cosine in shorter] == pytest.approx([cosine for _number, cosine in found], abs=1e-5)
        by_code = vectors.search_code(*quantised(query), 20, chosen)
        assert [cosine for _number, cosine in by_code] == pytest.approx([cosine for _number, cosine in found], abs=0.01)

    def test_it_is_exact_however_many_there_are(self, tmp_path):
        """In two stages it would find what the searches before it let it find, and not what the entries say."""
        store, count = Store(tmp_path), 4200
        vectors = TieredVectors(Codebook(store, None))
        codes, scales = zip(*map(quantised, codebooks.vectors(count, seed=8)), strict=True)
        vectors.put_codes(list(range(count)), np.array(codes), np.array(scales, np.float32))
        stats = vectors._rows.stats()
        assert (stats.search, stats.reason) == ("exact", "a recall of 1 was asked for")
        store.close()

    def test_an_id_is_present_once_in_whichever_encoding(self, mixed):
        vectors, _decoded = mixed
        assert vectors.count == 300 and {count for count, _size in vectors.usage().values()} == {100}
        vectors.put_code(0, *quantised(VECTORS[0]))
        assert vectors.count == 300 and vectors.delete(0) and not vectors.delete(0) and vectors.count == 299
        assert 0 not in [number for number, _cosine in vectors.search(VECTORS[0], 300)]
        with pytest.raises(KeyError):
            vectors.code(0)

    def test_coarse_vectors_cost_what_is_stated_and_room_is_given_back(self, tmp_path):
        quantiser, count = codebooks.quantiser(), 4000
        store = Store(tmp_path)
        vectors = TieredVectors(Codebook(store, quantiser))
        units = codebooks.vectors(count, seed=8)
        for number, unit in enumerate(units):
            vectors.put_code(number, *quantised(unit))
        before = vectors.usage()[Encoding.INT8][1]
        vectors.put_coarse(Encoding.PQ48, list(range(count)), quantiser.product.encode(units))
        assert vectors.usage()[Encoding.PQ48] == (count, count * (48 + 8 + 4))
        assert vectors.usage()[Encoding.INT8][0] == 0 and vectors.usage()[Encoding.INT8][1] < before / 2
        assert VectorStore().nbytes < before
        store.close()
