/* The sequence encoder on AVX2. No FMA: it rounds once. */
#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif

#define LANES 8
#define VECTORS 2
#define SEQUENCE(name) omega_avx2_##name
#include "sequence_dense.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else
typedef int omega_no_sequence_avx2; /* ISO C wants a declaration in every file */
#endif
