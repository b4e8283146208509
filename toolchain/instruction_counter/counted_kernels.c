/* Runs every kernel of the dispatch table between marks: counted_kernels CODES
 *
 * CODES holds rows of DIMENSIONS int8 codes: ROWS of a catalogue, then QUERIES to search it for. For each instruction
 * set that the processor runs and each kernel, one line goes to standard output:
 *
 *     count <mark> <kernel> <instruction set> <what the count is divided by> <how many of these> <hash of the outputs>
 *
 * The hash (FNV-1a) is the same for every instruction set, or a kernel is wrong and its count worth nothing.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "mark.h"

#define DIMENSIONS 384
#define ROWS 10000
#define QUERIES 8
#define K 50
#define FEATURES 11
#define FEATURES_DRAWN_FIRST 8 /* the others last: what is drawn between, so what other kernels meet, stays the same */
#define GENRES 28
#define MATRIX_ROWS 2000
#define ROW_ENTRIES 200
#define EVENTS 64
#define TARGETS 20
#define MARGINAL_CANDIDATES 100
#define PICKS 20
#define STAGE_INPUTS 26
#define STAGE_LISTS 12
#define TREES 200
#define TREE_NODES 15 /* depth 4 */
#define TWO_STAGE_CANDIDATES 460 /* VectorStore, calibrated for a recall of .99 on 10,000 real vectors, takes 458 */
#define RESCORED 64
#define NOW 1000000
#define OUTPUTS (QUERIES * ROWS)
#define HELD (EVENTS + 1)

static int8_t codes[(ROWS + QUERIES) * DIMENSIONS];
static float scale[ROWS + QUERIES], vectors[ROWS * DIMENSIONS];
static const int8_t *const queries = codes + (size_t)ROWS * DIMENSIONS;
static const float *const query_scale = scale + ROWS;
static const omega_codes table = {codes, scale, ROWS, DIMENSIONS};

static uint8_t high[ROWS * DIMENSIONS / 2], low[ROWS * DIMENSIONS / 2], spread[ROWS];
static const omega_halves halves = {high, low, scale, spread, ROWS, DIMENSIONS};
static uint8_t blocks[(ROWS + OMEGA_SIGN_ROWS - 1) / OMEGA_SIGN_ROWS * DIMENSIONS * 4];
static const omega_signs signs = {blocks, ROWS, DIMENSIONS};
static uint16_t half_floats[ROWS * DIMENSIONS];
static float success[ROWS], trend[ROWS];
static uint32_t watched_at[ROWS];

static uint8_t tenth[(ROWS + 7) / 8]; /* a filter that one row in ten passes */
static float features[FEATURES * ROWS], weights[EVENTS], values[MARGINAL_CANDIDATES];
static const float *feature_rows[FEATURES];
static uint64_t genre_masks[ROWS];
static uint32_t roots[TREES];
static uint8_t asked[TREES * TREE_NODES];
static float thresholds[TREES * TREE_NODES], leaves[TREES * (TREE_NODES + 1)], of_count[MARGINAL_CANDIDATES];
static int32_t children[2 * TREES * TREE_NODES];
static const omega_forest forest = {roots, asked, thresholds, children, leaves,
                                    TREES, TREES * TREE_NODES, TREES * (TREE_NODES + 1), STAGE_INPUTS};
static uint32_t matrix_offsets[MATRIX_ROWS + 1], matrix_columns[MATRIX_ROWS * ROW_ENTRIES];
static int8_t matrix_values[MATRIX_ROWS * ROW_ENTRIES];
static const omega_rows matrix = {matrix_offsets, matrix_columns, matrix_values, scale, MATRIX_ROWS,
                                  MATRIX_ROWS * ROW_ENTRIES};
static uint32_t events[HELD], targets[TARGETS], candidates[MARGINAL_CANDIDATES];

static uint64_t workspace[OMEGA_BATCH_WORDS(K) + OMEGA_TWO_STAGE_WORDS(TWO_STAGE_CANDIDATES, K)];
static int8_t codes_out[ROWS * DIMENSIONS];
static uint32_t rows_out[ROWS];
static float out[OUTPUTS];

/* An encoder over the same codes, its floats from the features; events are rows of the matrix, so titles. */
static uint8_t watched_to_end[HELD];
static float sequence_out[HELD * OMEGA_SEQUENCE_EVENT];
static omega_sequence_workspace sequence_space;
static const omega_sequence encoder = {
    .titles = {codes, scale, ROWS, OMEGA_SEQUENCE_DIMENSIONS},
    .success = features,
    .distance = features + 1000,
    .norms = features + 2000,
    .attention = codes + 1000000,
    .attention_scale = scale + 100,
    .feed_in = codes + 2000000,
    .feed_in_scale = scale + 400,
    .feed_in_bias = features + 3000,
    .feed_out = codes + 3000000,
    .feed_out_scale = scale + 600,
    .feed_out_bias = features + 4000,
    .input_scale = 4.0f,
};

static uint64_t hash;

static void take_in(const void *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3u;
}

static void take_in_best(size_t found)
{
    take_in(&found, sizeof found);
    take_in(rows_out, found * sizeof *rows_out);
    take_in(out, found * sizeof *out);
}

static void fail(const char *expected)
{
    fprintf(stderr, "counted_kernels: expected %s\n", expected);
    exit(1);
}

static void expect_fine(omega_fault fault)
{
    if (fault.kind != OMEGA_FINE)
        fail("no fault in sound data");
}

/* Uniform 32-bit numbers: splitmix64 (Steele, Lea and Flood, 2014), the same everywhere. */
static uint32_t drawn(uint32_t below)
{
    static uint64_t state = 1;
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ z >> 31) >> 32) % below;
}

static float drawn_float(void)
{
    return (float)drawn(1 << 24) / (1 << 23) - 1.0f;
}

static void read_codes(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL || fread(codes, 1, sizeof codes, file) != sizeof codes || getc(file) != EOF)
        fail("a file of 10008 rows of 384 codes");
    fclose(file);
    for (size_t row = 0; row < ROWS + QUERIES; row++) {
        int32_t squares = 0;
        for (size_t i = 0; i < DIMENSIONS; i++)
            squares += codes[row * DIMENSIONS + i] * codes[row * DIMENSIONS + i];
        scale[row] = (float)(1.0 / sqrt((double)squares));
        for (size_t at = row * DIMENSIONS; row < ROWS && at < (row + 1) * DIMENSIONS; at++) {
            vectors[at] = (float)codes[at] * scale[row];
            const __fp16 rounded = (__fp16)vectors[at];
            memcpy(&half_floats[at], &rounded, sizeof rounded);
        }
    }
}

/* Full trees of depth 4, whose inputs are the first candidates' features. */
static void make_forest(void)
{
    for (uint32_t tree = 0; tree < TREES; tree++) {
        roots[tree] = tree * TREE_NODES;
        for (uint32_t node = 0; node < TREE_NODES; node++) {
            const uint32_t at = roots[tree] + node;
            asked[at] = (uint8_t)drawn(STAGE_INPUTS);
            thresholds[at] = drawn_float();
            for (uint32_t side = 0; side < 2; side++) {
                const uint32_t below = 2 * node + 1 + side;
                children[2 * at + side] = below < TREE_NODES ? (int32_t)(roots[tree] + below)
                                                             : ~(int32_t)(tree * (TREE_NODES + 1) + below - TREE_NODES);
            }
        }
    }
    for (size_t leaf = 0; leaf < TREES * (TREE_NODES + 1); leaf++)
        leaves[leaf] = drawn_float();
    for (size_t i = 0; i < MARGINAL_CANDIDATES; i++)
        of_count[i] = (float)i;
}

static void make_rest(void)
{
    for (size_t feature = 0; feature < FEATURES; feature++)
        feature_rows[feature] = features + feature * ROWS;
    for (size_t i = 0; i < FEATURES_DRAWN_FIRST * ROWS; i++)
        features[i] = drawn_float();
    for (size_t row = 0; row < ROWS; row++) {
        tenth[row >> 3] |= (uint8_t)((drawn(10) == 0) << (row & 7));
        success[row] = (float)drawn(1 << 10) / (1 << 10);
        trend[row] = (float)drawn(1 << 10) / (1 << 10);
        watched_at[row] = drawn(NOW);
        genre_masks[row] = (uint64_t)1 << drawn(GENRES) | (uint64_t)1 << drawn(GENRES) | (uint64_t)1 << drawn(GENRES);
    }
    for (size_t entry = 0; entry < MATRIX_ROWS * ROW_ENTRIES; entry++) {
        const uint32_t step = ROWS / ROW_ENTRIES; /* ascending inside a row */
        matrix_columns[entry] = (uint32_t)(entry % ROW_ENTRIES) * step + drawn(step);
        matrix_values[entry] = (int8_t)((int)drawn(255) - 127);
    }
    for (uint32_t row = 0; row <= MATRIX_ROWS; row++)
        matrix_offsets[row] = row * ROW_ENTRIES;
    for (size_t i = 0; i < EVENTS; i++) {
        events[i] = drawn(MATRIX_ROWS);
        weights[i] = drawn_float();
    }
    events[EVENTS] = 7;
    for (size_t i = 0; i < HELD; i++)
        watched_to_end[i] = i % 3 != 0;
    for (size_t i = 0; i < TARGETS; i++)
        targets[i] = drawn(ROWS);
    for (uint32_t i = 0; i < MARGINAL_CANDIDATES; i++) {
        candidates[i] = i * (ROWS / MARGINAL_CANDIDATES) + drawn(ROWS / MARGINAL_CANDIDATES);
        values[i] = drawn_float();
    }
    for (size_t i = FEATURES_DRAWN_FIRST * ROWS; i < FEATURES * ROWS; i++)
        features[i] = drawn_float();
    make_forest();
}

/* Each kernel as it is called, between marks, then its outputs taken into the hash. */

static long mark; /* of the kernel that runs */

#define COUNTED(call)                 \
    do {                              \
        omega_mark(OMEGA_MARK_OPENS); \
        call;                         \
        omega_mark(mark);             \
    } while (0)

static void quantise(const omega_kernels *kernels)
{
    size_t done;
    COUNTED(done = kernels->quantise(vectors, ROWS, DIMENSIONS, codes_out, out));
    if (done != ROWS)
        fail("vectors that can be quantised");
    take_in(codes_out, sizeof codes_out);
    take_in(out, ROWS * sizeof *out);
}

static void search(const omega_kernels *kernels)
{
    size_t found;
    COUNTED(found = kernels->search(&table, queries, query_scale[0], NULL, K, workspace, rows_out, out));
    take_in_best(found);
}

static void search_tenth(const omega_kernels *kernels)
{
    size_t found;
    COUNTED(found = kernels->search(&table, queries, query_scale[0], tenth, K, workspace, rows_out, out));
    take_in_best(found);
}

static void cosines(const omega_kernels *kernels)
{
    COUNTED(kernels->cosines(&table, queries, query_scale, QUERIES, out));
    take_in(out, sizeof out);
}

static void row_scatter_add(const omega_kernels *kernels)
{
    omega_fault fault;
    memset(out, 0, ROWS * sizeof *out);
    COUNTED(fault = kernels->row_scatter_add(&matrix, events, weights, EVENTS, out, ROWS));
    expect_fine(fault);
    take_in(out, ROWS * sizeof *out);
}

static void row_lookup(const omega_kernels *kernels)
{
    omega_fault fault;
    COUNTED(fault = kernels->row_lookup(&matrix, events, EVENTS, targets, TARGETS, out));
    expect_fine(fault);
    take_in(out, EVENTS * TARGETS * sizeof *out);
}

static void genre_means(const omega_kernels *kernels)
{
    omega_fault fault;
    COUNTED(fault = kernels->genre_means(genre_masks, ROWS, features, GENRES, out));
    expect_fine(fault);
    take_in(out, ROWS * sizeof *out);
}

static void left_out_sums(const omega_kernels *kernels)
{
    const omega_codes parts = {codes, scale, EVENTS, DIMENSIONS};
    COUNTED(kernels->left_out_sums(&parts, weights, 1.1f, EVENTS, out));
    take_in(out, (size_t)EVENTS * DIMENSIONS * sizeof *out);
}

static void fuse(const omega_kernels *kernels)
{
    COUNTED(kernels->fuse(feature_rows, FEATURES, ROWS, weights, out));
    take_in(out, ROWS * sizeof *out);
}

static void fuse_top_k(const omega_kernels *kernels)
{
    size_t found;
    COUNTED(found = kernels->fuse_top_k(feature_rows, FEATURES, ROWS, weights, NULL, K, workspace, rows_out, out));
    take_in_best(found);
}

static void diversify(const omega_kernels *kernels)
{
    omega_fault fault;
    size_t found;
    COUNTED(fault = kernels->diversify(&table, candidates, values, MARGINAL_CANDIDATES, 0.7f, PICKS, out, rows_out,
                                       &found));
    expect_fine(fault);
    take_in(rows_out, found * sizeof *rows_out);
}

static void count_greater(const omega_kernels *kernels)
{
    COUNTED(kernels->count_greater(features, STAGE_LISTS, MARGINAL_CANDIDATES, of_count, out));
    take_in(out, STAGE_LISTS * MARGINAL_CANDIDATES * sizeof *out);
}

static void sum_trees(const omega_kernels *kernels)
{
    omega_fault fault;
    COUNTED(fault = kernels->sum_trees(&forest, features, MARGINAL_CANDIDATES, out));
    expect_fine(fault);
    take_in(out, MARGINAL_CANDIDATES * sizeof *out);
}

static void halve(const omega_kernels *kernels)
{
    COUNTED(kernels->halve(codes, ROWS, DIMENSIONS, high, low, spread));
    take_in(high, sizeof high);
    take_in(low, sizeof low);
    take_in(spread, sizeof spread);
}

static void join(const omega_kernels *kernels)
{
    COUNTED(kernels->join(&halves, candidates, MARGINAL_CANDIDATES, codes_out));
    take_in(codes_out, MARGINAL_CANDIDATES * DIMENSIONS);
}

static void put_signs(const omega_kernels *kernels)
{
    COUNTED(kernels->put_signs(codes, 0, ROWS, DIMENSIONS, blocks));
    take_in(blocks, sizeof blocks);
}

static void search_halves(const omega_kernels *kernels)
{
    size_t found;
    COUNTED(found = kernels->search_halves(&halves, queries, query_scale[0], NULL, K, workspace, rows_out, out));
    take_in_best(found);
}

static void search_halves_tenth(const omega_kernels *kernels)
{
    size_t found;
    COUNTED(found = kernels->search_halves(&halves, queries, query_scale[0], tenth, K, workspace, rows_out, out));
    take_in_best(found);
}

static void search_batch(const omega_kernels *kernels)
{
    size_t found[QUERIES];
    COUNTED(kernels->search_batch(&halves, queries, query_scale, QUERIES, NULL, K, workspace, found, rows_out, out));
    for (size_t j = 0; j < QUERIES; j++) {
        take_in(rows_out + j * K, found[j] * sizeof *rows_out);
        take_in(out + j * K, found[j] * sizeof *out);
    }
}

static void search_two_stage(const omega_kernels *kernels)
{
    size_t found;
    COUNTED(found = kernels->search_two_stage(&signs, &halves, queries, query_scale[0], NULL, TWO_STAGE_CANDIDATES, K,
                                              workspace, rows_out, out));
    take_in_best(found);
}

static void rescore(const omega_kernels *kernels)
{
    size_t found;
    COUNTED(found = kernels->rescore(half_floats, DIMENSIONS, vectors, 1.0f, candidates, RESCORED, K, workspace,
                                     rows_out, out));
    take_in_best(found);
}

static void rank_by(const omega_kernels *kernels, const uint8_t *filter)
{
    const omega_rank_columns columns = {success, watched_at, trend};
    const omega_rank_weights parts = {1.0f, 0.2f, 0.2f, 0.1f};
    const omega_rank_limits limits = {NOW, 10.0f / NOW, -2.0f};
    size_t found;
    COUNTED(found = kernels->rank(&halves, queries, query_scale[0], &columns, &parts, &limits, filter, K, workspace,
                                  rows_out, out));
    take_in_best(found);
}

static void rank(const omega_kernels *kernels)
{
    rank_by(kernels, NULL);
}

static void rank_tenth(const omega_kernels *kernels)
{
    rank_by(kernels, tenth);
}

static void sequence_events(const omega_kernels *kernels)
{
    omega_fault fault;
    COUNTED(fault = kernels->sequence_events(&encoder, events, watched_to_end, HELD, sequence_out));
    expect_fine(fault);
    take_in(sequence_out, sizeof sequence_out);
}

/* The next event alone, the others being kept. */
static void sequence_next(const omega_kernels *kernels)
{
    omega_fault fault;
    COUNTED(fault = kernels->sequence_events(&encoder, events, watched_to_end, 1, out));
    expect_fine(fault);
    take_in(out, OMEGA_SEQUENCE_EVENT * sizeof *out);
}

static void sequence_states(const omega_kernels *kernels)
{
    COUNTED(kernels->sequence_states(&encoder, sequence_out, HELD, EVENTS, &sequence_space, out));
    take_in(out, (size_t)(1 + EVENTS) * OMEGA_SEQUENCE_DIMENSIONS * sizeof *out);
}

/* What is counted, in an order in which halve and put_signs have filled what others read: add a kernel
 * by a function above and a line here. Names in _tenth are calls whose filter one row in ten passes. */
static const struct {
    const char *kernel;
    void (*run)(const omega_kernels *kernels);
    const char *per;
    size_t count;
} COUNTS[] = {
    {"halve", halve, "vector", ROWS},
    {"put_signs", put_signs, "vector", ROWS},
    {"search_two_stage", search_two_stage, "vector", ROWS},
    {"search_halves", search_halves, "vector", ROWS},
    {"search_halves_tenth", search_halves_tenth, "vector", ROWS},
    {"search_batch", search_batch, "vector-query", ROWS * QUERIES},
    {"rank", rank, "vector", ROWS},
    {"rank_tenth", rank_tenth, "vector", ROWS},
    {"rescore", rescore, "candidate", RESCORED},
    {"join", join, "vector", MARGINAL_CANDIDATES},
    {"search", search, "vector", ROWS},
    {"search_tenth", search_tenth, "vector", ROWS},
    {"cosines", cosines, "vector-query", ROWS * QUERIES},
    {"quantise", quantise, "vector", ROWS},
    {"fuse", fuse, "title", ROWS},
    {"fuse_top_k", fuse_top_k, "title", ROWS},
    {"genre_means", genre_means, "title", ROWS},
    {"row_scatter_add", row_scatter_add, "entry", EVENTS * ROW_ENTRIES},
    {"row_lookup", row_lookup, "event-title", EVENTS * TARGETS},
    {"left_out_sums", left_out_sums, "event", EVENTS},
    {"diversify", diversify, "candidate-pick", MARGINAL_CANDIDATES * PICKS},
    {"count_greater", count_greater, "value", STAGE_LISTS * MARGINAL_CANDIDATES},
    {"sum_trees", sum_trees, "candidate-tree", MARGINAL_CANDIDATES * TREES},
    {"sequence_events", sequence_events, "event", HELD},
    {"sequence_next", sequence_next, "event", 1},
    {"sequence_states", sequence_states, "state", 1 + EVENTS},
};

int main(int argc, char **argv)
{
    if (argc != 2)
        fail("one argument, the file of codes");
    read_codes(argv[1]);
    make_rest();
    const omega_kernels *kernels;
    for (size_t index = 0; (kernels = omega_kernels_at(index)) != NULL; index++)
        for (size_t i = 0; i < sizeof COUNTS / sizeof *COUNTS; i++) {
            mark++;
            hash = 0xcbf29ce484222325u;
            COUNTS[i].run(kernels);
            printf("count %ld %s %s %s %zu %016llx\n", mark, COUNTS[i].kernel, kernels->isa, COUNTS[i].per,
                   COUNTS[i].count, (unsigned long long)hash);
        }
    return fflush(stdout) == 0 ? 0 : 1;
}
