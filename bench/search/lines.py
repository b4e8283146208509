"""What the measurements come to: the choice of each method's effort, ratios in the same run, and lines with limits."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from bench.metrics import judged

LEAST_RECALL = {"real": 0.99, "uniform": 0.98}
"""Recall@50 at which approximate methods are compared. 8-bit codes reach .985 of uniform directions at best."""
LEAST_SIDE_RECALL = {"real": 0.999, "uniform": 0.99}
LEAST_EXACT_RECALL = 0.98
"""What an exact search over 8-bit codes must reach to count as a peer: usearch's own cast falls short of it."""
EXACT_LIMITS = {1_000: 0.35, 10_000: 0.60, 100_000: 0.60}
TWO_STAGE_LIMITS = {100_000: 0.35}
TWO_STAGE_OF_EXACT_LIMITS = {10_000: 0.5}
SIDE_RECALL_LIMIT = 0.999
UNIFORM_RECALL_LIMIT = 0.985
SIDE_LATENCY_LIMIT = 1.10
READ_SHARE_LIMIT = 0.75
LOAD_LIMIT = 0.10
BYTES_LIMIT = 450.0
OVERHEAD_LIMIT_US = 1.5
RANKING_LIMIT = 1.25
NUMPY_LIMITS = {1.0: 4.0, 0.10: 12.0}

EXACT_MODES = ("omega exact", "omega halves")
TWO_STAGE = "omega two-stage"
SIDE_MODES = {"omega exact + side file": "omega halves", "omega two-stage + side file": TWO_STAGE}
STORE = "omega store"
REFINED_PEER = "faiss RaBitQ + SQ8"
GRAPH_PEER = "usearch HNSW"
LOADED = (STORE, GRAPH_PEER, "usearch Index exact")
"""Whose files are opened in every round; of the peers' the faster counts."""
NUMPY = "numpy float32"


@dataclass(slots=True)
class Measured:
    """One method in one case: what it was built as, the effort chosen, and the nanoseconds of each round's calls."""

    name: str
    family: str
    configuration: dict
    facts: dict
    chosen: int
    rounds: list[list[int]] = field(default_factory=list)
    others: list[dict] = field(default_factory=list)
    """Points of the configurations that were tried and not chosen."""
    insert_us: float | None = None
    loads: list[float] = field(default_factory=list)
    """Milliseconds to open the index's file, in each round."""

    @property
    def point(self) -> dict:
        """Effort, recall and trial time of the effort chosen."""
        return self.facts["points"][self.chosen]

    @property
    def recall(self) -> float:
        """recall@50 of the effort chosen, against exact float32."""
        return self.point["recall_at_50"]

    @property
    def median_us(self) -> float:
        """Median microseconds over the calls of all rounds."""
        return statistics.median(call for calls in self.rounds for call in calls) / 1e3


@dataclass(slots=True)
class Case:
    """One table that was searched: what was measured, and what failed."""

    data: str
    rows: int
    facts: dict
    methods: dict[str, Measured]
    faults: dict[str, str]
    left_out: dict[str, str]
    spin: list[float]
    """Milliseconds of the same work before each round: the machine's own noise."""
    inside: dict | None = None
    inside_fault: str | None = None

    @property
    def where(self) -> dict:
        """What every line of the case carries."""
        return {"size": size_name(self.rows), "data": self.data}


def size_name(rows: int) -> str:
    """1k for 1,000."""
    return f"{rows // 1000}k" if rows >= 1000 and rows % 1000 == 0 else str(rows)


def least_recall(name: str, family: str, data: str) -> float:
    """The recall that a method's effort must reach to be chosen."""
    if family.startswith("exact"):
        return LEAST_EXACT_RECALL
    return (LEAST_SIDE_RECALL if name in SIDE_MODES else LEAST_RECALL)[data]


def choose(points: list[dict], least: float) -> int:
    """Index of the fastest point that reaches the recall; where none does, of the one with the highest, then fastest."""
    reaching = [index for index, point in enumerate(points) if point["recall_at_50"] >= least]
    if reaching:
        return min(reaching, key=lambda index: points[index]["median_us"])
    return max(range(len(points)), key=lambda index: (points[index]["recall_at_50"], -points[index]["median_us"]))


def ratio(over: Measured, under: Measured) -> float:
    """Median over the rounds of one method's median over another's: each round compares what ran within seconds."""
    pairs = zip(over.rounds, under.rounds, strict=True)
    return statistics.median(statistics.median(mine) / statistics.median(theirs) for mine, theirs in pairs)


def fastest(measured: Iterable[Measured]) -> Measured | None:
    """The lowest median."""
    return min(measured, key=lambda method: method.median_us, default=None)


def percentile_us(method: Measured, share: float) -> float:
    """The value at a share (0 to 1) of all calls' microseconds in order, by nearest rank."""
    calls = sorted(call for calls in method.rounds for call in calls)
    return calls[min(len(calls) - 1, int(share * len(calls)))] / 1e3


def method_lines(case: Case) -> list[dict]:
    """One line a method, with what it is; one for each that failed or was left out."""
    lines = []
    for method in case.methods.values():
        facts, rows = method.facts, case.rows
        file_bytes = facts["file_bytes"]
        lines.append(
            judged("search_us", method.median_us, "us", exactness_fault(method, case.data))
            | {"method": method.name, "family": method.family}
            | case.where
            | {
                "p5_us": round(percentile_us(method, 0.05), 3),
                "recall_at_50": method.recall,
                "configuration": method.configuration | method.point["effort"],
                "version": facts["version"],
                "instruction_set": facts["instruction_set"],
                "build_seconds": facts["build_seconds"],
                "load_ms": facts["load_ms"],
                "file_bytes_per_vector": None if file_bytes is None else round(file_bytes / rows, 1),
                "memory_bytes_per_vector": round(facts["memory_bytes"] / rows, 1),
                "insert_us": method.insert_us,
                "calls": sum(map(len, method.rounds)),
            }
            | {name: facts[name] for name in ("view_ms", "described") if facts.get(name)}
        )
    for name, fault in case.faults.items():
        lines.append(judged("search_us", None, "us", fault) | {"method": name} | case.where)
    for name, why in case.left_out.items():
        lines.append(judged("search_us", None, "us", None) | {"method": name, "left_out": why} | case.where)
    return lines


def exactness_fault(method: Measured, data: str) -> str | None:
    """An exact mode of ours must give numpy's rows over the same codes, in order; the others must reach their recall."""
    exact = method.name in EXACT_MODES or method.facts.get("described", {}).get("search") == "exact"
    if exact and not method.point["equals_codes"]:
        return "the rows differ from numpy's over the same codes"
    least = LEAST_EXACT_RECALL if method.name == STORE else least_recall(method.name, method.family, data)
    if method.name in (TWO_STAGE, STORE, *SIDE_MODES) and method.recall < least:
        return f"no setting reaches recall {least}: {method.recall} at best"
    return None


def missing(case: Case, names: Iterable[str]) -> str:
    """Why a comparison has no value."""
    said = [f"{name}: {case.faults.get(name) or case.left_out.get(name) or 'not measured'}"
            for name in names if name not in case.methods]  # fmt: skip
    return "not measured: " + "; ".join(said)


def compared(
    metric: str, case: Case, ours: Measured | None, peer: Measured | None, names: Iterable[str], limit: float | None
) -> dict:
    """A line of ours over a peer."""
    if ours is None or peer is None:
        return judged(metric, None, "", missing(case, names), limit) | case.where
    return (
        judged(metric, ratio(ours, peer), "", exactness_fault(ours, case.data), limit)
        | case.where
        | {
            "mode": ours.name, "mode_us": round(ours.median_us, 2), "mode_recall": ours.recall,
            "mode_settings": ours.point["effort"], "peer": peer.name, "peer_us": round(peer.median_us, 2),
            "peer_recall": peer.recall, "peer_settings": peer.configuration | peer.point["effort"],
        }
    )  # fmt: skip


def comparison_lines(case: Case, with_peers: bool) -> list[dict]:
    """Our modes over the peers and over one another."""
    methods, real = case.methods, case.data == "real"
    exact = fastest(methods[name] for name in EXACT_MODES if name in methods)
    two_stage = methods.get(TWO_STAGE)
    lines = []
    if with_peers:
        peers = [method for method in methods.values() if method.family == "exact int8"]
        counted = fastest(peer for peer in peers if peer.recall >= LEAST_EXACT_RECALL)
        limit = EXACT_LIMITS.get(case.rows) if real else None
        lines.append(compared("exact_ratio", case, exact, counted, EXACT_MODES, limit))
        limit = TWO_STAGE_LIMITS.get(case.rows) if real else None
        names = (TWO_STAGE, REFINED_PEER)
        lines.append(compared("two_stage_ratio", case, two_stage, methods.get(REFINED_PEER), names, limit))
        if GRAPH_PEER not in case.left_out:
            graph = methods.get(GRAPH_PEER)
            lines.append(compared("two_stage_over_hnsw", case, two_stage, graph, (TWO_STAGE, GRAPH_PEER), None))
            lines += store_lines(case)
    numpy_line = compared("exact_over_numpy", case, exact, methods.get(NUMPY), (*EXACT_MODES, NUMPY), None)
    limit = TWO_STAGE_OF_EXACT_LIMITS.get(case.rows) if real else None
    lines += [numpy_line, compared("two_stage_over_exact", case, two_stage, exact, (TWO_STAGE, *EXACT_MODES), limit)]
    for name, without in SIDE_MODES.items():
        limit = SIDE_LATENCY_LIMIT if real and without in EXACT_MODES else None
        pair = methods.get(name), methods.get(without)
        lines.append(compared("side_file_ratio", case, *pair, (name, without), limit))
    return lines


def store_lines(case: Case) -> list[dict]:
    """Opening, growing and bytes of the store's file, beside usearch's."""
    store, graph = case.methods.get(STORE), case.methods.get(GRAPH_PEER)
    if store is None or graph is None:
        fault = missing(case, (STORE, GRAPH_PEER))
        return [judged(metric, None, "", fault) | case.where for metric in ("load_ratio", "insert_ratio")]
    opened = [case.methods[name] for name in LOADED[1:] if name in case.methods]
    peer = min(opened, key=lambda method: statistics.median(method.loads))
    loads = [mine / theirs for mine, theirs in zip(store.loads, peer.loads, strict=True)]
    load = judged("load_ratio", statistics.median(loads), "", None, LOAD_LIMIT) | case.where
    load |= {"store_ms": round(statistics.median(store.loads), 4), "peer_ms": round(statistics.median(peer.loads), 4)}
    load |= {"peer": peer.name, "peer_settings": peer.configuration, "peer_view_ms": graph.facts["view_ms"]}
    load["store_verified_ms"] = store.facts["view_ms"]
    insert = judged("insert_ratio", store.insert_us / graph.insert_us, "", None) | case.where
    insert |= {"store_us": store.insert_us, "peer_us": graph.insert_us, "peer_settings": graph.configuration}
    size = judged("bytes_per_vector", store.facts["file_bytes"] / case.rows, "B", None, BYTES_LIMIT) | case.where
    return [load, insert, size]


def recall_lines(case: Case) -> list[dict]:
    """recall@50 of each of our modes; without a side file uniform directions must stay above .985, with one .999."""
    lines = []
    for name in (*EXACT_MODES, TWO_STAGE, *SIDE_MODES, STORE):
        limit = None
        if case.data == "uniform" and name in (*EXACT_MODES, STORE):
            limit = UNIFORM_RECALL_LIMIT
        if case.data == "real" and name in SIDE_MODES:
            limit = SIDE_RECALL_LIMIT
        method = case.methods.get(name)
        fault = exactness_fault(method, case.data) if method else missing(case, (name,))
        made = judged("recall_at_50", method.recall if method else None, "", fault, limit, at_least=True)
        lines.append(made | {"mode": name, "settings": method.point["effort"] if method else None} | case.where)
    return lines


def inside_lines(case: Case) -> list[dict]:
    """What was measured inside one process of ours: reading, calling, batches, ranking."""
    if case.inside is None:
        fault = case.inside_fault or "not measured"
        names = (
            "read_loop_share",
            "call_overhead_us",
            "batch_over_single",
            "ranking_over_search",
            "ranking_over_numpy",
        )
        return [judged(metric, None, "", fault) | case.where for metric in names]
    read, overhead, batch = (case.inside[name] for name in ("read", "overhead", "batch"))
    # The codes of 10,000 rows lie in L3, as the limit has it; the upper plane alone fits L2 of some processors, and how
    # much of the lower one is read depends on the query.
    share_limit = READ_SHARE_LIMIT if case.rows == 10_000 and case.data == "real" else None
    lines = []
    for mode, table, limit in (("search", "codes", share_limit), ("search_halves", "high", None)):
        share = read[f"read_{table}_p5_us"] / read[f"{mode}_p5_us"]
        lines.append(
            judged("read_loop_share", share, "", None, limit, at_least=True)
            | case.where
            | {"mode": mode, "read_us": read[f"read_{table}_us"], "kernel_us": read[f"{mode}_us"]}
            | {"bytes": read[f"bytes_{table}"], "unroll_and_prefetch": read["unroll_and_prefetch"][table]}
        )
    for mode in ("search", "search_halves", "search_two_stage"):
        lines.append(
            judged("call_overhead_us", overhead[mode], "us", None, OVERHEAD_LIMIT_US) | {"mode": mode} | case.where
        )
    shared = {"queries": batch["queries"], "batch_us": batch["batch_us"], "single_us": batch["singly_us"]}
    lines.append(
        judged("batch_over_single", batch["batch_us"] / batch["singly_us"], "", batch["fault"]) | case.where | shared
    )
    for found in case.inside["ranking"]:
        lines += ranking_lines(case, found)
    return lines


def ranking_lines(case: Case, found: dict) -> list[dict]:
    """Ranking over the bare search, and how many times faster than numpy's better way, at one selectivity."""
    beside = {name: value for name, value in found.items() if name.endswith("_us")} | {
        "selectivity": found["selectivity"]
    }
    limited = case.data == "real" and case.rows == 10_000
    over_search = found["rank_us"] / found["search_us"]
    numpy_us = min(value for name, value in found.items() if name.startswith("numpy"))
    limit = RANKING_LIMIT if limited else None
    search_line = judged("ranking_over_search", over_search, "", found["fault"], limit)
    limit = NUMPY_LIMITS.get(found["selectivity"]) if limited else None
    beside["over_numpy_masked"] = round(found["numpy_whole_us"] / found["rank_us"], 3)
    numpy_line = judged("ranking_over_numpy", numpy_us / found["rank_us"], "x", found["fault"], limit, at_least=True)
    return [search_line | case.where | beside, numpy_line | case.where | beside]


def crossover_line(cases: list[Case]) -> dict:
    """The least size, of those measured on real vectors, at which usearch HNSW is faster than two-stage, both at .99."""
    least, tried, wins = LEAST_RECALL["real"], [], []
    for case in cases:
        ours, graph = case.methods.get(TWO_STAGE), case.methods.get(GRAPH_PEER)
        if case.data != "real" or ours is None or graph is None:
            continue
        reached = ours.recall >= least, graph.recall >= least
        tried.append(
            {"size": size_name(case.rows), "ratio": round(ratio(ours, graph), 3), "both_reach_recall": all(reached)}
        )
        if reached[1] and (not reached[0] or ratio(ours, graph) > 1):
            wins.append(case.rows)
    made = judged(
        "hnsw_crossover", min(wins, default=None), "rows", None if tried else "no size has both on real vectors"
    )
    return made | {"tried": tried, "least_recall": least}


def noise_line(case: Case) -> dict:
    """How much the same work differed between the rounds: highest over lowest."""
    made = judged("machine_noise", max(case.spin) / min(case.spin), "", None) | case.where
    return made | {
        "lowest_ms": round(min(case.spin), 3),
        "highest_ms": round(max(case.spin), 3),
        "rounds": len(case.spin),
    }
