# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The door to the C core: checks every array, releases the GIL, calls. kernels.h states what each kernel computes.

Arrays come as raw buffers, not typed memoryviews: measured 129 against 266 ns for taking one array.
"""

from cpython.number cimport PyNumber_Index
from libc.float cimport DBL_MAX, FLT_MAX, FLT_MIN
from libc.math cimport isfinite, sqrt
from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from omega_edge._simd.arrays cimport (
    STACK_WORDS, Views, check_dimensions, check_k, check_length, check_listed, check_outputs, check_rows, hold,
    hold_codes, hold_features, hold_filter, hold_forest, hold_halves, hold_list, hold_outputs, hold_query, hold_rows,
    hold_signs, raise_fault, release, take_workspace,
)
from omega_edge._simd.contract cimport (
    OMEGA_BATCH_WORDS, OMEGA_MAX_DIMENSIONS, OMEGA_MAX_FEATURES, OMEGA_MAX_GENRES, OMEGA_SEQUENCE_DIMENSIONS,
    OMEGA_SEQUENCE_EVENT, OMEGA_SEQUENCE_FEED, OMEGA_SEQUENCE_HEADS, OMEGA_SEQUENCE_WINDOW, OMEGA_TOP_K_WORDS,
    OMEGA_TWO_STAGE_WORDS, omega_codes, omega_fault, omega_forest, omega_halves, omega_kernels, omega_kernels_at,
    omega_rank_columns, omega_rank_limits, omega_rank_weights, omega_rows, omega_sequence, omega_sequence_workspace,
    omega_signs,
)


def isa_names() -> tuple[str, ...]:
    """Instruction sets that this build has and this processor runs, best first; "scalar" is always the last."""
    names = []
    while omega_kernels_at(len(names)) != NULL:
        names.append(omega_kernels_at(len(names)).isa.decode())
    return tuple(names)


cdef class CodeKernels:
    """The kernels over codes and features; Kernels adds the others."""

    cdef const omega_kernels *table

    def __cinit__(self, isa: str | None = None):
        if isa is None:
            self.table = omega_kernels_at(0)
            return
        names = isa_names()
        if isa not in names:
            raise ValueError(f"isa: expected one of {', '.join(names)} on this processor, got {isa!r}")
        self.table = omega_kernels_at(names.index(isa))

    def __repr__(self):
        return f"Kernels({self.isa!r})"

    @property
    def isa(self) -> str:
        """Name of the instruction set."""
        return self.table.isa.decode()

    def quantise(self, vectors, codes_out, scale_out) -> None:
        """Symmetric 8-bit codes of float vectors: round half to even of x * (127 / max|x|), and 1 / ||codes||.

        vectors float32[n, d], codes_out int8[n, d], scale_out float32[n]; d a multiple of 32, at most 1024.
        A vector that is zero, or has a NaN or infinite element, raises ValueError naming its row.
        """
        cdef Views views
        cdef Py_buffer *view
        cdef size_t n, d, done
        cdef const float *source
        cdef int8_t *codes
        cdef float *scale
        views.count = 0
        try:
            view = hold(&views, vectors, "vectors", c"f", 2, False)
            check_dimensions(view.shape[1], "vectors")
            n, d, source = view.shape[0], view.shape[1], <const float *> view.buf
            view = hold(&views, codes_out, "codes_out", c"b", 2, True)
            check_length(view, "codes_out", 0, n, "one row for each vector")
            check_length(view, "codes_out", 1, d, "as many dimensions as vectors")
            codes = <int8_t *> view.buf
            scale = <float *> hold_list(&views, scale_out, "scale_out", c"f", n, "one for each vector", True)
            check_outputs(&views)
            with nogil:
                done = self.table.quantise(source, n, d, codes, scale)
            if done != n:
                raise ValueError(f"vectors: expected finite vectors that are not zero; row {done} is zero or has a NaN "
                                 "or infinite element")
        finally:
            release(&views)

    def search(self, codes, scale, query, float query_scale, filter, Py_ssize_t k, rows_out, scores_out) -> int:
        """The k best rows by cosine, score descending, then row ascending; returns how many were found.

        codes int8[n, d], scale float32[n], query int8[d]; filter None or uint8[ceil(n / 8)], row r allowed if bit
        r & 7 of byte r >> 3 is set; rows_out uint32[k], scores_out float32[k], written up to the number found,
        min(k, rows allowed). Codes are in [-127, 127], scales finite.
        """
        cdef Views views
        cdef omega_codes table
        cdef const int8_t *target
        cdef const uint8_t *bits
        cdef uint32_t *rows
        cdef float *scores
        cdef uint64_t stack[STACK_WORDS]
        cdef uint64_t *workspace = NULL
        cdef size_t found
        views.count = 0
        try:
            hold_codes(&views, codes, scale, &table)
            target = <const int8_t *> hold_list(&views, query, "query", c"b", table.dimensions,
                                                "as many dimensions as codes", False)
            if not isfinite(query_scale):
                raise ValueError(f"query_scale: expected a finite number, got {query_scale}")
            bits = hold_filter(&views, filter, table.rows)
            check_k(k, "k")
            rows = <uint32_t *> hold_list(&views, rows_out, "rows_out", c"I", k, "k", True)
            scores = <float *> hold_list(&views, scores_out, "scores_out", c"f", k, "k", True)
            check_outputs(&views)
            workspace = take_workspace(stack, OMEGA_TOP_K_WORDS(min(<size_t> k, table.rows)))
            with nogil:
                found = self.table.search(&table, target, query_scale, bits, k, workspace, rows, scores)
            return found
        finally:
            if workspace != stack:
                free(workspace)
            release(&views)

    def cosines(self, codes, scale, queries, query_scale, out) -> None:
        """Cosine of every row to every query, reading the codes once for eight queries.

        codes int8[n, d], scale float32[n], queries int8[q, d], query_scale float32[q], out float32[q, n].
        """
        cdef Views views
        cdef omega_codes table
        cdef Py_buffer *view
        cdef const int8_t *targets
        cdef const float *target_scale
        cdef float *scores
        cdef size_t q
        views.count = 0
        try:
            hold_codes(&views, codes, scale, &table)
            view = hold(&views, queries, "queries", c"b", 2, False)
            check_length(view, "queries", 1, table.dimensions, "as many dimensions as codes")
            q, targets = view.shape[0], <const int8_t *> view.buf
            target_scale = <const float *> hold_list(&views, query_scale, "query_scale", c"f", q,
                                                     "one for each query", False)
            view = hold(&views, out, "out", c"f", 2, True)
            check_length(view, "out", 0, q, "one row for each query")
            check_length(view, "out", 1, table.rows, "one column for each row of codes")
            scores = <float *> view.buf
            check_outputs(&views)
            with nogil:
                self.table.cosines(&table, targets, target_scale, q, scores)
        finally:
            release(&views)

    def row_scatter_add(self, offsets, columns, values, row_scale, rows, weights, out) -> None:
        """Adds weighted sparse rows: out[c] += (weight * row_scale[row]) * value, events in order, entries in order.

        offsets uint32[n + 1], columns uint32[m], values int8[m], row_scale float32[n]; rows uint32[e], weights
        float32[e], out float32[targets]. A row past the table, falling offsets or a column past out raise ValueError;
        what was added before the fault stays added.
        """
        cdef Views views
        cdef omega_rows table
        cdef Py_buffer *view
        cdef const uint32_t *events
        cdef const float *weight
        cdef size_t count, targets
        cdef float *sums
        cdef omega_fault fault
        views.count = 0
        try:
            hold_rows(&views, offsets, columns, values, row_scale, &table)
            view = hold(&views, rows, "rows", c"I", 1, False)
            count, events = view.shape[0], <const uint32_t *> view.buf
            weight = <const float *> hold_list(&views, weights, "weights", c"f", count, "one for each row", False)
            view = hold(&views, out, "out", c"f", 1, True)
            targets, sums = view.shape[0], <float *> view.buf
            check_outputs(&views)
            with nogil:
                fault = self.table.row_scatter_add(&table, events, weight, count, sums, targets)
            raise_fault(fault)
        finally:
            release(&views)

    def row_lookup(self, offsets, columns, values, row_scale, rows, targets, out) -> None:
        """Single entries of sparse rows: out[e, j] = value * row_scale[rows[e]] at column targets[j], or 0.

        The table as in row_scatter_add, columns ascending inside a row; rows uint32[e], targets uint32[k], out
        float32[e, k]. A row past the table or falling offsets raise ValueError.
        """
        cdef Views views
        cdef omega_rows table
        cdef Py_buffer *view
        cdef const uint32_t *events
        cdef const uint32_t *wanted
        cdef size_t count, k
        cdef float *entries
        cdef omega_fault fault
        views.count = 0
        try:
            hold_rows(&views, offsets, columns, values, row_scale, &table)
            view = hold(&views, rows, "rows", c"I", 1, False)
            count, events = view.shape[0], <const uint32_t *> view.buf
            view = hold(&views, targets, "targets", c"I", 1, False)
            k, wanted = view.shape[0], <const uint32_t *> view.buf
            view = hold(&views, out, "out", c"f", 2, True)
            check_length(view, "out", 0, count, "one row for each of rows")
            check_length(view, "out", 1, k, "one column for each target")
            entries = <float *> view.buf
            check_outputs(&views)
            with nogil:
                fault = self.table.row_lookup(&table, events, count, wanted, k, entries)
            raise_fault(fault)
        finally:
            release(&views)

    def genre_means(self, masks, per_genre, out) -> None:
        """Mean of per_genre over the bits set in each mask, 0 where none is.

        masks uint64[n], per_genre float32[g], g at most 64, out float32[n]. A bit at or above g raises ValueError.
        """
        cdef Views views
        cdef Py_buffer *view
        cdef const uint64_t *sets
        cdef const float *values
        cdef size_t n, genres
        cdef float *means
        cdef omega_fault fault
        views.count = 0
        try:
            view = hold(&views, masks, "masks", c"Q", 1, False)
            n, sets = view.shape[0], <const uint64_t *> view.buf
            view = hold(&views, per_genre, "per_genre", c"f", 1, False)
            if view.shape[0] > OMEGA_MAX_GENRES:
                raise ValueError(f"per_genre: expected at most {OMEGA_MAX_GENRES} genres, got {view.shape[0]}")
            genres, values = view.shape[0], <const float *> view.buf
            means = <float *> hold_list(&views, out, "out", c"f", n, "one for each mask", True)
            check_outputs(&views)
            with nogil:
                fault = self.table.genre_means(sets, n, values, genres, means)
            raise_fault(fault)
        finally:
            release(&views)

    def left_out_sums(self, codes, scale, weights, float growth, out) -> None:
        """Weighted sums of unit vectors with each one left out: out[i] = sum over j < i of weights[j] * vector j, plus
        growth times the same sum over j > i; vector j = codes[j] * scale[j].

        codes int8[h, d], scale float32[h], weights float32[h], out float32[left, d], left at most h.
        """
        cdef Views views
        cdef omega_codes parts
        cdef Py_buffer *view
        cdef const float *weight
        cdef size_t left
        cdef float *sums
        views.count = 0
        try:
            hold_codes(&views, codes, scale, &parts)
            weight = <const float *> hold_list(&views, weights, "weights", c"f", parts.rows, "one for each vector", False)
            view = hold(&views, out, "out", c"f", 2, True)
            check_length(view, "out", 1, parts.dimensions, "as many dimensions as codes")
            if <size_t> view.shape[0] > parts.rows:
                raise ValueError(f"out: expected at most {parts.rows} rows, one for each vector, got {view.shape[0]}")
            left, sums = view.shape[0], <float *> view.buf
            check_outputs(&views)
            with nogil:
                self.table.left_out_sums(&parts, weight, growth, left, sums)
        finally:
            release(&views)

    def fuse(self, features, weights, out) -> None:
        """Weighted sum of features: out[r] = sum of weights[i] * features[i, r], i ascending, from 0, in float32.

        features float32[f, n], or a tuple of f arrays float32[n] that may lie anywhere, f at most 16; weights float32[f],
        out float32[n].
        """
        cdef Views views
        cdef const float *columns[OMEGA_MAX_FEATURES]
        cdef const float *weight
        cdef size_t f, n
        cdef float *sums
        views.count = 0
        try:
            hold_features(&views, features, columns, &f, &n)
            weight = <const float *> hold_list(&views, weights, "weights", c"f", f, "one for each feature", False)
            sums = <float *> hold_list(&views, out, "out", c"f", n, "one for each row", True)
            check_outputs(&views)
            with nogil:
                self.table.fuse(columns, f, n, weight, sums)
        finally:
            release(&views)

    def fuse_top_k(self, features, weights, filter, Py_ssize_t k, rows_out, scores_out) -> int:
        """The k best rows by the sum that fuse computes, order and filter as in search; returns how many were found.

        features and weights as in fuse, filter None or uint8[ceil(n / 8)], rows_out uint32[k], scores_out
        float32[k]. Features are finite: a row whose sum is NaN or -infinity is never returned.
        """
        cdef Views views
        cdef const float *columns[OMEGA_MAX_FEATURES]
        cdef const float *weight
        cdef const uint8_t *bits
        cdef size_t f, n, found
        cdef uint32_t *rows
        cdef float *scores
        cdef uint64_t stack[STACK_WORDS]
        cdef uint64_t *workspace = NULL
        views.count = 0
        try:
            hold_features(&views, features, columns, &f, &n)
            weight = <const float *> hold_list(&views, weights, "weights", c"f", f, "one for each feature", False)
            bits = hold_filter(&views, filter, n)
            check_k(k, "k")
            rows = <uint32_t *> hold_list(&views, rows_out, "rows_out", c"I", k, "k", True)
            scores = <float *> hold_list(&views, scores_out, "scores_out", c"f", k, "k", True)
            check_outputs(&views)
            workspace = take_workspace(stack, OMEGA_TOP_K_WORDS(min(<size_t> k, n)))
            with nogil:
                found = self.table.fuse_top_k(columns, f, n, weight, bits, k, workspace, rows, scores)
            return found
        finally:
            if workspace != stack:
                free(workspace)
            release(&views)

    def diversify(self, codes, scale, rows, values, float trade_off, order_out) -> int:
        """Greedy maximal marginal relevance over m candidates; returns how many were picked, at most len(order_out).

        Each pick has the highest trade_off * values[i] - (1 - trade_off) * (greatest cosine to a picked row, 0 before
        the first pick), ties to the lower i. codes int8[n, d], scale float32[n], rows uint32[m] (below n), values
        float32[m] (finite), trade_off in [0, 1], order_out uint32[k]: indices into rows, best first.
        """
        cdef Views views
        cdef Py_buffer *view
        cdef omega_codes table
        cdef const uint32_t *candidates
        cdef const float *value
        cdef uint32_t *order
        cdef size_t m, k, found
        cdef uint64_t stack[STACK_WORDS]
        cdef uint64_t *workspace = NULL
        cdef omega_fault fault
        views.count = 0
        try:
            hold_codes(&views, codes, scale, &table)
            view = hold(&views, rows, "rows", c"I", 1, False)
            check_rows(view.shape[0], "rows")
            m, candidates = view.shape[0], <const uint32_t *> view.buf
            value = <const float *> hold_list(&views, values, "values", c"f", m, "one for each row", False)
            if not 0.0 <= trade_off <= 1.0:
                raise ValueError(f"trade_off: expected a number from 0 to 1, got {trade_off}")
            view = hold(&views, order_out, "order_out", c"I", 1, True)
            check_k(view.shape[0], "length of order_out")
            k, order = view.shape[0], <uint32_t *> view.buf
            check_outputs(&views)
            workspace = take_workspace(stack, (m + 1) // 2)
            with nogil:
                fault = self.table.diversify(&table, candidates, value, m, trade_off, k, <float *> workspace, order,
                                             &found)
            raise_fault(fault)
            return found
        finally:
            if workspace != stack:
                free(workspace)
            release(&views)

    def count_greater(self, values, of_count, out) -> None:
        """For each value of each list, of_count[how many of the list's values are greater].

        values float32[lists, m], of_count float32[m], out float32[lists, m].
        """
        cdef Views views
        cdef Py_buffer *view
        cdef const float *listed
        cdef const float *told
        cdef float *found
        cdef size_t lists, m
        views.count = 0
        try:
            view = hold(&views, values, "values", c"f", 2, False)
            lists, m, listed = view.shape[0], view.shape[1], <const float *> view.buf
            told = <const float *> hold_list(&views, of_count, "of_count", c"f", m, "one for each of a list", False)
            view = hold(&views, out, "out", c"f", 2, True)
            check_length(view, "out", 0, lists, "one row for each list")
            check_length(view, "out", 1, m, "one column for each value of a list")
            found = <float *> view.buf
            check_outputs(&views)
            with nogil:
                self.table.count_greater(listed, lists, m, told, found)
        finally:
            release(&views)

    def sum_trees(self, roots, feature, threshold, children, leaves, values, out) -> None:
        """Sum of the leaves that regression trees lead each of m candidates to, in the order of the trees, in float32.

        roots uint32[t], feature uint8[k], threshold float32[k], children int32[k, 2] (a node after the parent, or
        ~leaf), leaves float32[l]; values float32[inputs, m], out float32[m]. A node leads to its first child where its
        input is at most its threshold. Trees that name what is not there, or lead back, raise ValueError, and out is
        left alone.
        """
        cdef Views views
        cdef Py_buffer *view
        cdef omega_forest forest
        cdef const float *asked
        cdef float *sums
        cdef size_t m
        cdef omega_fault fault
        views.count = 0
        try:
            hold_forest(&views, roots, feature, threshold, children, leaves, &forest)
            view = hold(&views, values, "values", c"f", 2, False)
            forest.inputs, m, asked = view.shape[0], view.shape[1], <const float *> view.buf
            sums = <float *> hold_list(&views, out, "out", c"f", m, "one for each candidate", True)
            check_outputs(&views)
            with nogil:
                fault = self.table.sum_trees(&forest, asked, m, sums)
            raise_fault(fault)
        finally:
            release(&views)


include "sequence.pxi"
include "scan.pxi"
