/* The second stage's trees on AVX2. */
#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif

#define TREES(name) omega_avx2_##name
#include "trees_dense.h"

void omega_avx2_count_greater(const float *values, size_t lists, size_t m, const float *of_count, float *out)
{
    omega_count_greater(values, lists, m, of_count, out);
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else
typedef int omega_no_trees_avx2; /* ISO C wants a declaration in every file */
#endif
