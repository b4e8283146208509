#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "problem.h"

uint64_t random_bits(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u; /* splitmix64 (Steele, Lea and Flood, 2014) */
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

uint32_t random_below(uint64_t *state, uint32_t limit)
{
    return (uint32_t)((random_bits(state) >> 32) * limit >> 32);
}

void *allocate(size_t bytes)
{
    void *memory = malloc(bytes + (bytes == 0));
    if (!memory) {
        fprintf(stderr, "check_kernels: no memory for %zu bytes\n", bytes);
        exit(2);
    }
    return memory;
}

/* count elements, aligned as one element asks and seldom better. */
static void *owned_array(problem *p, uint64_t *state, size_t count, size_t element)
{
    const size_t shift = random_below(state, 3) * element;
    uint8_t *memory = allocate(shift + count * element);
    p->memory[p->owned++] = memory;
    return memory + shift;
}

static double bell(uint64_t *state)
{
    double sum = -6.0;
    for (int i = 0; i < 12; i++)
        sum += (double)(random_bits(state) >> 11) * 0x1p-53;
    return sum;
}

/* One vector of codes. The last kinds put the int16 lanes of groups of two, three and four products at their limit, and
 * one beyond: sums of 258 and 259 over the same lane of neighbouring eights, in every place that a group can begin. */
static void fill_codes(uint64_t *state, int8_t *codes, size_t d)
{
    static const int8_t limits[6][4] = {{64, 65, 64, 65}, {65, 65, 64, 65}, {86, 86, 86, 86},
                                        {87, 86, 86, 87}, {127, 1, 3, 127}, {127, 127, 4, 1}};
    const uint32_t kind = random_below(state, 13), turn = random_below(state, 4), signs = random_below(state, 3);
    for (size_t i = 0; i < d; i++) {
        int code;
        if (kind < 3)
            code = (int)lrint(fmin(127.0, fmax(-127.0, bell(state) * 40.0)));
        else if (kind == 3)
            code = (int)random_below(state, 255) - 127;
        else if (kind == 4)
            code = random_below(state, 2) ? 127 : -127;
        else if (kind == 5)
            code = random_below(state, 20) ? 0 : 127;
        else if (kind == 6)
            code = 127; /* times 15, sixteen in a lane: near the limit of the sums over half bytes */
        else
            code = limits[kind - 7][(i / 8 + turn) % 4];
        if (kind > 3 && (signs == 1 || (signs == 2 && i & 1)))
            code = -code;
        codes[i] = (int8_t)code;
    }
}

/* A row whose lower halves, less 7.5, are parallel to the query of ends, but for some that are one step off. At 1024
 * dimensions the bound of kernels.h is then the dot product itself, to the last unit, and each step takes off 127: a
 * bound that were one length less would lose rows. */
static void fill_parallel(uint64_t *state, int8_t *codes, size_t d, uint32_t least_steps)
{
    for (size_t i = 0; i < d; i++)
        codes[i] = (int8_t)(i % 3 ? 15 : -16);
    for (uint32_t steps = least_steps + random_below(state, 3); steps > 0; steps--)
        codes[3 * random_below(state, (uint32_t)d / 3)] = -15;
}

static void fill_ends(int8_t *codes, size_t d)
{
    for (size_t i = 0; i < d; i++)
        codes[i] = i % 3 ? 127 : -127;
}

static float odd_float(uint64_t *state)
{
    static const float odd[10] = {0.0f,   -0.0f, 0x1p-149f, 0x1p-126f, -0x1.8p-130f,
                                  3e38f, -3e38f, INFINITY,  -INFINITY, NAN};
    return odd[random_below(state, 10)];
}

/* 1 / length, with odd values in place of every share-th (0: nowhere) and sometimes all equal, for ties. */
static void fill_scale(uint64_t *state, const int8_t *codes, size_t n, size_t d, uint32_t share, float *scale)
{
    const int equal = random_below(state, 4) == 0;
    for (size_t row = 0; row < n; row++) {
        int32_t squares = 0;
        for (size_t i = 0; i < d; i++)
            squares += codes[row * d + i] * codes[row * d + i];
        scale[row] = equal ? 0x1p-10f : squares ? (float)(1.0 / sqrt(squares)) : 0.0f;
        if (share && random_below(state, share) == 0)
            scale[row] = odd_float(state);
    }
}

static void fill_floats(uint64_t *state, float *out, size_t count, uint32_t share)
{
    for (size_t i = 0; i < count; i++)
        out[i] = share && random_below(state, share) == 0 ? odd_float(state) : (float)bell(state);
}

#define MANY_ROWS 2085 /* a waiting list fills more than once, and samples leave blocks out */
#define MISLEADING_SEEDS 40

static size_t choose_rows(uint64_t *state)
{
    static const size_t edges[13] = {63, 64, 65, 127, 129, 255, 256, 257, 258, 319, 511, 513, MANY_ROWS};
    return random_below(state, 3) ? random_below(state, 41) : edges[random_below(state, 13)];
}

static void make_codes(problem *p, uint64_t *state, int parallel)
{
    const omega_kernels *scalar = &omega_kernels_scalar;
    const uint32_t share = random_below(state, 3) ? 0 : 7;
    int8_t *codes = owned_array(p, state, p->n * p->d, 1);
    int8_t *queries = owned_array(p, state, PROBLEM_QUERIES * p->d, 1);
    float *scale = owned_array(p, state, p->n, 4), *positive = owned_array(p, state, p->n, 4);
    float *query_scale = owned_array(p, state, PROBLEM_QUERIES, 4);
    for (size_t row = 0; row < p->n; row++)
        if (row && random_below(state, 4) == 0) /* a tie */
            memcpy(codes + row * p->d, codes + random_below(state, (uint32_t)row) * p->d, p->d);
        else if (parallel)
            fill_parallel(state, codes + row * p->d, p->d, 2 * row < p->n); /* the best come last */
        else
            fill_codes(state, codes + row * p->d, p->d);
    for (size_t j = 0; j < PROBLEM_QUERIES; j++)
        fill_codes(state, queries + j * p->d, p->d);
    if (p->seed % MISLEADING_SEEDS == 0) /* the query, all but a code of it, where samples are taken */
        for (size_t row = 0; row < p->n; row++)
            if (row / OMEGA_SIGN_ROWS % 4 == 0) {
                memcpy(codes + row * p->d, queries, p->d);
                codes[row * p->d + random_below(state, (uint32_t)p->d)] = 1;
            }
    if (parallel)
        fill_ends(queries, p->d);
    fill_scale(state, codes, p->n, p->d, share, scale);
    for (size_t row = 0; parallel && row < p->n; row++)
        scale[row] = 0x1p-10f;
    fill_scale(state, queries, PROBLEM_QUERIES, p->d, 0, query_scale);
    if (random_below(state, 8) == 0)
        query_scale[0] = random_below(state, 2) ? 0.0f : 0x1p-140f;
    for (size_t row = 0; row < p->n; row++)
        positive[row] = scale[row] < 0 ? -scale[row] : scale[row];
    uint8_t *high = owned_array(p, state, p->n * p->d / 2, 1), *low = owned_array(p, state, p->n * p->d / 2, 1);
    uint8_t *spread = owned_array(p, state, p->n, 1);
    const size_t sign_bytes = (p->n + OMEGA_SIGN_ROWS - 1) / OMEGA_SIGN_ROWS * p->d * 4;
    uint8_t *blocks = owned_array(p, state, sign_bytes, 1);
    for (size_t i = 0; i < sign_bytes; i++) /* the bits of rows past the last may be anything */
        blocks[i] = (uint8_t)random_bits(state);
    scalar->halve(codes, p->n, p->d, high, low, spread);
    scalar->put_signs(codes, 0, p->n, p->d, blocks);
    p->codes = (omega_codes){codes, scale, p->n, p->d};
    p->halves = (omega_halves){high, low, positive, spread, p->n, p->d};
    p->signs = (omega_signs){blocks, p->n, p->d};
    p->queries = queries;
    p->query_scale = query_scale;
}

static void make_filter(problem *p, uint64_t *state)
{
    const size_t bytes = (p->n + 7) / 8;
    uint8_t *filter = owned_array(p, state, bytes, 1);
    const uint32_t kind = random_below(state, 6);
    for (size_t i = 0; i < bytes; i++)
        filter[i] = (uint8_t)(kind == 1   ? 255u
                              : kind == 2 ? 0u
                              : kind == 3 ? (i + 1 == bytes ? 1u << ((p->n - 1) % 8) : 0u)
                              : kind == 4 ? random_bits(state) & random_bits(state) & random_bits(state)
                                          : random_bits(state));
    p->filter = kind ? filter : NULL;
}

static void make_floats(problem *p, uint64_t *state)
{
    const uint32_t share = random_below(state, 3) ? 0 : 9;
    float *vectors = owned_array(p, state, p->n * p->d, 4);
    fill_floats(state, vectors, p->n * p->d, 0);
    for (size_t row = 0; row < p->n; row++) {
        const float size = row % 5 == 0 ? 0x1p-140f : row % 5 == 1 ? 0x1p+120f : 1.0f;
        for (size_t i = 0; i < p->d; i++)
            vectors[row * p->d + i] *= size;
        vectors[row * p->d + random_below(state, (uint32_t)p->d)] = 8.0f * size;
    }
    for (size_t half = 1; p->n && half < 2 * p->d; half += 2) /* exact halves, where rounding to even shows */
        if (half < 127)
            vectors[half / 2] = (float)half * 8.0f * 0x1p-140f / 254.0f;
    uint16_t *half_floats = owned_array(p, state, p->n * p->d, 2);
    const int finite = random_below(state, 3) != 0;
    for (size_t i = 0; i < p->n * p->d; i++) {
        const uint16_t bits = (uint16_t)random_bits(state);
        half_floats[i] = finite && (bits >> 10 & 31) == 31 ? bits ^ 0x4000 : bits;
    }
    float *features = owned_array(p, state, PROBLEM_FEATURES * p->n, 4);
    float *feature_weights = owned_array(p, state, PROBLEM_FEATURES, 4);
    float *success = owned_array(p, state, p->n, 4), *trend = owned_array(p, state, p->n, 4);
    uint32_t *time = owned_array(p, state, p->n, 4), *listed = owned_array(p, state, p->n, 4);
    float *query_floats = owned_array(p, state, p->d, 4);
    fill_floats(state, query_floats, p->d, 0);
    p->query_floats = query_floats;
    fill_floats(state, features, PROBLEM_FEATURES * p->n, share);
    fill_floats(state, feature_weights, PROBLEM_FEATURES, 0);
    fill_floats(state, success, p->n, share);
    fill_floats(state, trend, p->n, share);
    const uint32_t narrow = random_below(state, 32);
    for (size_t row = 0; row < p->n; row++) {
        time[row] = (uint32_t)random_bits(state) >> narrow;
        listed[row] = (uint32_t)row;
    }
    for (size_t row = p->n; row-- > 1;) {
        const size_t other = random_below(state, (uint32_t)row + 1);
        const uint32_t kept = listed[row];
        listed[row] = listed[other];
        listed[other] = kept;
    }
    p->vectors = vectors;
    p->halves_of_floats = half_floats;
    p->features = features;
    for (size_t feature = 0; feature < PROBLEM_FEATURES; feature++)
        p->feature_rows[feature] = features + feature * p->n;
    p->feature_weights = feature_weights;
    p->listed = listed;
    p->columns = (omega_rank_columns){success, time, trend};
    p->weights = (omega_rank_weights){0.5f, (float)bell(state), (float)bell(state), (float)bell(state)};
    const float half_lives[4] = {1.0f, 0x1p-8f, 0x1p-31f, 0.0f};
    p->limits = (omega_rank_limits){(uint32_t)random_bits(state) >> narrow, half_lives[random_below(state, 4)],
                                    random_below(state, 2) ? -2.0f : 0.1f};
}

static const int8_t *owned_codes(problem *p, uint64_t *state, size_t count)
{
    int8_t *codes = owned_array(p, state, count, 1);
    for (size_t i = 0; i < count; i++)
        codes[i] = (int8_t)((int)random_below(state, 255) - 127);
    return codes;
}

static const float *owned_floats(problem *p, uint64_t *state, size_t count, double size)
{
    float *out = owned_array(p, state, count, 4);
    for (size_t i = 0; i < count; i++)
        out[i] = (float)(bell(state) * size);
    return out;
}

/* An encoder of a trained one's size, or one whose logits leave a single event of a head with any weight, or the
 * largest that a bundle may hold. */
static void make_sequence(problem *p, uint64_t *state)
{
    static const size_t lengths[8] = {1, 2, 3, 5, 16, 17, OMEGA_SEQUENCE_WINDOW, OMEGA_SEQUENCE_WINDOW + 1};
    const size_t d = OMEGA_SEQUENCE_DIMENSIONS, f = OMEGA_SEQUENCE_FEED, titles = 1 + random_below(state, 40);
    const uint32_t kind = random_below(state, 4);
    const double code = kind == 3 ? 1e6 : 0.003, distance = kind == 2 ? 60.0 : kind == 3 ? 1e6 : 0.5;
    const int8_t *codes = owned_codes(p, state, titles * d);
    p->sequence.titles = (omega_codes){codes, owned_floats(p, state, titles, code), titles, d};
    p->sequence.success = owned_floats(p, state, 2 * d, 0.1);
    p->sequence.distance = owned_floats(p, state, OMEGA_SEQUENCE_WINDOW * OMEGA_SEQUENCE_HEADS, distance);
    p->sequence.norms = owned_floats(p, state, 3 * d, kind == 3 ? 1e6 : 1.0);
    p->sequence.attention = owned_codes(p, state, 4 * d * d);
    p->sequence.attention_scale = owned_floats(p, state, 4 * d, code);
    p->sequence.feed_in = owned_codes(p, state, d * f);
    p->sequence.feed_in_scale = owned_floats(p, state, f, code);
    p->sequence.feed_in_bias = owned_floats(p, state, f, 0.1);
    p->sequence.feed_out = owned_codes(p, state, f * d);
    p->sequence.feed_out_scale = owned_floats(p, state, d, code);
    p->sequence.feed_out_bias = owned_floats(p, state, d, 0.1);
    p->sequence.input_scale = kind == 3 ? 1e6f : 4.0f;
    p->watched = random_below(state, 2) ? lengths[random_below(state, 8)] : 1 + random_below(state, 65);
    const size_t most = p->watched < OMEGA_SEQUENCE_WINDOW ? p->watched : OMEGA_SEQUENCE_WINDOW;
    p->left = random_below(state, 3) ? most : random_below(state, (uint32_t)most + 1);
    uint32_t *rows = owned_array(p, state, p->watched, 4);
    uint8_t *to_end = owned_array(p, state, p->watched, 1);
    for (size_t i = 0; i < p->watched; i++) {
        rows[i] = random_below(state, (uint32_t)titles);
        to_end[i] = (uint8_t)random_below(state, 3);
    }
    p->watched_rows = rows;
    p->watched_to_end = to_end;
}

/* Trees that may share nodes; each child is a node after its parent, or a leaf. */
static void make_forest(problem *p, uint64_t *state)
{
    const size_t trees = random_below(state, 12), nodes = 1 + random_below(state, 60), leaves = 1 + random_below(state, 30);
    uint32_t *roots = owned_array(p, state, trees, 4);
    uint8_t *feature = owned_array(p, state, nodes, 1);
    float *threshold = owned_array(p, state, nodes, 4), *leaf = owned_array(p, state, leaves, 4);
    int32_t *children = owned_array(p, state, 2 * nodes, 4);
    for (size_t tree = 0; tree < trees; tree++)
        roots[tree] = random_below(state, (uint32_t)nodes);
    for (size_t node = 0; node < nodes; node++) {
        feature[node] = (uint8_t)random_below(state, PROBLEM_FEATURES);
        threshold[node] = random_below(state, 4) || !p->n ? (float)bell(state)
                                                          : p->features[feature[node] * p->n + random_below(state, (uint32_t)p->n)];
        for (size_t side = 0; side < 2; side++) {
            const uint32_t after = (uint32_t)(nodes - 1 - node);
            children[2 * node + side] = after && random_below(state, 3) ? (int32_t)(node + 1 + random_below(state, after))
                                                                        : ~(int32_t)random_below(state, (uint32_t)leaves);
        }
    }
    fill_floats(state, leaf, leaves, 0);
    p->forest = (omega_forest){roots, feature, threshold, children, leaf, trees, nodes, leaves, PROBLEM_FEATURES};
}

problem make_problem(uint64_t seed)
{
    uint64_t state = seed;
    problem p = {.seed = seed};
    const int misleading = seed % MISLEADING_SEEDS == 0;
    p.n = misleading ? MANY_ROWS : choose_rows(&state);
    p.d = random_below(&state, 3) ? 32 * (1 + (size_t)random_below(&state, 14)) : 384;
    if (random_below(&state, 16) == 0)
        p.d = random_below(&state, 2) ? 1024 : 768;
    const int parallel = !misleading && random_below(&state, 32) == 0;
    if (parallel) { /* rows enough to come after the first threshold */
        p.d = 1024;
        p.n = 1500;
    }
    const size_t sizes[6] = {1, 2, p.n, p.n + 1, p.n > 1 ? p.n - 1 : 1, 1 + random_below(&state, (uint32_t)p.n + 9)};
    p.k = sizes[random_below(&state, 6)];
    p.candidates = sizes[random_below(&state, 6)];
    p.k += p.k == 0;
    p.candidates += p.candidates == 0;
    if (misleading) /* more than the better quarter of the blocks holds, all of them returned */
        p.k = p.candidates = MANY_ROWS / 4 + 30 + random_below(&state, MANY_ROWS / 4);
    make_codes(&p, &state, parallel);
    make_filter(&p, &state);
    if (misleading)
        p.filter = NULL;
    make_floats(&p, &state);
    make_sequence(&p, &state);
    make_forest(&p, &state);
    return p;
}

void free_problem(problem *p)
{
    while (p->owned)
        free(p->memory[--p->owned]);
}
