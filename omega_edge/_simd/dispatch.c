/* The only file that knows processors. */
#include "kernels.h"

#if defined(__aarch64__) || defined(OMEGA_NEON32)
#include <sys/auxv.h>

/* As Linux defines them; older headers of C libraries lack the first. */
#define DOT_PRODUCT_64 (1ul << 20)
#define NEON_32 (1ul << 12)
#endif

#if defined(__x86_64__)
#include <cpuid.h>

static int has_f16c(void)
{
#if defined(__clang__)
    /* Up to clang 14 at least, its builtin has no name for it. Asked anew each time, which only its builds pay for. */
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
#else
    return __builtin_cpu_supports("f16c");
#endif
}

/* Whether the processor has it, and the system saves its registers. */
static int has_avx2(void)
{
    __builtin_cpu_init();
    /* Every processor with AVX2 has the other two, but a virtual one may hide them. */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && has_f16c();
}

static int has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#endif

const omega_kernels *omega_kernels_at(size_t index)
{
    const omega_kernels *usable[3];
    size_t count = 0;
#if defined(__x86_64__)
    if (has_avx512())
        usable[count++] = &omega_kernels_avx512;
    if (has_avx2())
        usable[count++] = &omega_kernels_avx2;
#elif defined(__aarch64__)
    if (getauxval(AT_HWCAP) & DOT_PRODUCT_64)
        usable[count++] = &omega_kernels_neondot;
    usable[count++] = &omega_kernels_neon;
#elif defined(OMEGA_NEON32)
    if (getauxval(AT_HWCAP) & NEON_32)
        usable[count++] = &omega_kernels_neon32;
#endif
    usable[count++] = &omega_kernels_scalar;
    return index < count ? usable[index] : NULL;
}
