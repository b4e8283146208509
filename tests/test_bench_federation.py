"""The measurement of counting, small: what it prints is right, whatever it took."""

from __future__ import annotations

import json

from bench import federation


def test_the_lines_are_right(capsys):
    federation.main(["--titles", "2000", "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["metric"] for line in lines] == [
        "aggregate_seconds_per_2m", "aggregate_peak_mb", "aggregate_step_seconds", "counts_kb", "lists_bytes_per_title",
        "support_seconds_per_100k_reports", "merge_seconds",
    ]  # fmt: skip
    assert all(line["correct"] and line["value"] > 0 for line in lines), lines
