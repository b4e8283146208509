"""The mode `counts`: one falsified report a day, drawn once whatever dies, at a moment that says nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from omega_edge.protocol import COUNT_CATEGORIES, COUNT_EPSILON, DAY_MS, SyncRequest
from omega_edge.randomised import NOTHING_FINISHED, category, title_hash
from tests.brains import Clock, viewing, watch
from tests.model_shard import ModelShard
from tests.synthetic import NOW_MS
from tests.test_sharing import copied, request_of, sync


class TestCounts:
    """NOW_MS lies 11:33 into its UTC day; the moment of a day is drawn from the home's secret."""

    @staticmethod
    def late(clock: Clock) -> None:
        """Move to the end of the UTC day: no day's moment is later."""
        clock.now_ms = (clock.now_ms // DAY_MS + 1) * DAY_MS - 1

    def test_one_report_a_day_from_its_moment_on_and_else_nothing(self, opened) -> None:
        clock = Clock()
        brain, shard = opened(sharing="counts", clock=clock, secrecy=Random(2)), ModelShard()
        watch(brain, [1, 2])
        sent: dict[int, list[int]] = {}
        clock.now_ms = NOW_MS // DAY_MS * DAY_MS
        for _ in range(8 * 48):
            shard.now_ms = clock.now_ms
            request = sync(brain, shard)
            if request.count_report is None:
                assert request == SyncRequest()
            else:
                day, moment = divmod(clock.now_ms, DAY_MS)
                assert request.count_report.day == day and request.delta is None and request.server_time_seen is None
                sent.setdefault(day, []).append(moment)
            clock.now_ms += DAY_MS // 48
        assert len(sent) == 8 and all(len(moments) == 1 for moments in sent.values())
        assert len({moments[0] for moments in sent.values()}) > 2, "the moment is another one each day"
        stats = brain.stats()["sync"]
        assert stats["epsilon_per_report"] == COUNT_EPSILON and stats["epsilon_per_year"] == COUNT_EPSILON * 365.25

    def test_a_report_is_drawn_once_whatever_dies(self, opened, tmp_path: Path) -> None:
        clock = Clock()
        brain = opened(sharing="counts", clock=clock)
        watch(brain, [1, 2])
        self.late(clock)
        request = request_of(brain)
        assert request.count_report is not None
        for number in range(3):  # killed before the answer
            brain = opened(copied(tmp_path, f"killed-{number}"), sharing="counts", clock=clock)
            brain.observe(viewing(40 + number))
            assert request_of(brain) == request
        shard = ModelShard()
        assert sync(brain, shard) == request
        brain.close()
        for _ in range(2):
            brain = opened("killed-2", sharing="counts", clock=clock)
            assert request_of(brain) == SyncRequest()
            brain.close()

    @pytest.mark.parametrize("how", ["forget", "import", "mode"])
    def test_no_second_draw_for_a_day_after(self, opened, how) -> None:
        clock = Clock()
        brain = opened(sharing="counts", clock=clock)
        watch(brain, [1, 2])
        self.late(clock)
        number = request_of(brain).device_id
        if how == "forget":
            brain.forget(everything=True)
        elif how == "import":
            brain.import_export(brain.export(), replace_existing=True)
        else:
            brain.close()
            opened(sharing="receive", clock=clock).close()
            brain = opened(sharing="counts", clock=clock)
        assert request_of(brain) == SyncRequest()
        clock.now_ms += DAY_MS
        assert request_of(brain).device_id not in (None, number)

    def test_when_the_day_is_over_its_report_is_too(self, opened) -> None:
        clock = Clock()
        brain = opened(sharing="counts", clock=clock)
        self.late(clock)
        first = request_of(brain).count_report
        clock.now_ms += DAY_MS
        second = request_of(brain).count_report
        assert second.day == first.day + 1
        clock.now_ms -= DAY_MS
        assert request_of(brain) == SyncRequest(), "the clock went back into a day that had its draw"

    def test_with_nothing_finished_that_is_what_is_falsified(self, opened) -> None:
        assert self.truthful_share(opened, []) > 0.35

    def test_of_what_was_finished_within_a_day_any_title_is_told(self, opened) -> None:
        """Title 5 was watched before that day, title 3 not finished."""
        assert self.truthful_share(opened, [1]) > 0.35

    def truthful_share(self, opened, rows: list[int]) -> float:
        clock, days, truthful = Clock(), 60, 0
        brain = opened(sharing="counts", clock=clock, secrecy=Random(5))
        expected = {title_hash(f"t{row:03d}") for row in rows} or {NOTHING_FINISHED}
        for day in range(days):
            brain.observe(replace(viewing(5), timestamp=clock.now_ms - 2 * DAY_MS))
            brain.observe(replace(viewing(3, 0.2), timestamp=clock.now_ms))
            self.late(clock)
            for row in rows:
                brain.observe(replace(viewing(row), timestamp=clock.now_ms - 1000))
            report = request_of(brain).count_report
            assert 0 <= report.value < COUNT_CATEGORIES
            truthful += report.value in {category(report.seed, hashed) for hashed in expected}
            clock.now_ms += 3_600_000
        return truthful / days

    def test_no_report_while_the_clock_is_known_to_be_a_day_off(self, opened) -> None:
        clock = Clock()
        brain, shard = opened(sharing="counts", clock=clock), ModelShard()
        shard.now_ms = clock.now_ms + 3 * DAY_MS
        clock.now_ms = clock.now_ms // DAY_MS * DAY_MS  # before the day's moment, so that the first sync tells nothing
        assert sync(brain, shard) == SyncRequest()
        self.late(clock)
        assert request_of(brain) == SyncRequest()

    def test_two_histories_differ_in_the_value_alone(self, opened) -> None:
        clock, requests = Clock(), []
        for folder, rows in (("one", [1, 2, 5, 6]), ("other", [40]), ("none", [])):
            brain = opened(folder, sharing="counts", clock=clock, secrecy=Random(9))
            watch(brain, rows)
            requests.append([])
            for step in range(96):
                request = request_of(brain)
                requests[-1].append(request)
                if request.count_report is not None:
                    shard = ModelShard(now_ms=clock.now_ms)
                    brain.collective.receive(request, shard.answer(request))
                clock.now_ms += DAY_MS // 48
            clock.now_ms -= 2 * DAY_MS

        def bare(request: SyncRequest) -> SyncRequest:
            return request if request.count_report is None else replace(request, count_report=replace(request.count_report, value=0))

        assert [bare(one) for one in requests[0]] == [bare(one) for one in requests[1]] == [bare(one) for one in requests[2]]
        assert sum(request.count_report is not None for request in requests[0]) >= 2
