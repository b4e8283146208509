/* Every instruction set against the scalar kernels, bit for bit, and the scalar kernels against plain arithmetic.
 *
 *     check_kernels [problems [first seed]]
 *
 * Prints the kernel, the instruction set, the shape and the seed of what differs, and returns 1. Needs no Python.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check_scalar.h"
#include "problem.h"

typedef struct {
    size_t entries, bytes;
    size_t found[PROBLEM_QUERIES];
    uint32_t *rows;
    float *scores;
    uint8_t *plain;
    uint64_t *workspace;
} output;

/* Arrays of exactly the size that a kernel may write, filled with what no kernel writes. */
static output make_output(size_t entries, size_t bytes, size_t words)
{
    output out = {.entries = entries, .bytes = bytes};
    out.rows = allocate(entries * sizeof out.rows[0]);
    out.scores = allocate(entries * sizeof out.scores[0]);
    out.plain = allocate(bytes);
    out.workspace = allocate(words * sizeof out.workspace[0]);
    memset(out.rows, 0xa5, entries * sizeof out.rows[0]);
    memset(out.scores, 0xa5, entries * sizeof out.scores[0]);
    memset(out.plain, 0xa5, bytes);
    return out;
}

static void free_output(output *out)
{
    free(out->rows);
    free(out->scores);
    free(out->plain);
    free(out->workspace);
}

/* Equal bits; of NaN only that it is one. */
static int same_floats(const float *a, const float *b, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (memcmp(a + i, b + i, sizeof a[i]) != 0 && !(a[i] != a[i] && b[i] != b[i]))
            return 0;
    return 1;
}

static int same_output(const output *a, const output *b)
{
    return memcmp(a->found, b->found, sizeof a->found) == 0 &&
           memcmp(a->rows, b->rows, a->entries * sizeof a->rows[0]) == 0 &&
           same_floats(a->scores, b->scores, a->entries) && memcmp(a->plain, b->plain, a->bytes) == 0;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

typedef output run_kernel(const omega_kernels *isa, const problem *p);

static output run_quantise(const omega_kernels *isa, const problem *p)
{
    output out = make_output(p->n, p->n * p->d, 0);
    float *vectors = allocate(p->n * p->d * sizeof vectors[0]);
    memcpy(vectors, p->vectors, p->n * p->d * sizeof vectors[0]);
    if (p->n && p->seed % 3 == 0) { /* one row without a direction: it ends there */
        const float bad[4] = {0.0f / (float)p->n, INFINITY, -INFINITY, NAN};
        const size_t row = p->seed % p->n;
        const float value = bad[p->seed / 3 % 4];
        if (value == 0.0f)
            memset(vectors + row * p->d, 0, p->d * sizeof vectors[0]);
        else
            vectors[row * p->d + p->seed % p->d] = value;
    }
    out.found[0] = isa->quantise(vectors, p->n, p->d, (int8_t *)out.plain, out.scores);
    free(vectors);
    return out;
}

static output run_search(const omega_kernels *isa, const problem *p)
{
    output out = make_output(p->k, 0, OMEGA_TOP_K_WORDS(smaller(p->k, p->n)));
    const float query_scale = p->seed % 16 ? p->query_scale[0] : -p->query_scale[0];
    out.found[0] = isa->search(&p->codes, p->queries, query_scale, p->filter, p->k, out.workspace, out.rows,
                               out.scores);
    return out;
}

static output run_cosines(const omega_kernels *isa, const problem *p)
{
    output out = make_output(PROBLEM_QUERIES * p->n, 0, 0);
    isa->cosines(&p->codes, p->queries, p->query_scale, PROBLEM_QUERIES, out.scores);
    return out;
}

static output run_fuse(const omega_kernels *isa, const problem *p)
{
    output out = make_output(p->n, 0, 0);
    isa->fuse(p->feature_rows, PROBLEM_FEATURES, p->n, p->feature_weights, out.scores);
    return out;
}

static output run_fuse_top_k(const omega_kernels *isa, const problem *p)
{
    output out = make_output(p->k, 0, OMEGA_TOP_K_WORDS(smaller(p->k, p->n)));
    out.found[0] = isa->fuse_top_k(p->feature_rows, PROBLEM_FEATURES, p->n, p->feature_weights, p->filter, p->k,
                                   out.workspace, out.rows, out.scores);
    return out;
}

static output run_diversify(const omega_kernels *isa, const problem *p)
{
    const size_t m = smaller(p->n, 67);
    output out = make_output(m, 0, m);
    isa->diversify(&p->codes, p->listed, p->features, m, 0.7f, smaller(p->k, m), (float *)out.workspace, out.rows,
                   out.found);
    return out;
}

static output run_count_greater(const omega_kernels *isa, const problem *p)
{
    const size_t m = smaller(p->n, 150);
    output out = make_output(PROBLEM_FEATURES * m, 0, 0);
    isa->count_greater(p->features, PROBLEM_FEATURES, m, p->columns.success, out.scores);
    return out;
}

static output run_sum_trees(const omega_kernels *isa, const problem *p)
{
    output out = make_output(p->n, 0, 0);
    out.found[0] = isa->sum_trees(&p->forest, p->features, p->n, out.scores).kind;
    return out;
}

static output run_halve(const omega_kernels *isa, const problem *p)
{
    output out = make_output(0, p->n * p->d + p->n, 0);
    uint8_t *low = out.plain + p->n * p->d / 2;
    isa->halve(p->codes.codes, p->n, p->d, out.plain, low, low + p->n * p->d / 2);
    return out;
}

static output run_join(const omega_kernels *isa, const problem *p)
{
    output out = make_output(0, p->n * p->d, 0);
    isa->join(&p->halves, p->listed, p->n, (int8_t *)out.plain);
    return out;
}

static output run_search_halves(const omega_kernels *isa, const problem *p)
{
    output out = make_output(p->k, 0, OMEGA_TOP_K_WORDS(smaller(p->k, p->n)));
    out.found[0] = isa->search_halves(&p->halves, p->queries, p->query_scale[0], p->filter, p->k, out.workspace,
                                      out.rows, out.scores);
    return out;
}

static output run_search_batch(const omega_kernels *isa, const problem *p)
{
    output out = make_output(PROBLEM_QUERIES * p->k, 0, OMEGA_BATCH_WORDS(smaller(p->k, p->n)));
    isa->search_batch(&p->halves, p->queries, p->query_scale, PROBLEM_QUERIES, p->filter, p->k, out.workspace,
                      out.found, out.rows, out.scores);
    return out;
}

static output run_put_signs(const omega_kernels *isa, const problem *p)
{
    const size_t bytes = (p->n + OMEGA_SIGN_ROWS - 1) / OMEGA_SIGN_ROWS * p->d * 4;
    output out = make_output(0, bytes, 0);
    const size_t first = p->n ? p->seed % p->n : 0, n = p->n ? 1 + p->seed / 7 % (p->n - first) : 0;
    isa->put_signs(p->codes.codes + first * p->d, first, n, p->d, out.plain);
    return out;
}

static output run_search_two_stage(const omega_kernels *isa, const problem *p)
{
    output out =
        make_output(p->k, 0, OMEGA_TWO_STAGE_WORDS(smaller(p->candidates, p->n), smaller(p->k, p->n)));
    out.found[0] = isa->search_two_stage(&p->signs, &p->halves, p->queries, p->query_scale[0], p->filter, p->candidates,
                                         p->k, out.workspace, out.rows, out.scores);
    return out;
}

static output run_rescore(const omega_kernels *isa, const problem *p)
{
    output out = make_output(p->k, 0, p->n);
    out.found[0] = isa->rescore(p->halves_of_floats, p->d, p->query_floats, 0.3f, p->listed, p->n, p->k, out.workspace, out.rows,
                                out.scores);
    return out;
}

static output run_rank(const omega_kernels *isa, const problem *p)
{
    output out = make_output(p->k, 0, OMEGA_TOP_K_WORDS(smaller(p->k, p->n)));
    out.found[0] = isa->rank(&p->halves, p->queries, p->query_scale[0], &p->columns, &p->weights, &p->limits, p->filter,
                             p->k, out.workspace, out.rows, out.scores);
    return out;
}

static output run_sequence_events(const omega_kernels *isa, const problem *p)
{
    output out = make_output(p->watched * OMEGA_SEQUENCE_EVENT, 0, 0);
    uint32_t *rows = allocate(p->watched * sizeof rows[0]);
    memcpy(rows, p->watched_rows, p->watched * sizeof rows[0]);
    if (p->seed % 5 == 0) /* no title: it ends there */
        rows[p->seed % p->watched] = (uint32_t)p->sequence.titles.rows;
    const omega_fault fault = isa->sequence_events(&p->sequence, rows, p->watched_to_end, p->watched, out.scores);
    out.found[0] = fault.kind;
    out.found[1] = fault.at;
    free(rows);
    return out;
}

static output run_sequence_states(const omega_kernels *isa, const problem *p)
{
    output out = make_output((1 + p->left) * OMEGA_SEQUENCE_DIMENSIONS, 0, 0);
    omega_sequence_workspace *space = allocate(sizeof *space);
    float *events = allocate(p->watched * OMEGA_SEQUENCE_EVENT * sizeof events[0]);
    isa->sequence_events(&p->sequence, p->watched_rows, p->watched_to_end, p->watched, events);
    isa->sequence_states(&p->sequence, events, p->watched, p->left, space, out.scores);
    free(events);
    free(space);
    return out;
}

static const struct {
    const char *name;
    run_kernel *run;
} kernels[] = {
    {"quantise", run_quantise},
    {"search", run_search},
    {"cosines", run_cosines},
    {"fuse", run_fuse},
    {"fuse_top_k", run_fuse_top_k},
    {"diversify", run_diversify},
    {"count_greater", run_count_greater},
    {"sum_trees", run_sum_trees},
    {"halve", run_halve},
    {"join", run_join},
    {"search_halves", run_search_halves},
    {"search_batch", run_search_batch},
    {"put_signs", run_put_signs},
    {"search_two_stage", run_search_two_stage},
    {"rescore", run_rescore},
    {"rank", run_rank},
    {"sequence_events", run_sequence_events},
    {"sequence_states", run_sequence_states},
};

static int check_problem(const problem *p)
{
    int faults = 0;
    const char *claim = check_scalar(p);
    if (claim) {
        fprintf(stderr, "check_kernels: scalar: does not hold: %s (%zu rows, %zu dimensions, seed %llu)\n", claim, p->n,
                p->d, (unsigned long long)p->seed);
        faults++;
    }
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++) {
        output expected = kernels[i].run(&omega_kernels_scalar, p);
        for (size_t set = 0; omega_kernels_at(set) != &omega_kernels_scalar; set++) {
            output got = kernels[i].run(omega_kernels_at(set), p);
            if (!same_output(&expected, &got)) {
                fprintf(stderr,
                        "check_kernels: %s of %s differs from scalar: %zu rows, %zu dimensions, k %zu, candidates %zu, "
                        "%s, seed %llu\n",
                        kernels[i].name, omega_kernels_at(set)->isa, p->n, p->d, p->k, p->candidates,
                        p->filter ? "filtered" : "all rows allowed", (unsigned long long)p->seed);
                faults++;
            }
            free_output(&got);
        }
        free_output(&expected);
    }
    return faults;
}

int main(int count, char **arguments)
{
    char *end = "";
    const unsigned long problems = count > 1 ? strtoul(arguments[1], &end, 10) : 400;
    const unsigned long first = count > 2 && !*end ? strtoul(arguments[2], &end, 10) : 1;
    if (*end || count > 3) {
        fprintf(stderr, "usage: check_kernels [problems [first seed]]\n");
        return 2;
    }
    int faults = 0;
    for (unsigned long seed = first; seed < first + problems && faults < 20; seed++) {
        problem p = make_problem(seed);
        faults += check_problem(&p);
        free_problem(&p);
    }
    if (faults)
        return 1;
    printf("check_kernels: %lu problems, equal for", problems);
    for (size_t set = 0; omega_kernels_at(set); set++)
        printf(" %s", omega_kernels_at(set)->isa);
    printf("\n");
    return 0;
}
