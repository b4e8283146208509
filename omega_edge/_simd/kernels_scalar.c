/* Plain C: runs everywhere, and is the exact oracle of every other file. */
#include <math.h>

#include "kernels_scalar.h"
#include "sequence.h"
#include "top_k.h"

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static int32_t dot(const int8_t *a, const int8_t *b, size_t d)
{
    int32_t sum = 0;
    for (size_t i = 0; i < d; i++)
        sum += (int32_t)a[i] * b[i];
    return sum;
}

/* The cosine of the contract, one rounding an operation; + 0 turns -0 into 0. */
static float cosine(const omega_codes *table, size_t row, const int8_t *query, float query_scale)
{
    const size_t d = table->dimensions;
    return (float)dot(table->codes + row * d, query, d) * table->scale[row] * query_scale + 0.0f;
}

static double nearest_even(double x)
{
    const double shift = 0x1.8p52; /* at this magnitude the spacing of doubles is 1; exact for |x| < 2^51 */
    return x + shift - shift;
}

size_t omega_scalar_quantise(const float *vectors, size_t n, size_t d, int8_t *codes_out, float *scale_out)
{
    for (size_t row = 0; row < n; row++) {
        const float *vector = vectors + row * d;
        int8_t *codes = codes_out + row * d;
        float greatest = 0.0f;
        for (size_t i = 0; i < d; i++) {
            const float magnitude = fabsf(vector[i]);
            if (!(magnitude <= FLT_MAX)) /* infinite, or NaN: compares false */
                return row;
            greatest = magnitude > greatest ? magnitude : greatest;
        }
        if (greatest == 0.0f)
            return row;
        const double factor = 127.0 / (double)greatest; /* double: finite even for the least float */
        int32_t squares = 0;
        for (size_t i = 0; i < d; i++) {
            const int32_t code = (int32_t)nearest_even((double)vector[i] * factor);
            codes[i] = (int8_t)code;
            squares += code * code;
        }
        scale_out[row] = (float)(1.0 / sqrt((double)squares));
    }
    return n;
}

static size_t search(const omega_codes *table, const int8_t *query, float query_scale, const uint8_t *filter, size_t k,
                     uint64_t *workspace, uint32_t *rows_out, float *scores_out)
{
    top_k best = top_k_begin(smaller(k, table->rows), workspace);
    for (size_t row = 0; row < table->rows; row++) {
        if (!omega_allowed(filter, row))
            continue;
        const float score = cosine(table, row, query, query_scale);
        if (score > best.threshold)
            top_k_append(&best, score, (uint32_t)row);
    }
    return top_k_finish(&best, rows_out, scores_out);
}

static void cosines(const omega_codes *table, const int8_t *queries, const float *query_scale, size_t q, float *out)
{
    for (size_t row = 0; row < table->rows; row++)
        for (size_t j = 0; j < q; j++)
            out[j * table->rows + row] = cosine(table, row, queries + j * table->dimensions, query_scale[j]);
}

/* Whether the entries of the row that rows[event] names lie inside the table. */
static omega_fault_kind check_row(const omega_rows *table, uint32_t row)
{
    if (row >= table->rows)
        return OMEGA_ROW_OUTSIDE;
    const uint32_t first = table->offsets[row], last = table->offsets[row + 1];
    return first <= last && last <= table->entries ? OMEGA_FINE : OMEGA_OFFSETS_DAMAGED;
}

omega_fault omega_scalar_row_scatter_add(const omega_rows *table, const uint32_t *rows, const float *weights,
                                         size_t events, float *out, size_t targets)
{
    for (size_t event = 0; event < events; event++) {
        const uint32_t row = rows[event];
        const omega_fault_kind kind = check_row(table, row);
        if (kind != OMEGA_FINE)
            return (omega_fault){kind, event};
        const float weight = weights[event] * table->scale[row];
        for (size_t entry = table->offsets[row]; entry < table->offsets[row + 1]; entry++) {
            const uint32_t column = table->columns[entry];
            if (column >= targets)
                return (omega_fault){OMEGA_COLUMN_OUTSIDE, event};
            out[column] += weight * (float)table->values[entry];
        }
    }
    return (omega_fault){OMEGA_FINE, 0};
}

/* The one entry in [first, last) that can be at the target's column; any entry, or last, where none is. Halves the
 * range by selection, not by a branch that no predictor could learn. */
static size_t candidate_entry(const uint32_t *columns, size_t first, size_t last, uint32_t target)
{
    for (size_t length = last - first; length > 1;) {
        const size_t half = length / 2;
        first += columns[first + half - 1] < target ? half : 0;
        length -= half;
    }
    return first;
}

omega_fault omega_scalar_row_lookup(const omega_rows *table, const uint32_t *rows, size_t events,
                                    const uint32_t *targets, size_t k, float *out)
{
    for (size_t event = 0; event < events; event++) {
        const uint32_t row = rows[event];
        const omega_fault_kind kind = check_row(table, row);
        if (kind != OMEGA_FINE)
            return (omega_fault){kind, event};
        const size_t first = table->offsets[row], last = table->offsets[row + 1];
        for (size_t j = 0; j < k; j++) {
            const size_t entry = candidate_entry(table->columns, first, last, targets[j]);
            const int present = entry < last && table->columns[entry] == targets[j];
            out[event * k + j] = present ? (float)table->values[entry] * table->scale[row] : 0.0f;
        }
    }
    return (omega_fault){OMEGA_FINE, 0};
}

/* Counts by halves: sums of pairs, of fours, of bytes, then all bytes by one product. A loop over bits mispredicts. */
static int32_t bits_set(uint64_t x)
{
    x -= x >> 1 & 0x5555555555555555u;
    x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return (int32_t)(x * 0x0101010101010101u >> 56);
}

omega_fault omega_scalar_genre_means(const uint64_t *masks, size_t n, const float *per_genre, size_t genres,
                                     float *out)
{
    float sums[OMEGA_MAX_GENRES / 8][256]; /* the sum of each value that each byte of a mask can take */
    const size_t bytes = (genres + 7) / 8;
    for (size_t byte = 0; byte < bytes; byte++) {
        sums[byte][0] = 0.0f;
        for (size_t bit = 0; bit < 8; bit++) {
            const float value = byte * 8 + bit < genres ? per_genre[byte * 8 + bit] : 0.0f;
            for (size_t lower = 0; lower < (size_t)1 << bit; lower++)
                sums[byte][lower | (size_t)1 << bit] = sums[byte][lower] + value;
        }
    }
    const uint64_t outside = genres < 64 ? UINT64_MAX << genres : 0;
    for (size_t row = 0; row < n; row++) {
        const uint64_t mask = masks[row];
        if (mask & outside)
            return (omega_fault){OMEGA_GENRE_OUTSIDE, row};
        float sum = 0.0f;
        for (size_t byte = 0; byte < bytes; byte++)
            sum += sums[byte][mask >> 8 * byte & 255];
        out[row] = mask ? sum / (float)bits_set(mask) : 0.0f;
    }
    return (omega_fault){OMEGA_FINE, 0};
}

void omega_scalar_fuse(const float *const *features, size_t f, size_t n, const float *weights, float *out)
{
    for (size_t row = 0; row < n; row++)
        out[row] = omega_fused_row(features, f, weights, row);
}

size_t omega_scalar_fuse_top_k(const float *const *features, size_t f, size_t n, const float *weights,
                               const uint8_t *filter, size_t k, uint64_t *workspace, uint32_t *rows_out,
                               float *scores_out)
{
    top_k best = top_k_begin(smaller(k, n), workspace);
    for (size_t row = 0; row < n; row++) {
        if (!omega_allowed(filter, row))
            continue;
        const float score = omega_fused_row(features, f, weights, row);
        if (score > best.threshold)
            top_k_append(&best, score, (uint32_t)row);
    }
    return top_k_finish(&best, rows_out, scores_out);
}

static void raise_nearest(const omega_codes *table, const uint32_t *rows, size_t m, uint32_t picked, float *nearest)
{
    const int8_t *query = table->codes + (size_t)picked * table->dimensions;
    for (size_t i = 0; i < m; i++) {
        const float score = cosine(table, rows[i], query, table->scale[picked]);
        nearest[i] = score > nearest[i] ? score : nearest[i];
    }
}

static void add_part(const omega_codes *parts, const float *weights, size_t part, size_t first, float *sums)
{
    const int8_t *codes = parts->codes + part * parts->dimensions + first;
    const float weight = weights[part] * parts->scale[part];
    for (size_t lane = 0; lane < OMEGA_DIMENSION_STEP; lane++)
        sums[lane] += weight * (float)codes[lane];
}

void omega_scalar_left_out_sums(const omega_codes *parts, const float *weights, float growth, size_t left, float *out)
{
    const size_t d = parts->dimensions;
    for (size_t first = 0; first < d; first += OMEGA_DIMENSION_STEP) {
        float older[OMEGA_DIMENSION_STEP] = {0.0f}, newer[OMEGA_DIMENSION_STEP] = {0.0f};
        for (size_t part = parts->rows; part-- > 0;) {
            if (part < left)
                memcpy(out + part * d + first, older, sizeof older);
            add_part(parts, weights, part, first, older);
        }
        for (size_t part = 0; part < left; part++) {
            float *sums = out + part * d + first;
            for (size_t lane = 0; lane < OMEGA_DIMENSION_STEP; lane++)
                sums[lane] = newer[lane] + sums[lane] * growth;
            add_part(parts, weights, part, first, newer);
        }
    }
}

omega_fault omega_scalar_diversify(const omega_codes *table, const uint32_t *rows, const float *values, size_t m,
                                   float trade_off, size_t k, float *workspace, uint32_t *order_out, size_t *found,
                                   omega_raise_nearest *raise)
{
    float *nearest = workspace;
    const float redundancy = 1.0f - trade_off;
    *found = 0;
    for (size_t i = 0; i < m; i++) {
        if (rows[i] >= table->rows)
            return (omega_fault){OMEGA_ROW_OUTSIDE, i};
        nearest[i] = 0.0f;
    }
    while (*found < k) {
        size_t pick = m;
        float best = -INFINITY;
        for (size_t i = 0; i < m; i++) {
            const float score = trade_off * values[i] - redundancy * nearest[i];
            if (score > best) {
                best = score;
                pick = i;
            }
        }
        if (pick == m)
            break;
        if (*found == 0)
            for (size_t i = 0; i < m; i++)
                nearest[i] = -INFINITY;
        nearest[pick] = INFINITY; /* stays: raising cannot lower it, and its score, -infinity or NaN, is never best */
        order_out[(*found)++] = (uint32_t)pick;
        raise(table, rows, m, rows[pick], nearest);
    }
    return (omega_fault){OMEGA_FINE, 0};
}

static omega_fault diversify(const omega_codes *table, const uint32_t *rows, const float *values, size_t m,
                             float trade_off, size_t k, float *workspace, uint32_t *order_out, size_t *found)
{
    return omega_scalar_diversify(table, rows, values, m, trade_off, k, workspace, order_out, found, raise_nearest);
}

const omega_kernels omega_kernels_scalar = {
    .isa = "scalar",
    .quantise = omega_scalar_quantise,
    .search = search,
    .cosines = cosines,
    .row_scatter_add = omega_scalar_row_scatter_add,
    .row_lookup = omega_scalar_row_lookup,
    .genre_means = omega_scalar_genre_means,
    .left_out_sums = omega_scalar_left_out_sums,
    .fuse = omega_scalar_fuse,
    .fuse_top_k = omega_scalar_fuse_top_k,
    .diversify = diversify,
    .count_greater = omega_scalar_count_greater,
    .sum_trees = omega_scalar_sum_trees,
    .halve = omega_scalar_halve,
    .join = omega_scalar_join,
    .search_halves = omega_scalar_search_halves,
    .search_batch = omega_scalar_search_batch,
    .put_signs = omega_scalar_put_signs,
    .search_two_stage = omega_scalar_search_two_stage,
    .rescore = omega_scalar_rescore,
    .rank = omega_scalar_rank,
    .sequence_events = omega_scalar_sequence_events,
    .sequence_states = omega_scalar_sequence_states,
};
