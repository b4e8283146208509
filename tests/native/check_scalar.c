#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check_scalar.h"
#include "sequence.h"

static const omega_kernels *const scalar = &omega_kernels_scalar;

typedef struct {
    size_t found;
    uint32_t *rows;
    float *scores;
    uint64_t *workspace;
} ranking;

static ranking make_ranking(size_t k, size_t words)
{
    return (ranking){0, allocate(k * sizeof(uint32_t)), allocate(k * sizeof(float)),
                     allocate(words * sizeof(uint64_t))};
}

static void free_ranking(ranking *list)
{
    free(list->rows);
    free(list->scores);
    free(list->workspace);
}

static int allowed(const problem *p, size_t row)
{
    return !p->filter || (p->filter[row / 8] >> row % 8 & 1);
}

static int64_t dot(const int8_t *a, const int8_t *b, size_t d)
{
    int64_t sum = 0;
    for (size_t i = 0; i < d; i++)
        sum += (int64_t)a[i] * b[i];
    return sum;
}

static float cosine(const problem *p, size_t row, const float *scale)
{
    volatile float score = (float)dot(p->codes.codes + row * p->d, p->queries, p->d);
    score = score * scale[row]; /* volatile: rounded at each step whatever the compiler does */
    score = score * p->query_scale[0];
    return score + 0.0f;
}

/* Whether a list is the k best of the scores by the order of the contract; a score of NaN marks a row left out. */
static int is_best(const ranking *list, const float *scores, size_t n, size_t k)
{
    uint8_t *taken = allocate(n);
    memset(taken, 0, n);
    size_t found = 0;
    int fine = 1;
    for (; found < k; found++) {
        size_t best = n;
        for (size_t row = 0; row < n; row++)
            if (!taken[row] && scores[row] > -INFINITY && (best == n || scores[row] > scores[best]))
                best = row;
        if (best == n)
            break;
        taken[best] = 1;
        fine = fine && found < list->found && list->rows[found] == best &&
               memcmp(list->scores + found, scores + best, sizeof(float)) == 0;
    }
    free(taken);
    return fine && list->found == found;
}

static const char *check_searches(const problem *p, float *scores)
{
    const size_t least = p->k < p->n ? p->k : p->n;
    ranking list = make_ranking(p->k, OMEGA_TOP_K_WORDS(least));
    const char *claim = NULL;
    for (size_t row = 0; row < p->n; row++)
        scores[row] = allowed(p, row) ? cosine(p, row, p->codes.scale) : NAN;
    list.found = scalar->search(&p->codes, p->queries, p->query_scale[0], p->filter, p->k, list.workspace, list.rows,
                                list.scores);
    if (!is_best(&list, scores, p->n, p->k))
        claim = "search returns the k best cosines";
    for (size_t row = 0; row < p->n; row++)
        scores[row] = allowed(p, row) ? cosine(p, row, p->halves.scale) : NAN;
    list.found = scalar->search_halves(&p->halves, p->queries, p->query_scale[0], p->filter, p->k, list.workspace,
                                       list.rows, list.scores);
    if (!is_best(&list, scores, p->n, p->k))
        claim = "search_halves returns the k best cosines";
    for (size_t row = 0; row < p->n; row++) {
        volatile float sum = 0.0f, product;
        for (size_t feature = 0; feature < PROBLEM_FEATURES; feature++) {
            product = p->feature_weights[feature] * p->features[feature * p->n + row];
            sum = sum + product;
        }
        scores[row] = allowed(p, row) ? sum : NAN;
    }
    list.found = scalar->fuse_top_k(p->feature_rows, PROBLEM_FEATURES, p->n, p->feature_weights, p->filter, p->k,
                                    list.workspace, list.rows, list.scores);
    if (!is_best(&list, scores, p->n, p->k))
        claim = "fuse_top_k returns the k best sums";
    free_ranking(&list);
    return claim;
}

/* The first stage's score of a row, from the codes. */
static float sign_score(const problem *p, size_t row)
{
    const int8_t *codes = p->codes.codes + row * p->d;
    int64_t most = 1, score = 0;
    for (size_t i = 0; i < p->d; i += 4) {
        int64_t sum = 0;
        for (size_t j = i; j < i + 4; j++)
            sum += abs(p->queries[j]);
        most = sum > most ? sum : most;
    }
    const int64_t factor = 63 * 65536 / (2 * most);
    for (size_t i = 0; i < p->d; i += 4) {
        int64_t sum = most;
        for (size_t j = i; j < i + 4; j++)
            sum += codes[j] >= 0 ? p->queries[j] : -p->queries[j];
        score += sum * factor / 65536;
    }
    return (float)score;
}

static const char *check_two_stage(const problem *p, float *scores)
{
    const size_t chosen = p->candidates < p->n ? p->candidates : p->n, least = p->k < p->n ? p->k : p->n;
    ranking list = make_ranking(p->k, OMEGA_TWO_STAGE_WORDS(chosen, least));
    float *first = allocate(p->n * sizeof first[0]);
    for (size_t row = 0; row < p->n; row++) {
        first[row] = allowed(p, row) ? sign_score(p, row) : -1.0f;
        scores[row] = NAN;
    }
    for (size_t i = 0; i < chosen; i++) {
        size_t best = 0;
        for (size_t row = 1; row < p->n; row++)
            if (first[row] > first[best])
                best = row;
        if (first[best] < 0.0f)
            break;
        first[best] = -1.0f;
        scores[best] = cosine(p, best, p->halves.scale);
    }
    list.found = scalar->search_two_stage(&p->signs, &p->halves, p->queries, p->query_scale[0], p->filter,
                                          p->candidates, p->k, list.workspace, list.rows, list.scores);
    const int fine = is_best(&list, scores, p->n, p->k);
    free(first);
    free_ranking(&list);
    return fine ? NULL : "search_two_stage returns the k best cosines of the best candidates by the signs";
}

static const char *check_planes(const problem *p)
{
    int8_t *joined = allocate(p->n * p->d);
    const char *claim = NULL;
    scalar->join(&p->halves, p->listed, p->n, joined);
    for (size_t i = 0; i < p->n; i++) {
        const int8_t *codes = p->codes.codes + p->listed[i] * p->d;
        int64_t squares = 0; /* four times those of low - 7.5 */
        for (size_t j = 0; j < p->d; j++) {
            const int64_t doubled = 2 * ((codes[j] + 128) % 16) - 15;
            squares += doubled * doubled;
        }
        const int64_t spread = p->halves.spread[p->listed[i]];
        if (4 * spread * spread < squares || 4 * (spread - 1) * (spread - 1) >= squares)
            claim = "spread is the least integer not below ||low - 7.5||";
        if (memcmp(joined + i * p->d, codes, p->d) != 0)
            claim = "join undoes halve";
    }
    free(joined);
    return claim;
}

static const char *check_quantise(const problem *p)
{
    int8_t *codes = allocate(p->n * p->d);
    float *scale = allocate(p->n * sizeof scale[0]);
    const size_t taken = scalar->quantise(p->vectors, p->n, p->d, codes, scale);
    const char *claim = taken == p->n ? NULL : "quantise takes all rows";
    for (size_t row = 0; !claim && row < p->n; row++) {
        double greatest = 0.0, squares = 0.0;
        for (size_t i = 0; i < p->d; i++)
            greatest = fmax(greatest, fabs((double)p->vectors[row * p->d + i]));
        for (size_t i = 0; i < p->d; i++) {
            const double code = rint((double)p->vectors[row * p->d + i] * (127.0 / greatest));
            squares += code * code;
            if (codes[row * p->d + i] != (int)code)
                claim = "a code is the nearest even integer to x * (127 / max|x|)";
        }
        if (scale[row] != (float)(1.0 / sqrt(squares)))
            claim = "a scale is 1 / ||codes||";
    }
    free(codes);
    free(scale);
    return claim;
}

/* With the recency alone, rank is 2^-age; the contract gives its polynomial 4.3e-7. */
static const char *check_freshness(const problem *p)
{
    const omega_rank_weights weights = {0.0f, 0.0f, 1.0f, 0.0f};
    float *zeros = allocate(p->n * sizeof zeros[0]);
    memset(zeros, 0, p->n * sizeof zeros[0]);
    float *ones = allocate(p->n * sizeof ones[0]);
    for (size_t row = 0; row < p->n; row++)
        ones[row] = 1.0f;
    omega_halves table = p->halves;
    table.scale = ones;
    const omega_rank_columns columns = {zeros, p->columns.time, zeros};
    omega_rank_limits limits = p->limits;
    limits.least_similarity = -INFINITY;
    ranking list = make_ranking(p->n, OMEGA_TOP_K_WORDS(p->n));
    list.found = scalar->rank(&table, p->queries, 1.0f, &columns, &weights, &limits, NULL, p->n, list.workspace,
                              list.rows, list.scores);
    const char *claim = list.found == p->n ? NULL : "rank returns every row where all are allowed";
    for (size_t i = 0; i < list.found; i++) {
        const uint32_t time = p->columns.time[list.rows[i]];
        const double past = time < limits.now ? (double)(limits.now - time) : 0.0;
        const double age = (double)(float)((float)past * limits.per_half_life);
        const double fresh = age < 126.0 ? exp2(-age) : 0.0;
        if (!(fabs(list.scores[i] - fresh) <= 4.3e-7 * fresh))
            claim = "freshness is 2^-age within 4.3e-7";
    }
    free_ranking(&list);
    free(zeros);
    free(ones);
    return claim;
}

/* e^x of the encoder, and that it makes the same of a history without an event as of one that never had it. */
static const char *check_sequence(const problem *p)
{
    const char *claim = omega_power_of_e(0.0f) == 1.0f ? NULL : "e^0 is 1";
    for (uint32_t i = 0; i < 200; i++) {
        const float x = OMEGA_EXP_LEAST * (float)(p->seed % 997 * 200 + i) / (997 * 200);
        const float below = OMEGA_EXP_LEAST * (1.01f + (float)i);
        if (!(fabs(omega_power_of_e(x) / exp((double)x) - 1.0) <= 1.2e-7))
            claim = "e^x within 1.2e-7";
        if (omega_power_of_e(below) != 0.0f)
            claim = "e^x is 0 below its least";
    }
    const size_t d = OMEGA_SEQUENCE_DIMENSIONS, event = OMEGA_SEQUENCE_EVENT;
    float *events = allocate(p->watched * event * sizeof events[0]);
    float *states = allocate((1 + p->left) * d * sizeof states[0]), *alone = allocate(d * sizeof alone[0]);
    omega_sequence_workspace *space = allocate(sizeof *space);
    scalar->sequence_events(&p->sequence, p->watched_rows, p->watched_to_end, p->watched, events);
    scalar->sequence_states(&p->sequence, events, p->watched, p->left, space, states);
    for (size_t i = 0; i < (1 + p->left) * d; i++)
        if (!isfinite(states[i]))
            claim = "a bundle's encoder gives finite states";
    if (p->left && p->watched > 1 && fabsf(p->sequence.norms[0]) < 100.0f) {
        const size_t gone = p->seed % p->left;
        scalar->sequence_states(&p->sequence, events, p->watched, p->left, space, states);
        memmove(events + gone * event, events + (gone + 1) * event, (p->watched - gone - 1) * event * sizeof events[0]);
        scalar->sequence_states(&p->sequence, events, p->watched - 1, 0, space, alone);
        for (size_t i = 0; i < d; i++) /* over 4,000 problems at most 4.3e-6 */
            if (!(fabsf(states[(1 + gone) * d + i] - alone[i]) <= 2e-5f))
                claim = "a state without an event is that of the others";
    }
    free(events);
    free(states);
    free(alone);
    free(space);
    return claim;
}

/* The leaf of one candidate, from node to node. */
static float leaf_of(const problem *p, int32_t at, size_t candidate)
{
    if (at < 0)
        return p->forest.leaves[~at];
    const float value = p->features[p->forest.feature[at] * p->n + candidate];
    const float threshold = p->forest.threshold[at];
    const int second = value > threshold || value != value || threshold != threshold;
    return leaf_of(p, p->forest.children[2 * at + second], candidate);
}

static const char *check_second_stage(const problem *p)
{
    float *out = allocate(p->n * sizeof out[0]);
    const char *claim = NULL;
    if (scalar->sum_trees(&p->forest, p->features, p->n, out).kind != OMEGA_FINE)
        claim = "sum_trees takes trees whose children come after them";
    for (size_t candidate = 0; !claim && candidate < p->n; candidate += 1 + p->n / 40) {
        volatile float sum = 0.0f;
        for (size_t tree = 0; tree < p->forest.trees; tree++)
            sum = sum + leaf_of(p, (int32_t)p->forest.roots[tree], candidate);
        if (sum != out[candidate] && !(sum != sum && out[candidate] != out[candidate]))
            claim = "sum_trees adds up the leaves";
    }
    const size_t m = p->n < 60 ? p->n : 60;
    float numbers[60];
    for (size_t i = 0; i < m; i++)
        numbers[i] = (float)i;
    scalar->count_greater(p->features, 1, m, numbers, out);
    for (size_t i = 0; !claim && i < m; i++) {
        size_t greater = 0;
        for (size_t other = 0; other < m; other++)
            greater += p->features[other] > p->features[i] ? 1 : 0;
        if (out[i] != (float)greater)
            claim = "count_greater counts what is greater";
    }
    free(out);
    return claim;
}

const char *check_scalar(const problem *p)
{
    float *scores = allocate(p->n * sizeof scores[0]);
    const char *claim = check_searches(p, scores);
    claim = claim ? claim : check_two_stage(p, scores);
    claim = claim ? claim : check_planes(p);
    claim = claim ? claim : check_quantise(p);
    claim = claim ? claim : check_freshness(p);
    claim = claim ? claim : check_sequence(p);
    claim = claim ? claim : check_second_stage(p);
    free(scores);
    return claim;
}
