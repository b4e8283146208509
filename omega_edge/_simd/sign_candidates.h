/* The best rows of a two-stage search's first stage, by a histogram of their scores. */
#ifndef OMEGA_EDGE_SIGN_CANDIDATES_H
#define OMEGA_EDGE_SIGN_CANDIDATES_H

#include "kernels.h"
#include "top_k.h"

#define SCORE_STEP 8 /* scores that one count of the histogram covers */

/* The rows seen whose score is worth a key. A histogram of their scores tells, after every 32 rows, a step that as many
 * rows as are wanted are above: rows up to it, earlier or later, are not among the best. So few keys are made, and few
 * are left to choose from at the end; with a threshold that only a full buffer raises, it would be twice as many. */
typedef struct {
    uint64_t *keys;
    size_t count, capacity, wanted;
    size_t above;  /* rows seen in the steps from least on */
    uint32_t least; /* steps of scores below it are passed over */
    uint32_t seen[OMEGA_MAX_DIMENSIONS / 4 * 63 / SCORE_STEP + 1]; /* rows by step */
} sign_candidates;

static inline void raise_least(sign_candidates *list)
{
    while (list->above - list->seen[list->least] >= list->wanted)
        list->above -= list->seen[list->least++];
    if (list->count + OMEGA_SIGN_ROWS <= list->capacity)
        return;
    top_k_select(list->keys, list->count, list->wanted);
    list->count = list->wanted;
}

/* For a row of a step from the least on; after each 32 rows raise_least makes room for as many. */
static inline void add_candidate(sign_candidates *list, uint16_t score, uint32_t row)
{
    list->keys[list->count++] = (uint64_t)score << 32 | (UINT32_MAX - row);
    list->seen[score / SCORE_STEP]++;
    list->above++;
}

/* Moves the best to the front. Steps above the least are among them; only those of the least itself are compared. */
static inline size_t best_candidates(sign_candidates *list)
{
    uint64_t *const keys = list->keys;
    size_t count = 0, sure = 0;
    for (size_t i = 0; i < list->count; i++) {
        const uint64_t key = keys[i];
        keys[count] = key;
        count += (key >> 32) / SCORE_STEP >= list->least;
    }
    for (size_t i = 0; i < count; i++) {
        const uint64_t key = keys[i];
        keys[i] = keys[sure];
        keys[sure] = key;
        sure += (key >> 32) / SCORE_STEP > list->least;
    }
    if (count <= list->wanted)
        return count;
    top_k_select(keys + sure, count - sure, list->wanted - sure); /* sure is below wanted, or least would be higher */
    return list->wanted;
}

#endif
