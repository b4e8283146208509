/* Sixteen rows in one AVX-512 register, and the sums that scan_walk.h asks for. Its includer sets the target. */
#ifndef OMEGA_EDGE_LANES_AVX512_H
#define OMEGA_EDGE_LANES_AVX512_H

#include <immintrin.h>

#include "kernels.h"
#include "scan.h"
#include "top_k.h"

#define SMALL_TABLE_ROWS 2048 /* whose two planes are read together */

typedef __m512 float_lanes;
typedef __m512i int_lanes;
typedef __m512i sign_lanes; /* scores of the 32 rows of a block of signs */

static inline float_lanes lanes_load(const float *values)
{
    return _mm512_loadu_ps(values);
}

static inline void lanes_store(float *values, float_lanes x)
{
    _mm512_storeu_ps(values, x);
}

static inline float_lanes lanes_all(float value)
{
    return _mm512_set1_ps(value);
}

static inline float_lanes lanes_add(float_lanes x, float_lanes y)
{
    return _mm512_add_ps(x, y);
}

static inline float_lanes lanes_subtract(float_lanes x, float_lanes y)
{
    return _mm512_sub_ps(x, y);
}

static inline float_lanes lanes_multiply(float_lanes x, float_lanes y)
{
    return _mm512_mul_ps(x, y);
}

static inline uint32_t lanes_at_least(float_lanes x, float_lanes y)
{
    return _mm512_cmp_ps_mask(x, y, _CMP_GE_OQ);
}

static inline uint32_t lanes_not_below(float_lanes x, float_lanes y)
{
    return _mm512_cmp_ps_mask(x, y, _CMP_NLT_UQ);
}

static inline float_lanes lanes_where_below(float_lanes x, float_lanes y, float limit)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, _mm512_set1_ps(limit), _CMP_LT_OQ), x);
}

static inline float_lanes lanes_from_ints(int_lanes x)
{
    return _mm512_cvtepi32_ps(x);
}

static inline int_lanes lanes_truncate(float_lanes x)
{
    return _mm512_cvttps_epi32(x);
}

static inline float_lanes lanes_from_unsigned(int_lanes x)
{
    return _mm512_cvtepu32_ps(x);
}

static inline int_lanes ints_load(const void *values)
{
    return _mm512_loadu_si512(values);
}

static inline int_lanes ints_all(int32_t value)
{
    return _mm512_set1_epi32(value);
}

static inline int_lanes ints_from(uint32_t first)
{
    const __m512i count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_add_epi32(_mm512_set1_epi32((int32_t)first), count);
}

static inline int_lanes ints_add(int_lanes x, int_lanes y)
{
    return _mm512_add_epi32(x, y);
}

static inline int_lanes ints_times_16(int_lanes x)
{
    return _mm512_slli_epi32(x, 4);
}

static inline int_lanes ints_from_bytes_times(const uint8_t *bytes, int32_t factor)
{
    const __m512i values = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)bytes));
    return _mm512_madd_epi16(values, _mm512_set1_epi32(factor));
}

static inline int_lanes ints_since(uint32_t now, const uint32_t *time)
{
    const __m512i end = _mm512_set1_epi32((int32_t)now);
    return _mm512_sub_epi32(end, _mm512_min_epu32(_mm512_loadu_si512(time), end));
}

static inline float_lanes lanes_power_of_half(int_lanes x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(127), x), 23));
}

/* The lanes of a mask, to be listed one after another. */
typedef __mmask16 kept_lanes;

static inline kept_lanes lanes_to_keep(uint32_t mask)
{
    return (__mmask16)mask;
}

/* Writes sixteen elements, of which the kept ones come first. */
static inline void keep_ints(void *values, int_lanes x, kept_lanes kept)
{
    _mm512_storeu_si512(values, _mm512_maskz_compress_epi32(kept, x));
}

static inline void keep_lanes(float *values, float_lanes x, kept_lanes kept)
{
    _mm512_storeu_ps(values, _mm512_maskz_compress_ps(kept, x));
}

/* Appends the rows of the mask: their keys are made and moved together by registers, as top_k_key makes them. */
static inline void lanes_offer(top_k *best, uint32_t mask, int_lanes rows, float_lanes scores)
{
    if (best->count + 16 > best->capacity) {
        top_k_select(best->keys, best->count, best->k);
        best->count = best->k;
        best->threshold = top_k_score(best->keys[best->k - 1]);
    }
    const __m512i bits = _mm512_castps_si512(scores);
    const __m512i flipped = _mm512_or_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(INT32_MIN));
    const __m512i order = _mm512_xor_si512(bits, flipped), last = _mm512_xor_si512(rows, _mm512_set1_epi32(-1));
    const __m512i first_keys = _mm512_or_si512(
        _mm512_slli_epi64(_mm512_cvtepu32_epi64(_mm512_castsi512_si256(order)), 32),
        _mm512_cvtepu32_epi64(_mm512_castsi512_si256(last)));
    const __m512i second_keys = _mm512_or_si512(
        _mm512_slli_epi64(_mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(order, 1)), 32),
        _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(last, 1)));
    _mm512_storeu_si512(best->keys + best->count, _mm512_maskz_compress_epi64((__mmask8)mask, first_keys));
    best->count += (size_t)__builtin_popcount(mask & 255);
    _mm512_storeu_si512(best->keys + best->count, _mm512_maskz_compress_epi64((__mmask8)(mask >> 8), second_keys));
    best->count += (size_t)__builtin_popcount(mask >> 8);
}

/* A query as the half bytes lie: byte i is what the lower, or the upper, half of a row's byte i is multiplied by. The
 * bytes past the last are zero, so that a register partly full adds nothing. */
typedef struct {
    _Alignas(64) int8_t lower[OMEGA_MAX_DIMENSIONS / 2];
    _Alignas(64) int8_t upper[OMEGA_MAX_DIMENSIONS / 2];
} halved_query;

static inline void halve_query(const int8_t *query, size_t d, halved_query *halves)
{
    size_t i = 0;
    for (; i < d / 2; i += 16) {
        const __m256i codes = _mm256_loadu_si256((const __m256i *)(query + 2 * i));
        _mm_store_si128((__m128i *)(halves->lower + i), _mm256_castsi256_si128(codes));
        _mm_store_si128((__m128i *)(halves->upper + i), _mm256_extracti128_si256(codes, 1));
    }
    for (; i % 64; i += 16) {
        _mm_store_si128((__m128i *)(halves->lower + i), _mm_setzero_si128());
        _mm_store_si128((__m128i *)(halves->upper + i), _mm_setzero_si128());
    }
}

/* Four partial sums of each of four rows: lane 4j + i is part j of row i. */
static inline __m512i four_parts(const __m512i sums[4])
{
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(sums[0], sums[1]),
                                       _mm512_unpackhi_epi32(sums[0], sums[1]));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(sums[2], sums[3]),
                                       _mm512_unpackhi_epi32(sums[2], sums[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/* The upper halves are left where they are: their sums are multiples of 16, at most 240 * 127 * 1024 < 2^25. */
static inline void add_half_products(__m512i *lower, __m512i *upper, __m512i bytes, const halved_query *query,
                                     size_t at)
{
    const __m512i half = _mm512_set1_epi8(15);
    *lower = _mm512_dpbusd_epi32(*lower, _mm512_and_si512(bytes, half), _mm512_load_si512(query->lower + at));
    *upper = _mm512_dpbusd_epi32(*upper, _mm512_andnot_si512(half, bytes), _mm512_load_si512(query->upper + at));
}

/* sum(q * half) of four rows of a plane, four partial sums a row. */
static ALWAYS_INLINE __m512i half_sums_four(const uint8_t *const row[4], const halved_query *query, size_t d)
{
    const size_t bytes = d / 2;
    __m512i first[4], second[4], sums[4];
    for (int i = 0; i < 4; i++)
        first[i] = second[i] = _mm512_setzero_si512();
    size_t at = 0;
    for (; at + 64 <= bytes; at += 64)
        for (int i = 0; i < 4; i++)
            add_half_products(&first[i], &second[i], _mm512_loadu_si512(row[i] + at), query, at);
    if (at < bytes) {
        const __mmask64 inside = ((__mmask64)1 << (bytes - at)) - 1;
        for (int i = 0; i < 4; i++)
            add_half_products(&first[i], &second[i], _mm512_maskz_loadu_epi8(inside, row[i] + at), query, at);
    }
    for (int i = 0; i < 4; i++)
        sums[i] = _mm512_add_epi32(first[i], _mm512_srai_epi32(second[i], 4));
    return four_parts(sums);
}

/* Adds the four partial sums of four times four rows. */
static inline __m512i add_parts(const __m512i parts[4])
{
    const __m512i a = _mm512_add_epi32(_mm512_shuffle_i32x4(parts[0], parts[1], 0x88),
                                       _mm512_shuffle_i32x4(parts[0], parts[1], 0xdd));
    const __m512i b = _mm512_add_epi32(_mm512_shuffle_i32x4(parts[2], parts[3], 0x88),
                                       _mm512_shuffle_i32x4(parts[2], parts[3], 0xdd));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

/* The same of sixteen rows, one after another. */
static ALWAYS_INLINE int_lanes half_sums_next(const uint8_t *rows, const halved_query *query, size_t d)
{
    __m512i parts[4];
    for (int i = 0; i < 4; i++, rows += 2 * d) {
        const uint8_t *const row[4] = {rows, rows + d / 2, rows + d, rows + d + d / 2};
        parts[i] = half_sums_four(row, query, d);
    }
    return add_parts(parts);
}

/* sum(q * (code + 128)) of sixteen rows, one after another, whose halves are put together in registers: half the
 * products. Where a row has no byte, the query has zeros. */
static ALWAYS_INLINE int_lanes raised_sums_next(const uint8_t *high, const uint8_t *low, const halved_query *query,
                                                size_t d)
{
    const __m512i half = _mm512_set1_epi8(15);
    const size_t bytes = d / 2;
    __m512i parts[4];
    for (int i = 0; i < 4; i++) {
        __m512i sums[4];
        for (int row = 0; row < 4; row++, high += bytes, low += bytes) {
            sums[row] = _mm512_setzero_si512();
            for (size_t at = 0; at < bytes; at += 64) {
                const __mmask64 inside = bytes - at < 64 ? ((__mmask64)1 << (bytes - at)) - 1 : ~(__mmask64)0;
                const __m512i h = _mm512_maskz_loadu_epi8(inside, high + at);
                const __m512i l = _mm512_maskz_loadu_epi8(inside, low + at);
                /* Where half has ones: of l in the first, of the shifted l in the second; h elsewhere. */
                const __m512i lower = _mm512_ternarylogic_epi32(_mm512_slli_epi16(h, 4), half, l, 0xb8);
                const __m512i upper = _mm512_ternarylogic_epi32(_mm512_srli_epi16(l, 4), half, h, 0xe2);
                sums[row] = _mm512_dpbusd_epi32(sums[row], lower, _mm512_load_si512(query->lower + at));
                sums[row] = _mm512_dpbusd_epi32(sums[row], upper, _mm512_load_si512(query->upper + at));
            }
        }
        parts[i] = four_parts(sums);
    }
    return add_parts(parts);
}

/* The same of up to sixteen rows named by number; the lanes past count hold anything. */
static ALWAYS_INLINE int_lanes half_sums_listed(const uint8_t *plane, const uint32_t *rows, size_t count,
                                                const halved_query *query, size_t d)
{
    __m512i parts[4];
    for (size_t i = 0; i < 4; i++) {
        parts[i] = _mm512_setzero_si512();
        if (4 * i < count) {
            const uint8_t *row[4];
            for (size_t lane = 0; lane < 4; lane++)
                row[lane] = plane + rows[4 * i + lane < count ? 4 * i + lane : count - 1] * (d / 2);
            parts[i] = half_sums_four(row, query, d);
        }
    }
    return add_parts(parts);
}

/* The first stage's scores of one block. Four look-ups of at most 63 fit a byte: 252. Sums of 16-bit words, each two
 * rows' bytes, are kept whole (modulo 2^16) and of the upper bytes alone: the lower bytes' sum is what is left. */
static ALWAYS_INLINE sign_lanes sign_scores(const uint8_t *block, const uint8_t *tables, size_t d)
{
    const __m512i half = _mm512_set1_epi8(15);
    __m512i lower = _mm512_setzero_si512(), upper = lower, lower_odd = lower, upper_odd = lower;
    for (size_t at = 0; at < 4 * d;) {
        const size_t end = at + 256 < 4 * d ? at + 256 : 4 * d; /* four groups a register */
        __m512i first = _mm512_setzero_si512(), second = first;
        for (; at < end; at += 64) {
            const __m512i table = _mm512_load_si512(tables + at), bytes = _mm512_loadu_si512(block + at);
            const __m512i index = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), half);
            first = _mm512_add_epi8(first, _mm512_shuffle_epi8(table, _mm512_and_si512(bytes, half)));
            second = _mm512_add_epi8(second, _mm512_shuffle_epi8(table, index));
        }
        lower = _mm512_add_epi16(lower, first);
        upper = _mm512_add_epi16(upper, second);
        lower_odd = _mm512_add_epi16(lower_odd, _mm512_srli_epi16(first, 8));
        upper_odd = _mm512_add_epi16(upper_odd, _mm512_srli_epi16(second, 8));
    }
    const __m512i parts[4] = {_mm512_sub_epi16(lower, _mm512_slli_epi16(lower_odd, 8)), lower_odd,
                              _mm512_sub_epi16(upper, _mm512_slli_epi16(upper_odd, 8)), upper_odd};
    /* The sums of 32-bit lanes add pairs of 16-bit ones that do not overflow. Even rows, odd rows, then those past 16. */
    const __m512i rows = add_parts(parts);
    const __m512i order = _mm512_set_epi16(31, 23, 30, 22, 29, 21, 28, 20, 27, 19, 26, 18, 25, 17, 24, 16, //
                                           15, 7, 14, 6, 13, 5, 12, 4, 11, 3, 10, 2, 9, 1, 8, 0);
    return _mm512_permutexvar_epi16(order, rows);
}

static inline uint32_t signs_above(sign_lanes scores, int32_t least)
{
    return _mm512_cmpgt_epi16_mask(scores, _mm512_set1_epi16((int16_t)least));
}

static inline void signs_store(uint16_t *values, sign_lanes scores)
{
    _mm512_storeu_si512(values, scores);
}

#endif
