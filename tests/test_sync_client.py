"""A television and its shard over real HTTP: what is sent in each mode, and what becomes of the answers."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from omega_edge import wire
from omega_edge.brain import OmegaBrain
from omega_edge.errors import ConfigError, StoreError
from omega_edge.protocol import DAY_MS, MAX_DOWNLOAD_BYTES, GlobalPatterns, SyncRequest, SyncResponse, TrendSignal
from omega_edge.sync import SyncClient, SyncConfig, SyncReport
from omega_edge.sync_address import shard_url
from omega_edge.sync_identity import device_token
from tests.brains import Clock, listed, viewing, watch
from tests.model_shard import (
    KEY,
    Handler,
    ModelShard,
    Traffic,
    cutting,
    ended,
    handler_of,
    http_answer,
    lose_tokens,
    read_request,
    served,
)
from tests.synthetic import NOW_MS
from tests.test_brain_collective import pattern


def config_of(traffic: Traffic, **options: object) -> SyncConfig:
    return SyncConfig(traffic.url, **{"timeout_secs": 20.0, **options})


def synced(brain: OmegaBrain, shard: ModelShard, times: int = 1) -> tuple[list[SyncReport], Traffic]:
    """So many syncs of a brain with a shard; their reports, and what went over the socket."""

    async def sync() -> tuple[list[SyncReport], Traffic]:
        async with served(handler_of(shard, brain.collective.titles)) as traffic:
            client = SyncClient(brain, config_of(traffic), randomness=Random(1))
            return [await client.sync_once() for _ in range(times)], traffic

    return asyncio.run(sync())


def test_titles_reach_the_shard_once_and_in_order(opened) -> None:
    brain, shard = opened(sharing="titles"), ModelShard()
    watch(brain, [1, 2, 3, 5])
    reports, _traffic = synced(brain, shard, 2)
    assert [report.outcome for report in reports] == ["done", "done"]
    assert shard.titles_of_all() == ["t001", "t002", "t005"]
    assert [request.delta is None for request in shard.requests] == [False, True]
    assert shard.requests[1] == SyncRequest(global_version_seen=0), "with nothing new, nobody says who is there"
    watch(brain, [6])
    synced(brain, shard)
    assert shard.titles_of_all() == ["t001", "t002", "t005", "t006"] and len(shard.devices) == 1
    sync = brain.stats()["sync"]
    assert sync["totals"]["titles"] == 4 and sync["totals"]["syncs"] == 3 and sync["log"][0]["titles"] == 1
    assert "t001" not in str(sync)


def test_what_the_cloud_learned_reaches_the_list(opened) -> None:
    brain = opened()
    sent = GlobalPatterns(7, (pattern(1, [30, 31]),), (TrendSignal("t044", 1.0, 48),))
    shard = ModelShard(patterns=sent, global_version=7)
    reports, _traffic = synced(brain, shard, 2)
    assert reports[0].changed > 0 and reports[1].changed == 0
    assert brain.stats()["global_version"] == 7
    assert [request.global_version_seen for request in shard.requests] == [0, 7]
    assert reports[1].bytes_down < 40
    assert "t030" in listed(brain, 200)


@pytest.mark.parametrize("mode", ["receive", "titles"])
def test_an_idle_sync_stays_under_350_bytes_both_ways(opened, mode) -> None:
    brain, shard = opened(sharing=mode), ModelShard(global_version=(1 << 64) - 1, catalog_version=(1 << 32) - 1)
    _reports, traffic = synced(brain, shard)
    assert len(traffic.raw[0]) + traffic.answered <= 350
    assert len(traffic.raw[0]) < 140
    assert traffic.raw[0].split(b"\r\n\r\n")[0].count(b"\r\n") == 3, "nothing but Host, Content-Length and Connection"


class TestNothingTellsOneHomeFromAnother:
    """Two histories, one random source, one clock: the same bytes at the same moments."""

    @staticmethod
    def histories(opened: Callable[..., OmegaBrain], mode: str) -> list[tuple[list[bytes], list[float], ModelShard]]:
        """Of three homes: the bytes of each sync without what names the port, the moments, and the shard."""
        homes = []
        for folder, rows in (("none", []), ("few", [1, 2]), ("many", list(range(60)) * 3)):
            clock = Clock()
            clock.now_ms = NOW_MS // DAY_MS * DAY_MS
            brain = opened(folder, clock=clock, sharing=mode, secrecy=Random(4))
            shard = ModelShard(patterns=GlobalPatterns(7, (pattern(1, [30, 31]),)), global_version=7)
            moments: list[float] = []

            async def live(brain=brain, shard=shard, clock=clock, moments=moments, rows=rows) -> list[bytes]:
                async def sleep(seconds: float) -> None:
                    moments.append(seconds)
                    clock.now_ms += round(seconds * 1000)
                    shard.now_ms = clock.now_ms
                    if len(moments) > 300:
                        raise asyncio.CancelledError
                    for row in rows[len(moments) :: 50]:
                        brain.observe(viewing(row, minute=len(moments)))

                async with served(handler_of(shard, brain.collective.titles)) as traffic:
                    client = SyncClient(
                        brain, config_of(traffic), randomness=Random(8), sleep=sleep, clock=clock,
                        monotonic=lambda: clock.now_ms / 1000,
                    )  # fmt: skip
                    with pytest.raises(asyncio.CancelledError):
                        await client.run()
                    return [raw.replace(str(traffic.port).encode(), b"port") for raw in traffic.raw]

            homes.append((asyncio.run(live()), moments, shard))
        return homes

    def test_in_receive(self, opened) -> None:
        none, few, many = self.histories(opened, "receive")
        assert none[:2] == few[:2] == many[:2] and len(none[0]) == 300
        assert len(set(none[0])) == 2, "before and after the patterns came"

    def test_in_counts_but_for_the_reports_value(self, opened) -> None:
        none, few, many = self.histories(opened, "counts")
        asked = [[raw for raw in home[0] if raw.startswith(b"POST /api/v1/devices ")] for home in (none, few, many)]
        assert asked[0] == asked[1] == asked[2] and len(asked[0]) == 1
        none, few, many = (([raw for raw in home[0] if raw != asked[0][0]], *home[1:]) for home in (none, few, many))
        assert none[1] == few[1] == many[1] and len(none[0]) == len(few[0]) == len(many[0]) == 300
        told = [
            [number for number, request in enumerate(home[2].requests) if request.count_report is not None]
            for home in (none, few, many)
        ]
        assert told[0] == told[1] == told[2] and len(told[0]) >= 1
        for number in set(range(300)) - set(told[0]):
            assert none[0][number] == few[0][number] == many[0][number]
        bare = [[(one.device_id, one.epoch, one.count_report.seed) for one in home[2].requests if one.count_report] for home in
                (none, few, many)]  # fmt: skip
        assert bare[0] == bare[1] == bare[2]


def reply_with(answer: bytes | Callable[[bytes, bytes], Awaitable[bytes] | bytes]) -> Handler:
    """A shard that gives tokens, and to each sync this answer."""

    def handle(head: bytes, body: bytes) -> Awaitable[bytes] | bytes:
        if head.startswith(b"POST /api/v1/devices "):
            return http_answer(device_token(KEY, body), "201 Created")
        return answer if isinstance(answer, bytes) else answer(head, body)

    return handle


def outcome_with(brain: OmegaBrain, handle: Handler, **options: object) -> SyncReport:
    async def sync() -> SyncReport:
        async with served(handle) as traffic:
            return await SyncClient(brain, config_of(traffic, **options), randomness=Random(1)).sync_once()

    return asyncio.run(sync())


class TestHostileAnswers:
    """Each is named in the log and in stats(); the home is as before, and the next good answer is taken."""

    BODY = wire.encode_response(SyncResponse(0, 300, NOW_MS))

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            (http_answer(b""), "bad answer"),
            (http_answer(b"\x00" * 30), "bad answer"),
            (http_answer(BODY[:-1]), "bad answer"),
            (http_answer(BODY + b"\x00"), "bad answer"),
            (http_answer(b"<html>a hotel's page</html>"), "bad answer"),
            (http_answer(b"x" * (MAX_DOWNLOAD_BYTES + 1)), "more than 6144 bytes"),
            (http_answer(BODY, headers="Content-Encoding: gzip\r\n"), "more than 6144 bytes, or bytes in another coding"),
            (http_answer(b"", "302 Found", "Location: /api/v1/sync\r\n"), "refused with 302"),
            (http_answer(b"{}", "400 Bad Request"), "refused with 400"),
            (http_answer(b"{}", "401 Unauthorized"), "refused with 401"),
            (http_answer(b"{}", "409 Conflict"), "refused with 409"),
            (http_answer(b"{}", "418 I'm a teapot"), "refused with 418: no reason known"),
            (http_answer(b"{}", "426 Upgrade Required"), "refused with 426"),
            (http_answer(b"{}", "503 Service Unavailable", "Retry-After: 7\r\n"), "refused with 503"),
            (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "bad answer"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nshort", "no whole answer"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1000\r\n" + b"x" * 4096 + b"\r\n" + b"1000\r\n"
             + b"y" * 4096 + b"\r\n", "more than 6144 bytes"),
            (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 100_000 + b"\r\n\r\n", "bad answer"),
        ],
    )  # fmt: skip
    def test_is_named_and_changes_nothing(self, opened, answer: bytes, words: str) -> None:
        brain = opened(sharing="titles")
        watch(brain, [1, 2])
        report = outcome_with(brain, reply_with(answer), timeout_secs=1.0)
        assert words in report.outcome and report.titles == 0
        assert brain.stats()["sync"]["log"][0]["outcome"] == report.outcome
        assert f"sync: {report.outcome}" in brain.stats()["degraded"]
        shard = ModelShard()
        assert synced(brain, shard)[0][0].outcome == "done" and shard.titles_of_all() == ["t001", "t002"]
        assert not any(fault.startswith("sync:") for fault in brain.stats()["degraded"])

    def test_an_answer_in_drops_ends_with_the_timeout(self, opened) -> None:
        async def slow(head: bytes, body: bytes) -> bytes:
            await asyncio.sleep(60)
            return b""

        report = outcome_with(opened(), slow, timeout_secs=0.3)
        assert report.outcome == "no whole answer within 0.3 s" and report.bytes_up > 0

    def test_an_answer_that_drips_ends_with_it_too(self, opened) -> None:
        async def sync() -> SyncReport:
            talks: dict[asyncio.Task, asyncio.StreamWriter] = {}

            async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                talks[asyncio.current_task()] = writer
                await read_request(reader)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
                with suppress(ConnectionError):
                    while True:
                        writer.write(b"x")
                        await writer.drain()
                        await asyncio.sleep(0.02)

            server = await asyncio.start_server(drip, "127.0.0.1", 0)
            try:
                url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
                return await SyncClient(opened(), SyncConfig(url, timeout_secs=0.5)).sync_once()
            finally:
                await ended(server, talks)

        assert asyncio.run(sync()).outcome == "no whole answer within 0.5 s"

    def test_any_bytes_end_in_a_word(self, opened) -> None:
        """Mutations of a good answer, head and body: none leaves sync_once as an error, or acknowledges what it does not."""
        brain, random = opened(sharing="titles"), Random(11)
        watch(brain, [1, 2])
        good = http_answer(self.BODY, headers="Retry-After: 5\r\n")

        def mutated(head: bytes, body: bytes) -> bytes:
            answer = bytearray(good)
            for _ in range(random.randrange(1, 6)):
                place = random.randrange(len(answer) + 1)
                choice = random.randrange(4)
                if choice == 0:
                    answer[place : place + 1] = random.randbytes(1)
                elif choice == 1:
                    del answer[place : place + random.randrange(1, 20)]
                elif choice == 2:
                    answer[place:place] = random.randbytes(random.randrange(1, 20))
                else:
                    answer = answer[: max(place, 1)]
            return bytes(answer) or b"x"

        async def sync() -> list[SyncReport]:
            async with served(reply_with(mutated), close=True) as traffic:
                client = SyncClient(brain, config_of(traffic, timeout_secs=2.0), randomness=Random(1))
                return [await client.sync_once() for _ in range(300)]

        reports = asyncio.run(sync())
        assert all(report.outcome and report.titles == 0 for report in reports)
        assert len({report.outcome for report in reports}) > 5

    def test_a_shard_that_hangs_up_is_a_connection_lost(self, opened) -> None:
        report = outcome_with(opened(), reply_with(b""))
        assert report.outcome.startswith("connection lost") and report.bytes_up > 0

    def test_nobody_there(self, opened) -> None:
        async def sync() -> SyncReport:
            return await SyncClient(opened(), SyncConfig("http://127.0.0.1:1")).sync_once()

        report = asyncio.run(sync())
        assert report.outcome.startswith("no connection") and not report.connected and report.bytes_up == 0

    def test_a_cookie_is_not_carried_home(self, opened) -> None:
        brain, traffic_heads = opened(), []

        def handle(head: bytes, body: bytes) -> bytes:
            traffic_heads.append(head)
            return http_answer(self.BODY, headers="Set-Cookie: id=7; Path=/\r\nETag: \"x\"\r\n")

        async def sync() -> None:
            async with served(handle) as traffic:
                client = SyncClient(brain, config_of(traffic))
                for _ in range(2):
                    assert (await client.sync_once()).outcome == "done"

        asyncio.run(sync())
        assert traffic_heads[0] == traffic_heads[1]

    def test_a_certificate_of_nobody_known_is_refused(self, opened, tmp_path: Path) -> None:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=DNS:localhost", "-keyout", tmp_path / "key", "-out", tmp_path / "certificate"],
            check=True, capture_output=True,
        )  # fmt: skip
        brain, shard = opened(), ModelShard()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")

        async def sync() -> tuple[SyncReport, SyncReport]:
            async with served(handler_of(shard, brain.collective.titles), tls=context) as traffic:
                url = f"https://localhost:{traffic.port}"
                trusting = ssl.create_default_context(cafile=tmp_path / "certificate")
                return (
                    await SyncClient(brain, SyncConfig(url, timeout_secs=20)).sync_once(),
                    await SyncClient(brain, SyncConfig(url, timeout_secs=20, tls=trusting)).sync_once(),
                )

        refused, trusted = asyncio.run(sync())
        assert refused.outcome == "no connection: the shard's certificate is not valid here" and refused.bytes_up == 0
        assert trusted.outcome == "done"


class TestTokens:
    """A home without the shards' key asks for the token of its number, once, and stores it before it tells anything."""

    @staticmethod
    def handler(shard: ModelShard, titles: object, refusal: bytes | None = None) -> tuple[Handler, list[bytes]]:
        asked: list[bytes] = []
        sync = handler_of(shard, titles)

        def handle(head: bytes, body: bytes) -> bytes:
            if not head.startswith(b"POST /api/v1/devices "):
                return sync(head, body)
            asked.append(body)
            return refusal or http_answer(device_token(KEY, body), "201 Created")

        return handle, asked

    def test_it_is_asked_for_once(self, opened) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        handle, asked = self.handler(shard, brain.collective.titles)
        watch(brain, [1])
        assert outcome_with(brain, handle).titles == 1
        watch(brain, [2])
        assert outcome_with(brain, handle).titles == 1
        assert asked == list(shard.devices) and shard.titles_of_all() == ["t001", "t002"]
        brain.close()
        brain = opened()
        assert outcome_with(brain, handle).outcome == "done"
        assert shard.erased == asked and brain._memory.get_state("sync")["tokens"] == []

    @pytest.mark.parametrize(
        ("refusal", "words"),
        [
            (http_answer(b"{}", "403 Forbidden"), "enrolment is closed"),
            (http_answer(b"{}", "404 Not Found"), "enrols nobody"),
            (http_answer(b"{}", "409 Conflict"), "in use"),
            (http_answer(b"{}", "503 Service Unavailable", "Retry-After: 300\r\n"), "asks to wait"),
            (http_answer(b"short", "201 Created"), "refused with 201"),
        ],
    )
    def test_without_one_nothing_is_told(self, opened, refusal: bytes, words: str) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        watch(brain, [1])
        handle, _asked = self.handler(shard, brain.collective.titles, refusal)
        report = outcome_with(brain, handle)
        assert words in report.outcome and shard.requests == []

    def test_a_number_whose_token_cannot_be_had_is_given_up(self, opened) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        watch(brain, [1, 2])
        synced(brain, shard)
        (number,) = shard.devices
        watch(brain, [5])
        lose_tokens(brain)
        handle, _asked = self.handler(shard, brain.collective.titles, http_answer(b"{}", "409 Conflict"))
        assert "takes another" in outcome_with(brain, handle).outcome
        handle, asked = self.handler(shard, brain.collective.titles)
        report = outcome_with(brain, handle)
        assert (report.outcome, report.titles) == ("done", 3) and asked and asked != [number]
        assert [title for title, _at in shard.devices[asked[0]].titles] == ["t001", "t002", "t005"]

    def test_one_that_cannot_be_erased_without_a_token_is_let_go(self, opened) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        watch(brain, [1])
        synced(brain, shard)
        lose_tokens(brain)
        brain.close()
        brain = opened()
        handle, _asked = self.handler(shard, brain.collective.titles, http_answer(b"{}", "409 Conflict"))
        assert "in use" in outcome_with(brain, handle).outcome
        assert outcome_with(brain, handle).outcome == "done" and shard.erased == []

    def test_one_that_cannot_be_stored_is_not_used(self, opened, monkeypatch) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        watch(brain, [1])
        brain.collective.request(lambda delta: len(delta.titles_finished))
        handle, _asked = self.handler(shard, brain.collective.titles)

        def full(rows: object) -> None:
            raise StoreError("the disk is full")

        monkeypatch.setattr(brain._memory._keeper.store, "write", full)
        assert "cannot be stored" in outcome_with(brain, handle).outcome
        assert shard.requests == []

    def test_a_home_that_only_receives_asks_for_none(self, opened) -> None:
        brain, shard = opened(), ModelShard()
        handle, asked = self.handler(shard, brain.collective.titles)
        assert outcome_with(brain, handle).outcome == "done" and asked == []


class TestCutConnections:
    """A proxy cuts the connection after so many bytes of either direction. What was acknowledged is never sent again."""

    @pytest.mark.parametrize("direction", ["up", "down"])
    def test_at_any_byte_it_goes_on_behind_the_last_acknowledged_page(self, opened, direction: str) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        expected: list[str] = []
        sizes: list[int] = []

        async def syncs() -> None:
            async with served(handler_of(shard, brain.collective.titles)) as behind:
                for number, cut in enumerate([*range(0, 140, 3), *range(140, 600, 40)]):
                    row = 1 + 4 * (number % 28)
                    brain.observe(viewing(row, minute=number))
                    expected.append(f"t{row:03d}")
                    async with cutting(behind.port, direction, cut) as traffic:
                        report = await SyncClient(brain, config_of(traffic, timeout_secs=10.0)).sync_once()
                        assert report.titles in (0, len(expected) - len(sizes))
                        sizes[:] = expected if report.titles else sizes
                assert (await SyncClient(brain, config_of(behind)).sync_once()).outcome == "done"

        asyncio.run(syncs())
        assert shard.titles_of_all() == expected
        assert len(shard.devices) == 1

    def test_pages_go_on_where_they_were_cut(self, opened) -> None:
        """Each cut lets about one request through, the first one that for the token."""
        brain, shard = opened(sharing="titles", max_episodes=5_000), ModelShard()
        rows = [row for row in range(120) if row % 4 != 3] * 24
        watch(brain, rows)
        sent: list[int] = []

        async def syncs() -> None:
            async with served(handler_of(shard, brain.collective.titles)) as behind:
                for cut in (1, 1, 1, 1):
                    async with cutting(behind.port, "up", cut, whole_connections=True) as traffic:
                        report = await SyncClient(brain, config_of(traffic, timeout_secs=10.0)).sync_once()
                        sent.append(report.titles)
                assert (await SyncClient(brain, config_of(behind)).sync_once()).outcome == "done"

        asyncio.run(syncs())
        assert shard.titles_of_all() == [f"t{row:03d}" for row in rows]
        pages = [request.delta.titles_finished for request in shard.requests if request.delta is not None]
        assert sum(map(len, pages)) == len(rows), "nothing that was acknowledged is sent again"
        assert sent == [0, 600, 600, 600] and len(pages) == 4


class TestUpdatesAndConfiguration:
    @pytest.mark.parametrize(
        "url",
        ["", "ftp://x/", "http://", "https://", "http://8.8.8.8/", "http://shard.example/", "https://u:p@shard.example/",
         "https://shard.example/?q", "https://shard.example/#f", "https://shard.example:99999/", "https://a b/", "https://[::1",
         "http://127.0.0.1:0/", "https://shard\n.example/", "shard.example"],
    )  # fmt: skip
    def test_other_addresses_are_refused(self, url: str) -> None:
        with pytest.raises(ConfigError, match="constellation_url"):
            shard_url(url)

    def test_addresses_that_are_taken(self) -> None:
        assert shard_url("https://shard.example/") == "https://shard.example"
        assert shard_url("https://shard.example/region/7/") == "https://shard.example/region/7"
        for near in ("http://127.0.0.1:8080", "http://localhost:1", "http://[::1]:8080", "http://10.1.2.3:80", "http://192.168.0.4"):
            assert shard_url(near) == near

    def test_options_are_checked(self) -> None:
        for wrong in ({"sync_interval_secs": 59}, {"sync_interval_secs": 86_401}, {"timeout_secs": 0}, {"timeout_secs": 601}):
            with pytest.raises(ConfigError):
                SyncConfig("https://shard.example/", **wrong)
