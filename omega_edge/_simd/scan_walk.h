/* The walk over halves, sixteen rows at a time, written over the lanes of an instruction set's own header,
 * which is included before. Rows reach every list in ascending order, as top_k.h wants them. */
#ifndef OMEGA_EDGE_SCAN_WALK_H
#define OMEGA_EDGE_SCAN_WALK_H

#include "rank.h"
#include "scan.h"
#include "top_k.h"

#define BLOCK_ROWS 16
#define WAITING_ROWS 512
#define MOST_LEFT 384 /* so many rows may go on waiting */
#define LISTED_ROWS 64
#define SAMPLED_BLOCKS 16 /* of sixteen rows */
#define SAMPLE_APART 8    /* blocks at least: of fewer rows a sample costs more than it saves */
#ifndef SPARSE_ROWS
#define SPARSE_ROWS 6 /* so few allowed rows of a block are listed instead */
#endif

/* What a rank adds to a cosine; NULL for a search. */
typedef struct {
    omega_rank_columns columns;
    omega_rank_weights weights;
    omega_rank_limits limits;
} rank_terms;

/* Rows without their lower halves, with room for sixteen elements past the last. */
typedef struct {
    size_t count;
    uint32_t rows[WAITING_ROWS + 2 * BLOCK_ROWS];
    int32_t high[WAITING_ROWS + 2 * BLOCK_ROWS];
    float scale[WAITING_ROWS + 2 * BLOCK_ROWS];
    float bounds[WAITING_ROWS + 2 * BLOCK_ROWS];
    float estimates[WAITING_ROWS + 2 * BLOCK_ROWS];
} row_list;

/* One query, its k best rows so far, and the rows whose bound beat them, waiting for their lower halves to be read.
 * The longer they wait, the fewer are read: those that will most likely be among the best are read first (a row's
 * estimate takes every lower half for 7.5, which errs by a twentieth of what the bound allows for), and they raise the
 * threshold for the others. So rows are scored in no order, and whatever equals the threshold passes: the keys of
 * top_k.h decide. */
typedef struct {
    halved_query query;
    omega_query_bound bound;
    int32_t offset; /* -128 * sum of q, as codes are 16 * high + low - 128 */
    float query_scale;
    float began; /* the threshold to begin with */
    top_k best;
    row_list waiting;
} scan;

static inline void scan_begin(scan *s, const omega_halves *table, const int8_t *query, float query_scale, size_t k,
                              uint64_t *workspace)
{
    int32_t sum = 0;
    for (size_t i = 0; i < table->dimensions; i++)
        sum += query[i];
    halve_query(query, table->dimensions, &s->query);
    s->bound = omega_bound_of(query, table->dimensions);
    s->offset = -128 * sum;
    s->query_scale = query_scale;
    s->best = top_k_begin(k < table->rows ? k : table->rows, workspace);
    s->waiting.count = 0;
    s->began = -INFINITY;
}

static inline void prefetch_row(const uint8_t *plane, size_t row, size_t d)
{
    const uint8_t *start = plane + row * (d / 2);
    for (size_t byte = 0; byte < d / 2; byte += 64)
        __builtin_prefetch(start + byte);
    __builtin_prefetch(start + d / 2 - 1);
}

static ALWAYS_INLINE float_lanes cosine_lanes(int_lanes dots, float_lanes scale, float query_scale)
{
    const float_lanes cosines = lanes_multiply(lanes_multiply(lanes_from_ints(dots), scale), lanes_all(query_scale));
    return lanes_add(cosines, lanes_all(0.0f));
}

/* 2^-age, as omega_fresh computes it. An age too large for an int becomes one that is not used. */
static ALWAYS_INLINE float_lanes fresh_lanes(const uint32_t *time, const omega_rank_limits *limits)
{
    static const float coefficients[6] = OMEGA_EXP2;
    const float_lanes age = lanes_multiply(lanes_from_unsigned(ints_since(limits->now, time)),
                                           lanes_all(limits->per_half_life));
    const int_lanes whole = lanes_truncate(age);
    const float_lanes part = lanes_subtract(age, lanes_from_ints(whole));
    float_lanes power = lanes_all(coefficients[5]);
    for (int i = 4; i >= 0; i--)
        power = lanes_add(lanes_multiply(power, part), lanes_all(coefficients[i]));
    return lanes_where_below(lanes_multiply(power, lanes_power_of_half(whole)), age, 126.0f);
}

/* The rank's score of rows whose columns start at these addresses, in the order of omega_rank_score. */
static ALWAYS_INLINE float_lanes rank_lanes(float_lanes cosines, const omega_rank_columns *columns,
                                            const rank_terms *rank)
{
    float_lanes sum = lanes_add(lanes_multiply(lanes_all(rank->weights.similarity), cosines),
                                lanes_multiply(lanes_all(rank->weights.success), lanes_load(columns->success)));
    sum = lanes_add(sum, lanes_multiply(lanes_all(rank->weights.recency), fresh_lanes(columns->time, &rank->limits)));
    sum = lanes_add(sum, lanes_multiply(lanes_all(rank->weights.trend), lanes_load(columns->trend)));
    return lanes_add(sum, lanes_all(0.0f));
}

/* Where the numbers of sixteen rows lie: in the table's own arrays, or gathered. */
typedef struct {
    const float *scale;
    const uint8_t *spread;
    omega_rank_columns columns;
} sixteen;

static inline sixteen sixteen_at(const omega_halves *table, size_t first, const rank_terms *rank)
{
    sixteen at = {table->scale + first, table->spread + first, {NULL, NULL, NULL}};
    if (rank)
        at.columns = (omega_rank_columns){rank->columns.success + first, rank->columns.time + first,
                                          rank->columns.trend + first};
    return at;
}

/* The numbers of up to sixteen listed rows; the lanes past count repeat the last one. */
typedef struct {
    float scale[BLOCK_ROWS], success[BLOCK_ROWS], trend[BLOCK_ROWS];
    uint32_t time[BLOCK_ROWS];
    uint8_t spread[BLOCK_ROWS];
} gathered;

static inline sixteen gather(const omega_halves *table, const uint32_t *rows, size_t count, const rank_terms *rank,
                             gathered *out)
{
    for (size_t lane = 0; lane < BLOCK_ROWS; lane++) {
        const size_t row = rows[lane < count ? lane : count - 1];
        out->scale[lane] = table->scale[row];
        out->spread[lane] = table->spread[row];
        if (rank) {
            out->success[lane] = rank->columns.success[row];
            out->time[lane] = rank->columns.time[row];
            out->trend[lane] = rank->columns.trend[row];
        }
    }
    return (sixteen){out->scale, out->spread, {out->success, out->time, out->trend}};
}

/* Offers the rows of the mask whose exact score does not fall short. raised = sum(q * (code + 128)). */
static ALWAYS_INLINE void offer_exact(scan *s, int_lanes raised, int_lanes rows, uint32_t mask, const sixteen *at,
                                      const rank_terms *rank)
{
    const int_lanes dots = ints_add(raised, ints_all(s->offset));
    float_lanes scores = cosine_lanes(dots, lanes_load(at->scale), s->query_scale);
    if (rank) {
        mask &= lanes_at_least(scores, lanes_all(rank->limits.least_similarity));
        scores = rank_lanes(scores, &at->columns, rank);
    }
    mask &= lanes_at_least(scores, lanes_all(s->best.threshold > -INFINITY ? s->best.threshold : -FLT_MAX));
    if (mask)
        lanes_offer(&s->best, mask, rows, scores);
}

static ALWAYS_INLINE void row_list_add(row_list *list, uint32_t mask, int_lanes rows, int_lanes high, float_lanes scale,
                                float_lanes bounds, float_lanes estimates)
{
    const kept_lanes kept = lanes_to_keep(mask);
    const size_t end = list->count;
    keep_ints(list->rows + end, rows, kept);
    keep_ints(list->high + end, high, kept);
    keep_lanes(list->scale + end, scale, kept);
    keep_lanes(list->bounds + end, bounds, kept);
    keep_lanes(list->estimates + end, estimates, kept);
    list->count += (size_t)__builtin_popcount(mask);
}

/* Lists the rows of the mask whose bound does not fall short. The bound of a rank is the rank of the bound: the weight
 * of similarity is not negative and rounding is monotone. A bound that is NaN (an infinite scale, say) passes. */
static ALWAYS_INLINE void offer_bounds(scan *s, int_lanes high, int_lanes rows, uint32_t mask, const sixteen *at,
                                const rank_terms *rank)
{
    const float_lanes scale = lanes_load(at->scale);
    const int_lanes middle = ints_add(ints_times_16(high), ints_all(s->bound.offset));
    const int_lanes most = ints_add(middle, ints_from_bytes_times(at->spread, s->bound.length));
    float_lanes bounds = cosine_lanes(most, scale, s->query_scale);
    if (rank) {
        mask &= lanes_not_below(bounds, lanes_all(rank->limits.least_similarity));
        if (!mask)
            return;
        bounds = rank_lanes(bounds, &at->columns, rank);
    }
    mask &= lanes_not_below(bounds, lanes_all(s->best.threshold));
    if (!mask)
        return;
    float_lanes estimates = cosine_lanes(middle, scale, s->query_scale);
    if (rank)
        estimates = rank_lanes(estimates, &at->columns, rank);
    row_list_add(&s->waiting, mask, rows, high, scale, bounds, estimates);
}

/* Scores the rows of a list exactly. */
static inline void score_list(scan *s, const omega_halves *table, size_t d, const row_list *list,
                              const rank_terms *rank)
{
    for (size_t i = 0; i < list->count && i < BLOCK_ROWS; i++)
        prefetch_row(table->low, list->rows[i], d);
    for (size_t i = 0; i < list->count; i += BLOCK_ROWS) {
        for (size_t j = i + BLOCK_ROWS; j < i + 2 * BLOCK_ROWS && j < list->count; j++)
            prefetch_row(table->low, list->rows[j], d);
        const size_t count = list->count - i < BLOCK_ROWS ? list->count - i : BLOCK_ROWS;
        gathered g;
        sixteen at = {list->scale + i, NULL, {NULL, NULL, NULL}};
        if (rank)
            at = gather(table, list->rows + i, count, rank, &g);
        const int_lanes low = half_sums_listed(table->low, list->rows + i, count, &s->query, d);
        const int_lanes raised = ints_add(ints_times_16(ints_load(list->high + i)), low);
        offer_exact(s, raised, ints_load(list->rows + i), (1u << count) - 1, &at, rank);
    }
}

/* Drops the waiting rows whose bound falls short; of the others, moves those whose estimate reaches least to likely. */
static ALWAYS_INLINE void divide_waiting(scan *s, float least, row_list *likely)
{
    row_list *const waiting = &s->waiting;
    const float_lanes threshold = lanes_all(s->best.threshold), estimated = lanes_all(least);
    const size_t count = waiting->count;
    waiting->count = likely->count = 0;
    for (size_t i = 0; i < count; i += BLOCK_ROWS) {
        uint32_t mask = count - i < BLOCK_ROWS ? (1u << (count - i)) - 1 : 0xffff;
        const float_lanes bounds = lanes_load(waiting->bounds + i), estimates = lanes_load(waiting->estimates + i);
        const float_lanes scale = lanes_load(waiting->scale + i);
        const int_lanes rows = ints_load(waiting->rows + i), high = ints_load(waiting->high + i);
        mask &= lanes_not_below(bounds, threshold);
        const uint32_t first = mask & lanes_not_below(estimates, estimated);
        if (first)
            row_list_add(likely, first, rows, high, scale, bounds, estimates);
        if (mask != first)
            row_list_add(waiting, mask & ~first, rows, high, scale, bounds, estimates);
    }
}

/* Raises the threshold to the k-th best score so far. */
static inline void raise_threshold(top_k *best)
{
    if (best->count <= best->k)
        return;
    top_k_select(best->keys, best->count, best->k);
    best->count = best->k;
    best->threshold = top_k_score(best->keys[best->k - 1]);
}

/* An estimate that about k of the waiting rows reach, rather more than fewer: without k scores there is no threshold.
 * Every fourth row stands for its neighbours. */
static inline float estimate_to_begin(const scan *s)
{
    uint64_t keys[WAITING_ROWS / 4 + BLOCK_ROWS];
    const size_t wanted = s->best.k / 4 + s->best.k / 32 + 2;
    size_t count = 0;
    for (size_t i = 0; i < s->waiting.count; i += 4)
        keys[count++] = top_k_key(s->waiting.estimates[i], (uint32_t)i);
    if (count <= wanted)
        return -INFINITY;
    top_k_select(keys, count, wanted);
    return top_k_score(keys[wanted - 1]);
}

static inline void score_waiting(scan *s, const omega_halves *table, size_t d, int last, const rank_terms *rank)
{
    row_list likely;
    divide_waiting(s, s->best.threshold > -INFINITY ? s->best.threshold : estimate_to_begin(s), &likely);
    score_list(s, table, d, &likely, rank);
    raise_threshold(&s->best);
    if (s->waiting.count && (last || s->waiting.count > MOST_LEFT)) {
        divide_waiting(s, -INFINITY, &likely);
        score_list(s, table, d, &likely, rank);
    }
}

static ALWAYS_INLINE void scan_block(scan *s, const omega_halves *table, size_t d, size_t first, uint32_t allowed,
                              const rank_terms *rank)
{
    const sixteen at = sixteen_at(table, first, rank);
    const uint8_t *const plane = table->high + first * (d / 2);
#if defined(SMALL_TABLE_ROWS)
    if (table->rows <= SMALL_TABLE_ROWS) { /* in the second-level cache: what waits costs more than its lower halves */
        const int_lanes raised = raised_sums_next(plane, table->low + first * (d / 2), &s->query, d);
        offer_exact(s, raised, ints_from((uint32_t)first), allowed, &at, rank);
        return;
    }
#endif
    const int_lanes high = half_sums_next(plane, &s->query, d);
    offer_bounds(s, high, ints_from((uint32_t)first), allowed, &at, rank);
    if (s->waiting.count >= WAITING_ROWS)
        score_waiting(s, table, d, 0, rank);
}

static ALWAYS_INLINE void scan_listed(scan *s, const omega_halves *table, size_t d, const uint32_t *rows, size_t count,
                               const rank_terms *rank)
{
    for (size_t i = 0; i < count; i += BLOCK_ROWS) {
        const size_t lanes = count - i < BLOCK_ROWS ? count - i : BLOCK_ROWS;
        gathered g;
        const sixteen at = gather(table, rows + i, lanes, rank, &g);
        const int_lanes high = half_sums_listed(table->high, rows + i, lanes, &s->query, d);
        offer_bounds(s, high, ints_load(rows + i), (1u << lanes) - 1, &at, rank);
        if (s->waiting.count >= WAITING_ROWS)
            score_waiting(s, table, d, 0, rank);
    }
}

/* The filter's bits of so many rows from first on, first a multiple of 16. */
static inline uint32_t allowed_rows(const uint8_t *filter, size_t first, size_t rows)
{
    uint32_t bits = UINT32_MAX;
    if (filter) {
        bits = filter[first >> 3];
        if (rows > 8)
            bits |= (uint32_t)filter[(first >> 3) + 1] << 8;
    }
    return bits & ((1u << rows) - 1);
}

/* All queries pass over a block while it lies in the first-level cache. Blocks with few allowed rows are listed first:
 * the work is that of the rows allowed. */
static ALWAYS_INLINE void walk_rows(scan *scans, size_t q, const omega_halves *table, size_t d, const uint8_t *filter,
                                    const rank_terms *rank)
{
    uint32_t listed[LISTED_ROWS + BLOCK_ROWS];
    size_t count = 0;
    const size_t n = table->rows;
    for (size_t first = 0; first < n; first += BLOCK_ROWS) {
        const size_t rows = n - first < BLOCK_ROWS ? n - first : BLOCK_ROWS;
        uint32_t allowed = allowed_rows(filter, first, rows);
        const int dense = rows == BLOCK_ROWS && __builtin_popcount(allowed) > SPARSE_ROWS;
        if (!dense) {
            for (; allowed; allowed &= allowed - 1) {
                const uint32_t row = (uint32_t)first + (uint32_t)__builtin_ctz(allowed);
                prefetch_row(table->high, row, d);
                listed[count++] = row;
            }
        }
        if (count >= LISTED_ROWS) {
            for (size_t j = 0; j < q; j++)
                scan_listed(&scans[j], table, d, listed, count, rank);
            count = 0;
        }
        if (!dense)
            continue;
        for (size_t j = 0; j < q; j++)
            scan_block(&scans[j], table, d, first, allowed, rank);
    }
    for (size_t j = 0; j < q; j++) {
        if (count)
            scan_listed(&scans[j], table, d, listed, count, rank);
        score_waiting(&scans[j], table, d, 1, rank);
    }
}

/* The score that the k-th best is expected to reach, less three standard deviations of how many rows of a random sample
 * would be above it, by the estimates of blocks that lie evenly apart. */
static ALWAYS_INLINE float sampled_threshold(const scan *s, const omega_halves *table, size_t d, const rank_terms *rank)
{
    const size_t apart = table->rows / BLOCK_ROWS / SAMPLED_BLOCKS;
    if (apart < SAMPLE_APART)
        return -INFINITY;
    uint64_t keys[SAMPLED_BLOCKS * BLOCK_ROWS];
    size_t count = 0;
    for (size_t i = 0; i < SAMPLED_BLOCKS; i++) {
        const size_t first = i * apart * BLOCK_ROWS;
        const sixteen at = sixteen_at(table, first, rank);
        const int_lanes high = half_sums_next(table->high + first * (d / 2), &s->query, d);
        const int_lanes middle = ints_add(ints_times_16(high), ints_all(s->bound.offset));
        float_lanes estimates = cosine_lanes(middle, lanes_load(at.scale), s->query_scale);
        uint32_t mask = lanes_at_least(estimates, lanes_all(rank ? rank->limits.least_similarity : -FLT_MAX));
        if (rank)
            estimates = rank_lanes(estimates, &at.columns, rank);
        float values[BLOCK_ROWS];
        lanes_store(values, estimates);
        for (; mask; mask &= mask - 1, count++)
            keys[count] = top_k_key(values[__builtin_ctz(mask)], (uint32_t)count);
    }
    const float expected = (float)(SAMPLED_BLOCKS * BLOCK_ROWS) * ((float)s->best.k / (float)table->rows);
    const size_t reaching = (size_t)(expected + 3.0f * sqrtf(expected) + 1.0f);
    if (count <= reaching)
        return -INFINITY;
    top_k_select(keys, count, reaching);
    return top_k_score(keys[reaching - 1]);
}

/* What is begun with may mislead where rows lie in an order that has to do with their vectors: a scan that found fewer
 * than k rows is begun again with nothing. */
static ALWAYS_INLINE void walk_twice(scan *scans, size_t q, const omega_halves *table, size_t d, const uint8_t *filter,
                                     const rank_terms *rank)
{
    for (size_t j = 0; j < q && !filter; j++)
        scans[j].best.threshold = scans[j].began = sampled_threshold(&scans[j], table, d, rank);
    scan *some = scans;
    size_t count = q, next = 0;
    for (;;) { /* one call: each is a copy of the whole walk */
        walk_rows(some, count, table, d, filter, rank);
        while (next < q && (scans[next].began == -INFINITY || scans[next].best.count >= scans[next].best.k))
            next++;
        if (next == q)
            return;
        some = &scans[next];
        count = 1;
        some->began = some->best.threshold = -INFINITY;
        some->best.count = 0;
    }
}

/* The loops over 384 dimensions, the encoder's, are unrolled by the compiler. */
static ALWAYS_INLINE void walk(scan *scans, size_t q, const omega_halves *table, const uint8_t *filter,
                               const rank_terms *rank)
{
    if (table->dimensions == USUAL_DIMENSIONS)
        walk_twice(scans, q, table, USUAL_DIMENSIONS, filter, rank);
    else
        walk_twice(scans, q, table, table->dimensions, filter, rank);
}

size_t SCAN(search_halves)(const omega_halves *table, const int8_t *query, float query_scale, const uint8_t *filter,
                            size_t k, uint64_t *workspace, uint32_t *rows_out, float *scores_out)
{
    scan s;
    scan_begin(&s, table, query, query_scale, k, workspace);
    walk(&s, 1, table, filter, NULL);
    return top_k_finish(&s.best, rows_out, scores_out);
}

void SCAN(search_batch)(const omega_halves *table, const int8_t *queries, const float *query_scale, size_t q,
                         const uint8_t *filter, size_t k, uint64_t *workspace, size_t *found_out, uint32_t *rows_out,
                         float *scores_out)
{
    const size_t words = OMEGA_TOP_K_WORDS(k < table->rows ? k : table->rows);
    scan scans[OMEGA_BATCH_QUERIES];
    for (size_t first = 0; first < q; first += OMEGA_BATCH_QUERIES) {
        const size_t count = q - first < OMEGA_BATCH_QUERIES ? q - first : OMEGA_BATCH_QUERIES;
        for (size_t j = 0; j < count; j++)
            scan_begin(&scans[j], table, queries + (first + j) * table->dimensions, query_scale[first + j], k,
                       workspace + j * words);
        walk(scans, count, table, filter, NULL);
        for (size_t j = 0; j < count; j++)
            found_out[first + j] = top_k_finish(&scans[j].best, rows_out + (first + j) * k,
                                                scores_out + (first + j) * k);
    }
}

size_t SCAN(rank)(const omega_halves *table, const int8_t *query, float query_scale, const omega_rank_columns *columns,
                   const omega_rank_weights *weights, const omega_rank_limits *limits, const uint8_t *filter, size_t k,
                   uint64_t *workspace, uint32_t *rows_out, float *scores_out)
{
    const rank_terms terms = {*columns, *weights, *limits};
    scan s;
    scan_begin(&s, table, query, query_scale, k, workspace);
    walk(&s, 1, table, filter, &terms);
    return top_k_finish(&s.best, rows_out, scores_out);
}

#endif
