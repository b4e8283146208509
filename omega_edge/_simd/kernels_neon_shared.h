/* What all NEON files of 64-bit ARM share: lanes as bits, and the kernels that have no use for the dot product. */
#ifndef OMEGA_EDGE_KERNELS_NEON_SHARED_H
#define OMEGA_EDGE_KERNELS_NEON_SHARED_H

#include <arm_neon.h>
#include <math.h>
#include <string.h>

#include "kernels_scalar.h"
#include "top_k.h"

#define LANES 16 /* rows scored by one test */

/* kernels_neon.c */
size_t omega_neon_quantise(const float *vectors, size_t n, size_t d, int8_t *codes_out, float *scale_out);
void omega_neon_fuse(const float *const *features, size_t f, size_t n, const float *weights, float *out);
size_t omega_neon_fuse_top_k(const float *const *features, size_t f, size_t n, const float *weights,
                             const uint8_t *filter, size_t k, uint64_t *workspace, uint32_t *rows_out,
                             float *scores_out);

/* scan_neon.c. sign_candidates finds the first stage's best: their keys, score above row, in no order; wanted is
 * min(candidates, rows), capacity greater than it. */
void omega_neon_halve(const int8_t *codes, size_t n, size_t d, uint8_t *high_out, uint8_t *low_out,
                      uint8_t *spread_out);
void omega_neon_join(const omega_halves *table, const uint32_t *rows, size_t m, int8_t *codes_out);
void omega_neon_put_signs(const int8_t *codes, size_t first, size_t n, size_t d, uint8_t *blocks);
size_t omega_neon_sign_candidates(const omega_signs *signs, const int8_t *query, const uint8_t *filter, size_t wanted,
                                  uint64_t *keys, size_t capacity);
size_t omega_neon_rescore(const uint16_t *vectors, size_t d, const float *query, float query_factor,
                          const uint32_t *rows, size_t m, size_t k, uint64_t *workspace, uint32_t *rows_out,
                          float *scores_out);

/* halves_neon.c and halves_neondot.c */
#define DECLARE_HALVES(isa)                                                                                            \
    size_t omega_##isa##_search_halves(const omega_halves *table, const int8_t *query, float query_scale,              \
                                       const uint8_t *filter, size_t k, uint64_t *workspace, uint32_t *rows_out,       \
                                       float *scores_out);                                                             \
    void omega_##isa##_search_batch(const omega_halves *table, const int8_t *queries, const float *query_scale,        \
                                    size_t q, const uint8_t *filter, size_t k, uint64_t *workspace, size_t *found_out, \
                                    uint32_t *rows_out, float *scores_out);                                            \
    size_t omega_##isa##_rank(const omega_halves *table, const int8_t *query, float query_scale,                       \
                              const omega_rank_columns *columns, const omega_rank_weights *weights,                    \
                              const omega_rank_limits *limits, const uint8_t *filter, size_t k, uint64_t *workspace,   \
                              uint32_t *rows_out, float *scores_out);
DECLARE_HALVES(neon)
DECLARE_HALVES(neondot)

/* 32 codes from the halves that 16 bytes of either plane hold. */
static inline int8x16x2_t join_halves(const uint8_t *high, const uint8_t *low)
{
    const uint8x16_t lower = vld1q_u8(low), upper = veorq_u8(vld1q_u8(high), vdupq_n_u8(0x88)); /* - 128 */
    return (int8x16x2_t){{vreinterpretq_s8_u8(vsliq_n_u8(lower, upper, 4)),
                          vreinterpretq_s8_u8(vsriq_n_u8(upper, lower, 4))}};
}

/* Sixteen lanes of all ones or all zeros as a word of four bits a lane. */
static inline uint64_t lane_bits(const uint32x4_t lanes[4])
{
    const uint16x8_t low = vuzp1q_u16(vreinterpretq_u16_u32(lanes[0]), vreinterpretq_u16_u32(lanes[1]));
    const uint16x8_t high = vuzp1q_u16(vreinterpretq_u16_u32(lanes[2]), vreinterpretq_u16_u32(lanes[3]));
    const uint8x16_t bytes = vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
    return vget_lane_u64(vreinterpret_u64_u8(vshrn_n_u16(vreinterpretq_u16_u8(bytes), 4)), 0);
}

/* The filter's bits of rows row .. row + 15 as such a word; row is a multiple of 8. */
static inline uint64_t allowed_lanes(const uint8_t *filter, size_t row)
{
    static const uint8_t bit[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t bytes = vcombine_u8(vdup_n_u8(filter[row >> 3]), vdup_n_u8(filter[(row >> 3) + 1]));
    const uint8x16_t set = vtstq_u8(bytes, vld1q_u8(bit));
    return vget_lane_u64(vreinterpret_u64_u8(vshrn_n_u16(vreinterpretq_u16_u8(set), 4)), 0);
}

/* Offers the lanes named by bits, four a lane; lane i is row rows[i], or row first + i where rows is NULL. */
static inline void offer_lanes(top_k *best, const float32x4_t scores[4], uint64_t bits, const uint32_t *rows,
                               size_t first)
{
    float lanes[LANES];
    for (size_t four = 0; four < 4; four++)
        vst1q_f32(lanes + 4 * four, scores[four]);
    for (bits &= 0x1111111111111111u; bits; bits &= bits - 1) {
        const size_t lane = (size_t)__builtin_ctzll(bits) >> 2;
        if (lanes[lane] > best->threshold) /* which may have risen since the test */
            top_k_append(best, lanes[lane], rows ? rows[lane] : (uint32_t)(first + lane));
    }
}

/* The lanes above the threshold; a NaN is not. */
static inline uint64_t lanes_above(const float32x4_t scores[4], float threshold)
{
    uint32x4_t above[4];
    for (size_t four = 0; four < 4; four++)
        above[four] = vcgtq_f32(scores[four], vdupq_n_f32(threshold));
    return lane_bits(above);
}

static inline float32x4_t zero_not_minus_zero(float32x4_t scores)
{
    return vaddq_f32(scores, vdupq_n_f32(0.0f));
}

/* The cosine of the contract for four rows. */
static inline float32x4_t cosine_four(int32x4_t dots, float32x4_t scale, float query_scale)
{
    return zero_not_minus_zero(vmulq_n_f32(vmulq_f32(vcvtq_f32_s32(dots), scale), query_scale));
}

#endif
