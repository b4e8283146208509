/* AVX2 with F16C (x86-64): the last rows by half floats, four rows at a time, their eight partial sums in one register. */
#if defined(__x86_64__)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi2,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi2,f16c")
#endif

#include "kernels_avx2.h"
#include "top_k.h"

#define ROWS_AT_ONCE 4
#define ROWS_AHEAD 8

/* The contract's total of the eight partial sums. */
static inline float eight_lane_total(__m256 s)
{
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

static inline void prefetch_vector(const uint16_t *vector, size_t d)
{
    for (size_t j = 0; j < d; j += 32)
        _mm_prefetch((const char *)(vector + j), _MM_HINT_T0);
    _mm_prefetch((const char *)(vector + d) - 1, _MM_HINT_T0);
}

size_t omega_avx2_rescore(const uint16_t *vectors, size_t d, const float *query, float query_factor,
                          const uint32_t *rows, size_t m, size_t k, uint64_t *workspace, uint32_t *rows_out,
                          float *scores_out)
{
    size_t count = 0;
    for (size_t i = 0; i < m && i < ROWS_AHEAD; i++)
        prefetch_vector(vectors + rows[i] * d, d);
    for (size_t i = 0; i < m; i += ROWS_AT_ONCE) {
        const uint16_t *vector[ROWS_AT_ONCE];
        __m256 dots[ROWS_AT_ONCE], squares[ROWS_AT_ONCE];
        for (size_t lane = 0; lane < ROWS_AT_ONCE; lane++) {
            if (i + lane + ROWS_AHEAD < m)
                prefetch_vector(vectors + rows[i + lane + ROWS_AHEAD] * d, d);
            vector[lane] = vectors + rows[i + lane < m ? i + lane : m - 1] * d;
            dots[lane] = squares[lane] = _mm256_setzero_ps();
        }
        for (size_t j = 0; j < d; j += 8) {
            const __m256 target = _mm256_loadu_ps(query + j);
            for (size_t lane = 0; lane < ROWS_AT_ONCE; lane++) {
                const __m256 x = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(vector[lane] + j)));
                dots[lane] = _mm256_add_ps(dots[lane], _mm256_mul_ps(target, x));
                squares[lane] = _mm256_add_ps(squares[lane], _mm256_mul_ps(x, x));
            }
        }
        for (size_t lane = 0; lane < ROWS_AT_ONCE && i + lane < m; lane++) {
            const float length = sqrtf(eight_lane_total(squares[lane]));
            const float score = eight_lane_total(dots[lane]) / length * query_factor + 0.0f;
            if (score > -INFINITY)
                workspace[count++] = top_k_key(score, rows[i + lane]);
        }
    }
    top_k best = {workspace, count, count + 1, k, -INFINITY};
    return top_k_finish(&best, rows_out, scores_out);
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
