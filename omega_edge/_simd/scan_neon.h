/* What the NEON files of 64-bit ARM share of the scans over halves and signs. Included after kernels_neon.h; the file
 * that includes it has defined
 *     half_dots_four(rows, query, d)           sums of query * half byte, for four rows of a plane
 *     joined_dots_four(high, low, form, d)     dot products of four rows, from both planes
 *
 * A block of rows goes through three steps: the upper plane's sums; the bounds, sixteen at a time, which most rows
 * fail; the lower plane's sums of the survivors, four at a time. Rows past the last whole sixteen, and rows that a
 * filter leaves, are listed and what is known of them is gathered, so that one loop serves all.
 */
#ifndef OMEGA_EDGE_SCAN_NEON_H
#define OMEGA_EDGE_SCAN_NEON_H

#include "rank.h"
#include "scan.h"

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

/* At most SHARED_ROWS rows, and their values: of the table itself, or gathered. */
typedef struct {
    size_t count, first;
    const uint32_t *rows; /* NULL: first, first + 1, ... */
    const float *scale, *success, *trend;
    const uint8_t *spread;
    const uint32_t *time;
    uint32_t listed[SHARED_ROWS + 8], times[SHARED_ROWS];
    float gathered[3][SHARED_ROWS];
    uint8_t spreads[SHARED_ROWS];
} halves_block;

static void start_query(const int8_t *codes, size_t d, float scale, size_t k, uint64_t *workspace, halves_query *query)
{
    int32_t sum = 0;
    for (size_t i = 0; i < d; i++)
        sum += codes[i];
    *query = (halves_query){codes, omega_bound_of(codes, d), 128 * sum, scale, top_k_begin(k, workspace)};
}

static inline uint32_t block_row(const halves_block *block, size_t lane)
{
    return block->rows ? block->rows[lane] : (uint32_t)(block->first + lane);
}

/* The values of the rows listed; the lanes up to the next sixteen are zero. */
static void gather(const omega_halves *table, const ranking *ranked, halves_block *block)
{
    for (size_t lane = 0; lane < (block->count + LANES - 1) / LANES * LANES; lane++) {
        const int present = lane < block->count;
        const size_t row = present ? block->listed[lane] : 0;
        block->gathered[0][lane] = present ? table->scale[row] : 0.0f;
        block->spreads[lane] = present ? table->spread[row] : 0;
        if (ranked) {
            block->gathered[1][lane] = present ? ranked->columns->success[row] : 0.0f;
            block->gathered[2][lane] = present ? ranked->columns->trend[row] : 0.0f;
            block->times[lane] = present ? ranked->columns->time[row] : 0;
        }
    }
    block->rows = block->listed;
    block->scale = block->gathered[0];
    block->success = block->gathered[1];
    block->trend = block->gathered[2];
    block->spread = block->spreads;
    block->time = block->times;
}

/* Takes up to SHARED_ROWS allowed rows from row on; returns the row after the last one looked at. */
static size_t take_block(const omega_halves *table, const ranking *ranked, const uint8_t *filter, size_t row,
                         halves_block *block)
{
    const size_t left = table->rows - row;
    block->count = 0;
    if (!filter && left >= LANES) {
        block->count = left < SHARED_ROWS ? left / LANES * LANES : SHARED_ROWS;
        block->first = row;
        block->rows = NULL;
        block->scale = table->scale + row;
        block->spread = table->spread + row;
        if (ranked) {
            block->success = ranked->columns->success + row;
            block->trend = ranked->columns->trend + row;
            block->time = ranked->columns->time + row;
        }
        return row + block->count;
    }
    for (; row < table->rows && block->count <= SHARED_ROWS - 8; row += 8) { /* row is a multiple of eight */
        uint32_t bits = filter ? filter[row >> 3] : 255;
        if (table->rows - row < 8)
            bits &= (1u << (table->rows - row)) - 1;
        for (; bits; bits &= bits - 1)
            block->listed[block->count++] = (uint32_t)row + (uint32_t)__builtin_ctz(bits);
    }
    gather(table, ranked, block);
    return row < table->rows ? row : table->rows;
}

/* Sums over a plane of the lanes named, or of the block's rows where lanes is NULL; the last is repeated up to a
 * multiple of four. */
static void plane_sums(const uint8_t *plane, size_t d, const halves_block *block, const uint8_t *lanes, size_t count,
                       const int8_t *query, int32_t *out)
{
    for (size_t i = 0; i < count; i += 4) {
        const uint8_t *row[4];
        for (size_t four = 0; four < 4; four++) {
            const size_t at = i + four < count ? i + four : count - 1;
            row[four] = plane + block_row(block, lanes ? lanes[at] : at) * (d / 2);
        }
        vst1q_s32(out + i, half_dots_four(row, query, d));
    }
}

/* 2^-age of the contract, for four rows. */
static inline float32x4_t fresh_four(uint32x4_t time, const omega_rank_limits *limits)
{
    static const float coefficients[6] = OMEGA_EXP2;
    const uint32x4_t past = vqsubq_u32(vdupq_n_u32(limits->now), time);
    const float32x4_t age = vmulq_n_f32(vcvtq_f32_u32(past), limits->per_half_life);
    const uint32x4_t whole = vcvtq_u32_f32(age), young = vcltq_f32(age, vdupq_n_f32(126.0f));
    const float32x4_t part = vsubq_f32(age, vcvtq_f32_u32(whole));
    float32x4_t power = vdupq_n_f32(coefficients[5]);
    for (int i = 4; i >= 0; i--)
        power = vaddq_f32(vmulq_f32(power, part), vdupq_n_f32(coefficients[i]));
    const uint32x4_t factor = vshlq_n_u32(vsubq_u32(vdupq_n_u32(127), whole), 23);
    const float32x4_t fresh = vmulq_f32(power, vreinterpretq_f32_u32(factor));
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(fresh), young));
}

static inline float32x4_t rank_four(float32x4_t similarity, const halves_block *block, size_t lane,
                                    const ranking *ranked)
{
    const omega_rank_weights *weights = ranked->weights;
    float32x4_t sum = vaddq_f32(vmulq_n_f32(similarity, weights->similarity),
                                vmulq_n_f32(vld1q_f32(block->success + lane), weights->success));
    sum = vaddq_f32(sum, vmulq_n_f32(fresh_four(vld1q_u32(block->time + lane), ranked->limits), weights->recency));
    return zero_not_minus_zero(vaddq_f32(sum, vmulq_n_f32(vld1q_f32(block->trend + lane), weights->trend)));
}

/* What no score of four rows exceeds. Every step is monotone in the dot product, rounding included, for neither a scale
 * nor the weight of the similarity is negative; where the bound is NaN (infinity times 0) it says nothing. */
static inline uint32x4_t may_beat_four(const halves_query *query, const halves_block *block, const int32_t *high,
                                       size_t lane, const ranking *ranked, float threshold)
{
    uint32_t bytes;
    memcpy(&bytes, block->spread + lane, sizeof bytes);
    const uint16x4_t spread = vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(bytes))));
    const int32x4_t base = vmlaq_n_s32(vdupq_n_s32(query->bound.offset), vld1q_s32(high + lane), 16);
    const int32x4_t bound = vmlaq_n_s32(base, vreinterpretq_s32_u32(vmovl_u16(spread)), query->bound.length);
    float32x4_t score = cosine_four(bound, vld1q_f32(block->scale + lane), query->scale);
    uint32x4_t fails = vdupq_n_u32(0);
    if (ranked) {
        fails = vcltq_f32(score, vdupq_n_f32(ranked->limits->least_similarity));
        score = rank_four(score, block, lane, ranked);
    }
    return vmvnq_u32(vorrq_u32(fails, vcleq_f32(score, vdupq_n_f32(threshold))));
}

/* Every row that passes a low threshold costs the reading of its lower half, far more than a selection: so the threshold
 * is raised long before the list is full. */
static inline void raise_threshold(top_k *best)
{
    if (best->count < best->k + best->k / 4 + 8)
        return;
    top_k_select(best->keys, best->count, best->k);
    best->count = best->k;
    best->threshold = top_k_score(best->keys[best->k - 1]);
}

static inline void scan_block(const omega_halves *table, halves_query *query, const halves_block *block,
                              const ranking *ranked)
{
    int32_t high[SHARED_ROWS + LANES], low[SHARED_ROWS + 4];
    uint8_t lanes[SHARED_ROWS];
    size_t survivors = 0;
    memset(high + block->count / LANES * LANES, 0, LANES * sizeof high[0]);
    plane_sums(table->high, table->dimensions, block, NULL, block->count, query->codes, high);
    for (size_t i = 0; i < block->count; i += LANES) {
        uint32x4_t beating[4];
        for (size_t four = 0; four < 4; four++)
            beating[four] = may_beat_four(query, block, high, i + 4 * four, ranked, query->best.threshold);
        for (uint64_t bits = lane_bits(beating) & 0x1111111111111111u; bits; bits &= bits - 1) {
            const size_t lane = i + ((size_t)__builtin_ctzll(bits) >> 2);
            if (lane < block->count)
                lanes[survivors++] = (uint8_t)lane;
        }
    }
    plane_sums(table->low, table->dimensions, block, lanes, survivors, query->codes, low);
    for (size_t i = 0; i < survivors; i++) {
        const uint32_t row = block_row(block, lanes[i]);
        const int32_t dot = 16 * high[lanes[i]] + low[i] - query->shift;
        float score = (float)dot * table->scale[row] * query->scale + 0.0f;
        if (ranked) {
            if (!(score >= ranked->limits->least_similarity))
                continue;
            score = omega_rank_score(score, ranked->columns, row, ranked->weights, ranked->limits);
        }
        if (score > query->best.threshold)
            top_k_append(&query->best, score, row);
    }
    raise_threshold(&query->best);
}

static size_t search_halves(const omega_halves *table, const int8_t *query, float query_scale, const uint8_t *filter,
                            size_t k, uint64_t *workspace, uint32_t *rows_out, float *scores_out)
{
    halves_query one;
    halves_block block;
    start_query(query, table->dimensions, query_scale, k < table->rows ? k : table->rows, workspace, &one);
    for (size_t row = 0; row < table->rows;) {
        row = take_block(table, NULL, filter, row, &block);
        scan_block(table, &one, &block, NULL);
    }
    return top_k_finish(&one.best, rows_out, scores_out);
}

static void search_batch(const omega_halves *table, const int8_t *queries, const float *query_scale, size_t q,
                         const uint8_t *filter, size_t k, uint64_t *workspace, size_t *found_out, uint32_t *rows_out,
                         float *scores_out)
{
    const size_t least = k < table->rows ? k : table->rows;
    halves_query some[OMEGA_BATCH_QUERIES];
    halves_block block;
    for (size_t first = 0; first < q; first += OMEGA_BATCH_QUERIES) {
        const size_t count = q - first < OMEGA_BATCH_QUERIES ? q - first : OMEGA_BATCH_QUERIES;
        for (size_t j = 0; j < count; j++)
            start_query(queries + (first + j) * table->dimensions, table->dimensions, query_scale[first + j], least,
                        workspace + j * OMEGA_TOP_K_WORDS(least), &some[j]);
        for (size_t row = 0; row < table->rows;) {
            row = take_block(table, NULL, filter, row, &block);
            for (size_t j = 0; j < count; j++)
                scan_block(table, &some[j], &block, NULL);
        }
        for (size_t j = 0; j < count; j++)
            found_out[first + j] =
                top_k_finish(&some[j].best, rows_out + (first + j) * k, scores_out + (first + j) * k);
    }
}

static size_t rank(const omega_halves *table, const int8_t *query, float query_scale, const omega_rank_columns *columns,
                   const omega_rank_weights *weights, const omega_rank_limits *limits, const uint8_t *filter, size_t k,
                   uint64_t *workspace, uint32_t *rows_out, float *scores_out)
{
    const ranking ranked = {columns, weights, limits};
    halves_query one;
    halves_block block;
    start_query(query, table->dimensions, query_scale, k < table->rows ? k : table->rows, workspace, &one);
    for (size_t row = 0; row < table->rows;) {
        row = take_block(table, &ranked, filter, row, &block);
        scan_block(table, &one, &block, &ranked);
    }
    return top_k_finish(&one.best, rows_out, scores_out);
}

static size_t search_two_stage(const omega_signs *signs, const omega_halves *table, const int8_t *query,
                               float query_scale, const uint8_t *filter, size_t candidates, size_t k,
                               uint64_t *workspace, uint32_t *rows_out, float *scores_out)
{
    const size_t wanted = candidates < table->rows ? candidates : table->rows;
    const size_t least = k < table->rows ? k : table->rows;
    const size_t count = omega_neon_sign_candidates(signs, query, filter, wanted, workspace, 6 * wanted + 128);
    const size_t half = table->dimensions / 2;
    query_form form;
    form_query(query, table->dimensions, &form);
    size_t kept = 0; /* a candidate's key makes room for the key of its cosine */
    for (size_t first = 0; first < count; first += 4) {
        const size_t lanes = count - first < 4 ? count - first : 4;
        const uint8_t *high[4], *low[4];
        uint32_t rows[4];
        float scores[4];
        for (size_t lane = 0; lane < 4; lane++) {
            rows[lane] = top_k_row(workspace[first + (lane < lanes ? lane : 0)]);
            high[lane] = table->high + rows[lane] * half;
            low[lane] = table->low + rows[lane] * half;
            scores[lane] = table->scale[rows[lane]];
        }
        const int32x4_t dots = joined_dots_four(high, low, &form, table->dimensions);
        vst1q_f32(scores, cosine_four(dots, vld1q_f32(scores), query_scale));
        for (size_t lane = 0; lane < lanes; lane++)
            if (scores[lane] > -INFINITY)
                workspace[kept++] = top_k_key(scores[lane], rows[lane]);
    }
    top_k best = {workspace, kept, kept + 1, least, -INFINITY};
    return top_k_finish(&best, rows_out, scores_out);
}

#endif
