/* What every instruction set's scan of halves and signs shares: the numbers that depend on the query alone. */
#ifndef OMEGA_EDGE_SCAN_H
#define OMEGA_EDGE_SCAN_H

#include <math.h>

#include "kernels.h"

/* For loops whose dimensions a caller knows, and functions that pass registers. */
#define ALWAYS_INLINE inline __attribute__((always_inline))

#define USUAL_DIMENSIONS 384 /* the encoder's */

/* The part of a row's bound that the query gives: bound = 16 * sum(q * high) + offset + length * spread. */
typedef struct {
    int32_t offset; /* ceil(-120.5 * sum of q), at most 120.5 * 127 * 1024 < 2^24 */
    int32_t length; /* ceil(||q||), at most 127 * 32 */
} omega_query_bound;

static inline omega_query_bound omega_bound_of(const int8_t *query, size_t d)
{
    int32_t sum = 0, squares = 0;
    for (size_t i = 0; i < d; i++) {
        sum += query[i];
        squares += (int32_t)query[i] * query[i];
    }
    /* 241 * sum is below 2^25; halved towards plus infinity. The root of an integer below 2^24 is correctly rounded, so
     * that its ceiling is the least integer whose square is not below. */
    const int32_t doubled = -241 * sum;
    return (omega_query_bound){doubled / 2 + (doubled > 0 && doubled % 2), (int32_t)ceil(sqrt((double)squares))};
}

/* The first stage's tables, 16 bytes for each group of four codes: see search_two_stage. A sum is at most 8 * 127; its
 * product with factor is that with factor's upper and lower 16 bits, so that no word is wider: compilers make of the
 * inner loop a few operations on registers of 16 words. */
static inline void omega_sign_tables(const int8_t *query, size_t d, uint8_t *tables)
{
    int32_t most = 1;
    for (size_t i = 0; i < d; i += 4) {
        int32_t magnitude = 0;
        for (size_t j = i; j < i + 4; j++)
            magnitude += query[j] < 0 ? -query[j] : query[j];
        most = magnitude > most ? magnitude : most;
    }
    const uint32_t factor = 63u * 65536u / (2u * (uint32_t)most);
    const uint16_t upper = (uint16_t)(factor >> 16), lower = (uint16_t)factor;
    static const int16_t sign[4][16] = {{-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1},
                                        {-1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1},
                                        {-1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1},
                                        {-1, -1, -1, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 1, 1, 1}};
    for (size_t i = 0; i < d; i += 4, tables += 16) {
        const int16_t a = query[i], b = query[i + 1], c = query[i + 2], e = query[i + 3];
        for (size_t v = 0; v < 16; v++) {
            const uint16_t sum =
                (uint16_t)(most + sign[0][v] * a + sign[1][v] * b + sign[2][v] * c + sign[3][v] * e);
            tables[v] = (uint8_t)(sum * upper + (uint16_t)((uint32_t)sum * lower >> 16));
        }
    }
}

#endif
