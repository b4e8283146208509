/* Sixteen rows in AVX2 registers, and the sums that scan_walk.h asks for. Included by files that set the target. */
#ifndef OMEGA_EDGE_LANES_AVX2_H
#define OMEGA_EDGE_LANES_AVX2_H

#include <immintrin.h>

#include "kernels.h"
#include "scan.h"
#include "top_k.h"

typedef struct {
    __m256 lower, upper;
} float_lanes;

typedef struct {
    __m256i lower, upper;
} int_lanes;

/* Scores of the 32 rows of a block of signs: rows 0 to 15, rows 16 to 31. */
typedef struct {
    __m256i lower, upper;
} sign_lanes;

static inline float_lanes lanes_load(const float *values)
{
    return (float_lanes){_mm256_loadu_ps(values), _mm256_loadu_ps(values + 8)};
}

static inline void lanes_store(float *values, float_lanes x)
{
    _mm256_storeu_ps(values, x.lower);
    _mm256_storeu_ps(values + 8, x.upper);
}

static inline float_lanes lanes_all(float value)
{
    return (float_lanes){_mm256_set1_ps(value), _mm256_set1_ps(value)};
}

static inline float_lanes lanes_add(float_lanes x, float_lanes y)
{
    return (float_lanes){_mm256_add_ps(x.lower, y.lower), _mm256_add_ps(x.upper, y.upper)};
}

static inline float_lanes lanes_subtract(float_lanes x, float_lanes y)
{
    return (float_lanes){_mm256_sub_ps(x.lower, y.lower), _mm256_sub_ps(x.upper, y.upper)};
}

static inline float_lanes lanes_multiply(float_lanes x, float_lanes y)
{
    return (float_lanes){_mm256_mul_ps(x.lower, y.lower), _mm256_mul_ps(x.upper, y.upper)};
}

static inline uint32_t lanes_mask(__m256 lower, __m256 upper)
{
    return (uint32_t)_mm256_movemask_ps(lower) | (uint32_t)_mm256_movemask_ps(upper) << 8;
}

static inline uint32_t lanes_at_least(float_lanes x, float_lanes y)
{
    return lanes_mask(_mm256_cmp_ps(x.lower, y.lower, _CMP_GE_OQ), _mm256_cmp_ps(x.upper, y.upper, _CMP_GE_OQ));
}

/* At least, or one is NaN. */
static inline uint32_t lanes_not_below(float_lanes x, float_lanes y)
{
    return lanes_mask(_mm256_cmp_ps(x.lower, y.lower, _CMP_NLT_UQ), _mm256_cmp_ps(x.upper, y.upper, _CMP_NLT_UQ));
}

/* x where y < limit, else 0. */
static inline float_lanes lanes_where_below(float_lanes x, float_lanes y, float limit)
{
    const __m256 most = _mm256_set1_ps(limit);
    return (float_lanes){_mm256_and_ps(x.lower, _mm256_cmp_ps(y.lower, most, _CMP_LT_OQ)),
                         _mm256_and_ps(x.upper, _mm256_cmp_ps(y.upper, most, _CMP_LT_OQ))};
}

static inline float_lanes lanes_from_ints(int_lanes x)
{
    return (float_lanes){_mm256_cvtepi32_ps(x.lower), _mm256_cvtepi32_ps(x.upper)};
}

static inline int_lanes lanes_truncate(float_lanes x)
{
    return (int_lanes){_mm256_cvttps_epi32(x.lower), _mm256_cvttps_epi32(x.upper)};
}

/* The halves of 16 bits are exact in a float, and so is the upper one times 65536: their sum rounds once. */
static inline __m256 float_of_unsigned(__m256i x)
{
    const __m256 upper = _mm256_cvtepi32_ps(_mm256_srli_epi32(x, 16));
    const __m256 lower = _mm256_cvtepi32_ps(_mm256_and_si256(x, _mm256_set1_epi32(65535)));
    return _mm256_add_ps(_mm256_mul_ps(upper, _mm256_set1_ps(65536.0f)), lower);
}

static inline float_lanes lanes_from_unsigned(int_lanes x)
{
    return (float_lanes){float_of_unsigned(x.lower), float_of_unsigned(x.upper)};
}

static inline int_lanes ints_load(const void *values)
{
    const __m256i *at = values;
    return (int_lanes){_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}

static inline int_lanes ints_all(int32_t value)
{
    return (int_lanes){_mm256_set1_epi32(value), _mm256_set1_epi32(value)};
}

static inline int_lanes ints_from(uint32_t first)
{
    const __m256i start = _mm256_set1_epi32((int32_t)first);
    return (int_lanes){_mm256_add_epi32(start, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
                       _mm256_add_epi32(start, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))};
}

static inline int_lanes ints_add(int_lanes x, int_lanes y)
{
    return (int_lanes){_mm256_add_epi32(x.lower, y.lower), _mm256_add_epi32(x.upper, y.upper)};
}

static inline int_lanes ints_times_16(int_lanes x)
{
    return (int_lanes){_mm256_slli_epi32(x.lower, 4), _mm256_slli_epi32(x.upper, 4)};
}

/* Sixteen bytes times a factor below 2^15. */
static inline int_lanes ints_from_bytes_times(const uint8_t *bytes, int32_t factor)
{
    const __m256i lower = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)bytes));
    const __m256i upper = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(bytes + 8)));
    return (int_lanes){_mm256_madd_epi16(lower, _mm256_set1_epi32(factor)),
                       _mm256_madd_epi16(upper, _mm256_set1_epi32(factor))};
}

/* max(now - time, 0), unsigned. */
static inline int_lanes ints_since(uint32_t now, const uint32_t *time)
{
    const __m256i end = _mm256_set1_epi32((int32_t)now);
    const int_lanes at = ints_load(time);
    return (int_lanes){_mm256_sub_epi32(end, _mm256_min_epu32(at.lower, end)),
                       _mm256_sub_epi32(end, _mm256_min_epu32(at.upper, end))};
}

/* 2^-x for x below 127. */
static inline float_lanes lanes_power_of_half(int_lanes x)
{
    const __m256i bias = _mm256_set1_epi32(127);
    return (float_lanes){_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_sub_epi32(bias, x.lower), 23)),
                         _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_sub_epi32(bias, x.upper), 23))};
}

/* The lanes of a mask, to be listed one after another: lane i of a list's first part is lane order[i] of lower. */
typedef struct {
    __m256i lower_order, upper_order;
    int lower_count;
} kept_lanes;

/* The numbers of the bits set, each in four bits, spread over eight lanes; a permutation reads three bits of each. */
static inline __m256i order_of(uint32_t mask)
{
    const uint32_t fours = _pdep_u32(mask, 0x11111111u) * 15;
    const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    return _mm256_srlv_epi32(_mm256_set1_epi32((int32_t)_pext_u32(0x76543210u, fours)), shifts);
}

static inline kept_lanes lanes_to_keep(uint32_t mask)
{
    return (kept_lanes){order_of(mask & 255), order_of(mask >> 8), __builtin_popcount(mask & 255)};
}

/* Writes up to sixteen elements, of which the kept ones come first. */
static inline void keep_ints(void *values, int_lanes x, kept_lanes kept)
{
    uint32_t *at = values;
    _mm256_storeu_si256((__m256i *)at, _mm256_permutevar8x32_epi32(x.lower, kept.lower_order));
    _mm256_storeu_si256((__m256i *)(at + kept.lower_count), _mm256_permutevar8x32_epi32(x.upper, kept.upper_order));
}

static inline void keep_lanes(float *values, float_lanes x, kept_lanes kept)
{
    _mm256_storeu_ps(values, _mm256_permutevar8x32_ps(x.lower, kept.lower_order));
    _mm256_storeu_ps(values + kept.lower_count, _mm256_permutevar8x32_ps(x.upper, kept.upper_order));
}

/* Appends the rows of the mask. */
static inline void lanes_offer(top_k *best, uint32_t mask, int_lanes rows, float_lanes scores)
{
    uint32_t row[16];
    float score[16];
    _mm256_storeu_si256((__m256i *)row, rows.lower);
    _mm256_storeu_si256((__m256i *)(row + 8), rows.upper);
    lanes_store(score, scores);
    for (; mask; mask &= mask - 1) {
        const int lane = __builtin_ctz(mask);
        top_k_append(best, score[lane], row[lane]);
    }
}

/* A query as the half bytes lie: byte i is what the lower, or the upper, half of a row's byte i is multiplied by. The
 * bytes past the last are zero, so that a register half full adds nothing. */
typedef struct {
    _Alignas(32) int8_t lower[OMEGA_MAX_DIMENSIONS / 2];
    _Alignas(32) int8_t upper[OMEGA_MAX_DIMENSIONS / 2];
} halved_query;

static inline void halve_query(const int8_t *query, size_t d, halved_query *halves)
{
    for (size_t i = 0; i < d / 2; i += 16) {
        const __m256i codes = _mm256_loadu_si256((const __m256i *)(query + 2 * i));
        _mm_store_si128((__m128i *)(halves->lower + i), _mm256_castsi256_si128(codes));
        _mm_store_si128((__m128i *)(halves->upper + i), _mm256_extracti128_si256(codes, 1));
    }
    if (d % 64) {
        _mm_store_si128((__m128i *)(halves->lower + d / 2), _mm_setzero_si128());
        _mm_store_si128((__m128i *)(halves->upper + d / 2), _mm_setzero_si128());
    }
}

/* A pair of products is at most 2 * 15 * 127 = 3810 from zero: eight of them, 30480, fit an int16. */
static inline __m256i add_half_products(__m256i sums, __m256i bytes, __m256i lower, __m256i upper)
{
    const __m256i half = _mm256_set1_epi8(15);
    const __m256i first = _mm256_maddubs_epi16(_mm256_and_si256(bytes, half), lower);
    const __m256i second = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), half), upper);
    return _mm256_add_epi16(sums, _mm256_add_epi16(first, second));
}

/* sum(q * half) of four rows of a plane: every fourth register, or the last, the int16 sums go into int32. */
static ALWAYS_INLINE __m128i half_sums_four(const uint8_t *const row[4], const halved_query *query, size_t d)
{
    const __m256i ones = _mm256_set1_epi16(1);
    const size_t bytes = d / 2, whole = bytes & ~(size_t)31;
    __m256i sums[4];
    for (int i = 0; i < 4; i++)
        sums[i] = _mm256_setzero_si256();
    for (size_t at = 0; at < bytes;) {
        __m256i short_sums[4];
        for (int i = 0; i < 4; i++)
            short_sums[i] = _mm256_setzero_si256();
        const size_t end = at + 128 < whole ? at + 128 : whole;
        if (at == whole) { /* sixteen bytes are left */
            const __m256i lower = _mm256_load_si256((const __m256i *)(query->lower + at));
            const __m256i upper = _mm256_load_si256((const __m256i *)(query->upper + at));
            for (int i = 0; i < 4; i++) {
                const __m256i half = _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)(row[i] + at)));
                short_sums[i] = add_half_products(short_sums[i], half, lower, upper);
            }
            at += 16;
        }
        for (; at < end; at += 32) {
            const __m256i lower = _mm256_load_si256((const __m256i *)(query->lower + at));
            const __m256i upper = _mm256_load_si256((const __m256i *)(query->upper + at));
            for (int i = 0; i < 4; i++) {
                const __m256i half = _mm256_loadu_si256((const __m256i *)(row[i] + at));
                short_sums[i] = add_half_products(short_sums[i], half, lower, upper);
            }
        }
        for (int i = 0; i < 4; i++)
            sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(short_sums[i], ones));
    }
    const __m256i four = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]), _mm256_hadd_epi32(sums[2], sums[3]));
    return _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
}

/* The same of sixteen rows, one after another. */
static ALWAYS_INLINE int_lanes half_sums_next(const uint8_t *rows, const halved_query *query, size_t d)
{
    __m128i sums[4];
    for (int i = 0; i < 4; i++, rows += 2 * d) {
        const uint8_t *const row[4] = {rows, rows + d / 2, rows + d, rows + d + d / 2};
        sums[i] = half_sums_four(row, query, d);
    }
    return (int_lanes){_mm256_set_m128i(sums[1], sums[0]), _mm256_set_m128i(sums[3], sums[2])};
}

/* The same of up to sixteen rows named by number; the lanes past count hold anything. */
static ALWAYS_INLINE int_lanes half_sums_listed(const uint8_t *plane, const uint32_t *rows, size_t count,
                                                const halved_query *query, size_t d)
{
    __m128i sums[4];
    for (size_t i = 0; i < 4; i++) {
        sums[i] = _mm_setzero_si128();
        if (4 * i < count) {
            const uint8_t *row[4];
            for (size_t lane = 0; lane < 4; lane++)
                row[lane] = plane + rows[4 * i + lane < count ? 4 * i + lane : count - 1] * (d / 2);
            sums[i] = half_sums_four(row, query, d);
        }
    }
    return (int_lanes){_mm256_set_m128i(sums[1], sums[0]), _mm256_set_m128i(sums[3], sums[2])};
}

static inline __m256i look_up(const uint8_t *groups, __m256i table, int upper)
{
    const __m256i bytes = _mm256_loadu_si256((const __m256i *)groups);
    const __m256i index = upper ? _mm256_srli_epi16(bytes, 4) : bytes;
    return _mm256_shuffle_epi8(table, _mm256_and_si256(index, _mm256_set1_epi8(15)));
}

/* Sums of 16-bit words, each two rows' bytes, are kept whole (modulo 2^16) and of the upper bytes alone: the lower
 * bytes' sum is what is left. Returns the rows in order; the two lanes of the registers are two groups. */
static inline __m256i sign_totals(__m256i whole, __m256i odd)
{
    const __m256i even = _mm256_sub_epi16(whole, _mm256_slli_epi16(odd, 8));
    const __m128i even_rows = _mm_add_epi16(_mm256_castsi256_si128(even), _mm256_extracti128_si256(even, 1));
    const __m128i odd_rows = _mm_add_epi16(_mm256_castsi256_si128(odd), _mm256_extracti128_si256(odd, 1));
    return _mm256_set_m128i(_mm_unpackhi_epi16(even_rows, odd_rows), _mm_unpacklo_epi16(even_rows, odd_rows));
}

/* The first stage's scores of one block. Four look-ups of at most 63 fit a byte: 252. */
static ALWAYS_INLINE sign_lanes sign_scores(const uint8_t *block, const uint8_t *tables, size_t d)
{
    __m256i lower = _mm256_setzero_si256(), upper = lower, lower_odd = lower, upper_odd = lower;
    for (size_t at = 0; at < 4 * d; at += 128) { /* eight groups; d / 4 is a multiple of eight */
        __m256i first = _mm256_setzero_si256(), second = first;
        for (size_t i = at; i < at + 128; i += 32) {
            const __m256i table = _mm256_load_si256((const __m256i *)(tables + i));
            first = _mm256_add_epi8(first, look_up(block + i, table, 0));
            second = _mm256_add_epi8(second, look_up(block + i, table, 1));
        }
        lower = _mm256_add_epi16(lower, first);
        upper = _mm256_add_epi16(upper, second);
        lower_odd = _mm256_add_epi16(lower_odd, _mm256_srli_epi16(first, 8));
        upper_odd = _mm256_add_epi16(upper_odd, _mm256_srli_epi16(second, 8));
    }
    return (sign_lanes){sign_totals(lower, lower_odd), sign_totals(upper, upper_odd)};
}

/* A bit for each row whose score is above; scores are below 2^14. */
static inline uint32_t signs_above(sign_lanes scores, int32_t least)
{
    const __m256i threshold = _mm256_set1_epi16((int16_t)least);
    const __m256i lower = _mm256_cmpgt_epi16(scores.lower, threshold);
    const __m256i upper = _mm256_cmpgt_epi16(scores.upper, threshold);
    /* Packing takes turns between the registers' halves. */
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(lower, upper), _MM_SHUFFLE(3, 1, 2, 0));
    return (uint32_t)_mm256_movemask_epi8(bytes);
}

static inline void signs_store(uint16_t *values, sign_lanes scores)
{
    _mm256_storeu_si256((__m256i *)values, scores.lower);
    _mm256_storeu_si256((__m256i *)(values + 16), scores.upper);
}

#endif
