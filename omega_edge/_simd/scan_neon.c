/* Halves, signs and half floats on 64-bit ARM: what has no use for the dot product. */
#if defined(__aarch64__)

#include <arm_neon.h>
#include <string.h>

#include "kernels_neon_shared.h"
#include "scan.h"
#include "sign_candidates.h"

#define SAMPLED_BLOCKS 16 /* of 32 rows */

void omega_neon_halve(const int8_t *codes, size_t n, size_t d, uint8_t *high_out, uint8_t *low_out,
                      uint8_t *spread_out)
{
    for (size_t row = 0; row < n; row++) {
        int32x4_t squares = vdupq_n_s32(0); /* of 2 * low - 15, four times those of low - 7.5 */
        for (size_t i = 0; i < d; i += 32, codes += 32, high_out += 16, low_out += 16) {
            const uint8x16_t first = veorq_u8(vld1q_u8((const uint8_t *)codes), vdupq_n_u8(128));
            const uint8x16_t second = veorq_u8(vld1q_u8((const uint8_t *)codes + 16), vdupq_n_u8(128));
            const uint8x16_t low = vsliq_n_u8(first, second, 4);
            vst1q_u8(high_out, vsriq_n_u8(second, first, 4));
            vst1q_u8(low_out, low);
            const uint8x16_t halves[2] = {vandq_u8(low, vdupq_n_u8(15)), vshrq_n_u8(low, 4)};
            for (size_t half = 0; half < 2; half++) {
                const int8x16_t doubled = vreinterpretq_s8_u8(vsubq_u8(vshlq_n_u8(halves[half], 1), vdupq_n_u8(15)));
                squares = vpadalq_s16(squares, vmull_s8(vget_low_s8(doubled), vget_low_s8(doubled)));
                squares = vpadalq_s16(squares, vmull_high_s8(doubled, doubled));
            }
        }
        spread_out[row] = (uint8_t)ceil(sqrt((double)vaddvq_s32(squares) / 4.0));
    }
}

void omega_neon_join(const omega_halves *table, const uint32_t *rows, size_t m, int8_t *codes_out)
{
    const size_t half = table->dimensions / 2;
    for (size_t i = 0; i < m; i++) {
        const uint8_t *high = table->high + rows[i] * half, *low = table->low + rows[i] * half;
        for (size_t j = 0; j < half; j += 16, codes_out += 32) {
            const int8x16x2_t codes = join_halves(high + j, low + j);
            vst1q_s8(codes_out, codes.val[0]);
            vst1q_s8(codes_out + 16, codes.val[1]);
        }
    }
}

void omega_neon_put_signs(const int8_t *codes, size_t first, size_t n, size_t d, uint8_t *blocks)
{
    static const uint8_t weights[16] = {1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8};
    const uint8x16_t weight = vld1q_u8(weights);
    for (size_t row = first; row < first + n; row++) {
        uint8_t *at = blocks + row / OMEGA_SIGN_ROWS * d * 4 + row % 16;
        const int upper = row % OMEGA_SIGN_ROWS >= 16;
        const uint8_t kept = upper ? 15 : 240, shift = upper ? 4 : 0;
        for (size_t i = 0; i < d; i += 32, codes += 32) {
            const uint8x16_t low = vandq_u8(vcgezq_s8(vld1q_s8(codes)), weight);
            const uint8x16_t high = vandq_u8(vcgezq_s8(vld1q_s8(codes + 16)), weight);
            const uint8x16_t pairs = vpaddq_u8(low, high);
            uint8_t groups[8];
            vst1_u8(groups, vget_low_u8(vpaddq_u8(pairs, pairs)));
            for (size_t group = 0; group < 8; group++, at += 16)
                *at = (uint8_t)((*at & kept) | groups[group] << shift);
        }
    }
}

typedef struct {
    uint16x8_t eight[4]; /* rows 0-7, 8-15, 16-23, 24-31 */
} sign_scores;

/* What four groups of codes give 32 rows: at most 4 * 63, a byte. */
static inline __attribute__((always_inline)) sign_scores add_four_groups(sign_scores scores, uint8x16x4_t bits,
                                                                         uint8x16x4_t table)
{
    uint8x16_t lower = vqtbl1q_u8(table.val[0], vandq_u8(bits.val[0], vdupq_n_u8(15)));
    uint8x16_t upper = vqtbl1q_u8(table.val[0], vshrq_n_u8(bits.val[0], 4));
    for (size_t i = 1; i < 4; i++) {
        lower = vaddq_u8(lower, vqtbl1q_u8(table.val[i], vandq_u8(bits.val[i], vdupq_n_u8(15))));
        upper = vaddq_u8(upper, vqtbl1q_u8(table.val[i], vshrq_n_u8(bits.val[i], 4)));
    }
    return (sign_scores){{vaddw_u8(scores.eight[0], vget_low_u8(lower)), vaddw_high_u8(scores.eight[1], lower),
                          vaddw_u8(scores.eight[2], vget_low_u8(upper)), vaddw_high_u8(scores.eight[3], upper)}};
}

/* The first stage's scores of 32 rows; groups is a multiple of eight. */
static inline sign_scores score_signs(const uint8_t *block, const uint8_t *tables, size_t groups)
{
    const uint16x8_t zero = vdupq_n_u16(0);
    sign_scores scores = {{zero, zero, zero, zero}};
    for (const uint8_t *end = block + 16 * groups; block != end;) {
        for (size_t half = 0; half < 2; half++) {
            const uint8x16x4_t bits = vld1q_u8_x4(block), table = vld1q_u8_x4(tables);
            block += 64;
            tables += 64;
            __asm__("" : "+r"(block), "+r"(tables)); /* or gcc 12 adds by four instructions what a load can */
            scores = add_four_groups(scores, bits, table);
        }
    }
    return scores;
}

/* A bit for each of 32 rows: whether its score is at least the limit. */
static inline uint32_t signs_from(const uint16_t *scores, uint16_t limit)
{
    static const uint8_t bit[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t reaching[2];
    for (size_t half = 0; half < 2; half++) {
        const uint16x8_t low = vcgeq_u16(vld1q_u16(scores + 16 * half), vdupq_n_u16(limit));
        const uint16x8_t high = vcgeq_u16(vld1q_u16(scores + 16 * half + 8), vdupq_n_u16(limit));
        reaching[half] = vandq_u8(vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high)), vld1q_u8(bit));
    }
    uint8x16_t sums = vpaddq_u8(reaching[0], reaching[1]);
    sums = vpaddq_u8(sums, sums);
    return vgetq_lane_u32(vreinterpretq_u32_u8(vpaddq_u8(sums, sums)), 0);
}

/* Makes keys for the allowed rows of 32 that reach the least step. */
static inline void add_candidates(sign_candidates *list, uint32_t allowed, const uint16_t *scores, size_t first)
{
    const uint64_t place = UINT32_MAX - (uint32_t)first; /* never below the row in 32 that is taken off */
    uint64_t *key = list->keys + list->count;
    __asm__("" : "+r"(scores)); /* or gcc 12 computes their place on the stack for each row */
    for (uint32_t bits = allowed & signs_from(scores, (uint16_t)(list->least * SCORE_STEP)); bits; bits &= bits - 1) {
        const size_t row = (size_t)__builtin_ctz(bits);
        *key++ = ((uint64_t)scores[row] << 32) + (place - row);
        list->seen[scores[row] / SCORE_STEP]++;
    }
    list->above += (size_t)(key - list->keys) - list->count;
    list->count = (size_t)(key - list->keys);
    raise_least(list);
}

/* The rows of 32 from first on that exist and that the filter allows. */
static inline uint32_t allowed_of_32(const uint8_t *filter, size_t first, size_t rows)
{
    const size_t left = rows - first;
    uint32_t allowed = UINT32_MAX;
    if (filter) {
        allowed = 0;
        for (size_t byte = 0; byte < (left < OMEGA_SIGN_ROWS ? (left + 7) / 8 : 4); byte++)
            allowed |= (uint32_t)filter[first / 8 + byte] << 8 * byte;
    }
    return left < OMEGA_SIGN_ROWS ? allowed & (((uint32_t)1 << left) - 1) : allowed;
}

/* The scores of blocks that lie evenly apart, which stand for all. */
typedef struct {
    uint16_t scores[SAMPLED_BLOCKS * OMEGA_SIGN_ROWS];
    size_t apart; /* rows from one to the next, a multiple of 32; 0: none is sampled */
} sign_sample;

static inline void store_scores(uint16_t *out, const sign_scores *scores)
{
    for (size_t part = 0; part < 4; part++)
        vst1q_u16(out + 8 * part, scores->eight[part]);
}

/* The highest step that at least so many of the sample reach, bit by bit: steps are below 2^11. */
static uint32_t step_reached(const sign_sample *sample, size_t by)
{
    uint32_t step = 0;
    for (uint32_t bit = 1 << 10; bit; bit >>= 1) {
        const uint16x8_t limit = vdupq_n_u16((uint16_t)((step | bit) * SCORE_STEP));
        uint16x8_t reaching = vdupq_n_u16(0); /* less than 2^16 of a lane: a lane counts SAMPLED_BLOCKS * 4 rows */
        for (size_t i = 0; i < SAMPLED_BLOCKS * OMEGA_SIGN_ROWS; i += 8)
            reaching = vsubq_u16(reaching, vcgeq_u16(vld1q_u16(sample->scores + i), limit));
        step |= vaddlvq_u16(reaching) >= by ? bit : 0;
    }
    return step;
}

/* The step that the wanted rows are expected to reach, less three standard deviations of how many of a random sample
 * would be above it. */
static uint32_t sample_signs(const omega_signs *signs, const uint8_t *tables, size_t wanted, sign_sample *sample)
{
    const size_t d = signs->dimensions, blocks = signs->rows / OMEGA_SIGN_ROWS;
    sample->apart = blocks / SAMPLED_BLOCKS * OMEGA_SIGN_ROWS;
    if (sample->apart == 0)
        return 0;
    for (size_t i = 0; i < SAMPLED_BLOCKS; i++) {
        const sign_scores scores = score_signs(signs->blocks + i * sample->apart * d / 8, tables, d / 4);
        store_scores(sample->scores + i * OMEGA_SIGN_ROWS, &scores);
    }
    const float expected = (float)(SAMPLED_BLOCKS * OMEGA_SIGN_ROWS) * ((float)wanted / (float)signs->rows);
    return step_reached(sample, (size_t)(expected + 3.0f * sqrtf(expected) + 1.0f));
}

/* The rows from the list's least step on. */
static void scan_signs(const omega_signs *signs, const uint8_t *tables, const uint8_t *filter,
                       const sign_sample *sample, sign_candidates *list)
{
    const size_t d = signs->dimensions;
    const uint16_t *sampled = sample->scores;
    size_t next_sampled = sample->apart ? 0 : signs->rows;
    for (size_t first = 0; first < signs->rows; first += OMEGA_SIGN_ROWS) {
        const uint32_t allowed = allowed_of_32(filter, first, signs->rows);
        if (!allowed)
            continue;
        if (first == next_sampled) {
            add_candidates(list, allowed, sampled, first);
            sampled += OMEGA_SIGN_ROWS;
            next_sampled = sampled == sample->scores + SAMPLED_BLOCKS * OMEGA_SIGN_ROWS ? signs->rows
                                                                                       : first + sample->apart;
            continue;
        }
        uint16_t each[OMEGA_SIGN_ROWS];
        const sign_scores scores = score_signs(signs->blocks + first * d / 8, tables, d / 4);
        store_scores(each, &scores);
        add_candidates(list, allowed, each, first);
    }
}

/* A sample of the scores tells where to begin, so that few rows but those wanted get a key. It may mislead where rows
 * lie in an order that has to do with their vectors: if fewer than are wanted are found, all rows are scanned again. */
size_t omega_neon_sign_candidates(const omega_signs *signs, const int8_t *query, const uint8_t *filter, size_t wanted,
                                  uint64_t *keys, size_t capacity)
{
    uint8_t tables[OMEGA_MAX_DIMENSIONS * 4];
    omega_sign_tables(query, signs->dimensions, tables);
    sign_candidates list = {.keys = keys, .capacity = capacity, .wanted = wanted};
    sign_sample sample;
    sample.apart = 0;
    if (!filter)
        list.least = sample_signs(signs, tables, wanted, &sample);
    const uint32_t began = list.least;
    scan_signs(signs, tables, filter, &sample, &list);
    if (began && list.above < wanted) {
        list = (sign_candidates){.keys = keys, .capacity = capacity, .wanted = wanted};
        scan_signs(signs, tables, filter, &sample, &list);
    }
    return best_candidates(&list);
}

static inline float eight_lane_total(float32x4_t low, float32x4_t high)
{
    const float32x4_t four = vaddq_f32(low, high);
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

size_t omega_neon_rescore(const uint16_t *vectors, size_t d, const float *query, float query_factor,
                          const uint32_t *rows, size_t m, size_t k, uint64_t *workspace, uint32_t *rows_out,
                          float *scores_out)
{
    size_t count = 0;
    for (size_t i = 0; i < m; i++) {
        const uint16_t *vector = vectors + rows[i] * d;
        float32x4_t dots[2] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)}, squares[2] = {dots[0], dots[0]};
        for (size_t j = 0; j < d; j += 8) {
            const float16x8_t halves = vreinterpretq_f16_u16(vld1q_u16(vector + j));
            const float32x4_t values[2] = {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
            for (size_t part = 0; part < 2; part++) {
                dots[part] = vaddq_f32(dots[part], vmulq_f32(vld1q_f32(query + j + 4 * part), values[part]));
                squares[part] = vaddq_f32(squares[part], vmulq_f32(values[part], values[part]));
            }
        }
        const float length = sqrtf(eight_lane_total(squares[0], squares[1]));
        const float score = eight_lane_total(dots[0], dots[1]) / length * query_factor + 0.0f;
        if (score > -INFINITY)
            workspace[count++] = top_k_key(score, rows[i]);
    }
    top_k best = {workspace, count, count + 1, k, -INFINITY};
    return top_k_finish(&best, rows_out, scores_out);
}

#else
typedef int omega_no_scan_neon; /* ISO C wants a declaration in every file */
#endif
