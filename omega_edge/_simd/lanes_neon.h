/* Sixteen rows in NEON registers, and the sums that scan_walk.h asks for. The file that includes it has defined
 *     half_dots_four(row, query, d)     sums of query * half byte, for four rows of a plane; always inline
 */
#ifndef OMEGA_EDGE_LANES_NEON_H
#define OMEGA_EDGE_LANES_NEON_H

#include <arm_neon.h>

#include "kernels.h"
#include "scan.h"
#include "top_k.h"

#define SPARSE_ROWS 13 /* sums are of four rows at once: it hardly costs more to list them */

#define EACH_FOUR(result, expression)        \
    do {                                     \
        for (int four = 0; four < 4; four++) \
            (result).of[four] = expression;  \
    } while (0)

typedef struct {
    float32x4_t of[4]; /* rows 0-3, 4-7, 8-11, 12-15 */
} float_lanes;

typedef struct {
    int32x4_t of[4];
} int_lanes;

typedef struct {
    uint32x4_t of[4]; /* all ones or all zeros */
} true_lanes;

static ALWAYS_INLINE float_lanes lanes_load(const float *values)
{
    float_lanes out;
    EACH_FOUR(out, vld1q_f32(values + 4 * four));
    return out;
}

static ALWAYS_INLINE void lanes_store(float *values, float_lanes x)
{
    for (int four = 0; four < 4; four++)
        vst1q_f32(values + 4 * four, x.of[four]);
}

static ALWAYS_INLINE float_lanes lanes_all(float value)
{
    float_lanes out;
    EACH_FOUR(out, vdupq_n_f32(value));
    return out;
}

static ALWAYS_INLINE float_lanes lanes_add(float_lanes x, float_lanes y)
{
    EACH_FOUR(x, vaddq_f32(x.of[four], y.of[four]));
    return x;
}

static ALWAYS_INLINE float_lanes lanes_subtract(float_lanes x, float_lanes y)
{
    EACH_FOUR(x, vsubq_f32(x.of[four], y.of[four]));
    return x;
}

static ALWAYS_INLINE float_lanes lanes_multiply(float_lanes x, float_lanes y)
{
    EACH_FOUR(x, vmulq_f32(x.of[four], y.of[four]));
    return x;
}

/* A bit for each row. */
static ALWAYS_INLINE uint32_t lanes_mask(true_lanes x)
{
    static const uint8_t bit[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint16x8_t low = vuzp1q_u16(vreinterpretq_u16_u32(x.of[0]), vreinterpretq_u16_u32(x.of[1]));
    const uint16x8_t high = vuzp1q_u16(vreinterpretq_u16_u32(x.of[2]), vreinterpretq_u16_u32(x.of[3]));
    uint8x16_t sums = vandq_u8(vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high)), vld1q_u8(bit));
    for (int pairs = 0; pairs < 3; pairs++)
        sums = vpaddq_u8(sums, sums);
    return vgetq_lane_u16(vreinterpretq_u16_u8(sums), 0);
}

static ALWAYS_INLINE uint32_t lanes_at_least(float_lanes x, float_lanes y)
{
    true_lanes out;
    EACH_FOUR(out, vcgeq_f32(x.of[four], y.of[four]));
    return lanes_mask(out);
}

/* At least, or one is NaN. */
static ALWAYS_INLINE uint32_t lanes_not_below(float_lanes x, float_lanes y)
{
    true_lanes below;
    EACH_FOUR(below, vcltq_f32(x.of[four], y.of[four]));
    return lanes_mask(below) ^ 0xffff;
}

/* x where y < limit, else 0. */
static ALWAYS_INLINE float_lanes lanes_where_below(float_lanes x, float_lanes y, float limit)
{
    EACH_FOUR(x, vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x.of[four]),
                                                 vcltq_f32(y.of[four], vdupq_n_f32(limit)))));
    return x;
}

static ALWAYS_INLINE float_lanes lanes_from_ints(int_lanes x)
{
    float_lanes out;
    EACH_FOUR(out, vcvtq_f32_s32(x.of[four]));
    return out;
}

static ALWAYS_INLINE int_lanes lanes_truncate(float_lanes x)
{
    int_lanes out;
    EACH_FOUR(out, vcvtq_s32_f32(x.of[four]));
    return out;
}

static ALWAYS_INLINE float_lanes lanes_from_unsigned(int_lanes x)
{
    float_lanes out;
    EACH_FOUR(out, vcvtq_f32_u32(vreinterpretq_u32_s32(x.of[four])));
    return out;
}

/* Sixteen elements of 32 bits. */
static ALWAYS_INLINE int_lanes ints_load(const void *values)
{
    int_lanes out;
    EACH_FOUR(out, vld1q_s32((const int32_t *)values + 4 * four));
    return out;
}

static ALWAYS_INLINE int_lanes ints_all(int32_t value)
{
    int_lanes out;
    EACH_FOUR(out, vdupq_n_s32(value));
    return out;
}

static ALWAYS_INLINE int_lanes ints_add(int_lanes x, int_lanes y)
{
    EACH_FOUR(x, vaddq_s32(x.of[four], y.of[four]));
    return x;
}

static ALWAYS_INLINE int_lanes ints_from(uint32_t first)
{
    static const int32_t numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return ints_add(ints_load(numbers), ints_all((int32_t)first));
}

static ALWAYS_INLINE int_lanes ints_times_16(int_lanes x)
{
    EACH_FOUR(x, vshlq_n_s32(x.of[four], 4));
    return x;
}

/* Sixteen bytes times a factor below 2^15. */
static ALWAYS_INLINE int_lanes ints_from_bytes_times(const uint8_t *bytes, int32_t factor)
{
    const uint8x16_t all = vld1q_u8(bytes);
    const int16x8_t low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(all)));
    const int16x8_t high = vreinterpretq_s16_u16(vmovl_high_u8(all));
    const int16_t by = (int16_t)factor;
    return (int_lanes){{vmull_n_s16(vget_low_s16(low), by), vmull_high_n_s16(low, by),
                        vmull_n_s16(vget_low_s16(high), by), vmull_high_n_s16(high, by)}};
}

/* max(now - time, 0), unsigned. */
static ALWAYS_INLINE int_lanes ints_since(uint32_t now, const uint32_t *time)
{
    int_lanes out;
    EACH_FOUR(out, vreinterpretq_s32_u32(vqsubq_u32(vdupq_n_u32(now), vld1q_u32(time + 4 * four))));
    return out;
}

/* 2^-x for x below 127. */
static ALWAYS_INLINE float_lanes lanes_power_of_half(int_lanes x)
{
    float_lanes out;
    EACH_FOUR(out, vreinterpretq_f32_s32(vshlq_n_s32(vsubq_s32(vdupq_n_s32(127), x.of[four]), 23)));
    return out;
}

/* The lanes of a mask, to be listed one after another: where each four go, and in which order their bytes. */
typedef struct {
    uint8x16_t order[4];
    size_t at[4];
} kept_lanes;

/* The bytes of the lanes whose bits are set in the number, from the lowest; of what follows, any. */
#define LANE(i) 4 * (i), 4 * (i) + 1, 4 * (i) + 2, 4 * (i) + 3
#define LANES_IN_ORDER(a, b, c, d) {LANE(a), LANE(b), LANE(c), LANE(d)}

static ALWAYS_INLINE kept_lanes lanes_to_keep(uint32_t mask)
{
    static const uint8_t orders[16][16] = {
        LANES_IN_ORDER(0, 0, 0, 0), LANES_IN_ORDER(0, 0, 0, 0), LANES_IN_ORDER(1, 0, 0, 0), LANES_IN_ORDER(0, 1, 0, 0),
        LANES_IN_ORDER(2, 0, 0, 0), LANES_IN_ORDER(0, 2, 0, 0), LANES_IN_ORDER(1, 2, 0, 0), LANES_IN_ORDER(0, 1, 2, 0),
        LANES_IN_ORDER(3, 0, 0, 0), LANES_IN_ORDER(0, 3, 0, 0), LANES_IN_ORDER(1, 3, 0, 0), LANES_IN_ORDER(0, 1, 3, 0),
        LANES_IN_ORDER(2, 3, 0, 0), LANES_IN_ORDER(0, 2, 3, 0), LANES_IN_ORDER(1, 2, 3, 0), LANES_IN_ORDER(0, 1, 2, 3)};
    static const uint8_t counts[16] = {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4};
    kept_lanes kept;
    size_t at = 0;
    for (int four = 0; four < 4; four++, mask >>= 4) {
        kept.order[four] = vld1q_u8(orders[mask & 15]);
        kept.at[four] = at;
        at += counts[mask & 15];
    }
    return kept;
}

/* Writes up to sixteen elements, of which the kept ones come first. */
static ALWAYS_INLINE void keep_ints(void *values, int_lanes x, kept_lanes kept)
{
    for (int four = 0; four < 4; four++)
        vst1q_u8((uint8_t *)values + 4 * kept.at[four],
                 vqtbl1q_u8(vreinterpretq_u8_s32(x.of[four]), kept.order[four]));
}

static ALWAYS_INLINE void keep_lanes(float *values, float_lanes x, kept_lanes kept)
{
    int_lanes bits;
    EACH_FOUR(bits, vreinterpretq_s32_f32(x.of[four]));
    keep_ints(values, bits, kept);
}

/* Appends the rows of the mask. */
static ALWAYS_INLINE void lanes_offer(top_k *best, uint32_t mask, int_lanes rows, float_lanes scores)
{
    uint32_t row[16];
    float score[16];
    for (int four = 0; four < 4; four++)
        vst1q_u32(row + 4 * four, vreinterpretq_u32_s32(rows.of[four]));
    lanes_store(score, scores);
    for (; mask; mask &= mask - 1) {
        const int lane = __builtin_ctz(mask);
        top_k_append(best, score[lane], row[lane]);
    }
}

/* The query itself: whoever began the scan keeps it. */
typedef struct {
    const int8_t *codes;
} halved_query;

static ALWAYS_INLINE void halve_query(const int8_t *query, size_t d, halved_query *halves)
{
    (void)d;
    halves->codes = query;
}

/* Functions of their own for the encoder's 384 dimensions, with every loop over codes unrolled; one copy of each, where
 * the walks, which are compiled for searches and ranks, would have one a call. */
static ALWAYS_INLINE int_lanes sums_next(const uint8_t *rows, const int8_t *query, size_t d)
{
    int_lanes sums;
#pragma GCC unroll 1
    for (int four = 0; four < 4; four++, rows += 2 * d) {
        const uint8_t *const row[4] = {rows, rows + d / 2, rows + d, rows + d + d / 2};
        sums.of[four] = half_dots_four(row, query, d);
    }
    return sums;
}

static ALWAYS_INLINE int_lanes sums_listed(const uint8_t *plane, const uint32_t *rows, size_t count,
                                           const int8_t *query, size_t d)
{
    int_lanes sums = ints_all(0);
#pragma GCC unroll 1
    for (size_t i = 0; i < count; i += 4) {
        const uint8_t *row[4];
        for (size_t lane = 0; lane < 4; lane++)
            row[lane] = plane + rows[i + lane < count ? i + lane : count - 1] * (d / 2);
        sums.of[i / 4] = half_dots_four(row, query, d);
    }
    return sums;
}

static __attribute__((noinline)) int_lanes next_384(const uint8_t *rows, const int8_t *query)
{
    return sums_next(rows, query, 384);
}

static __attribute__((noinline)) int_lanes next_any(const uint8_t *rows, const int8_t *query, size_t d)
{
    return sums_next(rows, query, d);
}

static __attribute__((noinline)) int_lanes listed_384(const uint8_t *plane, const uint32_t *rows, size_t count,
                                                      const int8_t *query)
{
    return sums_listed(plane, rows, count, query, 384);
}

static __attribute__((noinline)) int_lanes listed_any(const uint8_t *plane, const uint32_t *rows, size_t count,
                                                      const int8_t *query, size_t d)
{
    return sums_listed(plane, rows, count, query, d);
}

/* sum(q * half) of sixteen rows of a plane, one after another. */
static ALWAYS_INLINE int_lanes half_sums_next(const uint8_t *rows, const halved_query *query, size_t d)
{
    return d == 384 ? next_384(rows, query->codes) : next_any(rows, query->codes, d);
}

/* The same of up to sixteen rows named by number; the lanes past count hold anything. */
static ALWAYS_INLINE int_lanes half_sums_listed(const uint8_t *plane, const uint32_t *rows, size_t count,
                                                const halved_query *query, size_t d)
{
    return d == 384 ? listed_384(plane, rows, count, query->codes) : listed_any(plane, rows, count, query->codes, d);
}

#endif
