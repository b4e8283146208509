/* What other instruction sets' files take from the scalar file as it is, because wider registers gain nothing:
 * scattered single-entry access (rows), table look-up (genre means), sums that a compiler turns into any width's by itself (left-out
 * sums: lanes are dimensions), the greedy loop around the cosines (diversify). */
#ifndef OMEGA_EDGE_KERNELS_SCALAR_H
#define OMEGA_EDGE_KERNELS_SCALAR_H

#include "kernels.h"

/* The bit of a filter for one row. */
static inline int omega_allowed(const uint8_t *filter, size_t row)
{
    return !filter || (filter[row >> 3] >> (row & 7) & 1);
}

/* The sum that fuse computes, for one row. */
static inline float omega_fused_row(const float *const *features, size_t f, const float *weights, size_t row)
{
    float sum = 0.0f;
    for (size_t feature = 0; feature < f; feature++)
        sum += weights[feature] * features[feature][row];
    return sum;
}

size_t omega_scalar_quantise(const float *vectors, size_t n, size_t d, int8_t *codes_out, float *scale_out);
void omega_scalar_fuse(const float *const *features, size_t f, size_t n, const float *weights, float *out);
size_t omega_scalar_fuse_top_k(const float *const *features, size_t f, size_t n, const float *weights,
                               const uint8_t *filter, size_t k, uint64_t *workspace, uint32_t *rows_out,
                               float *scores_out);
omega_fault omega_scalar_row_scatter_add(const omega_rows *table, const uint32_t *rows, const float *weights,
                                         size_t events, float *out, size_t targets);
omega_fault omega_scalar_row_lookup(const omega_rows *table, const uint32_t *rows, size_t events,
                                    const uint32_t *targets, size_t k, float *out);
omega_fault omega_scalar_genre_means(const uint64_t *masks, size_t n, const float *per_genre, size_t genres,
                                     float *out);

void omega_scalar_left_out_sums(const omega_codes *parts, const float *weights, float growth, size_t left, float *out);

/* Raises nearest[i] to the cosine of rows[i] to the picked row where that is greater. */
typedef void omega_raise_nearest(const omega_codes *table, const uint32_t *rows, size_t m, uint32_t picked,
                                 float *nearest);

/* diversify of the contract, given the instruction set's own raise_nearest. */
omega_fault omega_scalar_diversify(const omega_codes *table, const uint32_t *rows, const float *values, size_t m,
                                   float trade_off, size_t k, float *workspace, uint32_t *order_out, size_t *found,
                                   omega_raise_nearest *raise_nearest);

/* The second stage (trees_scalar.c). */
void omega_scalar_count_greater(const float *values, size_t lists, size_t m, const float *of_count, float *out);
omega_fault omega_scalar_sum_trees(const omega_forest *forest, const float *values, size_t m, float *out);

/* Halves and signs (scan_scalar.c). */
void omega_scalar_halve(const int8_t *codes, size_t n, size_t d, uint8_t *high_out, uint8_t *low_out,
                        uint8_t *spread_out);
void omega_scalar_join(const omega_halves *table, const uint32_t *rows, size_t m, int8_t *codes_out);
float omega_scalar_halves_cosine(const omega_halves *table, size_t row, const int8_t *query, float query_scale);
size_t omega_scalar_search_halves(const omega_halves *table, const int8_t *query, float query_scale,
                                  const uint8_t *filter, size_t k, uint64_t *workspace, uint32_t *rows_out,
                                  float *scores_out);
void omega_scalar_search_batch(const omega_halves *table, const int8_t *queries, const float *query_scale, size_t q,
                               const uint8_t *filter, size_t k, uint64_t *workspace, size_t *found_out,
                               uint32_t *rows_out, float *scores_out);
void omega_scalar_put_signs(const int8_t *codes, size_t first, size_t n, size_t d, uint8_t *blocks);
size_t omega_scalar_search_two_stage(const omega_signs *signs, const omega_halves *table, const int8_t *query,
                                     float query_scale, const uint8_t *filter, size_t candidates, size_t k,
                                     uint64_t *workspace, uint32_t *rows_out, float *scores_out);

/* Rescoring and ranking (rank_scalar.c). */
size_t omega_scalar_rescore(const uint16_t *vectors, size_t d, const float *query, float query_factor,
                            const uint32_t *rows, size_t m, size_t k, uint64_t *workspace, uint32_t *rows_out,
                            float *scores_out);
size_t omega_scalar_rank(const omega_halves *table, const int8_t *query, float query_scale,
                         const omega_rank_columns *columns, const omega_rank_weights *weights,
                         const omega_rank_limits *limits, const uint8_t *filter, size_t k, uint64_t *workspace,
                         uint32_t *rows_out, float *scores_out);

#endif
