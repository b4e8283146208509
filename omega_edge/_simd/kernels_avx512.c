/* AVX-512 with VNNI (x86-64): 64 codes an instruction, sixteen rows to a register of scores. */
#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,bmi2,f16c"))),         \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,bmi2,f16c")
#endif

#include "kernels_avx2.h"
#include "kernels_avx512.h"
#include "kernels_scalar.h"
#include "lanes_avx512.h"
#include "sequence.h"
#include "trees.h"
#include "top_k.h"

#define QUERIES_AT_ONCE 8
#define LISTED_ROWS 256

/* A query's codes, zero past the last, and what the products are too large by. */
typedef struct {
    _Alignas(64) int8_t codes[OMEGA_MAX_DIMENSIONS];
    int32_t excess;
    float scale;
} padded_query;

static inline void pad_query(const int8_t *codes, float scale, size_t d, padded_query *query)
{
    int32_t sum = 0;
    for (size_t i = 0; i < d; i++)
        sum += codes[i];
    memcpy(query->codes, codes, d);
    if (d % 64)
        memset(query->codes + d, 0, 32);
    query->excess = -128 * sum;
    query->scale = scale;
}

/* The instruction multiplies unsigned by signed: sums of (x + 128) * q, at most 255 * 127 * 1024 < 2^25, four partial
 * sums a row as in half_sums_four. */
static ALWAYS_INLINE __m512i raised_dots_four(const int8_t *const row[4], const padded_query *query, size_t d)
{
    const __m512i raise = _mm512_set1_epi8(-128);
    __m512i sums[4];
    for (int i = 0; i < 4; i++)
        sums[i] = _mm512_setzero_si512();
    size_t at = 0;
    for (; at + 64 <= d; at += 64) {
        const __m512i codes = _mm512_load_si512(query->codes + at);
        for (int i = 0; i < 4; i++)
            sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_xor_si512(_mm512_loadu_si512(row[i] + at), raise), codes);
    }
    if (at < d) { /* half a register is left; where the row has no codes, the query has none */
        const __m512i codes = _mm512_load_si512(query->codes + at);
        for (int i = 0; i < 4; i++) {
            const __m512i x = _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)(row[i] + at)));
            sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_xor_si512(x, raise), codes);
        }
    }
    return four_parts(sums);
}

static inline float_lanes cosines_of(__m512i raised, const float *scale, const padded_query *query)
{
    const __m512 dots = _mm512_cvtepi32_ps(_mm512_add_epi32(raised, _mm512_set1_epi32(query->excess)));
    const __m512 cosines = _mm512_mul_ps(_mm512_mul_ps(dots, _mm512_loadu_ps(scale)), _mm512_set1_ps(query->scale));
    return _mm512_add_ps(cosines, _mm512_setzero_ps());
}

/* Cosines of rows first .. first + 15. */
static ALWAYS_INLINE float_lanes cosines_next(const omega_codes *table, size_t d, size_t first,
                                              const padded_query *query)
{
    const int8_t *rows = table->codes + first * d;
    __m512i parts[4];
    for (int i = 0; i < 4; i++, rows += 4 * d) {
        const int8_t *const row[4] = {rows, rows + d, rows + 2 * d, rows + 3 * d};
        parts[i] = raised_dots_four(row, query, d);
    }
    return cosines_of(add_parts(parts), table->scale + first, query);
}

/* Cosines of up to sixteen rows, named by number; the lanes past count repeat the last one. */
static inline float_lanes cosines_listed(const omega_codes *table, const uint32_t *rows, size_t count,
                                         const padded_query *query)
{
    float scale[16];
    __m512i parts[4];
    for (size_t i = 0; i < 4; i++) {
        const int8_t *row[4];
        for (size_t lane = 0; lane < 4; lane++) {
            const size_t number = rows[4 * i + lane < count ? 4 * i + lane : count - 1];
            row[lane] = table->codes + number * table->dimensions;
            scale[4 * i + lane] = table->scale[number];
        }
        parts[i] = 4 * i < count ? raised_dots_four(row, query, table->dimensions) : _mm512_setzero_si512();
    }
    return cosines_of(add_parts(parts), scale, query);
}

/* Offers the lanes of the mask that beat the threshold; rows are ascending. */
static inline void offer(top_k *best, __m512 scores, uint32_t mask, __m512i rows)
{
    const uint32_t beating =
        _mm512_mask_cmp_ps_mask((__mmask16)mask, scores, _mm512_set1_ps(best->threshold), _CMP_GT_OQ);
    if (beating)
        lanes_offer(best, beating, rows, scores);
}

static void search_listed(const omega_codes *table, const padded_query *query, const uint32_t *rows, size_t count,
                          top_k *best)
{
    for (size_t i = 0; i < count; i += 16) {
        const size_t lanes = count - i < 16 ? count - i : 16;
        offer(best, cosines_listed(table, rows + i, lanes, query), (1u << lanes) - 1, ints_load(rows + i));
    }
}

/* The rows of whole registers; returns the first of the others. */
static ALWAYS_INLINE size_t search_sixteens(const omega_codes *table, size_t d, const padded_query *query, top_k *best)
{
    size_t row = 0;
    for (; row + 16 <= table->rows; row += 16)
        offer(best, cosines_next(table, d, row, query), 0xffff, ints_from((uint32_t)row));
    return row;
}

/* The loops over 384 dimensions, the encoder's, are unrolled by the compiler. */
static void search_all(const omega_codes *table, const padded_query *query, top_k *best)
{
    const size_t d = table->dimensions;
    size_t row = d == USUAL_DIMENSIONS ? search_sixteens(table, USUAL_DIMENSIONS, query, best)
                                       : search_sixteens(table, d, query, best);
    uint32_t rows[16];
    size_t count = 0;
    for (; row < table->rows; row++)
        rows[count++] = (uint32_t)row;
    search_listed(table, query, rows, count, best);
}

/* Lists the allowed rows first, then scans them sixteen at a time: the work is that of the rows allowed, not of all. */
static void search_filtered(const omega_codes *table, const padded_query *query, const uint8_t *filter, top_k *best)
{
    uint32_t rows[LISTED_ROWS + 16];
    size_t count = 0;
    for (size_t base = 0; base < table->rows; base += 8) {
        uint32_t bits = filter[base >> 3];
        if (table->rows - base < 8)
            bits &= (1u << (table->rows - base)) - 1;
        for (; bits; bits &= bits - 1)
            rows[count++] = (uint32_t)base + (uint32_t)__builtin_ctz(bits);
        if (count >= LISTED_ROWS) {
            search_listed(table, query, rows, LISTED_ROWS, best);
            count -= LISTED_ROWS;
            memcpy(rows, rows + LISTED_ROWS, count * sizeof rows[0]);
        }
    }
    search_listed(table, query, rows, count, best);
}

static size_t search(const omega_codes *table, const int8_t *query, float query_scale, const uint8_t *filter, size_t k,
                     uint64_t *workspace, uint32_t *rows_out, float *scores_out)
{
    padded_query padded;
    pad_query(query, query_scale, table->dimensions, &padded);
    top_k best = top_k_begin(k < table->rows ? k : table->rows, workspace);
    if (filter)
        search_filtered(table, &padded, filter, &best);
    else
        search_all(table, &padded, &best);
    return top_k_finish(&best, rows_out, scores_out);
}

/* Sixteen rows stay in the first-level cache while up to eight queries pass over them. */
static void cosines_block(const omega_codes *table, const padded_query *queries, size_t q, float *out)
{
    const size_t n = table->rows;
    size_t row = 0;
    for (; row + 16 <= n; row += 16) {
        for (size_t j = 0; j < q; j++)
            _mm512_storeu_ps(out + j * n + row, cosines_next(table, table->dimensions, row, &queries[j]));
    }
    if (row == n)
        return;
    uint32_t rest[16];
    _mm512_storeu_si512(rest, ints_from((uint32_t)row));
    for (size_t j = 0; j < q; j++) {
        float scores[16];
        _mm512_storeu_ps(scores, cosines_listed(table, rest, n - row, &queries[j]));
        memcpy(out + j * n + row, scores, (n - row) * sizeof scores[0]);
    }
}

static void cosines(const omega_codes *table, const int8_t *queries, const float *query_scale, size_t q, float *out)
{
    padded_query padded[QUERIES_AT_ONCE];
    for (size_t first = 0; first < q; first += QUERIES_AT_ONCE) {
        const size_t count = q - first < QUERIES_AT_ONCE ? q - first : QUERIES_AT_ONCE;
        for (size_t j = 0; j < count; j++)
            pad_query(queries + (first + j) * table->dimensions, query_scale[first + j], table->dimensions, &padded[j]);
        cosines_block(table, padded, count, out + first * table->rows);
    }
}

const omega_kernels omega_kernels_avx512 = {
    .isa = "avx512",
    .quantise = omega_avx2_quantise,
    .search = search,
    .cosines = cosines,
    .row_scatter_add = omega_scalar_row_scatter_add,
    .row_lookup = omega_scalar_row_lookup,
    .genre_means = omega_scalar_genre_means,
    .left_out_sums = omega_scalar_left_out_sums,
    .fuse = omega_avx2_fuse,
    .fuse_top_k = omega_avx2_fuse_top_k,
    .diversify = omega_avx2_diversify,
    .count_greater = omega_avx2_count_greater,
    .sum_trees = omega_avx2_sum_trees,
    .halve = omega_avx2_halve,
    .join = omega_scalar_join,
    .search_halves = omega_avx512_search_halves,
    .search_batch = omega_avx512_search_batch,
    .put_signs = omega_scalar_put_signs,
    .search_two_stage = omega_avx512_search_two_stage,
    .rescore = omega_avx2_rescore,
    .rank = omega_avx512_rank,
    .sequence_events = omega_avx512_sequence_events,
    .sequence_states = omega_avx512_sequence_states,
};

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
