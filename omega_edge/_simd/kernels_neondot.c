/* NEON with the dot product (SDOT: Cortex-A55, A75, A76 and later): sixteen products an instruction. */
#if defined(__aarch64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#include <arm_neon.h>

#include "kernels_neon_shared.h"

typedef struct {
    const int8_t *codes;
} query_form;

static void form_query(const int8_t *query, size_t d, query_form *form)
{
    (void)d;
    form->codes = query;
}

static inline int32x4_t dot_four(const int8_t *const row[4], const int8_t *query, size_t d)
{
    int32x4_t sums[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
    for (size_t i = 0; i < d; i += 16) {
        const int8x16_t part = vld1q_s8(query + i);
        for (size_t lane = 0; lane < 4; lane++)
            sums[lane] = vdotq_s32(sums[lane], vld1q_s8(row[lane] + i), part);
    }
    return vpaddq_s32(vpaddq_s32(sums[0], sums[1]), vpaddq_s32(sums[2], sums[3]));
}

/* Sixteen rows at a time: one load of 64 codes of the query serves sixteen loads of 64 codes of a row. v0-v3 hold the
 * query's codes, v4-v7 and v8-v11 those of two rows, v16-v31 the rows' sums.
 *
 * The sums are never set back: they go on from one sixteen rows to the next, modulo 2^32, and v12-v15 keep what they
 * were, to be taken off. That is eight instructions where clearing them is sixteen. */
#define PAIR(sum0, sum1, step)                           \
    "ld1 {v4.16b-v7.16b}, [%[row]], %[next]\n\t"         \
    "ld1 {v8.16b-v11.16b}, [%[row]], %[" step "]\n\t"    \
    "sdot v" #sum0 ".4s, v4.16b, v0.16b\n\t"             \
    "sdot v" #sum1 ".4s, v8.16b, v0.16b\n\t"             \
    "sdot v" #sum0 ".4s, v5.16b, v1.16b\n\t"             \
    "sdot v" #sum1 ".4s, v9.16b, v1.16b\n\t"             \
    "sdot v" #sum0 ".4s, v6.16b, v2.16b\n\t"             \
    "sdot v" #sum1 ".4s, v10.16b, v2.16b\n\t"            \
    "sdot v" #sum0 ".4s, v7.16b, v3.16b\n\t"             \
    "sdot v" #sum1 ".4s, v11.16b, v3.16b\n\t"

#define CODES_64                                  \
    "ld1 {v0.16b-v3.16b}, [%[query]], #64\n\t"    \
    PAIR(16, 17, "next") PAIR(18, 19, "next") PAIR(20, 21, "next") PAIR(22, 23, "next") \
    PAIR(24, 25, "next") PAIR(26, 27, "next") PAIR(28, 29, "next") PAIR(30, 31, "back")

/* Lane i of the target is what the lanes of the i-th sum amount to. */
#define FOUR_SUMS(to, a, b, c, e)                     \
    "addp v10.4s, v" #a ".4s, v" #b ".4s\n\t"         \
    "addp v11.4s, v" #c ".4s, v" #e ".4s\n\t"         \
    "addp v" #to ".4s, v10.4s, v11.4s\n\t"
#define CHANGE(four, was)                                     \
    "sub v" #was ".4s, v" #four ".4s, v" #was ".4s\n\t"

#define SIXTEEN_ROWS(TIMES)                                                                                           \
    __asm__ volatile("movi v12.4s, #0\n\t"                                                                            \
                     "movi v13.4s, #0\n\t"                                                                            \
                     "movi v14.4s, #0\n\t"                                                                            \
                     "movi v15.4s, #0\n\t"                                                                            \
                     ".irp sum, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31\n\t"                   \
                     "movi v\\sum\\().4s, #0\n\t"                                                                     \
                     ".endr\n"                                                                                        \
                     "1:\n\t"                                                                                         \
                     "mov %[more], %[times]\n"                                                                        \
                     "2:\n\t"                                                                                         \
                     ".rept " TIMES "\n\t"                                                                            \
                     CODES_64                                                                                         \
                     ".endr\n\t"                                                                                      \
                     "subs %[more], %[more], #1\n\t"                                                                  \
                     "b.ne 2b\n\t"                                                                                    \
                     "sub %[query], %[query], %[d]\n\t"                                                               \
                     "add %[row], %[row], %[group]\n\t"                                                               \
                     FOUR_SUMS(4, 16, 17, 18, 19) FOUR_SUMS(5, 20, 21, 22, 23)                                        \
                     FOUR_SUMS(6, 24, 25, 26, 27) FOUR_SUMS(7, 28, 29, 30, 31)                                        \
                     CHANGE(4, 12) CHANGE(5, 13) CHANGE(6, 14) CHANGE(7, 15)                                          \
                     "st1 {v12.4s-v15.4s}, [%[out]], #64\n\t"                                                         \
                     "mov v12.16b, v4.16b\n\t"                                                                        \
                     "mov v13.16b, v5.16b\n\t"                                                                        \
                     "mov v14.16b, v6.16b\n\t"                                                                        \
                     "mov v15.16b, v7.16b\n\t"                                                                        \
                     "cmp %[row], %[end]\n\t"                                                                         \
                     "b.ne 1b\n\t"                                                                                    \
                     : [row] "+r"(row), [query] "+r"(part), [out] "+r"(out), [more] "=&r"(more)                       \
                     : [next] "r"(d), [back] "r"(back), [d] "r"(d), [group] "r"(group), [times] "r"(times),           \
                       [end] "r"(end)                                                                                 \
                     : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", \
                       "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27",     \
                       "v28", "v29", "v30", "v31", "cc", "memory")

/* rows is a multiple of sixteen. */
static void dots_next(const int8_t *codes, size_t d, size_t rows, const query_form *query, int32_t *out)
{
    if (d % 64) {
        for (const int8_t *row = codes, *end = codes + rows * d; row != end; row += 4 * d, out += 4) {
            const int8_t *const four[4] = {row, row + d, row + 2 * d, row + 3 * d};
            vst1q_s32(out, dot_four(four, query->codes, d));
        }
        return;
    }
    if (!rows)
        return;
    const int8_t *row = codes, *part = query->codes;
    const int8_t *const end = codes + rows * d;
    const size_t group = 15 * d;                  /* from the second row of sixteen to the first of the next sixteen */
    const ptrdiff_t back = 64 - (ptrdiff_t)group; /* from the last row of sixteen to the first, 64 codes on */
    const size_t times = d % 384 ? d / 64 : d / 384;
    size_t more;
    if (d % 384)
        SIXTEEN_ROWS("1");
    else
        SIXTEEN_ROWS("6");
}

/* The lanes of the last four past count repeat the last row. */
static void dots_listed(const omega_codes *table, const uint32_t *rows, size_t count, const query_form *query,
                        int32_t *out)
{
    const size_t d = table->dimensions;
    for (size_t i = 0; i < count; i += 4) {
        const int8_t *row[4];
        for (size_t lane = 0; lane < 4; lane++)
            row[lane] = table->codes + d * rows[i + lane < count ? i + lane : count - 1];
        vst1q_s32(out + i, dot_four(row, query->codes, d));
    }
}

static int32x4_t joined_dots_four(const uint8_t *const high[4], const uint8_t *const low[4], const query_form *query,
                                  size_t d)
{
    int32x4_t sums[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
    for (size_t i = 0; i < d; i += 32) {
        const int8x16_t first = vld1q_s8(query->codes + i), second = vld1q_s8(query->codes + i + 16);
        for (size_t lane = 0; lane < 4; lane++) {
            const int8x16x2_t codes = join_halves(high[lane] + i / 2, low[lane] + i / 2);
            sums[lane] = vdotq_s32(vdotq_s32(sums[lane], codes.val[0], first), codes.val[1], second);
        }
    }
    return vpaddq_s32(vpaddq_s32(sums[0], sums[1]), vpaddq_s32(sums[2], sums[3]));
}

#include "kernels_neon.h"
#include "scan_neon.h"
#include "sequence.h"
#include "trees.h"

const omega_kernels omega_kernels_neondot = {
    .isa = "neondot",
    .quantise = omega_neon_quantise,
    .search = search,
    .cosines = cosines,
    .row_scatter_add = omega_scalar_row_scatter_add,
    .row_lookup = omega_scalar_row_lookup,
    .genre_means = omega_scalar_genre_means,
    .left_out_sums = omega_scalar_left_out_sums,
    .fuse = omega_neon_fuse,
    .fuse_top_k = omega_neon_fuse_top_k,
    .diversify = diversify,
    .count_greater = omega_scalar_count_greater,
    .sum_trees = omega_neon_sum_trees,
    .halve = omega_neon_halve,
    .join = omega_neon_join,
    .search_halves = omega_neondot_search_halves,
    .search_batch = omega_neondot_search_batch,
    .put_signs = omega_neon_put_signs,
    .search_two_stage = search_two_stage,
    .rescore = omega_neon_rescore,
    .rank = omega_neondot_rank,
    .sequence_events = omega_neon_sequence_events,
    .sequence_states = omega_neon_sequence_states,
};

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else
typedef int omega_no_neondot; /* ISO C wants a declaration in every file */
#endif
