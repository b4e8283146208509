/* The sequence encoder on AVX-512. No FMA: it rounds once. */
#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC target("avx512f")
#endif

#define LANES 16
#define VECTORS 4
#define SEQUENCE(name) omega_avx512_##name
#include "sequence_dense.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else
typedef int omega_no_sequence_avx512; /* ISO C wants a declaration in every file */
#endif
