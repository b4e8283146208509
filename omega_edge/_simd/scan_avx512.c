/* AVX-512 with VNNI (x86-64): searches of halves and signs, and ranks; sixteen rows are one register of lanes. */
#if defined(__x86_64__)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,bmi2,f16c"))),         \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,bmi2,f16c")
#endif

#define SCAN(name) omega_avx512_##name

#include "kernels_avx512.h"
#include "lanes_avx512.h"
#include "scan_signs.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
