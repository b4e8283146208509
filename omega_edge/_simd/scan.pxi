"""Included by _kernels.pyx: the kernels over halves and signs, rescoring and ranking."""


cdef class Kernels(SequenceKernels):
    """The kernels of one instruction set: the best one by default, or by name (ValueError where it cannot run).

    All arrays are C-contiguous and of exactly the dtype that the method names; a wrong dtype raises TypeError, a wrong
    shape, stride, read-only output or value ValueError. Outputs are written in place and share no memory with inputs.
    The GIL is released while a kernel runs; results are equal, bit for bit, for every instruction set.
    """

    def halve(self, codes, high_out, low_out, spread_out) -> None:
        """Codes as two planes of half bytes, and the length of what the lower one adds.

        codes int8[n, d], high_out and low_out uint8[n, d / 2], spread_out uint8[n]; kernels.h states the order.
        """
        cdef Views views
        cdef Py_buffer *view
        cdef const int8_t *source
        cdef size_t n, d
        cdef uint8_t *planes[2]
        cdef uint8_t *spread
        views.count = 0
        try:
            view = hold(&views, codes, "codes", c"b", 2, False)
            check_dimensions(view.shape[1], "codes")
            n, d, source = view.shape[0], view.shape[1], <const int8_t *> view.buf
            for i, (array, name) in enumerate(((high_out, "high_out"), (low_out, "low_out"))):
                view = hold(&views, array, name, c"B", 2, True)
                check_length(view, name, 0, n, "one for each row of codes")
                check_length(view, name, 1, d // 2, "two codes a byte")
                planes[i] = <uint8_t *> view.buf
            spread = <uint8_t *> hold_list(&views, spread_out, "spread_out", c"B", n, "one for each row of codes", True)
            check_outputs(&views)
            with nogil:
                self.table.halve(source, n, d, planes[0], planes[1], spread)
        finally:
            release(&views)

    def join(self, high, low, scale, spread, rows, codes_out) -> None:
        """The codes of some rows: rows uint32[m], below n; codes_out int8[m, d]. The table as in search_halves."""
        cdef Views views
        cdef Py_buffer *view
        cdef omega_halves table
        cdef const uint32_t *listed
        cdef int8_t *codes
        cdef size_t m
        views.count = 0
        try:
            hold_halves(&views, high, low, scale, spread, &table)
            view = hold(&views, rows, "rows", c"I", 1, False)
            m, listed = view.shape[0], <const uint32_t *> view.buf
            check_listed(listed, m, table.rows)
            view = hold(&views, codes_out, "codes_out", c"b", 2, True)
            check_length(view, "codes_out", 0, m, "one for each of rows")
            check_length(view, "codes_out", 1, table.dimensions, "as many dimensions as the table")
            codes = <int8_t *> view.buf
            check_outputs(&views)
            with nogil:
                self.table.join(&table, listed, m, codes)
        finally:
            release(&views)

    def search_halves(self, high, low, scale, spread, query, float query_scale, filter, Py_ssize_t k, rows_out,
                      scores_out) -> int:
        """What search returns for the joined codes, bit for bit, reading about half the bytes.

        high and low uint8[n, d / 2], scale float32[n], spread uint8[n], all as halve made them; scales and query_scale
        are not negative. The other arguments are those of search.
        """
        cdef Views views
        cdef omega_halves table
        cdef const int8_t *target
        cdef const uint8_t *bits
        cdef uint32_t *listed
        cdef float *scores
        cdef uint64_t stack[STACK_WORDS]
        cdef uint64_t *workspace = NULL
        cdef size_t found
        views.count = 0
        try:
            hold_halves(&views, high, low, scale, spread, &table)
            hold_query(&views, query, query_scale, table.dimensions, &target)
            bits = hold_filter(&views, filter, table.rows)
            hold_outputs(&views, k, rows_out, scores_out, &listed, &scores)
            workspace = take_workspace(stack, OMEGA_TOP_K_WORDS(min(<size_t> k, table.rows)))
            with nogil:
                found = self.table.search_halves(&table, target, query_scale, bits, k, workspace, listed, scores)
            return found
        finally:
            if workspace != stack:
                free(workspace)
            release(&views)

    def search_batch(self, high, low, scale, spread, queries, query_scale, filter, Py_ssize_t k, found_out, rows_out,
                     scores_out) -> None:
        """search_halves for many queries, the rows read once for every eight of them.

        queries int8[q, d], query_scale float32[q], not negative; found_out uintp[q], rows_out uint32[q, k], scores_out
        float32[q, k].
        """
        cdef Views views
        cdef Py_buffer *view
        cdef omega_halves table
        cdef const int8_t *targets
        cdef const float *target_scale
        cdef const uint8_t *bits
        cdef size_t *found
        cdef uint32_t *listed
        cdef float *scores
        cdef uint64_t stack[STACK_WORDS]
        cdef uint64_t *workspace = NULL
        cdef size_t q, i
        views.count = 0
        try:
            hold_halves(&views, high, low, scale, spread, &table)
            view = hold(&views, queries, "queries", c"b", 2, False)
            check_length(view, "queries", 1, table.dimensions, "as many dimensions as the rows")
            q, targets = view.shape[0], <const int8_t *> view.buf
            target_scale = <const float *> hold_list(&views, query_scale, "query_scale", c"f", q, "one for each query",
                                                     False)
            for i in range(q):
                if not (0 <= target_scale[i] <= FLT_MAX):
                    raise ValueError(f"query_scale[{i}]: expected a finite number that is not negative, "
                                     f"got {target_scale[i]}")
            bits = hold_filter(&views, filter, table.rows)
            check_k(k, "k")
            found = <size_t *> hold_list(&views, found_out, "found_out", c"P", q, "one for each query", True)
            view = hold(&views, rows_out, "rows_out", c"I", 2, True)
            check_length(view, "rows_out", 0, q, "one row for each query")
            check_length(view, "rows_out", 1, k, "k")
            listed = <uint32_t *> view.buf
            view = hold(&views, scores_out, "scores_out", c"f", 2, True)
            check_length(view, "scores_out", 0, q, "one row for each query")
            check_length(view, "scores_out", 1, k, "k")
            scores = <float *> view.buf
            check_outputs(&views)
            workspace = take_workspace(stack, OMEGA_BATCH_WORDS(min(<size_t> k, table.rows)))
            with nogil:
                self.table.search_batch(&table, targets, target_scale, q, bits, k, workspace, found, listed, scores)
        finally:
            if workspace != stack:
                free(workspace)
            release(&views)

    def put_signs(self, codes, Py_ssize_t first, Py_ssize_t rows, blocks) -> None:
        """Writes the signs of codes as rows first, first + 1, ... of a table of so many rows.

        codes int8[n, d], blocks uint8[ceil(rows / 32), 4 d], changed in place; first + n is at most rows.
        """
        cdef Views views
        cdef Py_buffer *view
        cdef omega_signs signs
        cdef const int8_t *source
        cdef size_t n, d
        views.count = 0
        try:
            view = hold(&views, codes, "codes", c"b", 2, False)
            check_dimensions(view.shape[1], "codes")
            n, d, source = view.shape[0], view.shape[1], <const int8_t *> view.buf
            check_rows(rows, "rows")
            if first < 0 or rows < 0 or first > rows or <size_t> (rows - first) < n:
                raise ValueError(f"first: expected room for {n} rows from it in a table of {rows}, got {first}")
            hold_signs(&views, blocks, rows, d, True, &signs)
            check_outputs(&views)
            with nogil:
                self.table.put_signs(source, first, n, d, <uint8_t *> signs.blocks)
        finally:
            release(&views)

    def search_two_stage(self, blocks, high, low, scale, spread, query, float query_scale, filter,
                         Py_ssize_t candidates, Py_ssize_t k, rows_out, scores_out) -> int:
        """The k best rows by cosine among so many candidates, which one bit a dimension chose; returns how many.

        blocks uint8[ceil(n / 32), 4 d] as put_signs made them; candidates 1 or more; the rest as in search_halves.
        """
        cdef Views views
        cdef omega_halves table
        cdef omega_signs signs
        cdef const int8_t *target
        cdef const uint8_t *bits
        cdef uint32_t *listed
        cdef float *scores
        cdef uint64_t stack[STACK_WORDS]
        cdef uint64_t *workspace = NULL
        cdef size_t found
        views.count = 0
        try:
            hold_halves(&views, high, low, scale, spread, &table)
            hold_signs(&views, blocks, table.rows, table.dimensions, False, &signs)
            hold_query(&views, query, query_scale, table.dimensions, &target)
            bits = hold_filter(&views, filter, table.rows)
            check_k(candidates, "candidates")
            hold_outputs(&views, k, rows_out, scores_out, &listed, &scores)
            workspace = take_workspace(stack, OMEGA_TWO_STAGE_WORDS(min(<size_t> candidates, table.rows),
                                                                    min(<size_t> k, table.rows)))
            with nogil:
                found = self.table.search_two_stage(&signs, &table, target, query_scale, bits, candidates, k, workspace,
                                                    listed, scores)
            return found
        finally:
            if workspace != stack:
                free(workspace)
            release(&views)

    def rescore(self, vectors, query, rows, Py_ssize_t k, rows_out, scores_out) -> int:
        """The k best of the listed rows by their cosine to the query; returns how many were found.

        vectors float16[n, d], query float32[d] finite and not zero, rows uint32[m] distinct and below n, rows_out
        uint32[k], scores_out float32[k]. A row that is zero or not finite is not returned.
        """
        cdef Views views
        cdef Py_buffer *view
        cdef const uint16_t *source
        cdef const float *target
        cdef const uint32_t *candidates
        cdef uint32_t *listed
        cdef float *scores
        cdef uint64_t stack[STACK_WORDS]
        cdef uint64_t *workspace = NULL
        cdef float scaled[OMEGA_MAX_DIMENSIONS]
        cdef size_t n, d, m, i, found
        cdef double squares = 0
        views.count = 0
        try:
            view = hold(&views, vectors, "vectors", c"e", 2, False)
            check_rows(view.shape[0], "vectors")
            check_dimensions(view.shape[1], "vectors")
            n, d, source = view.shape[0], view.shape[1], <const uint16_t *> view.buf
            target = <const float *> hold_list(&views, query, "query", c"f", d, "as many dimensions as vectors", False)
            for i in range(d):
                squares += <double> target[i] * target[i]
            if not (0 < squares <= DBL_MAX):
                raise ValueError("query: expected finite numbers that are not all zero")
            if not (FLT_MIN <= squares <= FLT_MAX):  # the kernel's sums are floats: they would overflow, or vanish
                for i in range(d):
                    scaled[i] = <float> (target[i] / sqrt(squares))
                target, squares = scaled, 1
            view = hold(&views, rows, "rows", c"I", 1, False)
            m, candidates = view.shape[0], <const uint32_t *> view.buf
            check_listed(candidates, m, n)
            hold_outputs(&views, k, rows_out, scores_out, &listed, &scores)
            workspace = take_workspace(stack, m + 1)
            with nogil:
                found = self.table.rescore(source, d, target, <float> (1 / sqrt(squares)), candidates, m, k, workspace,
                                           listed, scores)
            return found
        finally:
            if workspace != stack:
                free(workspace)
            release(&views)

    def rank(self, high, low, scale, spread, query, float query_scale, success, time, trend, weights, limits, filter,
             Py_ssize_t k, rows_out, scores_out) -> int:
        """The k best rows by weighted similarity, success, recency and trend; returns how many were found.

        The table, query, filter and outputs as in search_halves; success and trend float32[n], finite, time uint32[n];
        weights float32[4] of similarity (not negative), success, recency and trend, finite; limits (now, half_life,
        least_similarity): now an integer and half_life above 0 in the unit of time, and the least cosine returned.
        """
        cdef Views views
        cdef omega_halves table
        cdef omega_rank_columns columns
        cdef omega_rank_weights factors
        cdef omega_rank_limits bounds
        cdef const int8_t *target
        cdef const uint8_t *bits
        cdef const float *given
        cdef uint32_t *listed
        cdef float *scores
        cdef uint64_t stack[STACK_WORDS]
        cdef uint64_t *workspace = NULL
        cdef size_t found
        cdef double half_life, least
        views.count = 0
        try:
            hold_halves(&views, high, low, scale, spread, &table)
            hold_query(&views, query, query_scale, table.dimensions, &target)
            reason = "one for each row"
            columns.success = <const float *> hold_list(&views, success, "success", c"f", table.rows, reason, False)
            columns.time = <const uint32_t *> hold_list(&views, time, "time", c"I", table.rows, reason, False)
            columns.trend = <const float *> hold_list(&views, trend, "trend", c"f", table.rows, reason, False)
            given = <const float *> hold_list(&views, weights, "weights", c"f", 4, "similarity, success, recency, trend",
                                              False)
            for i in range(4):
                if not isfinite(given[i]) or (i == 0 and given[i] < 0):
                    raise ValueError(f"weights[{i}]: expected a finite number, that of similarity not negative, "
                                     f"got {given[i]}")
            factors.similarity, factors.success, factors.recency, factors.trend = given[0], given[1], given[2], given[3]
            now, half_life, least = limits
            bounds.now = PyNumber_Index(now)
            if not (FLT_MIN <= 1 / half_life <= FLT_MAX if half_life > 0 else False):
                raise ValueError(f"half_life: expected a finite number above 0, got {half_life}")
            if not (-FLT_MAX <= least <= FLT_MAX):
                raise ValueError(f"least_similarity: expected a finite number, got {least}")
            bounds.per_half_life, bounds.least_similarity = 1 / half_life, least
            bits = hold_filter(&views, filter, table.rows)
            hold_outputs(&views, k, rows_out, scores_out, &listed, &scores)
            workspace = take_workspace(stack, OMEGA_TOP_K_WORDS(min(<size_t> k, table.rows)))
            with nogil:
                found = self.table.rank(&table, target, query_scale, &columns, &factors, &bounds, bits, k, workspace,
                                        listed, scores)
            return found
        finally:
            if workspace != stack:
                free(workspace)
            release(&views)
