/* The contract of the C core: what every instruction set's file computes, bit for bit.
 *
 * Codes.    A vector is d signed 8-bit codes in [-127, 127] and a float scale = 1 / ||codes||_2, so that codes * scale
 *           has length 1. -128 is not a code: the AVX2 product negates codes, and -(-128) does not fit 8 bits. A table
 *           that holds it gives unspecified scores, never an access out of bounds.
 * Shape.    d is a multiple of 32 from 32 to OMEGA_MAX_DIMENSIONS; matrices are row-major and dense. n, m and f count
 *           rows, candidates and features; n < 2^32.
 * Alignment. That of the element type. No kernel asks for more; rows that start on 64 bytes scan faster.
 * Overlap.  An output shares no memory with an input or another output.
 * Overflow. |product| <= 127 * 127 = 16129, so a dot product of 1024 terms is below 2^24: it fits an int32 with room to
 *           spare, and its conversion to float is exact. A pair of products (32258) fits an int16: AVX2 and NEON rely
 *           on it.
 * Rounding. IEEE 754 single precision, to nearest even, each operation rounded by itself in the order written here (no
 *           contraction, no reassociation). No libm but sqrt, which IEEE 754 rounds correctly. No kernel adds floats
 *           across lanes: lanes are rows, and within a row the order is stated.
 * Zeros.    No score is -0: equal scores are equal bits, which the tie rule needs.
 * Order.    Score descending, then row ascending. A row whose score is NaN or -infinity is never returned.
 * Filter.   Row r is allowed if bit r & 7 of byte r >> 3 is set; bits past the last row are ignored; NULL allows all.
 * State.    None: functions are re-entrant, allocate nothing and call nothing outside this directory but memcpy.
 */
#ifndef OMEGA_EDGE_KERNELS_H
#define OMEGA_EDGE_KERNELS_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>

#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0
#error "the kernels need float arithmetic that rounds to float (on 32-bit x86: -msse2 -mfpmath=sse)"
#endif

#define OMEGA_DIMENSION_STEP 32
#define OMEGA_MAX_DIMENSIONS 1024
#define OMEGA_MAX_GENRES 64

/* Working memory, in 64-bit words, that a top-k of k rows needs; k here is already min(k, n). */
#define OMEGA_TOP_K_WORDS(k) (4 * (k) + 64)

/* A sparse matrix by rows: row r holds values[offsets[r] .. offsets[r + 1]) at columns[...], times scale[r]. */
typedef struct {
    const uint32_t *offsets; /* rows + 1 */
    const uint32_t *columns; /* entries; ascending inside a row where row_lookup is used */
    const int8_t *values;    /* entries */
    const float *scale;      /* rows */
    size_t rows;
    size_t entries;
} omega_rows;

/* Codes and their scales. */
typedef struct {
    const int8_t *codes; /* rows * dimensions */
    const float *scale;  /* rows */
    size_t rows;
    size_t dimensions;
} omega_codes;

typedef enum {
    OMEGA_FINE = 0,
    OMEGA_ROW_OUTSIDE,      /* rows[at] is not a row of the table */
    OMEGA_OFFSETS_DAMAGED,  /* the offsets of row rows[at] fall, or pass the last entry */
    OMEGA_COLUMN_OUTSIDE,   /* row rows[at] names a column past the output */
    OMEGA_GENRE_OUTSIDE,    /* masks[at] has a bit at or above the number of genres */
} omega_fault_kind;

typedef struct {
    omega_fault_kind kind;
    size_t at;
} omega_fault;

typedef struct {
    const char *isa;

    /* codes[i] = nearest even integer to vector[i] * (127 / max|vector|), in double; scale = 1 / sqrt(sum codes^2), in
     * double, rounded once to float. Returns n, or the first row that is NaN, infinite or zero; rows before it are
     * written. Source of the scaling: symmetric per-vector absmax quantisation. */
    size_t (*quantise)(const float *vectors, size_t n, size_t d, int8_t *codes_out, float *scale_out);

    /* Best k rows of the table by cosine: ((float)dot * scale[row]) * query_scale + 0. Returns how many were found:
     * min(k, rows allowed). workspace: OMEGA_TOP_K_WORDS(min(k, n)). */
    size_t (*search)(const omega_codes *table, const int8_t *query, float query_scale, const uint8_t *filter, size_t k,
                     uint64_t *workspace, uint32_t *rows_out, float *scores_out);

    /* out[j * n + row] = the same cosine for query j. The table is read once for every eight queries. */
    void (*cosines)(const omega_codes *table, const int8_t *queries, const float *query_scale, size_t q, float *out);

    /* out[c] += (weights[e] * scale[row]) * value for each entry (c, value) of row rows[e], events in order, entries in
     * order. Stops at the first fault; what was added before it stays added. */
    omega_fault (*row_scatter_add)(const omega_rows *table, const uint32_t *rows, const float *weights, size_t events,
                                   float *out, size_t targets);

    /* out[e * k + j] = value * scale[row] of the entry at column targets[j] of row rows[e]; 0 where there is none. */
    omega_fault (*row_lookup)(const omega_rows *table, const uint32_t *rows, size_t events, const uint32_t *targets,
                              size_t k, float *out);

    /* out[r] = mean of per_genre over the set bits of masks[r], 0 where none is set. The sum adds, from 0, the sums of
     * the mask's bytes from the lowest; a byte's sum adds, from 0, its set bits from the lowest. */
    omega_fault (*genre_means)(const uint64_t *masks, size_t n, const float *per_genre, size_t genres, float *out);

    /* Weighted sums of unit vectors with each part left out. With v[i] = (weights[i] * scale[i]) * (float)codes[i], for
     * each i < left: out[i] = (v[0] + ... + v[i - 1]) + (v[rows - 1] + ... + v[i + 1]) * growth, both sums from 0 in the
     * order written; left <= rows. growth is what the weights of later parts gain when an earlier one is gone. */
    void (*left_out_sums)(const omega_codes *parts, const float *weights, float growth, size_t left, float *out);

    /* out[r] = ((0 + weights[0] * features[0][r]) + weights[1] * features[1][r]) + ... */
    void (*fuse)(const float *features, size_t f, size_t n, const float *weights, float *out);

    /* Best k rows by the same sum; returns how many were found. workspace as in search. */
    size_t (*fuse_top_k)(const float *features, size_t f, size_t n, const float *weights, const uint8_t *filter,
                         size_t k, uint64_t *workspace, uint32_t *rows_out, float *scores_out);

    /* Maximal marginal relevance (Carbonell and Goldstein, 1998) over m candidates: picks, k times, the candidate with
     * the highest trade_off * values[i] - (1 - trade_off) * nearest[i], ties to the lower i, where nearest[i] is the
     * greatest cosine of rows[i] to a picked row (as in search, the picked row being the query), 0 before the first
     * pick. Writes indices into rows, *found of them. workspace: m floats. */
    omega_fault (*diversify)(const omega_codes *table, const uint32_t *rows, const float *values, size_t m,
                             float trade_off, size_t k, float *workspace, uint32_t *order_out, size_t *found);
} omega_kernels;

/* The tables of this build. A file of another architecture defines none. */
extern const omega_kernels omega_kernels_scalar;
#if defined(__x86_64__)
extern const omega_kernels omega_kernels_avx2;
#endif

/* Instruction sets that this processor runs, best first; NULL past the last one. */
const omega_kernels *omega_kernels_at(size_t index);

#endif
