/* The second stage's trees on NEON of 64-bit ARM, the same with and without the dot product. */
#if defined(__aarch64__)

#define TREES(name) omega_neon_##name
#include "trees_dense.h"

#else
typedef int omega_no_trees_neon; /* ISO C wants a declaration in every file */
#endif
