/* Matrix products of the sequence encoder over LANES floats a register, VECTORS registers of outputs at a time, and the
 * encoder over them. The file that includes it names LANES, VECTORS and SEQUENCE(name), what its functions are called.
 * Lanes are outputs: each output's sum has the order of kernels.h whatever their number.
 */
#include "sequence.h"

#define PANEL (LANES * VECTORS)
#define ROWS_AT_ONCE 4 /* so that sums, a row's codes and what is read fill the registers and no more */

#if LANES == 1
typedef float lanes;
#else
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#endif

/* y[r][0 .. PANEL) of `rows` rows, which the compiler knows. */
static inline __attribute__((always_inline)) void multiply_rows(const float *x, const size_t rows, size_t in,
                                                                const float *panel, const float *scale, float *y,
                                                                size_t stride)
{
    lanes sums[ROWS_AT_ONCE][VECTORS];
#pragma GCC unroll 4
    for (size_t row = 0; row < rows; row++)
#pragma GCC unroll 4
        for (size_t at = 0; at < VECTORS; at++)
            sums[row][at] = (lanes){0};
    for (size_t i = 0; i < in; i++)
#pragma GCC unroll 4
        for (size_t row = 0; row < rows; row++)
#pragma GCC unroll 4
            for (size_t at = 0; at < VECTORS; at++)
                sums[row][at] += x[row * in + i] * *(const lanes *)(panel + i * PANEL + at * LANES);
#pragma GCC unroll 4
    for (size_t row = 0; row < rows; row++)
#pragma GCC unroll 4
        for (size_t at = 0; at < VECTORS; at++)
            *(lanes *)(y + row * stride + at * LANES) = sums[row][at] * *(const lanes *)(scale + at * LANES);
}

static void multiply(const float *x, size_t rows, size_t in, const int8_t *codes, const float *scale, size_t outs,
                     float *y, size_t stride)
{
    float panel[OMEGA_SEQUENCE_FEED * PANEL]; /* codes as floats, read once for all rows */
    for (size_t first = 0; first < outs; first += PANEL) {
        for (size_t i = 0; i < in; i++)
            for (size_t at = 0; at < PANEL; at++)
                panel[i * PANEL + at] = (float)codes[i * outs + first + at];
        size_t row = 0;
        for (; row + ROWS_AT_ONCE <= rows; row += ROWS_AT_ONCE)
            multiply_rows(x + row * in, ROWS_AT_ONCE, in, panel, scale + first, y + row * stride + first, stride);
        for (; row < rows; row++)
            multiply_rows(x + row * in, 1, in, panel, scale + first, y + row * stride + first, stride);
    }
}

omega_fault SEQUENCE(sequence_events)(const omega_sequence *model, const uint32_t *rows, const uint8_t *success,
                                      size_t count, float *out)
{
    return omega_sequence_events_by(multiply, model, rows, success, count, out);
}

void SEQUENCE(sequence_states)(const omega_sequence *model, const float *events, size_t held, size_t left,
                               omega_sequence_workspace *workspace, float *out)
{
    omega_sequence_states_by(multiply, model, events, held, left, workspace, out);
}
