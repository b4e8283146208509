/* NEON of every 64-bit ARM core (ARMv8-A without the dot product: Cortex-A53, A72, A73).
 *
 * SMULL multiplies eight pairs of codes into int16 lanes, SMLAL adds to them, SADALP adds neighbouring lanes to int32.
 * How many products an int16 lane may take depends on the query alone: no |code| of a row is above 127, so a lane that
 * meets the query's codes q1 ... qm stays within 127 * (|q1| + ... + |qm|), which an int16 holds up to a sum of 258.
 * Two products always fit (127 + 127). Groups of three, three and two fit for 88 of 100 queries, groups of four for 38
 * (2,000 real sentence embeddings; normally distributed ones alike), and each group less is a SADALP less. form_query
 * proves which.
 *
 * The order of instructions is written by hand, for cores that issue in order: four rows at a time, so that an
 * instruction waits for none of the three before it; loads between the products, half a block of 64 codes ahead.
 */
#if defined(__aarch64__)

#include <arm_neon.h>

#include "kernels_neon_shared.h"

#define LANE_LIMIT 258 /* 127 * 258 = 32766 */

/* Bit i: a group ends with the i-th eight codes of a block of 64. */
enum { GROUPS_OF_TWO = 0xaa, GROUPS_OF_THREE = 0xa4, GROUPS_OF_FOUR = 0x88 };

typedef struct {
    const int8_t *codes;
    int groups;
} query_form;

static int lanes_hold(const int8_t *query, size_t d, int groups)
{
    uint16x8_t sum = vdupq_n_u16(0), greatest = sum;
    for (size_t eight = 0; eight < d / 8; eight++) {
        sum = vaddw_u8(sum, vreinterpret_u8_s8(vabs_s8(vld1_s8(query + 8 * eight))));
        if (groups >> eight % 8 & 1 || eight + 1 == d / 8) {
            greatest = vmaxq_u16(greatest, sum);
            sum = vdupq_n_u16(0);
        }
    }
    return vmaxvq_u16(greatest) <= LANE_LIMIT;
}

static void form_query(const int8_t *query, size_t d, query_form *form)
{
    form->codes = query;
    form->groups = lanes_hold(query, d, GROUPS_OF_FOUR)    ? GROUPS_OF_FOUR
                   : lanes_hold(query, d, GROUPS_OF_THREE) ? GROUPS_OF_THREE
                                                           : GROUPS_OF_TWO;
}

/* Registers of a block: v0-v3 the query's 64 codes; CODES_c the codes 16c .. 16c + 15 of four rows; two sets of int16
 * lanes, so that one is summed while the other fills. */
#define CODES_0 4, 5, 6, 7
#define CODES_1 8, 9, 10, 11
#define CODES_2 12, 13, 14, 15
#define CODES_3 16, 17, 18, 19
#define SET_A 20, 21, 22, 23
#define SET_B 24, 25, 26, 27

#define PRODUCT(op, to, code, width, part) op " v" #to ".8h, v" #code "." width ", v" #part "." width "\n\t"
#define PRODUCTS_(op, t0, t1, t2, t3, c0, c1, c2, c3, width, part, load_1, load_2)                       \
    PRODUCT(op, t0, c0, width, part) PRODUCT(op, t1, c1, width, part) load_1                             \
    PRODUCT(op, t2, c2, width, part) PRODUCT(op, t3, c3, width, part) load_2
#define PRODUCTS(...) PRODUCTS_(__VA_ARGS__)
#define START_LOW(set, part, load_1, load_2) PRODUCTS("smull", set, CODES_##part, "8b", part, load_1, load_2)
#define START_HIGH(set, part, load_1, load_2) PRODUCTS("smull2", set, CODES_##part, "16b", part, load_1, load_2)
#define ADD_LOW(set, part, load_1, load_2) PRODUCTS("smlal", set, CODES_##part, "8b", part, load_1, load_2)
#define ADD_HIGH(set, part, load_1, load_2) PRODUCTS("smlal2", set, CODES_##part, "16b", part, load_1, load_2)

#define END_(t0, t1, t2, t3)             \
    "sadalp %[sum0].4s, v" #t0 ".8h\n\t" \
    "sadalp %[sum1].4s, v" #t1 ".8h\n\t" \
    "sadalp %[sum2].4s, v" #t2 ".8h\n\t" \
    "sadalp %[sum3].4s, v" #t3 ".8h\n\t"
#define END(...) END_(__VA_ARGS__)

/* omega_at is a number of the assembler's: how far the unrolled blocks have come. An offset leaves no load waiting for
 * the address that the one before it writes. */
#define LOAD_AT(first, second, from, byte) "ldp q" #first ", q" #second ", [%[" from "], #omega_at + " byte "]\n\t"
#define FIRST(first, second, from) LOAD_AT(first, second, from, "0")
#define LOAD(first, second, from) LOAD_AT(first, second, from, "32")
#define AFTER(first, second, from) LOAD_AT(first, second, from, "64")
#define KEEP(load) load
#define DROP(load)

/* The products of one block, with the loads of its upper half and, where NEXT keeps them, of the next block's lower. */
#define BLOCK_OF_TWO(NEXT)                                                                   \
    START_LOW(SET_A, 0, LOAD(2, 3, "query"), LOAD(12, 16, "row0"))                           \
    ADD_HIGH(SET_A, 0, LOAD(13, 17, "row1"), LOAD(14, 18, "row2"))                           \
    START_LOW(SET_B, 1, LOAD(15, 19, "row3"), "")                                            \
    END(SET_A)                                                                               \
    ADD_HIGH(SET_B, 1, "", "")                                                               \
    START_LOW(SET_A, 2, NEXT(AFTER(0, 1, "query")), NEXT(AFTER(4, 8, "row0")))                 \
    END(SET_B)                                                                               \
    ADD_HIGH(SET_A, 2, NEXT(AFTER(5, 9, "row1")), NEXT(AFTER(6, 10, "row2")))                  \
    START_LOW(SET_B, 3, NEXT(AFTER(7, 11, "row3")), "")                                       \
    END(SET_A)                                                                               \
    ADD_HIGH(SET_B, 3, "", "")                                                               \
    END(SET_B)

#define BLOCK_OF_THREE(NEXT)                                                                 \
    START_LOW(SET_A, 0, LOAD(2, 3, "query"), LOAD(12, 16, "row0"))                           \
    ADD_HIGH(SET_A, 0, LOAD(13, 17, "row1"), LOAD(14, 18, "row2"))                           \
    ADD_LOW(SET_A, 1, LOAD(15, 19, "row3"), "")                                              \
    START_HIGH(SET_B, 1, "", "")                                                             \
    END(SET_A)                                                                               \
    ADD_LOW(SET_B, 2, NEXT(AFTER(0, 1, "query")), NEXT(AFTER(4, 8, "row0")))                   \
    ADD_HIGH(SET_B, 2, NEXT(AFTER(5, 9, "row1")), NEXT(AFTER(6, 10, "row2")))                  \
    START_LOW(SET_A, 3, NEXT(AFTER(7, 11, "row3")), "")                                       \
    END(SET_B)                                                                               \
    ADD_HIGH(SET_A, 3, "", "")                                                               \
    END(SET_A)

#define BLOCK_OF_FOUR(NEXT)                                                                  \
    START_LOW(SET_A, 0, LOAD(2, 3, "query"), LOAD(12, 16, "row0"))                           \
    ADD_HIGH(SET_A, 0, LOAD(13, 17, "row1"), LOAD(14, 18, "row2"))                           \
    ADD_LOW(SET_A, 1, LOAD(15, 19, "row3"), "")                                              \
    ADD_HIGH(SET_A, 1, "", "")                                                               \
    START_LOW(SET_B, 2, NEXT(AFTER(0, 1, "query")), NEXT(AFTER(4, 8, "row0")))                 \
    END(SET_A)                                                                               \
    ADD_HIGH(SET_B, 2, NEXT(AFTER(5, 9, "row1")), NEXT(AFTER(6, 10, "row2")))                  \
    ADD_LOW(SET_B, 3, NEXT(AFTER(7, 11, "row3")), "")                                         \
    ADD_HIGH(SET_B, 3, "", "")                                                               \
    END(SET_B)

/* All whole blocks: the loads run half a block ahead, but never past the last. */
#define ADVANCE                               \
    "add %[query], %[query], #64\n\t"         \
    "add %[row0], %[row0], #64\n\t"           \
    "add %[row1], %[row1], #64\n\t"           \
    "add %[row2], %[row2], #64\n\t"           \
    "add %[row3], %[row3], #64\n\t"
#define LOOP(BLOCK)                           \
    "cbz %[more], 2f\n"                       \
    "1:\n\t" BLOCK(KEEP) ADVANCE              \
    "subs %[more], %[more], #1\n\t"           \
    "b.ne 1b\n"                               \
    "2:\n\t" BLOCK(DROP) ADVANCE
/* The same for 384 dimensions, without counting. */
#define SIX(BLOCK) ".rept 5\n\t" BLOCK(KEEP) ".set omega_at, omega_at + 64\n\t.endr\n\t" BLOCK(DROP)

#define ADD_BLOCKS(BLOCKS)                                                                                          \
    __asm__ volatile(".set omega_at, 0\n\t" FIRST(0, 1, "query") FIRST(4, 8, "row0") FIRST(5, 9, "row1")              \
                     FIRST(6, 10, "row2") FIRST(7, 11, "row3") BLOCKS \
                     : [sum0] "+w"(sums[0]), [sum1] "+w"(sums[1]), [sum2] "+w"(sums[2]), [sum3] "+w"(sums[3]),      \
                       [query] "+r"(query), [row0] "+r"(row0), [row1] "+r"(row1), [row2] "+r"(row2),                \
                       [row3] "+r"(row3), [more] "+r"(more)                                                         \
                     :                                                                                              \
                     : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13",      \
                       "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26",   \
                       "v27", "cc", "memory")
#define ADD_GROUPS(FORM)                    \
    if (groups == GROUPS_OF_FOUR)           \
        ADD_BLOCKS(FORM(BLOCK_OF_FOUR));    \
    else if (groups == GROUPS_OF_THREE)     \
        ADD_BLOCKS(FORM(BLOCK_OF_THREE));   \
    else                                    \
        ADD_BLOCKS(FORM(BLOCK_OF_TWO))

/* The 32 codes that a number of dimensions like 96 leaves, in groups of two. */
static inline int32x4_t add_rest(int32x4_t sum, const int8_t *row, const int8_t *query)
{
    for (size_t i = 0; i < 32; i += 16) {
        const int8x16_t codes = vld1q_s8(row + i), part = vld1q_s8(query + i);
        sum = vpadalq_s16(sum, vmlal_high_s8(vmull_s8(vget_low_s8(codes), vget_low_s8(part)), codes, part));
    }
    return sum;
}

static inline __attribute__((always_inline)) int32x4_t dot_four(const int8_t *row0, const int8_t *row1,
                                                                const int8_t *row2, const int8_t *row3,
                                                                const int8_t *query, size_t d, int groups)
{
    int32x4_t sums[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
    size_t more = d / 64 - 1;
    if (d == 384) {
        ADD_GROUPS(SIX);
    } else if (d >= 64) {
        ADD_GROUPS(LOOP);
    }
    if (d % 64) {
        sums[0] = add_rest(sums[0], row0, query);
        sums[1] = add_rest(sums[1], row1, query);
        sums[2] = add_rest(sums[2], row2, query);
        sums[3] = add_rest(sums[3], row3, query);
    }
    return vpaddq_s32(vpaddq_s32(sums[0], sums[1]), vpaddq_s32(sums[2], sums[3]));
}

static inline __attribute__((always_inline)) void next_grouped(const int8_t *codes, size_t d, size_t rows,
                                                               const int8_t *query, int groups, int32_t *out)
{
    for (const int8_t *row = codes, *end = codes + rows * d; row != end; row += 4 * d, out += 4)
        vst1q_s32(out, dot_four(row, row + d, row + 2 * d, row + 3 * d, query, d, groups));
}

static inline __attribute__((always_inline)) void next_rows(const int8_t *codes, size_t d, size_t rows,
                                                            const query_form *query, int32_t *out)
{
    if (query->groups == GROUPS_OF_FOUR)
        next_grouped(codes, d, rows, query->codes, GROUPS_OF_FOUR, out);
    else if (query->groups == GROUPS_OF_THREE)
        next_grouped(codes, d, rows, query->codes, GROUPS_OF_THREE, out);
    else
        next_grouped(codes, d, rows, query->codes, GROUPS_OF_TWO, out);
}

/* rows is a multiple of four. */
static void dots_next(const int8_t *codes, size_t d, size_t rows, const query_form *query, int32_t *out)
{
    if (d == 384) /* a constant for the loops inside */
        next_rows(codes, 384, rows, query, out);
    else
        next_rows(codes, d, rows, query, out);
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
        vst1q_s32(out + i, dot_four(row[0], row[1], row[2], row[3], query->codes, d, query->groups));
    }
}

/* The products of 16 * parts codes; groups, a constant, says where the int16 lanes are summed. */
static inline __attribute__((always_inline)) void add_joined(int32x4_t sums[4], const uint8_t *const high[4],
                                                             const uint8_t *const low[4], const int8_t *query, size_t i,
                                                             size_t parts, int groups)
{
    int8x16x2_t codes[4];
    int16x8_t lanes[4];
    int start = 1;
#pragma GCC unroll 4
    for (size_t part = 0; part < parts; part++) {
        const int8x16_t sixteen = vld1q_s8(query + i + 16 * part);
        for (size_t lane = 0; lane < 4; lane++) {
            if (part % 2 == 0)
                codes[lane] = join_halves(high[lane] + i / 2 + 8 * part, low[lane] + i / 2 + 8 * part);
            const int8x16_t some = codes[lane].val[part % 2];
            const int8x8_t lower = vget_low_s8(some), with = vget_low_s8(sixteen);
            lanes[lane] = start ? vmull_s8(lower, with) : vmlal_s8(lanes[lane], lower, with);
            if (groups >> 2 * part & 1) {
                sums[lane] = vpadalq_s16(sums[lane], lanes[lane]);
                lanes[lane] = vmull_high_s8(some, sixteen);
            } else {
                lanes[lane] = vmlal_high_s8(lanes[lane], some, sixteen);
            }
            if (groups >> (2 * part + 1) & 1 || part + 1 == parts)
                sums[lane] = vpadalq_s16(sums[lane], lanes[lane]);
        }
        start = groups >> (2 * part + 1) & 1;
    }
}

static inline __attribute__((always_inline)) int32x4_t joined_grouped(const uint8_t *const high[4],
                                                                      const uint8_t *const low[4], const int8_t *query,
                                                                      size_t d, int groups)
{
    int32x4_t sums[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
    size_t i = 0;
    for (; i + 64 <= d; i += 64)
        add_joined(sums, high, low, query, i, 4, groups);
    if (i < d)
        add_joined(sums, high, low, query, i, 2, groups);
    return vpaddq_s32(vpaddq_s32(sums[0], sums[1]), vpaddq_s32(sums[2], sums[3]));
}

static int32x4_t joined_dots_four(const uint8_t *const high[4], const uint8_t *const low[4], const query_form *query,
                                  size_t d)
{
    if (query->groups == GROUPS_OF_FOUR)
        return joined_grouped(high, low, query->codes, d, GROUPS_OF_FOUR);
    if (query->groups == GROUPS_OF_THREE)
        return joined_grouped(high, low, query->codes, d, GROUPS_OF_THREE);
    return joined_grouped(high, low, query->codes, d, GROUPS_OF_TWO);
}

#include "kernels_neon.h"
#include "scan_neon.h"
#include "sequence.h"
#include "trees.h"

/* max|vector|, or 0 where it is zero, infinite or NaN somewhere: no such vector has a code. */
static float greatest_magnitude(const float *vector, size_t d)
{
    float32x4_t greatest = vdupq_n_f32(0.0f);
    for (size_t i = 0; i < d; i += 4)
        greatest = vmaxq_f32(greatest, vabsq_f32(vld1q_f32(vector + i))); /* FMAX passes a NaN on */
    const float best = vmaxvq_f32(greatest);
    return best <= FLT_MAX ? best : 0.0f;
}

size_t omega_neon_quantise(const float *vectors, size_t n, size_t d, int8_t *codes_out, float *scale_out)
{
    for (size_t row = 0; row < n; row++) {
        const float *vector = vectors + row * d;
        const float greatest = greatest_magnitude(vector, d);
        if (greatest == 0.0f)
            return row;
        const double factor = 127.0 / (double)greatest;
        int32x4_t squares = vdupq_n_s32(0);
        for (size_t i = 0; i < d; i += 8) {
            int16x4_t words[2];
            for (size_t four = 0; four < 2; four++) {
                const float32x4_t values = vld1q_f32(vector + i + 4 * four);
                const float64x2_t low = vmulq_n_f64(vcvt_f64_f32(vget_low_f32(values)), factor);
                const float64x2_t high = vmulq_n_f64(vcvt_high_f64_f32(values), factor);
                words[four] = vmovn_s32(vcombine_s32(vmovn_s64(vcvtnq_s64_f64(low)), vmovn_s64(vcvtnq_s64_f64(high))));
                squares = vmlal_s16(squares, words[four], words[four]);
            }
            vst1_s8(codes_out + row * d + i, vmovn_s16(vcombine_s16(words[0], words[1])));
        }
        scale_out[row] = (float)(1.0 / sqrt((double)vaddvq_s32(squares)));
    }
    return n;
}

/* The contract's sum for rows row .. row + 15. */
static inline void fused_lanes(const float *const *features, size_t f, const float *weights, size_t row,
                               float32x4_t sums[4])
{
    for (size_t four = 0; four < 4; four++)
        sums[four] = vdupq_n_f32(0.0f);
    for (size_t feature = 0; feature < f; feature++) {
        const float *values = features[feature] + row;
        for (size_t four = 0; four < 4; four++)
            sums[four] = vaddq_f32(sums[four], vmulq_n_f32(vld1q_f32(values + 4 * four), weights[feature]));
    }
}

void omega_neon_fuse(const float *const *features, size_t f, size_t n, const float *weights, float *out)
{
    size_t row = 0;
    for (; row + LANES <= n; row += LANES) {
        float32x4_t sums[4];
        fused_lanes(features, f, weights, row, sums);
        for (size_t four = 0; four < 4; four++)
            vst1q_f32(out + row + 4 * four, sums[four]);
    }
    for (; row < n; row++)
        out[row] = omega_fused_row(features, f, weights, row);
}

size_t omega_neon_fuse_top_k(const float *const *features, size_t f, size_t n, const float *weights,
                             const uint8_t *filter, size_t k, uint64_t *workspace, uint32_t *rows_out,
                             float *scores_out)
{
    top_k best = top_k_begin(k < n ? k : n, workspace);
    size_t row = 0;
    for (; row + LANES <= n; row += LANES) {
        const uint64_t allowed = filter ? allowed_lanes(filter, row) : UINT64_MAX;
        if (!allowed)
            continue;
        float32x4_t sums[4];
        fused_lanes(features, f, weights, row, sums);
        const uint64_t bits = lanes_above(sums, best.threshold) & allowed;
        if (bits)
            offer_lanes(&best, sums, bits, NULL, row);
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

const omega_kernels omega_kernels_neon = {
    .isa = "neon",
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
    .search_halves = omega_neon_search_halves,
    .search_batch = omega_neon_search_batch,
    .put_signs = omega_neon_put_signs,
    .search_two_stage = search_two_stage,
    .rescore = omega_neon_rescore,
    .rank = omega_neon_rank,
    .sequence_events = omega_neon_sequence_events,
    .sequence_states = omega_neon_sequence_states,
};

#else
typedef int omega_no_neon; /* ISO C wants a declaration in every file */
#endif
