"""The process of a shard that counts gives way to those that answer."""

from __future__ import annotations

import os
from pathlib import Path

from cloud.counting import NICENESS
from tests.shard_processes import running
from tests.test_shard_server import eventually


def test_the_one_that_counts_is_the_only_one_of_lower_priority(tmp_path):
    with running(tmp_path) as shard:
        process = shard.process.pid
        children = [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
        own = os.getpriority(os.PRIO_PROCESS, process)
        expected = sorted([own] * (len(children) - 1) + [min(own + NICENESS, 19)])
        assert len(children) == 2
        eventually(lambda: sorted(os.getpriority(os.PRIO_PROCESS, child) for child in children) == expected)
