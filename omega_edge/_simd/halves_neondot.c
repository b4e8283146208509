/* Searches of halves and ranks on the 64-bit ARM cores that have the dot product. */
#if defined(__aarch64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#include <arm_neon.h>

#include "kernels_neon_shared.h"
#include "scan.h"

#define SCAN(name) omega_neondot_##name

static ALWAYS_INLINE int32x4_t half_dots_four(const uint8_t *const row[4], const int8_t *query, size_t d)
{
    int32x4_t sums[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
#pragma GCC unroll 12
    for (size_t i = 0; i < d; i += 32) {
        const int8x16_t first = vld1q_s8(query + i), second = vld1q_s8(query + i + 16);
        for (size_t lane = 0; lane < 4; lane++) {
            const uint8x16_t both = vld1q_u8(row[lane] + i / 2);
            sums[lane] = vdotq_s32(sums[lane], vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15))), first);
            sums[lane] = vdotq_s32(sums[lane], vreinterpretq_s8_u8(vshrq_n_u8(both, 4)), second);
        }
    }
    return vpaddq_s32(vpaddq_s32(sums[0], sums[1]), vpaddq_s32(sums[2], sums[3]));
}

#include "lanes_neon.h"
#include "scan_walk.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else
typedef int omega_no_halves_neondot; /* ISO C wants a declaration in every file */
#endif
