/* Any bytes become a call of one kernel: every instruction set must answer as the scalar one does, inside its arrays.
 *
 * Arrays are allocated at exactly their size, at an address that the input chooses, so that AddressSanitizer sees every
 * byte read or written beside them. Built with clang -fsanitize=fuzzer -DOMEGA_FUZZER it is a libFuzzer target; otherwise
 * its own main makes inputs from seeds: fuzz_kernels [inputs [first seed]].
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

typedef struct {
    const uint8_t *bytes;
    size_t size;
    size_t at;
} stream;

static uint32_t take(stream *input, uint32_t below)
{
    uint32_t value = 0;
    for (int i = 0; i < 4; i++)
        value = value << 8 | (input->at < input->size ? input->bytes[input->at++] : 0);
    return below ? value % below : value;
}

typedef struct {
    void *memory[64];
    size_t count;
} arrays;

/* Exactly so many bytes, aligned as the elements ask and no better. */
static void *array(arrays *owned, size_t bytes, size_t element, uint32_t offset)
{
    const size_t shift = offset % 16 * element;
    uint8_t *memory = malloc(shift + bytes + (shift + bytes == 0));
    if (!memory)
        abort();
    owned->memory[owned->count++] = memory;
    return memory + shift;
}

static void release(arrays *owned)
{
    for (size_t i = 0; i < owned->count; i++)
        free(owned->memory[i]);
}

static void fill(stream *input, void *out, size_t bytes)
{
    uint8_t *to = out;
    uint64_t state = take(input, 0) | 1u;
    const uint32_t kind = take(input, 4);
    for (size_t i = 0; i < bytes; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        to[i] = (uint8_t)(kind == 0 ? state >> 33 : kind == 1 ? 129 : kind == 2 ? 127 : take(input, 0));
    }
}

static void fill_codes(stream *input, int8_t *out, size_t count)
{
    fill(input, out, count);
    for (size_t i = 0; i < count; i++)
        out[i] = out[i] == -128 ? 0 : out[i];
}

static void fill_floats(stream *input, float *out, size_t count, int positive)
{
    static const float special[8] = {0.0f, 1.0f, 0x1p-149f, 0x1p-126f, 3e38f, 0.05f, 1e-20f, 2.0f};
    uint64_t state = take(input, 0) | 1u;
    for (size_t i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        out[i] = state >> 60 ? (float)(state >> 40) * 0x1p-27f : special[state >> 57 & 7];
        if (!positive && (state >> 39 & 1))
            out[i] = -out[i];
    }
}

static void differ(const char *kernel, const char *isa, size_t n, size_t d)
{
    fprintf(stderr, "fuzz_kernels: %s of %s differs from scalar with %zu rows of %zu dimensions\n", kernel, isa, n, d);
    abort();
}

static const omega_kernels *scalar_kernels(size_t *others)
{
    size_t last = 0;
    while (omega_kernels_at(last + 1))
        last++;
    *others = last;
    return omega_kernels_at(last);
}

typedef struct {
    size_t n, d, k, candidates;
    omega_codes codes;
    omega_halves halves;
    omega_signs signs;
    const int8_t *query;
    float query_scale;
    const uint8_t *filter;
    omega_rank_columns columns;
    omega_rank_weights weights;
    omega_rank_limits limits;
    const float *query_floats;
    const uint16_t *vectors;
    uint32_t *listed;
    omega_sequence sequence;
    size_t watched, left;
    uint32_t *watched_rows;
    uint8_t *watched_to_end;
    omega_forest forest; /* of any numbers at all */
    const float *lists;  /* forest.inputs * n */
} problem;

static const int8_t *take_codes(stream *input, arrays *owned, size_t count)
{
    int8_t *codes = array(owned, count, 1, take(input, 16));
    fill_codes(input, codes, count);
    return codes;
}

static const float *take_floats(stream *input, arrays *owned, size_t count)
{
    float *floats = array(owned, count * 4, 4, take(input, 16));
    fill_floats(input, floats, count, 0);
    const float most = take(input, 4) ? 1e6f : 3.4e38f; /* what a bundle may hold, mostly: infinities hide what follows */
    for (size_t i = 0; i < count; i++)
        floats[i] = floats[i] > most ? 1.0f : floats[i] < -most ? -1.0f : floats[i];
    return floats;
}

static void make_sequence(stream *input, arrays *owned, problem *p)
{
    const size_t d = OMEGA_SEQUENCE_DIMENSIONS, f = OMEGA_SEQUENCE_FEED, titles = 1 + take(input, 20);
    p->watched = 1 + take(input, OMEGA_SEQUENCE_WINDOW + 1);
    p->left = take(input, 1 + (uint32_t)(p->watched < OMEGA_SEQUENCE_WINDOW ? p->watched : OMEGA_SEQUENCE_WINDOW));
    p->watched_rows = array(owned, p->watched * 4, 4, take(input, 16));
    p->watched_to_end = array(owned, p->watched, 1, take(input, 16));
    const uint32_t step = take(input, 0), outside = take(input, 8 * (uint32_t)p->watched);
    for (size_t i = 0; i < p->watched; i++)
        p->watched_rows[i] = i == outside ? step : (uint32_t)(i * step % titles);
    fill(input, p->watched_to_end, p->watched);
    const int8_t *codes = take_codes(input, owned, titles * d);
    p->sequence.titles = (omega_codes){codes, take_floats(input, owned, titles), titles, d};
    p->sequence.success = take_floats(input, owned, 2 * d);
    p->sequence.distance = take_floats(input, owned, OMEGA_SEQUENCE_WINDOW * OMEGA_SEQUENCE_HEADS);
    p->sequence.norms = take_floats(input, owned, 3 * d);
    p->sequence.attention = take_codes(input, owned, 4 * d * d);
    p->sequence.attention_scale = take_floats(input, owned, 4 * d);
    p->sequence.feed_in = take_codes(input, owned, d * f);
    p->sequence.feed_in_scale = take_floats(input, owned, f);
    p->sequence.feed_in_bias = take_floats(input, owned, f);
    p->sequence.feed_out = take_codes(input, owned, f * d);
    p->sequence.feed_out_scale = take_floats(input, owned, d);
    p->sequence.feed_out_bias = take_floats(input, owned, d);
    fill_floats(input, &p->sequence.input_scale, 1, 0);
}

/* Trees as a bundle that nobody checked could hold them; half of them sound but for one number. */
static void make_forest(stream *input, arrays *owned, problem *p, uint32_t offset)
{
    const size_t trees = take(input, 6), nodes = 1 + take(input, 30), leaves = 1 + take(input, 12), inputs = 1 + take(input, 5);
    uint32_t *roots = array(owned, trees * 4, 4, offset);
    uint8_t *feature = array(owned, nodes, 1, offset);
    float *threshold = array(owned, nodes * 4, 4, offset), *leaf = array(owned, leaves * 4, 4, offset + 1);
    float *lists = array(owned, inputs * p->n * 4, 4, offset);
    int32_t *children = array(owned, nodes * 8, 4, offset);
    fill_floats(input, threshold, nodes, 0);
    fill_floats(input, leaf, leaves, 0);
    fill_floats(input, lists, inputs * p->n, 0);
    for (size_t tree = 0; tree < trees; tree++)
        roots[tree] = take(input, (uint32_t)nodes);
    for (size_t node = 0; node < nodes; node++) {
        feature[node] = (uint8_t)take(input, (uint32_t)inputs);
        for (size_t side = 0; side < 2; side++)
            children[2 * node + side] = node + 1 < nodes && take(input, 2)
                                            ? (int32_t)(node + 1 + take(input, (uint32_t)(nodes - 1 - node)))
                                            : ~(int32_t)take(input, (uint32_t)leaves);
    }
    const uint32_t kind = take(input, 8);
    if (kind == 0)
        children[take(input, (uint32_t)(2 * nodes))] = (int32_t)take(input, 0);
    else if (kind == 1)
        children[take(input, (uint32_t)(2 * nodes))] = (int32_t)take(input, (uint32_t)nodes);
    else if (kind == 2)
        feature[take(input, (uint32_t)nodes)] = (uint8_t)take(input, 256);
    else if (kind == 3 && trees)
        roots[take(input, (uint32_t)trees)] = take(input, 0);
    p->forest = (omega_forest){roots, feature, threshold, children, leaf, trees, nodes, leaves, inputs};
    p->lists = lists;
}

static problem make_problem(stream *input, arrays *owned, int with_sequence)
{
    const omega_kernels *scalar = scalar_kernels(&(size_t){0});
    problem p = {0};
    if (with_sequence)
        make_sequence(input, owned, &p);
    p.n = take(input, 150);
    p.d = 32 * (1 + (take(input, 4) ? take(input, 12) : take(input, 32)));
    p.k = 1 + take(input, 2 * (uint32_t)p.n + 2);
    p.candidates = 1 + take(input, 2 * (uint32_t)p.n + 2);
    const uint32_t offset = take(input, 16);
    int8_t *codes = array(owned, p.n * p.d, 1, offset), *query = array(owned, p.d, 1, offset + 3);
    float *scale = array(owned, p.n * 4, 4, offset);
    uint8_t *high = array(owned, p.n * p.d / 2, 1, offset + 1), *low = array(owned, p.n * p.d / 2, 1, offset + 2);
    uint8_t *spread = array(owned, p.n, 1, offset);
    const size_t sign_bytes = (p.n + 31) / 32 * p.d * 4;
    uint8_t *blocks = array(owned, sign_bytes, 1, offset + 5), *filter = array(owned, (p.n + 7) / 8, 1, offset);
    fill_codes(input, codes, p.n * p.d);
    fill_codes(input, query, p.d);
    fill_floats(input, scale, p.n, 1);
    fill_floats(input, &p.query_scale, 1, 1);
    fill(input, filter, (p.n + 7) / 8);
    fill(input, blocks, sign_bytes);
    scalar->halve(codes, p.n, p.d, high, low, spread);
    scalar->put_signs(codes, 0, p.n, p.d, blocks);
    float *success = array(owned, p.n * 4, 4, offset), *trend = array(owned, p.n * 4, 4, offset + 1);
    uint32_t *times = array(owned, p.n * 4, 4, offset + 2);
    float *query_floats = array(owned, p.d * 4, 4, offset);
    uint16_t *vectors = array(owned, p.n * p.d * 2, 2, offset);
    fill_floats(input, success, p.n, 0);
    fill_floats(input, trend, p.n, 0);
    fill(input, times, p.n * 4);
    fill_floats(input, query_floats, p.d, 0);
    fill(input, vectors, p.n * p.d * 2);
    p.listed = array(owned, p.n * 4, 4, offset);
    for (size_t i = 0; i < p.n; i++)
        p.listed[i] = (uint32_t)(p.n - 1 - i);
    p.codes = (omega_codes){codes, scale, p.n, p.d};
    p.halves = (omega_halves){high, low, scale, spread, p.n, p.d};
    p.signs = (omega_signs){blocks, p.n, p.d};
    p.query = query;
    p.query_floats = query_floats;
    p.vectors = vectors;
    p.filter = take(input, 2) ? filter : NULL;
    p.columns = (omega_rank_columns){success, times, trend};
    fill_floats(input, &p.weights.similarity, 1, 1);
    fill_floats(input, &p.weights.success, 1, 0);
    fill_floats(input, &p.weights.recency, 1, 0);
    fill_floats(input, &p.weights.trend, 1, 0);
    p.limits = (omega_rank_limits){take(input, 0), 1.0f / (float)(1 + take(input, 1u << 30)), -2.0f};
    if (take(input, 2))
        fill_floats(input, &p.limits.least_similarity, 1, 0);
    make_forest(input, owned, &p, offset);
    return p;
}

enum { SEARCH, SEARCH_HALVES, SEARCH_BATCH, SEARCH_TWO_STAGE, RESCORE, RANK, HALVE, COSINES, SUM_TREES, COUNT_GREATER, SEQUENCE,
       KERNELS };
static const char *const names[KERNELS] = {"search",  "search_halves", "search_batch", "search_two_stage",
                                           "rescore", "rank",          "halve",        "cosines",
                                           "sum_trees", "count_greater", "sequence"};

/* Events and states one after another; a NaN, which numbers as large as these can give, without its payload. */
static void sequence_answer(const omega_kernels *isa, const problem *p, arrays *owned, float *out)
{
    const size_t events = p->watched * OMEGA_SEQUENCE_EVENT, states = (1 + p->left) * OMEGA_SEQUENCE_DIMENSIONS;
    omega_sequence_workspace *space = array(owned, sizeof *space, 4, 1);
    memset(out, 0, (events + states) * 4);
    const omega_fault fault = isa->sequence_events(&p->sequence, p->watched_rows, p->watched_to_end, p->watched, out);
    if (fault.kind == OMEGA_FINE)
        isa->sequence_states(&p->sequence, out, p->watched, p->left, space, out + events);
    for (size_t i = 0; i < events + states; i++)
        if (out[i] != out[i])
            out[i] = NAN;
}

/* Runs one kernel and leaves everything that it writes in one block of memory. */
static size_t answer(const omega_kernels *isa, int kernel, const problem *p, arrays *owned, uint8_t **out)
{
    const size_t least = p->k < p->n ? p->k : p->n, chosen = p->candidates < p->n ? p->candidates : p->n;
    const size_t sequence = p->watched * OMEGA_SEQUENCE_EVENT + (1 + p->left) * OMEGA_SEQUENCE_DIMENSIONS;
    const size_t queries = 3, entries = kernel == SEARCH_BATCH    ? queries * p->k
                                        : kernel == COSINES       ? queries * p->n
                                        : kernel == SUM_TREES     ? p->n
                                        : kernel == SEQUENCE      ? sequence
                                        : kernel == COUNT_GREATER ? p->forest.inputs * p->n
                                                                  : p->k;
    uint32_t *rows = array(owned, entries * 4, 4, 1);
    float *scores = array(owned, entries * 4, 4, 3);
    size_t *found = array(owned, queries * sizeof(size_t), sizeof(size_t), 1);
    memset(rows, 0, entries * 4);
    memset(scores, 0, entries * 4);
    memset(found, 0, queries * sizeof(size_t));
    const size_t words = kernel == SEARCH_BATCH ? OMEGA_BATCH_WORDS(least)
                         : kernel == SEARCH_TWO_STAGE ? OMEGA_TWO_STAGE_WORDS(chosen, least)
                         : kernel == RESCORE ? p->n + 1 : OMEGA_TOP_K_WORDS(least);
    uint64_t *workspace = array(owned, words * 8, 8, 0);
    int8_t *many = array(owned, queries * p->d, 1, 7);
    const float many_scale[3] = {p->query_scale, p->query_scale, p->query_scale};
    for (size_t j = 0; j < queries; j++)
        for (size_t i = 0; i < p->d; i++)
            many[j * p->d + i] = (int8_t)(j == 1 ? -p->query[i] : j == 2 ? p->query[p->d - 1 - i] : p->query[i]);
    uint8_t *planes = array(owned, p->n * p->d + p->n, 1, 9);
    memset(planes, 0, p->n * p->d + p->n);
    switch (kernel) {
    case SEARCH:
        *found = isa->search(&p->codes, p->query, p->query_scale, p->filter, p->k, workspace, rows, scores);
        break;
    case SEARCH_HALVES:
        *found = isa->search_halves(&p->halves, p->query, p->query_scale, p->filter, p->k, workspace, rows, scores);
        break;
    case SEARCH_BATCH:
        isa->search_batch(&p->halves, many, many_scale, queries, p->filter, p->k, workspace, found, rows, scores);
        break;
    case SEARCH_TWO_STAGE:
        *found = isa->search_two_stage(&p->signs, &p->halves, p->query, p->query_scale, p->filter, p->candidates, p->k,
                                       workspace, rows, scores);
        break;
    case RESCORE:
        *found = isa->rescore(p->vectors, p->d, p->query_floats, 0.5f, p->listed, p->n, p->k, workspace, rows, scores);
        break;
    case RANK:
        *found = isa->rank(&p->halves, p->query, p->query_scale, &p->columns, &p->weights, &p->limits, p->filter, p->k,
                           workspace, rows, scores);
        break;
    case HALVE:
        isa->halve(p->codes.codes, p->n, p->d, planes, planes + p->n * p->d / 2, planes + p->n * p->d);
        break;
    case SEQUENCE:
        sequence_answer(isa, p, owned, scores);
        break;
    case COSINES:
        isa->cosines(&p->codes, many, many_scale, queries, scores);
        break;
    case SUM_TREES: {
        const omega_fault fault = isa->sum_trees(&p->forest, p->lists, p->n, scores);
        found[0] = fault.kind;
        found[1] = fault.at;
        break;
    }
    case COUNT_GREATER:
        isa->count_greater(p->lists, p->forest.inputs, p->n, p->columns.success, scores);
        break;
    }
    const size_t total = queries * sizeof(size_t) + entries * 8 + p->n * p->d + p->n;
    *out = array(owned, total, 1, 0);
    memcpy(*out, found, queries * sizeof(size_t));
    memcpy(*out + queries * sizeof(size_t), rows, entries * 4);
    memcpy(*out + queries * sizeof(size_t) + entries * 4, scores, entries * 4);
    memcpy(*out + queries * sizeof(size_t) + entries * 8, planes, p->n * p->d + p->n);
    return total;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    stream input = {bytes, size, 0};
    arrays owned = {{0}, 0};
    size_t others;
    const omega_kernels *scalar = scalar_kernels(&others);
    const int kernel = (int)take(&input, KERNELS);
    const problem p = make_problem(&input, &owned, kernel == SEQUENCE);
    uint8_t *want;
    const size_t total = answer(scalar, kernel, &p, &owned, &want);
    for (size_t i = 0; i < others; i++) {
        arrays answers = {{0}, 0};
        uint8_t *got;
        answer(omega_kernels_at(i), kernel, &p, &answers, &got);
        if (memcmp(want, got, total) != 0)
            differ(names[kernel], omega_kernels_at(i)->isa, p.n, p.d);
        release(&answers);
    }
    release(&owned);
    return 0;
}

#ifndef OMEGA_FUZZER
int main(int count, char **arguments)
{
    const unsigned long inputs = count > 1 ? strtoul(arguments[1], NULL, 10) : 2000;
    const unsigned long first = count > 2 ? strtoul(arguments[2], NULL, 10) : 0;
    for (unsigned long seed = first; seed < first + inputs; seed++) {
        uint8_t bytes[512];
        uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
        for (size_t i = 0; i < sizeof bytes; i++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes[i] = (uint8_t)(state >> 32);
        }
        LLVMFuzzerTestOneInput(bytes, seed % sizeof bytes);
    }
    printf("fuzz_kernels: %lu inputs, all instruction sets agree with scalar\n", inputs);
    return 0;
}
#endif
