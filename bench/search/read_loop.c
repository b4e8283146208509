/* How fast one thread reads memory: the loop that no scan of the same bytes can beat. Built on demand with
 * -O3 -march=native; bench.search takes the best of its variants. */
#define _POSIX_C_SOURCE 199309L
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

typedef int64_t lane __attribute__((vector_size(64)));

static int64_t nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* UNROLL independent accumulators of 64 bytes; ahead bytes of prefetch, none for 0. */
#define READ_LOOP(UNROLL)                                                                                              \
    static int64_t read_##UNROLL(const uint8_t *bytes, size_t count, size_t ahead)                                     \
    {                                                                                                                  \
        lane sum[UNROLL] = {{0}};                                                                                      \
        for (size_t at = 0; at + 64 * (UNROLL) <= count; at += 64 * (UNROLL)) {                                        \
            _Pragma("GCC unroll 16") for (size_t i = 0; i < (UNROLL); i++) {                                           \
                lane part;                                                                                             \
                memcpy(&part, bytes + at + 64 * i, sizeof part);                                                       \
                if (ahead)                                                                                             \
                    __builtin_prefetch(bytes + at + 64 * i + ahead);                                                   \
                sum[i] ^= part;                                                                                        \
            }                                                                                                          \
        }                                                                                                              \
        int64_t total = 0;                                                                                             \
        for (size_t i = 0; i < (UNROLL); i++)                                                                          \
            for (size_t j = 0; j < 8; j++)                                                                             \
                total ^= sum[i][j];                                                                                    \
        return total;                                                                                                  \
    }

READ_LOOP(2)
READ_LOOP(4)
READ_LOOP(8)
READ_LOOP(16)

/* Nanoseconds of each of `times` passes over the bytes, written to spent; returns what was read, so that the reading
 * is not left out, or -1 for an unroll that there is not. */
int64_t omega_read_loop(const uint8_t *bytes, size_t count, int unroll, size_t ahead, size_t times, int64_t *spent)
{
    int64_t total = 0;
    for (size_t pass = 0; pass < times; pass++) {
        int64_t started = nanoseconds();
        switch (unroll) {
        case 2:
            total ^= read_2(bytes, count, ahead);
            break;
        case 4:
            total ^= read_4(bytes, count, ahead);
            break;
        case 8:
            total ^= read_8(bytes, count, ahead);
            break;
        case 16:
            total ^= read_16(bytes, count, ahead);
            break;
        default:
            return -1;
        }
        spent[pass] = nanoseconds() - started;
    }
    return total;
}
