/* Inputs for the kernel checks: every array made from a seed, at its exact size, with the edges that arithmetic has. */
#ifndef OMEGA_EDGE_TESTS_PROBLEM_H
#define OMEGA_EDGE_TESTS_PROBLEM_H

#include "kernels.h"

#define PROBLEM_QUERIES 11 /* more than any kernel takes at once, and no multiple of four */
#define PROBLEM_FEATURES 5

typedef struct {
    uint64_t seed;
    size_t n, d, k, candidates;
    omega_codes codes;
    omega_halves halves; /* of the same codes, by the scalar kernel; the scale without its signs */
    omega_signs signs;   /* likewise */
    const int8_t *queries;
    const float *query_scale;
    const uint8_t *filter; /* or NULL */
    const uint32_t *listed; /* n row numbers, in no order */
    const float *vectors;   /* n * d, finite and none of them zero */
    const uint16_t *halves_of_floats;
    const float *query_floats; /* d */
    const float *features, *feature_weights;
    const float *feature_rows[PROBLEM_FEATURES]; /* the same features */
    omega_forest forest;                         /* that asks them */
    omega_rank_columns columns;
    omega_rank_weights weights;
    omega_rank_limits limits;
    omega_sequence sequence;
    size_t watched, left;          /* events, and how many of them are left out */
    const uint32_t *watched_rows;  /* watched, each a row of sequence.titles */
    const uint8_t *watched_to_end; /* watched */
    void *memory[64];
    size_t owned;
} problem;

uint64_t random_bits(uint64_t *state);
uint32_t random_below(uint64_t *state, uint32_t limit);

problem make_problem(uint64_t seed);
void free_problem(problem *p);

/* Memory of exactly so many bytes; ends the program where there is none. */
void *allocate(size_t bytes);

#endif
