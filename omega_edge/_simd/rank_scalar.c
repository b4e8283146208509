/* Rescoring and ranking in plain C: the oracle of every other file. */
#include "kernels_scalar.h"
#include "rank.h"
#include "top_k.h"

static float half_float(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    uint32_t bits;
    float value;
    if (exponent == 0) { /* zero and subnormals: fraction * 2^-24, exact */
        value = (float)fraction * 0x1p-24f;
        return sign ? -value : value;
    }
    bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float eight_lane_total(const float *s)
{
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

size_t omega_scalar_rescore(const uint16_t *vectors, size_t d, const float *query, float query_factor,
                            const uint32_t *rows, size_t m, size_t k, uint64_t *workspace, uint32_t *rows_out,
                            float *scores_out)
{
    size_t count = 0;
    for (size_t i = 0; i < m; i++) {
        const uint16_t *vector = vectors + rows[i] * d;
        float dots[8] = {0.0f}, squares[8] = {0.0f};
        for (size_t j = 0; j < d; j++) {
            const float x = half_float(vector[j]);
            dots[j % 8] += query[j] * x;
            squares[j % 8] += x * x;
        }
        const float score = eight_lane_total(dots) / sqrtf(eight_lane_total(squares)) * query_factor + 0.0f;
        if (score > -INFINITY)
            workspace[count++] = top_k_key(score, rows[i]);
    }
    top_k best = {workspace, count, count + 1, k, -INFINITY};
    return top_k_finish(&best, rows_out, scores_out);
}

size_t omega_scalar_rank(const omega_halves *table, const int8_t *query, float query_scale,
                         const omega_rank_columns *columns, const omega_rank_weights *weights,
                         const omega_rank_limits *limits, const uint8_t *filter, size_t k, uint64_t *workspace,
                         uint32_t *rows_out, float *scores_out)
{
    top_k best = top_k_begin(k < table->rows ? k : table->rows, workspace);
    for (size_t row = 0; row < table->rows; row++) {
        if (!omega_allowed(filter, row))
            continue;
        const float similarity = omega_scalar_halves_cosine(table, row, query, query_scale);
        if (!(similarity >= limits->least_similarity))
            continue;
        const float score = omega_rank_score(similarity, columns, row, weights, limits);
        if (score > best.threshold)
            top_k_append(&best, score, (uint32_t)row);
    }
    return top_k_finish(&best, rows_out, scores_out);
}
