/* What the NEON files of 64-bit ARM share: scoring, offering to the top-k, and the loops around the dot products.
 *
 * The file that includes this one defines first
 *     query_form                    what its dot products want of a query
 *     form_query(codes, d, &form)
 *     dots_next(codes, d, rows, &form, out)           of consecutive rows
 *     dots_listed(table, rows, count, &form, out)     of the rows named
 * Dot products of a block of rows go to a buffer, then are scored sixteen at a time: one test and one branch for
 * sixteen rows that do not beat the threshold, as nearly all do.
 */
#ifndef OMEGA_EDGE_KERNELS_NEON_H
#define OMEGA_EDGE_KERNELS_NEON_H

#include "kernels_neon_shared.h"

#define BLOCK_ROWS 256 /* whose dot products are kept before they are scored; a multiple of LANES, as is the next */
#define SHARED_ROWS 64 /* 24 KB at 384 dimensions: these stay in the first-level cache while eight queries pass */
#define QUERIES_AT_ONCE 8

/* count is a multiple of LANES. Multiplication by a scale that is not negative is monotone, rounding included, so that
 * sixteen rows need only their greatest product with it: the others' scores are not above that one's. */
static inline void offer_cosines(top_k *best, const int32_t *dots, const float *scale, size_t count, float query_scale,
                                 const uint32_t *rows, size_t first)
{
    for (size_t i = 0; i < count; i += LANES) {
        float32x4_t lengths[4];
        for (size_t four = 0; four < 4; four++)
            lengths[four] = vmulq_f32(vcvtq_f32_s32(vld1q_s32(dots + i + 4 * four)), vld1q_f32(scale + i + 4 * four));
        const float greatest = vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(lengths[0], lengths[1]),
                                                        vmaxnmq_f32(lengths[2], lengths[3]))); /* leaves NaN out */
        if (greatest * query_scale <= best->threshold && query_scale >= 0.0f)
            continue;
        float32x4_t scores[4];
        for (size_t four = 0; four < 4; four++)
            scores[four] = zero_not_minus_zero(vmulq_n_f32(lengths[four], query_scale));
        offer_lanes(best, scores, lanes_above(scores, best->threshold), rows ? rows + i : NULL, first + i);
    }
}

/* At most BLOCK_ROWS rows, named by number. */
static void search_listed(const omega_codes *table, const query_form *query, float query_scale, const uint32_t *rows,
                          size_t count, top_k *best)
{
    int32_t dots[BLOCK_ROWS] = {0};
    float scale[BLOCK_ROWS];
    const size_t padded = (count + LANES - 1) / LANES * LANES;
    for (size_t i = 0; i < padded; i++)
        scale[i] = i < count ? table->scale[rows[i]] : NAN; /* beats nothing */
    dots_listed(table, rows, count, query, dots);
    offer_cosines(best, dots, scale, padded, query_scale, rows, 0);
}

static void search_all(const omega_codes *table, const query_form *query, float query_scale, top_k *best)
{
    const size_t d = table->dimensions, whole = table->rows / LANES * LANES;
    int32_t dots[BLOCK_ROWS];
    for (size_t row = 0; row < whole; row += BLOCK_ROWS) {
        const size_t count = whole - row < BLOCK_ROWS ? whole - row : BLOCK_ROWS;
        dots_next(table->codes + row * d, d, count, query, dots);
        offer_cosines(best, dots, table->scale + row, count, query_scale, NULL, row);
    }
    uint32_t rest[LANES];
    for (size_t row = whole; row < table->rows; row++)
        rest[row - whole] = (uint32_t)row;
    search_listed(table, query, query_scale, rest, table->rows - whole, best);
}

/* Lists the allowed rows first, then scans them a block at a time: the work is that of the rows allowed, not of all. */
static void search_filtered(const omega_codes *table, const query_form *query, float query_scale, const uint8_t *filter,
                            top_k *best)
{
    uint32_t rows[BLOCK_ROWS + 8];
    size_t count = 0;
    for (size_t base = 0; base < table->rows; base += 8) {
        uint32_t bits = filter[base >> 3];
        if (table->rows - base < 8)
            bits &= (1u << (table->rows - base)) - 1;
        for (; bits; bits &= bits - 1)
            rows[count++] = (uint32_t)base + (uint32_t)__builtin_ctz(bits);
        if (count >= BLOCK_ROWS) {
            search_listed(table, query, query_scale, rows, BLOCK_ROWS, best);
            count -= BLOCK_ROWS;
            memcpy(rows, rows + BLOCK_ROWS, count * sizeof rows[0]);
        }
    }
    search_listed(table, query, query_scale, rows, count, best);
}

static size_t search(const omega_codes *table, const int8_t *query, float query_scale, const uint8_t *filter, size_t k,
                     uint64_t *workspace, uint32_t *rows_out, float *scores_out)
{
    query_form form;
    form_query(query, table->dimensions, &form);
    top_k best = top_k_begin(k < table->rows ? k : table->rows, workspace);
    if (filter)
        search_filtered(table, &form, query_scale, filter, &best);
    else
        search_all(table, &form, query_scale, &best);
    return top_k_finish(&best, rows_out, scores_out);
}

/* out[i] = the cosine of row first + i; count <= SHARED_ROWS, and a multiple of LANES but at the end of the table. */
static void cosines_next(const omega_codes *table, size_t first, size_t count, const query_form *query,
                         float query_scale, float *out)
{
    int32_t dots[SHARED_ROWS];
    const size_t whole = count / LANES * LANES;
    dots_next(table->codes + first * table->dimensions, table->dimensions, whole, query, dots);
    for (size_t i = 0; i < whole; i += 4)
        vst1q_f32(out + i, cosine_four(vld1q_s32(dots + i), vld1q_f32(table->scale + first + i), query_scale));
    uint32_t rest[LANES];
    for (size_t i = whole; i < count; i++)
        rest[i - whole] = (uint32_t)(first + i);
    dots_listed(table, rest, count - whole, query, dots);
    for (size_t i = whole; i < count; i++)
        out[i] = (float)dots[i - whole] * table->scale[first + i] * query_scale + 0.0f;
}

static void cosines(const omega_codes *table, const int8_t *queries, const float *query_scale, size_t q, float *out)
{
    const size_t n = table->rows, d = table->dimensions;
    query_form forms[QUERIES_AT_ONCE];
    for (size_t first = 0; first < q; first += QUERIES_AT_ONCE) {
        const size_t count = q - first < QUERIES_AT_ONCE ? q - first : QUERIES_AT_ONCE;
        for (size_t j = 0; j < count; j++)
            form_query(queries + (first + j) * d, d, &forms[j]);
        for (size_t row = 0; row < n; row += SHARED_ROWS) {
            const size_t rows = n - row < SHARED_ROWS ? n - row : SHARED_ROWS;
            for (size_t j = 0; j < count; j++)
                cosines_next(table, row, rows, &forms[j], query_scale[first + j], out + (first + j) * n + row);
        }
    }
}

static void raise_nearest(const omega_codes *table, const uint32_t *rows, size_t m, uint32_t picked, float *nearest)
{
    query_form form;
    form_query(table->codes + (size_t)picked * table->dimensions, table->dimensions, &form);
    for (size_t first = 0; first < m; first += BLOCK_ROWS) {
        const size_t count = m - first < BLOCK_ROWS ? m - first : BLOCK_ROWS;
        int32_t dots[BLOCK_ROWS];
        dots_listed(table, rows + first, count, &form, dots);
        for (size_t i = 0; i < count; i++) {
            const float score = (float)dots[i] * table->scale[rows[first + i]] * table->scale[picked] + 0.0f;
            nearest[first + i] = score > nearest[first + i] ? score : nearest[first + i];
        }
    }
}

static omega_fault diversify(const omega_codes *table, const uint32_t *rows, const float *values, size_t m,
                             float trade_off, size_t k, float *workspace, uint32_t *order_out, size_t *found)
{
    return omega_scalar_diversify(table, rows, values, m, trade_off, k, workspace, order_out, found, raise_nearest);
}

#endif
