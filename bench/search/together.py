"""One process that imports our core and other libraries in a given order: `python -m bench.search.together ORDER`.

ORDER is names joined by commas: omega_edge, usearch, simsimd. Each library does some work after all are imported; then
our kernels run on fixed data under every instruction set. The answer, JSON on standard output, has a digest of all
that they returned, the instruction sets, and what the others say of theirs. Run in an environment that has usearch
and simsimd, with this project on PYTHONPATH.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys

import numpy as np

LIBRARIES = ("omega_edge", "usearch", "simsimd")
MODULES = {"omega_edge": "omega_edge._simd", "usearch": "usearch.index", "simsimd": "simsimd"}
ROWS, DIMENSIONS, QUERIES, K = 500, 384, 8, 50


def drawn_vectors() -> np.ndarray:
    """The fixed data, float32[500, 384]."""
    return np.random.default_rng(8).standard_normal((ROWS, DIMENSIONS), np.float32)


def our_digest(vectors: np.ndarray) -> dict:
    """SHA-256 of what our kernels return, by instruction set, and the one in use."""
    from bench.search.ours import Planes
    from omega_edge._simd import Kernels, isa_names, kernels

    digests = {}
    for isa in isa_names():
        core, digest = Kernels(isa), hashlib.sha256()
        codes, scale = np.empty(vectors.shape, np.int8), np.empty(len(vectors), np.float32)
        core.quantise(vectors, codes, scale)
        planes = Planes(codes, scale)
        cosines = np.empty((QUERIES, ROWS), np.float32)
        core.cosines(codes, scale, codes[:QUERIES], scale[:QUERIES], cosines)
        for array in (codes, scale, planes.high, planes.low, planes.spread, planes.blocks, cosines):
            digest.update(array)
        rows, scores = np.zeros(K, np.uint32), np.zeros(K, np.float32)
        for query, query_scale in zip(codes[:QUERIES], scale[:QUERIES].tolist(), strict=True):
            core.search(codes, scale, query, query_scale, None, K, rows, scores)
            digest.update(rows.tobytes() + scores.tobytes())
            core.search_halves(*planes.arguments, query, query_scale, None, K, rows, scores)
            digest.update(rows.tobytes() + scores.tobytes())
            core.search_two_stage(planes.blocks, *planes.arguments, query, query_scale, None, 100, K, rows, scores)
            digest.update(rows.tobytes() + scores.tobytes())
        digests[isa] = digest.hexdigest()
    return {"isa": kernels.isa, "digests": digests}


def others_at_work(order: list[str], vectors: np.ndarray) -> dict:
    """What the other libraries say of their instruction sets once they have searched."""
    said = {}
    if "usearch" in order:
        import numkong
        from usearch.index import Index

        index = Index(ndim=DIMENSIONS, metric="cos", dtype="i8")
        index.add(np.arange(ROWS), vectors, threads=1)
        index.search(vectors[0], K, threads=1)
        said["usearch"] = index.hardware_acceleration
        said["numkong"] = [name for name, on in numkong.get_capabilities().items() if on]
    if "simsimd" in order:
        import simsimd

        try:
            simsimd.cdist(vectors[:1], vectors, "cosine", threads=1)
        except TypeError as error:  # what it raises where usearch was imported before it, with us or without
            said["simsimd_error"] = str(error)
        said["simsimd"] = [name for name, on in simsimd.get_capabilities().items() if on]
    return said


def main() -> int:
    """Imports in the order of the command line and reports."""
    order = sys.argv[1].split(",")
    unknown = [name for name in order if name not in LIBRARIES]
    if unknown:
        print(f"expected names among {', '.join(LIBRARIES)}, got {', '.join(unknown)}", file=sys.stderr)
        return 2
    for name in order:
        importlib.import_module(MODULES[name])
    vectors = drawn_vectors()
    answer = {"others": others_at_work(order, vectors)}
    if "omega_edge" in order:
        answer |= our_digest(vectors)
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
