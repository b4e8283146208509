/* What the AVX2 files offer each other, and the AVX-512 files where wider registers gain nothing. */
#ifndef OMEGA_EDGE_KERNELS_AVX2_H
#define OMEGA_EDGE_KERNELS_AVX2_H

#include "kernels.h"

/* kernels_avx2.c */
size_t omega_avx2_quantise(const float *vectors, size_t n, size_t d, int8_t *codes_out, float *scale_out);
void omega_avx2_fuse(const float *const *features, size_t f, size_t n, const float *weights, float *out);
size_t omega_avx2_fuse_top_k(const float *const *features, size_t f, size_t n, const float *weights,
                             const uint8_t *filter, size_t k, uint64_t *workspace, uint32_t *rows_out,
                             float *scores_out);
omega_fault omega_avx2_diversify(const omega_codes *table, const uint32_t *rows, const float *values, size_t m,
                                 float trade_off, size_t k, float *workspace, uint32_t *order_out, size_t *found);

/* scan_avx2.c */
void omega_avx2_halve(const int8_t *codes, size_t n, size_t d, uint8_t *high_out, uint8_t *low_out,
                      uint8_t *spread_out);
size_t omega_avx2_search_halves(const omega_halves *table, const int8_t *query, float query_scale,
                                const uint8_t *filter, size_t k, uint64_t *workspace, uint32_t *rows_out,
                                float *scores_out);
void omega_avx2_search_batch(const omega_halves *table, const int8_t *queries, const float *query_scale, size_t q,
                             const uint8_t *filter, size_t k, uint64_t *workspace, size_t *found_out,
                             uint32_t *rows_out, float *scores_out);
size_t omega_avx2_search_two_stage(const omega_signs *signs, const omega_halves *table, const int8_t *query,
                                   float query_scale, const uint8_t *filter, size_t candidates, size_t k,
                                   uint64_t *workspace, uint32_t *rows_out, float *scores_out);
size_t omega_avx2_rank(const omega_halves *table, const int8_t *query, float query_scale,
                       const omega_rank_columns *columns, const omega_rank_weights *weights,
                       const omega_rank_limits *limits, const uint8_t *filter, size_t k, uint64_t *workspace,
                       uint32_t *rows_out, float *scores_out);

/* rescore_avx2.c */
size_t omega_avx2_rescore(const uint16_t *vectors, size_t d, const float *query, float query_factor,
                          const uint32_t *rows, size_t m, size_t k, uint64_t *workspace, uint32_t *rows_out,
                          float *scores_out);

#endif
