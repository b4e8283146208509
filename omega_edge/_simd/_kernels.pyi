from typing import TypeAlias

from numpy import float16, float32, int8, int32, uint8, uint32, uint64, uintp
from numpy.typing import NDArray

SequenceModel: TypeAlias = tuple[
    NDArray[int8],
    NDArray[float32],
    NDArray[float32],
    NDArray[float32],
    NDArray[float32],
    NDArray[int8],
    NDArray[float32],
    NDArray[int8],
    NDArray[float32],
    NDArray[float32],
    NDArray[int8],
    NDArray[float32],
    NDArray[float32],
    float,
]

def isa_names() -> tuple[str, ...]: ...

class Kernels:
    def __init__(self, isa: str | None = None) -> None: ...
    @property
    def isa(self) -> str: ...
    def quantise(self, vectors: NDArray[float32], codes_out: NDArray[int8], scale_out: NDArray[float32]) -> None: ...
    def search(
        self,
        codes: NDArray[int8],
        scale: NDArray[float32],
        query: NDArray[int8],
        query_scale: float,
        filter: NDArray[uint8] | None,
        k: int,
        rows_out: NDArray[uint32],
        scores_out: NDArray[float32],
    ) -> int: ...
    def cosines(
        self,
        codes: NDArray[int8],
        scale: NDArray[float32],
        queries: NDArray[int8],
        query_scale: NDArray[float32],
        out: NDArray[float32],
    ) -> None: ...
    def row_scatter_add(
        self,
        offsets: NDArray[uint32],
        columns: NDArray[uint32],
        values: NDArray[int8],
        row_scale: NDArray[float32],
        rows: NDArray[uint32],
        weights: NDArray[float32],
        out: NDArray[float32],
    ) -> None: ...
    def row_lookup(
        self,
        offsets: NDArray[uint32],
        columns: NDArray[uint32],
        values: NDArray[int8],
        row_scale: NDArray[float32],
        rows: NDArray[uint32],
        targets: NDArray[uint32],
        out: NDArray[float32],
    ) -> None: ...
    def genre_means(self, masks: NDArray[uint64], per_genre: NDArray[float32], out: NDArray[float32]) -> None: ...
    def left_out_sums(
        self,
        codes: NDArray[int8],
        scale: NDArray[float32],
        weights: NDArray[float32],
        growth: float,
        out: NDArray[float32],
    ) -> None: ...
    def fuse(
        self,
        features: NDArray[float32] | tuple[NDArray[float32], ...],
        weights: NDArray[float32],
        out: NDArray[float32],
    ) -> None: ...
    def fuse_top_k(
        self,
        features: NDArray[float32] | tuple[NDArray[float32], ...],
        weights: NDArray[float32],
        filter: NDArray[uint8] | None,
        k: int,
        rows_out: NDArray[uint32],
        scores_out: NDArray[float32],
    ) -> int: ...
    def diversify(
        self,
        codes: NDArray[int8],
        scale: NDArray[float32],
        rows: NDArray[uint32],
        values: NDArray[float32],
        trade_off: float,
        order_out: NDArray[uint32],
    ) -> int: ...
    def count_greater(
        self, values: NDArray[float32], of_count: NDArray[float32], out: NDArray[float32]
    ) -> None: ...
    def sum_trees(
        self,
        roots: NDArray[uint32],
        feature: NDArray[uint8],
        threshold: NDArray[float32],
        children: NDArray[int32],
        leaves: NDArray[float32],
        values: NDArray[float32],
        out: NDArray[float32],
    ) -> None: ...
    def halve(
        self, codes: NDArray[int8], high_out: NDArray[uint8], low_out: NDArray[uint8], spread_out: NDArray[uint8]
    ) -> None: ...
    def join(
        self,
        high: NDArray[uint8],
        low: NDArray[uint8],
        scale: NDArray[float32],
        spread: NDArray[uint8],
        rows: NDArray[uint32],
        codes_out: NDArray[int8],
    ) -> None: ...
    def search_halves(
        self,
        high: NDArray[uint8],
        low: NDArray[uint8],
        scale: NDArray[float32],
        spread: NDArray[uint8],
        query: NDArray[int8],
        query_scale: float,
        filter: NDArray[uint8] | None,
        k: int,
        rows_out: NDArray[uint32],
        scores_out: NDArray[float32],
    ) -> int: ...
    def search_batch(
        self,
        high: NDArray[uint8],
        low: NDArray[uint8],
        scale: NDArray[float32],
        spread: NDArray[uint8],
        queries: NDArray[int8],
        query_scale: NDArray[float32],
        filter: NDArray[uint8] | None,
        k: int,
        found_out: NDArray[uintp],
        rows_out: NDArray[uint32],
        scores_out: NDArray[float32],
    ) -> None: ...
    def put_signs(self, codes: NDArray[int8], first: int, rows: int, blocks: NDArray[uint8]) -> None: ...
    def search_two_stage(
        self,
        blocks: NDArray[uint8],
        high: NDArray[uint8],
        low: NDArray[uint8],
        scale: NDArray[float32],
        spread: NDArray[uint8],
        query: NDArray[int8],
        query_scale: float,
        filter: NDArray[uint8] | None,
        candidates: int,
        k: int,
        rows_out: NDArray[uint32],
        scores_out: NDArray[float32],
    ) -> int: ...
    def rescore(
        self,
        vectors: NDArray[float16],
        query: NDArray[float32],
        rows: NDArray[uint32],
        k: int,
        rows_out: NDArray[uint32],
        scores_out: NDArray[float32],
    ) -> int: ...
    def rank(
        self,
        high: NDArray[uint8],
        low: NDArray[uint8],
        scale: NDArray[float32],
        spread: NDArray[uint8],
        query: NDArray[int8],
        query_scale: float,
        success: NDArray[float32],
        time: NDArray[uint32],
        trend: NDArray[float32],
        weights: NDArray[float32],
        limits: tuple[int, float, float],
        filter: NDArray[uint8] | None,
        k: int,
        rows_out: NDArray[uint32],
        scores_out: NDArray[float32],
    ) -> int: ...
    def sequence_events(
        self, model: SequenceModel, rows: NDArray[uint32], success: NDArray[uint8], out: NDArray[float32]
    ) -> None: ...
    def sequence_states(self, model: SequenceModel, events: NDArray[float32], out: NDArray[float32]) -> None: ...
