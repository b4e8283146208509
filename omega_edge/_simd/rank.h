/* The score of rank for one row, for every file's rows that do not fill a register. */
#ifndef OMEGA_EDGE_RANK_H
#define OMEGA_EDGE_RANK_H

#include <string.h>

#include "kernels.h"

/* 2^-age of the contract. */
static inline float omega_fresh(uint32_t time, const omega_rank_limits *limits)
{
    static const float coefficients[6] = OMEGA_EXP2;
    const float age = (float)(time < limits->now ? limits->now - time : 0) * limits->per_half_life;
    if (!(age < 126.0f))
        return 0.0f;
    const uint32_t whole = (uint32_t)age;
    const float part = age - (float)whole;
    float power = coefficients[5];
    for (int i = 4; i >= 0; i--)
        power = power * part + coefficients[i];
    const uint32_t bits = (127 - whole) << 23;
    float factor;
    memcpy(&factor, &bits, sizeof factor);
    return power * factor;
}

static inline float omega_rank_score(float similarity, const omega_rank_columns *columns, size_t row,
                                     const omega_rank_weights *weights, const omega_rank_limits *limits)
{
    float sum = weights->similarity * similarity + weights->success * columns->success[row];
    sum = sum + weights->recency * omega_fresh(columns->time[row], limits);
    return sum + weights->trend * columns->trend[row] + 0.0f;
}

#endif
