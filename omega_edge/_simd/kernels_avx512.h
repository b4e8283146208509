/* What the AVX-512 files offer each other. */
#ifndef OMEGA_EDGE_KERNELS_AVX512_H
#define OMEGA_EDGE_KERNELS_AVX512_H

#include "kernels.h"

/* scan_avx512.c */
size_t omega_avx512_search_halves(const omega_halves *table, const int8_t *query, float query_scale,
                                  const uint8_t *filter, size_t k, uint64_t *workspace, uint32_t *rows_out,
                                  float *scores_out);
void omega_avx512_search_batch(const omega_halves *table, const int8_t *queries, const float *query_scale, size_t q,
                               const uint8_t *filter, size_t k, uint64_t *workspace, size_t *found_out,
                               uint32_t *rows_out, float *scores_out);
size_t omega_avx512_search_two_stage(const omega_signs *signs, const omega_halves *table, const int8_t *query,
                                     float query_scale, const uint8_t *filter, size_t candidates, size_t k,
                                     uint64_t *workspace, uint32_t *rows_out, float *scores_out);
size_t omega_avx512_rank(const omega_halves *table, const int8_t *query, float query_scale,
                         const omega_rank_columns *columns, const omega_rank_weights *weights,
                         const omega_rank_limits *limits, const uint8_t *filter, size_t k, uint64_t *workspace,
                         uint32_t *rows_out, float *scores_out);

#endif
