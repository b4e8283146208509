/* AVX2 (x86-64): searches of halves and signs, and ranks; sixteen rows are two registers of lanes. */
#if defined(__x86_64__)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi2,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi2,f16c")
#endif

#define SCAN(name) omega_avx2_##name

#include "kernels_avx2.h"
#include "lanes_avx2.h"
#include "scan_signs.h"

void omega_avx2_halve(const int8_t *codes, size_t n, size_t d, uint8_t *high_out, uint8_t *low_out,
                      uint8_t *spread_out)
{
    const __m128i half = _mm_set1_epi8(15), raise = _mm_set1_epi8(-128);
    for (size_t row = 0; row < n; row++) {
        __m128i squares = _mm_setzero_si128(); /* of 2 * low - 15, four times those of low - 7.5 */
        for (size_t i = 0; i < d; i += 32, codes += 32, high_out += 16, low_out += 16) {
            const __m128i x = _mm_xor_si128(_mm_loadu_si128((const __m128i *)codes), raise);
            const __m128i y = _mm_xor_si128(_mm_loadu_si128((const __m128i *)(codes + 16)), raise);
            const __m128i x_low = _mm_and_si128(x, half), y_low = _mm_and_si128(y, half);
            const __m128i x_high = _mm_and_si128(_mm_srli_epi16(x, 4), half);
            _mm_storeu_si128((__m128i *)high_out, _mm_or_si128(x_high, _mm_andnot_si128(half, y)));
            _mm_storeu_si128((__m128i *)low_out, _mm_or_si128(x_low, _mm_slli_epi16(y_low, 4)));
            /* At most 15 from zero: two squares are 450, their sum over both x and y 900. */
            const __m128i odd = _mm_set1_epi8(15);
            const __m128i x_away = _mm_abs_epi8(_mm_sub_epi8(_mm_add_epi8(x_low, x_low), odd));
            const __m128i y_away = _mm_abs_epi8(_mm_sub_epi8(_mm_add_epi8(y_low, y_low), odd));
            const __m128i pairs = _mm_add_epi16(_mm_maddubs_epi16(x_away, x_away), _mm_maddubs_epi16(y_away, y_away));
            squares = _mm_add_epi32(squares, _mm_madd_epi16(pairs, _mm_set1_epi16(1)));
        }
        int32_t lanes[4];
        _mm_storeu_si128((__m128i *)lanes, squares);
        spread_out[row] = (uint8_t)ceil(sqrt((double)(lanes[0] + lanes[1] + lanes[2] + lanes[3]) / 4.0));
    }
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
