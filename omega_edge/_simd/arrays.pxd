"""Checks of the arrays that come from Python, each by its raw buffer, and the faults that the kernels report."""

from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer,
)
from libc.stdint cimport int8_t, int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.float cimport FLT_MAX
from libc.stdlib cimport malloc
from libc.string cimport strlen

from omega_edge._simd.contract cimport (
    OMEGA_COLUMN_OUTSIDE, OMEGA_DIMENSION_STEP, OMEGA_GENRE_OUTSIDE, OMEGA_MAX_DIMENSIONS, OMEGA_MAX_FEATURES,
    OMEGA_NODE_DAMAGED, OMEGA_OFFSETS_DAMAGED, OMEGA_ROOT_OUTSIDE, OMEGA_ROW_OUTSIDE, OMEGA_SIGN_ROWS, omega_codes,
    omega_fault, omega_forest, omega_halves, omega_rows, omega_signs,
)


cdef enum:
    MOST_VIEWS = 24 # OMEGA_MAX_FEATURES and what is beside them
    STACK_WORDS = 1024

# The buffers that one call holds; released together, whatever happens.
cdef struct Views:
    Py_buffer items[MOST_VIEWS]
    bint written[MOST_VIEWS]
    int count


cdef inline str type_name(char kind):
    return {c"b": "int8", c"B": "uint8", c"i": "int32", c"I": "uint32", c"Q": "uint64", c"f": "float32",
            c"e": "float16", c"P": "uintp"}[kind]


cdef inline bint is_kind(const Py_buffer *view, char kind) noexcept nogil:
    """Whether the elements are of the kind; C's long is 4 or 8 bytes, so its letter serves both unsigned kinds."""
    if view.format == NULL:  # by the buffer protocol: unsigned bytes
        return kind == c"B"
    if strlen(view.format) != 1:
        return False
    if kind == c"I":
        return view.itemsize == 4 and view.format[0] in (c"I", c"L")
    if kind == c"i":
        return view.itemsize == 4 and view.format[0] in (c"i", c"l")
    if kind == c"P":  # size_t
        return view.itemsize == sizeof(size_t) and view.format[0] in (c"Q", c"L", c"I")
    if kind == c"Q":
        return view.itemsize == 8 and view.format[0] in (c"Q", c"L")
    return view.format[0] == kind


cdef inline Py_buffer *hold(Views *views, object array, str name, char kind, int dimensions, bint written) except NULL:
    """Takes the array's buffer if it is C-contiguous, aligned and of the kind; else TypeError or ValueError."""
    if not PyObject_CheckBuffer(array):
        raise TypeError(f"{name}: expected an array of {type_name(kind)}, got {type(array).__name__}")
    cdef Py_buffer *view = &views.items[views.count]
    PyObject_GetBuffer(array, view, PyBUF_FORMAT | PyBUF_STRIDES)
    views.written[views.count] = written
    views.count += 1
    if not is_kind(view, kind):
        found = view.format.decode() if view.format != NULL else "B"
        raise TypeError(f"{name}: expected {type_name(kind)} in native byte order and aligned, "
                        f"got elements of format {found!r}")
    if <size_t> view.buf % view.itemsize:
        raise TypeError(f"{name}: expected an array aligned to {view.itemsize} bytes, got one that is not")
    if view.ndim != dimensions:
        raise ValueError(f"{name}: expected {dimensions} dimension(s), got {view.ndim}")
    if not PyBuffer_IsContiguous(view, c"C"):
        raise ValueError(f"{name}: expected a C-contiguous array; pass numpy.ascontiguousarray of it")
    if written and view.readonly:
        raise ValueError(f"{name}: expected a writable array, got a read-only one")
    return view


cdef inline int release(Views *views) except -1:
    cdef int i
    for i in range(views.count):
        PyBuffer_Release(&views.items[i])
    return 0


cdef inline int check_length(const Py_buffer *view, str name, int axis, Py_ssize_t expected, str reason) except -1:
    if view.shape[axis] != expected:
        raise ValueError(f"{name}: expected length {expected} on axis {axis} ({reason}), got {view.shape[axis]}")
    return 0


cdef inline int check_outputs(const Views *views) except -1:
    """Refuses an output that shares memory with another array: the result would depend on the instruction set."""
    cdef int i, j
    cdef const char *start
    cdef const char *other
    for i in range(views.count):
        if not views.written[i]:
            continue
        start = <const char *> views.items[i].buf
        for j in range(views.count):
            other = <const char *> views.items[j].buf
            if i != j and start < other + views.items[j].len and other < start + views.items[i].len:
                raise ValueError("an output array shares memory with another argument; pass a separate array")
    return 0


cdef inline int check_dimensions(Py_ssize_t d, str name) except -1:
    if d < OMEGA_DIMENSION_STEP or d > OMEGA_MAX_DIMENSIONS or d % OMEGA_DIMENSION_STEP:
        raise ValueError(f"{name}: expected a multiple of {OMEGA_DIMENSION_STEP} dimensions, "
                         f"{OMEGA_DIMENSION_STEP} to {OMEGA_MAX_DIMENSIONS}, got {d}")
    return 0


cdef inline int check_rows(Py_ssize_t n, str name) except -1:
    if <uint64_t> n >= (<uint64_t> 1 << 32):
        raise ValueError(f"{name}: expected fewer than 2^32 rows, got {n}")
    return 0


cdef inline int check_k(Py_ssize_t k, str name) except -1:
    if k < 1:
        raise ValueError(f"{name}: expected 1 or more, got {k}")
    return 0


cdef inline int hold_codes(Views *views, object codes, object scale, omega_codes *table) except -1:
    cdef Py_buffer *view = hold(views, codes, "codes", c"b", 2, False)
    check_rows(view.shape[0], "codes")
    check_dimensions(view.shape[1], "codes")
    table.codes = <const int8_t *> view.buf
    table.rows = view.shape[0]
    table.dimensions = view.shape[1]
    view = hold(views, scale, "scale", c"f", 1, False)
    check_length(view, "scale", 0, table.rows, "one for each row of codes")
    table.scale = <const float *> view.buf
    return 0


cdef inline int hold_halves(Views *views, object high, object low, object scale, object spread,
                            omega_halves *table) except -1:
    cdef Py_buffer *view = hold(views, high, "high", c"B", 2, False)
    check_rows(view.shape[0], "high")
    check_dimensions(2 * view.shape[1], "high, two codes a byte,")
    table.high = <const uint8_t *> view.buf
    table.rows = view.shape[0]
    table.dimensions = 2 * view.shape[1]
    view = hold(views, low, "low", c"B", 2, False)
    check_length(view, "low", 0, table.rows, "one for each row of high")
    check_length(view, "low", 1, table.dimensions // 2, "as many bytes as a row of high")
    table.low = <const uint8_t *> view.buf
    table.scale = <const float *> hold_list(views, scale, "scale", c"f", table.rows, "one for each row of high", False)
    table.spread = <const uint8_t *> hold_list(views, spread, "spread", c"B", table.rows, "one for each row of high",
                                               False)
    return 0


cdef inline int hold_signs(Views *views, object blocks, Py_ssize_t rows, Py_ssize_t dimensions, bint written,
                           omega_signs *signs) except -1:
    cdef Py_buffer *view = hold(views, blocks, "blocks", c"B", 2, written)
    check_length(view, "blocks", 0, (rows + OMEGA_SIGN_ROWS - 1) // OMEGA_SIGN_ROWS, "one for each 32 rows")
    check_length(view, "blocks", 1, 4 * dimensions, "32 rows of one bit a dimension")
    signs.blocks = <const uint8_t *> view.buf
    signs.rows = rows
    signs.dimensions = dimensions
    return 0


cdef inline int hold_query(Views *views, object query, float query_scale, size_t dimensions,
                           const int8_t **target) except -1:
    target[0] = <const int8_t *> hold_list(views, query, "query", c"b", dimensions, "as many dimensions as the rows",
                                           False)
    if not (0 <= query_scale <= FLT_MAX):
        raise ValueError(f"query_scale: expected a finite number that is not negative, got {query_scale}")
    return 0


cdef inline int hold_outputs(Views *views, Py_ssize_t k, object rows_out, object scores_out, uint32_t **rows,
                             float **scores) except -1:
    check_k(k, "k")
    rows[0] = <uint32_t *> hold_list(views, rows_out, "rows_out", c"I", k, "k", True)
    scores[0] = <float *> hold_list(views, scores_out, "scores_out", c"f", k, "k", True)
    return check_outputs(views)


cdef inline int check_listed(const uint32_t *rows, size_t m, size_t n) except -1:
    cdef size_t i
    for i in range(m):
        if rows[i] >= n:
            raise ValueError(f"rows[{i}]: expected a row below {n}, got {rows[i]}")
    return 0


cdef inline int hold_rows(Views *views, object offsets, object columns, object values, object scale,
                   omega_rows *table) except -1:
    cdef Py_buffer *view = hold(views, scale, "row_scale", c"f", 1, False)
    check_rows(view.shape[0], "row_scale")
    table.scale = <const float *> view.buf
    table.rows = view.shape[0]
    view = hold(views, offsets, "offsets", c"I", 1, False)
    check_length(view, "offsets", 0, table.rows + 1, "one more than rows")
    table.offsets = <const uint32_t *> view.buf
    view = hold(views, columns, "columns", c"I", 1, False)
    table.columns = <const uint32_t *> view.buf
    table.entries = view.shape[0]
    view = hold(views, values, "values", c"b", 1, False)
    check_length(view, "values", 0, table.entries, "one for each column entry")
    table.values = <const int8_t *> view.buf
    return 0


cdef inline int hold_features(Views *views, object features, const float **rows, size_t *f, size_t *n) except -1:
    """Takes f rows of n floats: a matrix, or a tuple of arrays, which may lie anywhere. rows has room for the most."""
    cdef Py_buffer *view
    cdef Py_ssize_t i, count
    if isinstance(features, tuple):
        count = len(features)
        if not 1 <= count <= OMEGA_MAX_FEATURES:
            raise ValueError(f"features: expected 1 to {OMEGA_MAX_FEATURES} arrays, got {count}")
        for i in range(count):
            view = hold(views, features[i], "features", c"f", 1, False)
            n[0] = view.shape[0] if i == 0 else n[0]
            check_length(view, "features", 0, n[0], "as long as the first")
            rows[i] = <const float *> view.buf
    else:
        view = hold(views, features, "features", c"f", 2, False)
        count, n[0] = view.shape[0], view.shape[1]
        if count > OMEGA_MAX_FEATURES:
            raise ValueError(f"features: expected at most {OMEGA_MAX_FEATURES} rows, got {count}")
        for i in range(count):
            rows[i] = <const float *> view.buf + i * n[0]
    check_rows(n[0], "features")
    f[0] = count
    return 0


cdef inline int hold_forest(Views *views, object roots, object feature, object threshold, object children,
                            object leaves, omega_forest *forest) except -1:
    cdef Py_buffer *view = hold(views, roots, "roots", c"I", 1, False)
    forest.roots, forest.trees = <const uint32_t *> view.buf, view.shape[0]
    view = hold(views, feature, "feature", c"B", 1, False)
    forest.feature, forest.nodes = <const uint8_t *> view.buf, view.shape[0]
    if forest.nodes >= <size_t> 1 << 31:
        raise ValueError(f"feature: expected fewer than 2^31 nodes, got {forest.nodes}")
    forest.threshold = <const float *> hold_list(views, threshold, "threshold", c"f", forest.nodes, "one for each node",
                                                 False)
    view = hold(views, children, "children", c"i", 2, False)
    check_length(view, "children", 0, forest.nodes, "two for each node")
    check_length(view, "children", 1, 2, "two for each node")
    forest.children = <const int32_t *> view.buf
    view = hold(views, leaves, "leaves", c"f", 1, False)
    forest.leaves, forest.leaf_count = <const float *> view.buf, view.shape[0]
    return 0


cdef inline const uint8_t *hold_filter(Views *views, object filter, Py_ssize_t n) except? NULL:
    if filter is None:
        return NULL
    cdef Py_buffer *view = hold(views, filter, "filter", c"B", 1, False)
    check_length(view, "filter", 0, (n + 7) // 8, "one bit for each row, in whole bytes")
    return <const uint8_t *> view.buf


cdef inline void *hold_list(Views *views, object array, str name, char kind, Py_ssize_t length, str reason,
                     bint written) except? NULL:
    cdef Py_buffer *view = hold(views, array, name, kind, 1, written)
    check_length(view, name, 0, length, reason)
    return view.buf


cdef inline int raise_fault(omega_fault fault) except -1:
    if fault.kind == OMEGA_ROW_OUTSIDE:
        raise ValueError(f"rows[{fault.at}]: expected a row of the table, got a number past its last row")
    if fault.kind == OMEGA_OFFSETS_DAMAGED:
        raise ValueError(f"offsets of rows[{fault.at}]: expected ascending and inside columns; the table is damaged")
    if fault.kind == OMEGA_COLUMN_OUTSIDE:
        raise ValueError(f"columns of rows[{fault.at}]: expected columns below the length of out; the table is damaged "
                         "or belongs to another catalogue")
    if fault.kind == OMEGA_GENRE_OUTSIDE:
        raise ValueError(f"masks[{fault.at}]: expected only bits below the number of genres")
    if fault.kind == OMEGA_ROOT_OUTSIDE:
        raise ValueError(f"roots[{fault.at}]: expected a node of the trees, got a number past the last one")
    if fault.kind == OMEGA_NODE_DAMAGED:
        raise ValueError(f"node {fault.at}: expected an input and leaves that are there, and nodes after it")
    return 0


cdef inline uint64_t *take_workspace(uint64_t *stack, size_t words) except NULL:
    """The caller's stack where it is large enough, else memory that the caller frees."""
    if words <= STACK_WORDS:
        return stack
    cdef uint64_t *memory = <uint64_t *> malloc(words * sizeof(uint64_t))
    if memory == NULL:
        raise MemoryError(f"no {words * sizeof(uint64_t)} bytes for the candidates of a top-k; ask for a smaller k")
    return memory
