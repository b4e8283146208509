/* Halves and signs in plain C: the oracle of every other file. */
#include "kernels_scalar.h"
#include "scan.h"
#include "top_k.h"

static int32_t high_half(uint8_t byte, int upper)
{
    return upper ? byte >> 4 : byte & 15;
}

void omega_scalar_halve(const int8_t *codes, size_t n, size_t d, uint8_t *high_out, uint8_t *low_out,
                        uint8_t *spread_out)
{
    for (size_t row = 0; row < n; row++) {
        int32_t squares = 0; /* of 2 * low - 15, four times those of low - 7.5 */
        for (size_t i = 0; i < d; i += 32) {
            for (size_t b = 0; b < 16; b++) {
                const int32_t first = codes[row * d + i + b] + 128, second = codes[row * d + i + 16 + b] + 128;
                const size_t at = (row * d + i) / 2 + b;
                high_out[at] = (uint8_t)(first >> 4 | (second >> 4) << 4);
                low_out[at] = (uint8_t)((first & 15) | (second & 15) << 4);
                const int32_t x = 2 * (first & 15) - 15, y = 2 * (second & 15) - 15;
                squares += x * x + y * y;
            }
        }
        spread_out[row] = (uint8_t)ceil(sqrt((double)squares / 4.0));
    }
}

static int32_t code_of(const omega_halves *table, size_t row, size_t i)
{
    const size_t at = row * (table->dimensions / 2) + i / 32 * 16 + i % 16;
    const int upper = i % 32 >= 16;
    return 16 * high_half(table->high[at], upper) + high_half(table->low[at], upper) - 128;
}

void omega_scalar_join(const omega_halves *table, const uint32_t *rows, size_t m, int8_t *codes_out)
{
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < table->dimensions; j++)
            codes_out[i * table->dimensions + j] = (int8_t)code_of(table, rows[i], j);
}

float omega_scalar_halves_cosine(const omega_halves *table, size_t row, const int8_t *query, float query_scale)
{
    int32_t dot = 0;
    for (size_t i = 0; i < table->dimensions; i++)
        dot += code_of(table, row, i) * query[i];
    return (float)dot * table->scale[row] * query_scale + 0.0f;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

size_t omega_scalar_search_halves(const omega_halves *table, const int8_t *query, float query_scale,
                                  const uint8_t *filter, size_t k, uint64_t *workspace, uint32_t *rows_out,
                                  float *scores_out)
{
    top_k best = top_k_begin(smaller(k, table->rows), workspace);
    for (size_t row = 0; row < table->rows; row++) {
        if (!omega_allowed(filter, row))
            continue;
        const float score = omega_scalar_halves_cosine(table, row, query, query_scale);
        if (score > best.threshold)
            top_k_append(&best, score, (uint32_t)row);
    }
    return top_k_finish(&best, rows_out, scores_out);
}

void omega_scalar_search_batch(const omega_halves *table, const int8_t *queries, const float *query_scale, size_t q,
                               const uint8_t *filter, size_t k, uint64_t *workspace, size_t *found_out,
                               uint32_t *rows_out, float *scores_out)
{
    for (size_t j = 0; j < q; j++)
        found_out[j] = omega_scalar_search_halves(table, queries + j * table->dimensions, query_scale[j], filter, k,
                                                  workspace, rows_out + j * k, scores_out + j * k);
}

void omega_scalar_put_signs(const int8_t *codes, size_t first, size_t n, size_t d, uint8_t *blocks)
{
    for (size_t row = first; row < first + n; row++, codes += d) {
        uint8_t *at = blocks + row / OMEGA_SIGN_ROWS * d * 4 + row % 16;
        const int shift = row % OMEGA_SIGN_ROWS < 16 ? 0 : 4;
        for (size_t i = 0; i < d; i += 4, at += 16) {
            int bits = 0;
            for (int bit = 0; bit < 4; bit++)
                bits |= (codes[i + (size_t)bit] >= 0) << bit;
            *at = (uint8_t)((*at & ~(15 << shift)) | bits << shift);
        }
    }
}

size_t omega_scalar_search_two_stage(const omega_signs *signs, const omega_halves *table, const int8_t *query,
                                     float query_scale, const uint8_t *filter, size_t candidates, size_t k,
                                     uint64_t *workspace, uint32_t *rows_out, float *scores_out)
{
    const size_t d = signs->dimensions;
    uint8_t tables[OMEGA_MAX_DIMENSIONS * 4];
    omega_sign_tables(query, d, tables);
    top_k nearest = top_k_begin(smaller(candidates, table->rows), workspace);
    for (size_t row = 0; row < table->rows; row++) {
        if (!omega_allowed(filter, row))
            continue;
        const uint8_t *at = signs->blocks + row / OMEGA_SIGN_ROWS * d * 4 + row % 16;
        const int upper = row % OMEGA_SIGN_ROWS >= 16;
        int32_t score = 0;
        for (size_t group = 0; group < d / 4; group++)
            score += tables[group * 16 + (size_t)high_half(at[group * 16], upper)];
        if ((float)score > nearest.threshold)
            top_k_append(&nearest, (float)score, (uint32_t)row);
    }
    if (nearest.count > nearest.k) {
        top_k_select(nearest.keys, nearest.count, nearest.k);
        nearest.count = nearest.k;
    }
    /* The candidates' keys make room for the second list: it takes them in any order, for it is never full. */
    uint64_t *const second = workspace + OMEGA_TOP_K_WORDS(nearest.k);
    size_t count = 0;
    for (size_t i = 0; i < nearest.count; i++) {
        const uint32_t row = top_k_row(nearest.keys[i]);
        const float score = omega_scalar_halves_cosine(table, row, query, query_scale);
        if (score > -INFINITY)
            second[count++] = top_k_key(score, row);
    }
    top_k best = {second, count, count + 1, smaller(k, table->rows), -INFINITY};
    return top_k_finish(&best, rows_out, scores_out);
}
