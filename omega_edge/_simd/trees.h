/* What every evaluation of the second stage's trees shares. */
#ifndef OMEGA_TREES_H
#define OMEGA_TREES_H

#include "kernels_scalar.h"

/* count_greater of kernels.h: counts that a compiler turns into any width's. */
static inline void omega_count_greater(const float *values, size_t lists, size_t m, const float *of_count, float *out)
{
    for (size_t list = 0; list < lists; list++) {
        const float *own = values + list * m;
        for (size_t i = 0; i < m; i++) {
            const float value = own[i];
            uint32_t greater = 0;
            for (size_t other = 0; other < m; other++)
                greater += own[other] > value;
            out[list * m + i] = of_count[greater];
        }
    }
}

/* The first root or node that is not what kernels.h asks for. */
omega_fault omega_check_forest(const omega_forest *forest);

/* Adds to out[i] the leaf that the tree of a root leads candidate i to, for a forest that was checked. */
void omega_add_tree(const omega_forest *forest, int32_t root, const float *values, size_t m, float *out);

void omega_avx2_count_greater(const float *values, size_t lists, size_t m, const float *of_count, float *out);
omega_fault omega_avx2_sum_trees(const omega_forest *forest, const float *values, size_t m, float *out);
omega_fault omega_neon_sum_trees(const omega_forest *forest, const float *values, size_t m, float *out);

#endif
