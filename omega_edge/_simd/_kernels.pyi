from numpy import float32, int8, uint8, uint32, uint64
from numpy.typing import NDArray

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
    def fuse(self, features: NDArray[float32], weights: NDArray[float32], out: NDArray[float32]) -> None: ...
    def fuse_top_k(
        self,
        features: NDArray[float32],
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
