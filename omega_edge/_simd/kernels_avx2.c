/* AVX2 (x86-64): 32 codes an instruction, four rows at a time; lanes of float code are rows. No FMA: it rounds once. */
#if defined(__x86_64__)

#include <immintrin.h>
#include <math.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi2,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi2,f16c")
#endif

#include "kernels_avx2.h"
#include "kernels_scalar.h"
#include "sequence.h"
#include "trees.h"
#include "top_k.h"

#define QUERIES_AT_ONCE 8
#define LISTED_ROWS 256
#define PREFETCH_ROWS 16 /* about 6 KB: measured best of 1.5 to 48 KB where the table lies in the third-level cache */

/* The query as the sign trick wants it: |q| unsigned, and q for its signs. */
typedef struct {
    _Alignas(32) uint8_t magnitude[OMEGA_MAX_DIMENSIONS];
    _Alignas(32) int8_t code[OMEGA_MAX_DIMENSIONS];
} query_parts;

static inline void split_query(const int8_t *query, size_t d, query_parts *parts)
{
    for (size_t i = 0; i < d; i += 32) {
        const __m256i code = _mm256_loadu_si256((const __m256i *)(query + i));
        _mm256_store_si256((__m256i *)(parts->code + i), code);
        _mm256_store_si256((__m256i *)(parts->magnitude + i), _mm256_abs_epi8(code));
    }
}

static inline __m256i add_products(__m256i sums, const int8_t *row, __m256i magnitude, __m256i code)
{
    /* q * x = |q| * (x with q's sign); pairs stay below 2 * 127 * 127 = 32258, inside an int16. */
    const __m256i signed_row = _mm256_sign_epi8(_mm256_loadu_si256((const __m256i *)row), code);
    const __m256i pairs = _mm256_maddubs_epi16(magnitude, signed_row);
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* Dot products of four rows with the query. Four at a time share the loads of the query and one reduction. */
static inline __m128i dot_four(const int8_t *const row[4], const query_parts *query, size_t d)
{
    __m256i a = _mm256_setzero_si256(), b = a, c = a, e = a;
    for (size_t i = 0; i < d; i += 32) {
        const __m256i magnitude = _mm256_load_si256((const __m256i *)(query->magnitude + i));
        const __m256i code = _mm256_load_si256((const __m256i *)(query->code + i));
        a = add_products(a, row[0] + i, magnitude, code);
        b = add_products(b, row[1] + i, magnitude, code);
        c = add_products(c, row[2] + i, magnitude, code);
        e = add_products(e, row[3] + i, magnitude, code);
    }
    const __m256i four = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, e));
    return _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
}

static inline __m128 cosine_four(const int8_t *const row[4], __m128 scale, const query_parts *query, __m128 query_scale,
                                 size_t d)
{
    const __m128 dots = _mm_cvtepi32_ps(dot_four(row, query, d));
    return _mm_add_ps(_mm_mul_ps(_mm_mul_ps(dots, scale), query_scale), _mm_setzero_ps());
}

/* Cosines of up to four rows, named by number; the lanes past count repeat the last one. */
static inline __m128 cosine_listed(const omega_codes *table, const uint32_t *rows, size_t count,
                                   const query_parts *query, __m128 query_scale)
{
    const int8_t *row[4];
    float scale[4];
    for (size_t lane = 0; lane < 4; lane++) {
        const size_t number = rows[lane < count ? lane : count - 1];
        row[lane] = table->codes + number * table->dimensions;
        scale[lane] = table->scale[number];
    }
    return cosine_four(row, _mm_loadu_ps(scale), query, query_scale, table->dimensions);
}

/* Cosines of rows first .. first + 3. */
static inline __m128 cosine_next(const omega_codes *table, size_t first, const query_parts *query, __m128 query_scale)
{
    const size_t d = table->dimensions;
    const int8_t *start = table->codes + first * d;
    const int8_t *const row[4] = {start, start + d, start + 2 * d, start + 3 * d};
    return cosine_four(row, _mm_loadu_ps(table->scale + first), query, query_scale, d);
}

/* Asks for the four rows that a scan reaches PREFETCH_ROWS after first; at the end, for the last four again. */
static inline void prefetch_ahead(const omega_codes *table, size_t first)
{
    const size_t ahead = first + PREFETCH_ROWS + 4 <= table->rows ? first + PREFETCH_ROWS : table->rows - 4;
    const char *start = (const char *)(table->codes + ahead * table->dimensions);
    for (size_t byte = 0; byte < 4 * table->dimensions; byte += 64)
        _mm_prefetch(start + byte, _MM_HINT_T0);
}

/* Offers the lanes that beat the threshold; rows[lane] are ascending. */
static inline void offer_lanes(top_k *best, const float *scores, uint32_t beating, const uint32_t *rows)
{
    for (; beating; beating &= beating - 1) {
        const int lane = __builtin_ctz(beating);
        top_k_append(best, scores[lane], rows[lane]);
    }
}

static inline uint32_t beating_four(__m128 scores, float threshold)
{
    return (uint32_t)_mm_movemask_ps(_mm_cmpgt_ps(scores, _mm_set1_ps(threshold)));
}

static void search_listed(const omega_codes *table, const query_parts *query, __m128 query_scale, const uint32_t *rows,
                          size_t count, top_k *best)
{
    for (size_t i = 0; i < count; i += 4) {
        const size_t lanes = count - i < 4 ? count - i : 4;
        const __m128 scores = cosine_listed(table, rows + i, lanes, query, query_scale);
        const uint32_t beating = beating_four(scores, best->threshold) & ((1u << lanes) - 1);
        if (beating) {
            float lane_scores[4];
            _mm_storeu_ps(lane_scores, scores);
            offer_lanes(best, lane_scores, beating, rows + i);
        }
    }
}

static void search_all(const omega_codes *table, const query_parts *query, __m128 query_scale, top_k *best)
{
    size_t row = 0;
    for (; row + 4 <= table->rows; row += 4) {
        prefetch_ahead(table, row);
        const __m128 scores = cosine_next(table, row, query, query_scale);
        const uint32_t beating = beating_four(scores, best->threshold);
        if (beating) {
            const uint32_t rows[4] = {(uint32_t)row, (uint32_t)row + 1, (uint32_t)row + 2, (uint32_t)row + 3};
            float lane_scores[4];
            _mm_storeu_ps(lane_scores, scores);
            offer_lanes(best, lane_scores, beating, rows);
        }
    }
    uint32_t rest[4];
    size_t count = 0;
    for (; row < table->rows; row++)
        rest[count++] = (uint32_t)row;
    search_listed(table, query, query_scale, rest, count, best);
}

/* Lists the allowed rows first, then scans them four at a time: the work is that of the rows allowed, not of all. */
static void search_filtered(const omega_codes *table, const query_parts *query, __m128 query_scale,
                            const uint8_t *filter, top_k *best)
{
    uint32_t rows[LISTED_ROWS + 8];
    size_t count = 0;
    for (size_t base = 0; base < table->rows; base += 8) {
        uint32_t bits = filter[base >> 3];
        if (table->rows - base < 8)
            bits &= (1u << (table->rows - base)) - 1;
        for (; bits; bits &= bits - 1)
            rows[count++] = (uint32_t)base + (uint32_t)__builtin_ctz(bits);
        if (count >= LISTED_ROWS) {
            search_listed(table, query, query_scale, rows, LISTED_ROWS, best);
            count -= LISTED_ROWS;
            memcpy(rows, rows + LISTED_ROWS, count * sizeof rows[0]);
        }
    }
    search_listed(table, query, query_scale, rows, count, best);
}

static size_t search(const omega_codes *table, const int8_t *query, float query_scale, const uint8_t *filter, size_t k,
                     uint64_t *workspace, uint32_t *rows_out, float *scores_out)
{
    query_parts parts;
    split_query(query, table->dimensions, &parts);
    top_k best = top_k_begin(k < table->rows ? k : table->rows, workspace);
    if (filter)
        search_filtered(table, &parts, _mm_set1_ps(query_scale), filter, &best);
    else
        search_all(table, &parts, _mm_set1_ps(query_scale), &best);
    return top_k_finish(&best, rows_out, scores_out);
}

/* Four rows stay in the first-level cache while up to eight queries pass over them. */
static void cosines_block(const omega_codes *table, const query_parts *queries, const float *query_scale, size_t q,
                          float *out)
{
    const size_t n = table->rows;
    size_t row = 0;
    for (; row + 4 <= n; row += 4) {
        prefetch_ahead(table, row);
        for (size_t j = 0; j < q; j++)
            _mm_storeu_ps(out + j * n + row, cosine_next(table, row, &queries[j], _mm_set1_ps(query_scale[j])));
    }
    if (row == n)
        return;
    const uint32_t rest[4] = {(uint32_t)row, (uint32_t)row + 1, (uint32_t)row + 2, (uint32_t)row + 3};
    for (size_t j = 0; j < q; j++) {
        float scores[4];
        _mm_storeu_ps(scores, cosine_listed(table, rest, n - row, &queries[j], _mm_set1_ps(query_scale[j])));
        memcpy(out + j * n + row, scores, (n - row) * sizeof scores[0]);
    }
}

static void cosines(const omega_codes *table, const int8_t *queries, const float *query_scale, size_t q, float *out)
{
    query_parts parts[QUERIES_AT_ONCE];
    for (size_t first = 0; first < q; first += QUERIES_AT_ONCE) {
        const size_t count = q - first < QUERIES_AT_ONCE ? q - first : QUERIES_AT_ONCE;
        for (size_t j = 0; j < count; j++)
            split_query(queries + (first + j) * table->dimensions, table->dimensions, &parts[j]);
        cosines_block(table, parts, query_scale + first, count, out + first * table->rows);
    }
}

static void raise_nearest(const omega_codes *table, const uint32_t *rows, size_t m, uint32_t picked, float *nearest)
{
    query_parts parts;
    split_query(table->codes + (size_t)picked * table->dimensions, table->dimensions, &parts);
    const __m128 query_scale = _mm_set1_ps(table->scale[picked]);
    for (size_t i = 0; i < m; i += 4) {
        const size_t lanes = m - i < 4 ? m - i : 4;
        float scores[4];
        _mm_storeu_ps(scores, cosine_listed(table, rows + i, lanes, &parts, query_scale));
        for (size_t lane = 0; lane < lanes; lane++)
            nearest[i + lane] = scores[lane] > nearest[i + lane] ? scores[lane] : nearest[i + lane];
    }
}

omega_fault omega_avx2_diversify(const omega_codes *table, const uint32_t *rows, const float *values, size_t m,
                             float trade_off, size_t k, float *workspace, uint32_t *order_out, size_t *found)
{
    return omega_scalar_diversify(table, rows, values, m, trade_off, k, workspace, order_out, found, raise_nearest);
}

/* max|vector|, or 0 where it is zero, infinite or NaN somewhere: no such vector has a code. */
static float greatest_magnitude(const float *vector, size_t d)
{
    const __m256 magnitude_bits = _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MAX));
    __m256 greatest = _mm256_setzero_ps();
    __m256 finite = _mm256_cmp_ps(greatest, greatest, _CMP_EQ_OQ);
    for (size_t i = 0; i < d; i += 8) {
        const __m256 magnitude = _mm256_and_ps(_mm256_loadu_ps(vector + i), magnitude_bits);
        finite = _mm256_and_ps(finite, _mm256_cmp_ps(magnitude, _mm256_set1_ps(FLT_MAX), _CMP_LE_OQ));
        greatest = _mm256_max_ps(greatest, magnitude);
    }
    if (_mm256_movemask_ps(finite) != 255)
        return 0.0f;
    float lanes[8], best = 0.0f;
    _mm256_storeu_ps(lanes, greatest);
    for (size_t lane = 0; lane < 8; lane++)
        best = lanes[lane] > best ? lanes[lane] : best;
    return best;
}

size_t omega_avx2_quantise(const float *vectors, size_t n, size_t d, int8_t *codes_out, float *scale_out)
{
    for (size_t row = 0; row < n; row++) {
        const float *vector = vectors + row * d;
        const float greatest = greatest_magnitude(vector, d);
        if (greatest == 0.0f)
            return row;
        const __m256d factor = _mm256_set1_pd(127.0 / (double)greatest);
        __m128i squares = _mm_setzero_si128();
        for (size_t i = 0; i < d; i += 8) {
            const __m256d low = _mm256_cvtps_pd(_mm_loadu_ps(vector + i));
            const __m256d high = _mm256_cvtps_pd(_mm_loadu_ps(vector + i + 4));
            /* The conversion rounds to nearest even, the mode every thread starts in. */
            const __m128i words = _mm_packs_epi32(_mm256_cvtpd_epi32(_mm256_mul_pd(low, factor)),
                                                  _mm256_cvtpd_epi32(_mm256_mul_pd(high, factor)));
            squares = _mm_add_epi32(squares, _mm_madd_epi16(words, words));
            _mm_storel_epi64((__m128i *)(codes_out + row * d + i), _mm_packs_epi16(words, words));
        }
        int32_t lanes[4];
        _mm_storeu_si128((__m128i *)lanes, squares);
        scale_out[row] = (float)(1.0 / sqrt((double)(lanes[0] + lanes[1] + lanes[2] + lanes[3])));
    }
    return n;
}

/* The contract's sum for rows row .. row + 7. */
static inline __m256 fused_eight(const float *const *features, size_t f, const float *weights, size_t row)
{
    __m256 sum = _mm256_setzero_ps();
    for (size_t feature = 0; feature < f; feature++) {
        const __m256 values = _mm256_loadu_ps(features[feature] + row);
        sum = _mm256_add_ps(sum, _mm256_mul_ps(_mm256_set1_ps(weights[feature]), values));
    }
    return sum;
}

void omega_avx2_fuse(const float *const *features, size_t f, size_t n, const float *weights, float *out)
{
    size_t row = 0;
    for (; row + 8 <= n; row += 8)
        _mm256_storeu_ps(out + row, fused_eight(features, f, weights, row));
    for (; row < n; row++)
        out[row] = omega_fused_row(features, f, weights, row);
}

size_t omega_avx2_fuse_top_k(const float *const *features, size_t f, size_t n, const float *weights,
                             const uint8_t *filter, size_t k, uint64_t *workspace, uint32_t *rows_out,
                             float *scores_out)
{
    top_k best = top_k_begin(k < n ? k : n, workspace);
    size_t row = 0;
    for (; row + 8 <= n; row += 8) {
        const uint32_t passing = filter ? filter[row >> 3] : 255;
        if (!passing)
            continue;
        const __m256 scores = fused_eight(features, f, weights, row);
        const __m256 above = _mm256_cmp_ps(scores, _mm256_set1_ps(best.threshold), _CMP_GT_OQ);
        uint32_t beating = (uint32_t)_mm256_movemask_ps(above) & passing;
        if (!beating)
            continue;
        float lane_scores[8];
        _mm256_storeu_ps(lane_scores, scores);
        for (; beating; beating &= beating - 1) {
            const int lane = __builtin_ctz(beating);
            top_k_append(&best, lane_scores[lane], (uint32_t)row + (uint32_t)lane);
        }
    }
    for (; row < n; row++) {
        if (!omega_allowed(filter, row))
            continue;
        const float score = omega_fused_row(features, f, weights, row);
        if (score > best.threshold)
            top_k_append(&best, score, (uint32_t)row);
    }
    return top_k_finish(&best, rows_out, scores_out);
}

const omega_kernels omega_kernels_avx2 = {
    .isa = "avx2",
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
    .search_halves = omega_avx2_search_halves,
    .search_batch = omega_avx2_search_batch,
    .put_signs = omega_scalar_put_signs,
    .search_two_stage = omega_avx2_search_two_stage,
    .rescore = omega_avx2_rescore,
    .rank = omega_avx2_rank,
    .sequence_events = omega_avx2_sequence_events,
    .sequence_states = omega_avx2_sequence_states,
};

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
