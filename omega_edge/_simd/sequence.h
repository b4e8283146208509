/* What the instruction sets' files share of the sequence encoder: all but the matrix products, which are nine tenths of
 * its work. */
#ifndef OMEGA_EDGE_SEQUENCE_H
#define OMEGA_EDGE_SEQUENCE_H

#include <string.h>

#include "kernels.h"

/* e^x of the contract, x <= 0. Whole parts go by adding and taking away a number whose last bit is 1, which no NaN
 * or infinity makes undefined and every compiler turns into lanes. */
static inline float omega_power_of_e(float x)
{
    static const float coefficients[7] = OMEGA_EXP;
    const float shifted = x * 0x1.715476p+0f + 0x1.8p23f;
    const float whole = shifted - 0x1.8p23f;
    const float part = (x - whole * 0x1.62e4p-1f) - whole * 0x1.7f7d1cp-20f;
    float power = coefficients[6];
    for (int i = 5; i >= 0; i--)
        power = power * part + coefficients[i];
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23; /* the bits of 0x1.8p23 leave at the top */
    float factor;
    memcpy(&factor, &bits, sizeof factor);
    return x < OMEGA_EXP_LEAST ? 0.0f : power * factor;
}

/* y[r * stride + o] = (sum over i of x[r * in + i] * codes[i * outs + o]) * scale[o], i ascending, from 0. in is at most
 * OMEGA_SEQUENCE_FEED and outs a multiple of OMEGA_SEQUENCE_DIMENSIONS. */
typedef void omega_multiply(const float *x, size_t rows, size_t in, const int8_t *codes, const float *scale,
                            size_t outs, float *y, size_t stride);

omega_fault omega_sequence_events_by(omega_multiply *multiply, const omega_sequence *model, const uint32_t *rows,
                                     const uint8_t *success, size_t count, float *out);
void omega_sequence_states_by(omega_multiply *multiply, const omega_sequence *model, const float *events, size_t held,
                              size_t left, omega_sequence_workspace *workspace, float *out);

/* Of each instruction set that has its own; the avx512 table and the others on ARM take what they need. */
omega_fault omega_scalar_sequence_events(const omega_sequence *model, const uint32_t *rows, const uint8_t *success,
                                         size_t count, float *out);
void omega_scalar_sequence_states(const omega_sequence *model, const float *events, size_t held, size_t left,
                                  omega_sequence_workspace *workspace, float *out);
omega_fault omega_avx2_sequence_events(const omega_sequence *model, const uint32_t *rows, const uint8_t *success,
                                       size_t count, float *out);
void omega_avx2_sequence_states(const omega_sequence *model, const float *events, size_t held, size_t left,
                                omega_sequence_workspace *workspace, float *out);
omega_fault omega_avx512_sequence_events(const omega_sequence *model, const uint32_t *rows, const uint8_t *success,
                                         size_t count, float *out);
void omega_avx512_sequence_states(const omega_sequence *model, const float *events, size_t held, size_t left,
                                  omega_sequence_workspace *workspace, float *out);
omega_fault omega_neon_sequence_events(const omega_sequence *model, const uint32_t *rows, const uint8_t *success,
                                       size_t count, float *out);
void omega_neon_sequence_states(const omega_sequence *model, const float *events, size_t held, size_t left,
                                omega_sequence_workspace *workspace, float *out);

#endif
