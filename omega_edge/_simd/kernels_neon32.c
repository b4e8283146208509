/* NEON of 32-bit ARM (ARMv7-A). Its float lanes take subnormal numbers for zero, so that NEON has the integers only;
 * floats are scalar, by VFP, which rounds as IEEE 754 asks. Products as in kernels_neon.c, two an int16 lane.
 *
 * What moves bytes, or is floats alone, is the scalar files': quantise, fuse, rescore, halve, join, put_signs.
 */
#include "kernels.h"

#if defined(OMEGA_NEON32)

#if !defined(__clang__)
#pragma GCC target("fpu=neon")
#endif

#include <arm_neon.h>
#include <math.h>
#include <string.h>

#include "kernels_scalar.h"
#include "rank.h"
#include "scan.h"
#include "sequence.h"
#include "sign_candidates.h"
#include "top_k.h"

#define LISTED_ROWS 64
#define HALF_BLOCKS 4 /* of 32 codes: 16 products of at most 15 * 127 an int16 lane, together 30480 */

static inline void store_sums(const int32x4_t sums[4], int32_t *out)
{
    for (size_t lane = 0; lane < 4; lane++) {
        const int32x2_t pair = vadd_s32(vget_low_s32(sums[lane]), vget_high_s32(sums[lane]));
        out[lane] = vget_lane_s32(vpadd_s32(pair, pair), 0);
    }
}

static inline int16x8_t two_products(int8x16_t codes, int8x16_t query)
{
    return vmlal_s8(vmull_s8(vget_low_s8(codes), vget_low_s8(query)), vget_high_s8(codes), vget_high_s8(query));
}

static void dots_four(const int8_t *const row[4], const int8_t *query, size_t d, int32_t *out)
{
    int32x4_t sums[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
    for (size_t i = 0; i < d; i += 16) {
        const int8x16_t part = vld1q_s8(query + i);
        for (size_t lane = 0; lane < 4; lane++)
            sums[lane] = vpadalq_s16(sums[lane], two_products(vld1q_s8(row[lane] + i), part));
    }
    store_sums(sums, out);
}

static void half_dots_four(const uint8_t *const row[4], const int8_t *query, size_t d, int32_t *out)
{
    int32x4_t sums[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
    for (size_t block = 0; block < d / 32; block += HALF_BLOCKS) {
        const size_t end = block + HALF_BLOCKS < d / 32 ? block + HALF_BLOCKS : d / 32;
        for (size_t lane = 0; lane < 4; lane++) {
            int16x8_t products = vdupq_n_s16(0);
            for (size_t i = block; i < end; i++) {
                const int8x16_t first = vld1q_s8(query + 32 * i), second = vld1q_s8(query + 32 * i + 16);
                const uint8x16_t both = vld1q_u8(row[lane] + 16 * i);
                const int8x16_t lower = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
                const int8x16_t upper = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
                products = vmlal_s8(products, vget_low_s8(lower), vget_low_s8(first));
                products = vmlal_s8(products, vget_high_s8(lower), vget_high_s8(first));
                products = vmlal_s8(products, vget_low_s8(upper), vget_low_s8(second));
                products = vmlal_s8(products, vget_high_s8(upper), vget_high_s8(second));
            }
            sums[lane] = vpadalq_s16(sums[lane], products);
        }
    }
    store_sums(sums, out);
}

/* Dot products of the rows listed; those up to the next four repeat the last. */
static void dots_listed(const omega_codes *table, const uint32_t *rows, size_t count, const int8_t *query, int32_t *out)
{
    for (size_t i = 0; i < count; i += 4) {
        const int8_t *row[4];
        for (size_t lane = 0; lane < 4; lane++)
            row[lane] = table->codes + rows[i + lane < count ? i + lane : count - 1] * table->dimensions;
        dots_four(row, query, table->dimensions, out + i);
    }
}

static void plane_sums(const uint8_t *plane, size_t d, const uint32_t *rows, size_t count, const int8_t *query,
                       int32_t *out)
{
    for (size_t i = 0; i < count; i += 4) {
        const uint8_t *row[4];
        for (size_t lane = 0; lane < 4; lane++)
            row[lane] = plane + rows[i + lane < count ? i + lane : count - 1] * (d / 2);
        half_dots_four(row, query, d, out + i);
    }
}

/* Lists up to LISTED_ROWS allowed rows from *row on, and moves it on. */
static size_t list_rows(size_t n, const uint8_t *filter, size_t *row, uint32_t *rows)
{
    size_t count = 0;
    for (; *row < n && count <= LISTED_ROWS - 8; *row += 8) { /* *row is a multiple of eight */
        uint32_t bits = filter ? filter[*row >> 3] : 255;
        if (n - *row < 8)
            bits &= (1u << (n - *row)) - 1;
        for (; bits; bits &= bits - 1)
            rows[count++] = (uint32_t)*row + (uint32_t)__builtin_ctz(bits);
    }
    return count;
}

static inline float cosine(int32_t dot, float scale, float query_scale)
{
    return (float)dot * scale * query_scale + 0.0f;
}

static size_t search(const omega_codes *table, const int8_t *query, float query_scale, const uint8_t *filter, size_t k,
                     uint64_t *workspace, uint32_t *rows_out, float *scores_out)
{
    top_k best = top_k_begin(k < table->rows ? k : table->rows, workspace);
    for (size_t next = 0; next < table->rows;) {
        uint32_t rows[LISTED_ROWS];
        int32_t dots[LISTED_ROWS];
        const size_t count = list_rows(table->rows, filter, &next, rows);
        dots_listed(table, rows, count, query, dots);
        for (size_t i = 0; i < count; i++) {
            const float score = cosine(dots[i], table->scale[rows[i]], query_scale);
            if (score > best.threshold)
                top_k_append(&best, score, rows[i]);
        }
    }
    return top_k_finish(&best, rows_out, scores_out);
}

static void cosines(const omega_codes *table, const int8_t *queries, const float *query_scale, size_t q, float *out)
{
    for (size_t next = 0; next < table->rows;) {
        uint32_t rows[LISTED_ROWS];
        int32_t dots[LISTED_ROWS];
        const size_t count = list_rows(table->rows, NULL, &next, rows); /* they stay in the cache for all queries */
        for (size_t j = 0; j < q; j++) {
            dots_listed(table, rows, count, queries + j * table->dimensions, dots);
            for (size_t i = 0; i < count; i++)
                out[j * table->rows + rows[i]] = cosine(dots[i], table->scale[rows[i]], query_scale[j]);
        }
    }
}

static void raise_nearest(const omega_codes *table, const uint32_t *rows, size_t m, uint32_t picked, float *nearest)
{
    const int8_t *query = table->codes + (size_t)picked * table->dimensions;
    for (size_t first = 0; first < m; first += LISTED_ROWS) {
        int32_t dots[LISTED_ROWS];
        const size_t count = m - first < LISTED_ROWS ? m - first : LISTED_ROWS;
        dots_listed(table, rows + first, count, query, dots);
        for (size_t i = 0; i < count; i++) {
            const float score = cosine(dots[i], table->scale[rows[first + i]], table->scale[picked]);
            nearest[first + i] = score > nearest[first + i] ? score : nearest[first + i];
        }
    }
}

static omega_fault diversify(const omega_codes *table, const uint32_t *rows, const float *values, size_t m,
                             float trade_off, size_t k, float *workspace, uint32_t *order_out, size_t *found)
{
    return omega_scalar_diversify(table, rows, values, m, trade_off, k, workspace, order_out, found, raise_nearest);
}

typedef struct {
    const int8_t *codes;
    omega_query_bound bound;
    int32_t shift; /* 128 * sum of the codes: dot = 16 * high sum + low sum - shift */
    float scale;
    top_k best;
} halves_query;

typedef struct {
    const omega_rank_columns *columns;
    const omega_rank_weights *weights;
    const omega_rank_limits *limits;
} ranking;

static halves_query start_query(const int8_t *codes, size_t d, float scale, size_t k, uint64_t *workspace)
{
    int32_t sum = 0;
    for (size_t i = 0; i < d; i++)
        sum += codes[i];
    return (halves_query){codes, omega_bound_of(codes, d), 128 * sum, scale, top_k_begin(k, workspace)};
}

/* The score of a row whose dot product, or a bound of it, is given. */
static inline float score_row(const omega_halves *table, const halves_query *query, const ranking *ranked, uint32_t row,
                              int32_t dot)
{
    const float similarity = cosine(dot, table->scale[row], query->scale);
    if (!ranked)
        return similarity;
    return omega_rank_score(similarity, ranked->columns, row, ranked->weights, ranked->limits);
}

/* Only rows whose bound beats the threshold, or is NaN (infinity times 0) and says nothing, are read whole. */
static void scan_rows(const omega_halves *table, halves_query *query, const ranking *ranked, const uint32_t *rows,
                      size_t count)
{
    const size_t d = table->dimensions;
    int32_t high[LISTED_ROWS], low[LISTED_ROWS], high_sums[LISTED_ROWS];
    uint32_t survivors[LISTED_ROWS];
    size_t kept = 0;
    plane_sums(table->high, d, rows, count, query->codes, high_sums);
    for (size_t i = 0; i < count; i++) {
        const int32_t bound =
            16 * high_sums[i] + query->bound.offset + query->bound.length * (int32_t)table->spread[rows[i]];
        if (score_row(table, query, ranked, rows[i], bound) <= query->best.threshold)
            continue;
        survivors[kept] = rows[i];
        high[kept++] = high_sums[i];
    }
    if (!kept)
        return;
    plane_sums(table->low, d, survivors, kept, query->codes, low);
    for (size_t i = 0; i < kept; i++) {
        const int32_t dot = 16 * high[i] + low[i] - query->shift;
        if (ranked && !(cosine(dot, table->scale[survivors[i]], query->scale) >= ranked->limits->least_similarity))
            continue;
        const float score = score_row(table, query, ranked, survivors[i], dot);
        if (score > query->best.threshold)
            top_k_append(&query->best, score, survivors[i]);
    }
}

static size_t scan(const omega_halves *table, const int8_t *query, float query_scale, const ranking *ranked,
                   const uint8_t *filter, size_t k, uint64_t *workspace, uint32_t *rows_out, float *scores_out)
{
    halves_query one =
        start_query(query, table->dimensions, query_scale, k < table->rows ? k : table->rows, workspace);
    for (size_t next = 0; next < table->rows;) {
        uint32_t rows[LISTED_ROWS];
        const size_t count = list_rows(table->rows, filter, &next, rows);
        scan_rows(table, &one, ranked, rows, count);
    }
    return top_k_finish(&one.best, rows_out, scores_out);
}

static size_t search_halves(const omega_halves *table, const int8_t *query, float query_scale, const uint8_t *filter,
                            size_t k, uint64_t *workspace, uint32_t *rows_out, float *scores_out)
{
    return scan(table, query, query_scale, NULL, filter, k, workspace, rows_out, scores_out);
}

static size_t rank(const omega_halves *table, const int8_t *query, float query_scale, const omega_rank_columns *columns,
                   const omega_rank_weights *weights, const omega_rank_limits *limits, const uint8_t *filter, size_t k,
                   uint64_t *workspace, uint32_t *rows_out, float *scores_out)
{
    const ranking ranked = {columns, weights, limits};
    return scan(table, query, query_scale, &ranked, filter, k, workspace, rows_out, scores_out);
}

static void search_batch(const omega_halves *table, const int8_t *queries, const float *query_scale, size_t q,
                         const uint8_t *filter, size_t k, uint64_t *workspace, size_t *found_out, uint32_t *rows_out,
                         float *scores_out)
{
    const size_t least = k < table->rows ? k : table->rows;
    for (size_t first = 0; first < q; first += OMEGA_BATCH_QUERIES) {
        const size_t count = q - first < OMEGA_BATCH_QUERIES ? q - first : OMEGA_BATCH_QUERIES;
        halves_query some[OMEGA_BATCH_QUERIES];
        for (size_t j = 0; j < count; j++)
            some[j] = start_query(queries + (first + j) * table->dimensions, table->dimensions, query_scale[first + j],
                                  least, workspace + j * OMEGA_TOP_K_WORDS(least));
        for (size_t next = 0; next < table->rows;) {
            uint32_t rows[LISTED_ROWS];
            const size_t listed = list_rows(table->rows, filter, &next, rows);
            for (size_t j = 0; j < count; j++)
                scan_rows(table, &some[j], NULL, rows, listed);
        }
        for (size_t j = 0; j < count; j++)
            found_out[first + j] =
                top_k_finish(&some[j].best, rows_out + (first + j) * k, scores_out + (first + j) * k);
    }
}

static inline uint8x8_t look_up(uint8x16_t table, uint8x8_t at)
{
    return vtbl2_u8((uint8x8x2_t){{vget_low_u8(table), vget_high_u8(table)}}, at);
}

/* The first stage's scores of 32 rows. A byte holds four groups' (4 * 63). */
static void score_signs(const uint8_t *block, const uint8_t *tables, size_t groups, uint16_t scores[OMEGA_SIGN_ROWS])
{
    uint16x8_t sums[4] = {vdupq_n_u16(0), vdupq_n_u16(0), vdupq_n_u16(0), vdupq_n_u16(0)};
    for (size_t group = 0; group < groups; group += 4) {
        uint8x8_t four[4] = {vdup_n_u8(0), vdup_n_u8(0), vdup_n_u8(0), vdup_n_u8(0)};
        for (size_t i = 16 * group; i < 16 * group + 64; i += 16) {
            const uint8x16_t bits = vld1q_u8(block + i), table = vld1q_u8(tables + i);
            const uint8x16_t lower = vandq_u8(bits, vdupq_n_u8(15)), upper = vshrq_n_u8(bits, 4);
            four[0] = vadd_u8(four[0], look_up(table, vget_low_u8(lower)));
            four[1] = vadd_u8(four[1], look_up(table, vget_high_u8(lower)));
            four[2] = vadd_u8(four[2], look_up(table, vget_low_u8(upper)));
            four[3] = vadd_u8(four[3], look_up(table, vget_high_u8(upper)));
        }
        for (size_t part = 0; part < 4; part++)
            sums[part] = vaddw_u8(sums[part], four[part]);
    }
    for (size_t part = 0; part < 4; part++)
        vst1q_u16(scores + 8 * part, sums[part]);
}

static size_t search_two_stage(const omega_signs *signs, const omega_halves *table, const int8_t *query,
                               float query_scale, const uint8_t *filter, size_t candidates, size_t k,
                               uint64_t *workspace, uint32_t *rows_out, float *scores_out)
{
    const size_t d = table->dimensions, n = table->rows;
    const size_t least = k < n ? k : n, wanted = candidates < n ? candidates : n;
    uint8_t tables[OMEGA_MAX_DIMENSIONS * 4];
    omega_sign_tables(query, d, tables);
    sign_candidates list = {.keys = workspace, .capacity = 6 * wanted + 128, .wanted = wanted};
    for (size_t first = 0; first < n; first += OMEGA_SIGN_ROWS) {
        uint16_t scores[OMEGA_SIGN_ROWS];
        score_signs(signs->blocks + first * d / 8, tables, d / 4, scores);
        for (size_t row = first; row < n && row < first + OMEGA_SIGN_ROWS; row++)
            if (scores[row - first] >= list.least * SCORE_STEP && omega_allowed(filter, row))
                add_candidate(&list, scores[row - first], (uint32_t)row);
        raise_least(&list);
    }
    const size_t count = best_candidates(&list);
    const halves_query one = start_query(query, d, query_scale, least, workspace);
    size_t kept = 0; /* a candidate's key makes room for the key of its cosine */
    for (size_t first = 0; first < count; first += LISTED_ROWS) {
        const size_t listed = count - first < LISTED_ROWS ? count - first : LISTED_ROWS;
        uint32_t rows[LISTED_ROWS];
        int32_t high[LISTED_ROWS], low[LISTED_ROWS];
        for (size_t i = 0; i < listed; i++)
            rows[i] = top_k_row(workspace[first + i]);
        plane_sums(table->high, d, rows, listed, query, high);
        plane_sums(table->low, d, rows, listed, query, low);
        for (size_t i = 0; i < listed; i++) {
            const float score = cosine(16 * high[i] + low[i] - one.shift, table->scale[rows[i]], query_scale);
            if (score > -INFINITY)
                workspace[kept++] = top_k_key(score, rows[i]);
        }
    }
    top_k best = {workspace, kept, kept + 1, least, -INFINITY};
    return top_k_finish(&best, rows_out, scores_out);
}

const omega_kernels omega_kernels_neon32 = {
    .isa = "neon32",
    .quantise = omega_scalar_quantise,
    .search = search,
    .cosines = cosines,
    .row_scatter_add = omega_scalar_row_scatter_add,
    .row_lookup = omega_scalar_row_lookup,
    .genre_means = omega_scalar_genre_means,
    .left_out_sums = omega_scalar_left_out_sums,
    .fuse = omega_scalar_fuse,
    .fuse_top_k = omega_scalar_fuse_top_k,
    .diversify = diversify,
    .count_greater = omega_scalar_count_greater,
    .sum_trees = omega_scalar_sum_trees,
    .halve = omega_scalar_halve,
    .join = omega_scalar_join,
    .search_halves = search_halves,
    .search_batch = search_batch,
    .put_signs = omega_scalar_put_signs,
    .search_two_stage = search_two_stage,
    .rescore = omega_scalar_rescore,
    .rank = rank,
    .sequence_events = omega_scalar_sequence_events,
    .sequence_states = omega_scalar_sequence_states,
};

#else
typedef int omega_no_neon32; /* ISO C wants a declaration in every file */
#endif
