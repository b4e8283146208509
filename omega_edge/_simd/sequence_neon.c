/* The sequence encoder on NEON of 64-bit ARM, the same with and without the dot product. */
#if defined(__aarch64__)

#define LANES 4
#define VECTORS 4
#define SEQUENCE(name) omega_neon_##name
#include "sequence_dense.h"

#else
typedef int omega_no_sequence_neon; /* ISO C wants a declaration in every file */
#endif
