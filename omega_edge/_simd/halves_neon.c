/* Searches of halves and ranks on every 64-bit ARM core. */
#if defined(__aarch64__)

#include <arm_neon.h>

#include "kernels_neon_shared.h"
#include "scan.h"

#define SCAN(name) omega_neon_##name

#define HALF_BLOCKS 4 /* of 32 codes: sixteen products of at most 15 * 127 an int16 lane, together 30480 */

/* The sums that an int16 lane holds, of count blocks, added to the rows' sums. */
static ALWAYS_INLINE void add_half_blocks(int32x4_t sums[4], const uint8_t *const row[4], const int8_t *query,
                                          size_t block, size_t count)
{
    int16x8_t lanes[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < count; i++) {
        __asm__ volatile("" ::: "memory"); /* or gcc 12 loads far ahead, and keeps what it loaded on the stack */
        const int8_t *part = query + 32 * (block + i);
        const int8x16_t first = vld1q_s8(part), second = vld1q_s8(part + 16);
        for (size_t lane = 0; lane < 4; lane++) {
            const uint8x16_t both = vld1q_u8(row[lane] + 16 * (block + i));
            const int8x16_t lower = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
            const int8x16_t upper = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
            lanes[lane] = i ? vmlal_s8(lanes[lane], vget_low_s8(lower), vget_low_s8(first))
                            : vmull_s8(vget_low_s8(lower), vget_low_s8(first));
            lanes[lane] = vmlal_high_s8(lanes[lane], lower, first);
            lanes[lane] = vmlal_s8(lanes[lane], vget_low_s8(upper), vget_low_s8(second));
            lanes[lane] = vmlal_high_s8(lanes[lane], upper, second);
        }
    }
    for (size_t lane = 0; lane < 4; lane++)
        sums[lane] = vpadalq_s16(sums[lane], lanes[lane]);
}

static ALWAYS_INLINE int32x4_t half_dots_four(const uint8_t *const row[4], const int8_t *query, size_t d)
{
    int32x4_t sums[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
    size_t block = 0;
#pragma GCC unroll 3
    for (; block + HALF_BLOCKS <= d / 32; block += HALF_BLOCKS)
        add_half_blocks(sums, row, query, block, HALF_BLOCKS);
    for (; block < d / 32; block++)
        add_half_blocks(sums, row, query, block, 1);
    return vpaddq_s32(vpaddq_s32(sums[0], sums[1]), vpaddq_s32(sums[2], sums[3]));
}

#include "lanes_neon.h"
#include "scan_walk.h"

#else
typedef int omega_no_halves_neon; /* ISO C wants a declaration in every file */
#endif
