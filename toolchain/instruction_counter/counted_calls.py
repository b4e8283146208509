"""Runs the calls of a television between marks: `python counted_calls.py REQUEST`, a JSON file of bench.counted_inputs.

It is started under the emulator, on the installed package, and imports nothing else of this project. A mark is the
system call that plugin.c counts between; elsewhere Linux refuses it, and nothing is counted. For each call one line
goes to standard output, as counted_kernels.c writes them:

    count <mark> <call>

Every call is made REPEATS times, each on other input, after some that are not counted.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from omega_edge.brain import OmegaBrain
from omega_edge.catalog import Catalog
from omega_edge.config import BrainConfig
from omega_edge.inference import InferenceEngine
from omega_edge.protocol import TimeOfDay, ViewContext, ViewingEvent
from omega_edge.vectors import VectorStore

MARK = 0x4F4D4547
OPENS = 0
REPEATS = 11
WARM_UP = 3
SEARCH_WARM_UP = 40
"""A store audits half of its first 32 searches, and one in 128 later: what is counted is the other 127."""
LISTED = 20
NEAREST = 50
CALLS = ("nothing", "observe", "recommend", "recommend_other_context", "vector_search", "embed_16_tokens")
"""In the order of their marks, from 1 on. `nothing` is what two marks cost by themselves."""


class Marks:
    """Calls between an opening and a closing mark."""

    def __init__(self) -> None:
        self._prctl = ctypes.CDLL(None).prctl
        self._opens, self._option = ctypes.c_ulong(OPENS), ctypes.c_int(MARK)
        self._closes = {call: ctypes.c_ulong(number) for number, call in enumerate(CALLS, start=1)}

    def around(self, name: str, call: Callable[..., object], *arguments: object) -> object:
        """What the call answers; its instructions are counted under its name."""
        prctl, option, opens, closes = self._prctl, self._option, self._opens, self._closes[name]
        prctl(option, opens)
        answer = call(*arguments)
        prctl(option, closes)
        return answer


def nothing() -> None:
    """The call that `nothing` counts."""


def expect(holds: bool, what: str) -> None:
    """End the process unless what was counted also did its work."""
    if not holds:
        sys.exit(f"counted_calls: expected {what}")


def count_brain(marks: Marks, request: dict) -> None:
    """A viewing, the list after it, and a list for another context, REPEATS times."""
    now_ms = request["clock_ms"]
    config = BrainConfig(request["storage"], request["catalog"], background_maintenance=False)
    with OmegaBrain.open(config, lambda: now_ms) as brain:
        for number, viewing in enumerate(request["viewings"][: WARM_UP + REPEATS], start=-WARM_UP):
            now_ms = viewing["timestamp"]
            context = ViewContext(TimeOfDay(viewing["time_of_day"]), viewing["day_of_week"])
            other = ViewContext(
                TimeOfDay(viewing["time_of_day"]), (viewing["day_of_week"] + 1) % 7, (), viewing["mood"]
            )
            event = ViewingEvent(
                viewing["content_id"], viewing["content_title"], viewing["watch_percentage"], 5_400, now_ms, context
            )
            around = marks.around if number >= 0 else lambda _name, call, *arguments: call(*arguments)
            around("nothing", nothing)
            recorded = around("observe", brain.observe, event)
            brain.maintain()
            listed = around("recommend", brain.recommend, None, LISTED)
            changed = around("recommend_other_context", brain.recommend, other, LISTED)
            expect(recorded.sequence > 0, "a sequence number of observe")
            for rows in (listed, changed):
                expect(len(rows) == LISTED, f"{LISTED} titles of recommend")
                expect(all(row.content_id != event.content_id for row in rows), "no title that was just watched")


def count_search(marks: Marks, request: dict) -> None:
    """The nearest of all titles of the catalogue to one of them, by an ordinary store that was filled with them."""
    catalog = Catalog.open(request["catalog"])
    store = VectorStore()
    store.upsert_codes(range(catalog.count), catalog.codes, catalog.scale)
    step = catalog.count // (SEARCH_WARM_UP + REPEATS)
    for number in range(-SEARCH_WARM_UP, REPEATS):
        row = (number + SEARCH_WARM_UP) * step
        query = catalog.codes[row] * catalog.scale[row]
        call = (store.search, query, NEAREST)
        found = marks.around("vector_search", *call) if number >= 0 else call[0](*call[1:])
        expect(len(found) == NEAREST and found[0][1] > 0.99, f"{NEAREST} neighbours, the title itself first")


def count_embedding(marks: Marks, request: dict) -> None:
    """Texts of 16 tokens, each embedded once."""
    with InferenceEngine(request["model"]) as engine:
        for number, text in enumerate(request["texts"][: WARM_UP + REPEATS], start=-WARM_UP):
            vector = marks.around("embed_16_tokens", engine.embed, text) if number >= 0 else engine.embed(text)
            expect(abs(float(np.linalg.norm(vector)) - 1) < 1e-3, "a unit vector")


def main() -> int:
    """Count what the request has input for."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    marks = Marks()
    gc.disable()  # a collection falls to whichever call comes when it is due
    for number, call in enumerate(CALLS, start=1):
        print("count", number, call, flush=True)
    count_brain(marks, request)
    count_search(marks, request)
    count_embedding(marks, request)
    return 0


if __name__ == "__main__":
    sys.exit(main())
