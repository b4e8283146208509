/* The search in two stages, over the lanes of an instruction set's own header and what scan_walk.h makes of them, which
 * are included before. */
#ifndef OMEGA_EDGE_SCAN_SIGNS_H
#define OMEGA_EDGE_SCAN_SIGNS_H

#include "scan_walk.h"
#include "sign_candidates.h"

/* The keys of the first stage's best, score above row, in no order; returns how many. */
static ALWAYS_INLINE size_t walk_signs(const omega_signs *signs, size_t d, const uint8_t *tables, const uint8_t *filter,
                                       size_t wanted, uint64_t *keys)
{
    const size_t n = signs->rows;
    sign_candidates list = {.keys = keys, .capacity = OMEGA_TOP_K_WORDS(wanted), .wanted = wanted};
    for (size_t first = 0; first < n; first += OMEGA_SIGN_ROWS) {
        uint32_t allowed = UINT32_MAX;
        if (filter || n - first < OMEGA_SIGN_ROWS) {
            const size_t rest = n - first;
            allowed = allowed_rows(filter, first, rest < 16 ? rest : 16);
            if (rest > 16)
                allowed |= allowed_rows(filter, first + 16, rest < 32 ? rest - 16 : 16) << 16;
            if (!allowed)
                continue;
        }
        const sign_lanes scores = sign_scores(signs->blocks + first * (d / 8), tables, d);
        uint32_t beating = allowed & signs_above(scores, (int32_t)(SCORE_STEP * list.least) - 1);
        if (!beating)
            continue;
        uint16_t values[OMEGA_SIGN_ROWS];
        signs_store(values, scores);
        for (; beating; beating &= beating - 1) {
            const uint32_t lane = (uint32_t)__builtin_ctz(beating);
            add_candidate(&list, values[lane], (uint32_t)first + lane);
        }
        raise_least(&list);
    }
    return best_candidates(&list);
}

size_t SCAN(search_two_stage)(const omega_signs *signs, const omega_halves *table, const int8_t *query,
                               float query_scale, const uint8_t *filter, size_t candidates, size_t k,
                               uint64_t *workspace, uint32_t *rows_out, float *scores_out)
{
    const size_t d = table->dimensions;
    _Alignas(64) uint8_t tables[OMEGA_MAX_DIMENSIONS * 4];
    omega_sign_tables(query, d, tables);
    const size_t wanted = candidates < table->rows ? candidates : table->rows;
    const size_t chosen = d == USUAL_DIMENSIONS ? walk_signs(signs, USUAL_DIMENSIONS, tables, filter, wanted, workspace)
                                                : walk_signs(signs, d, tables, filter, wanted, workspace);
    /* Every candidate's cosine is a key of the second list: it is never full, and takes them in any order. */
    uint64_t *const second = workspace + OMEGA_TOP_K_WORDS(wanted);
    scan s;
    scan_begin(&s, table, query, query_scale, k, second);
    s.best.capacity = chosen + BLOCK_ROWS + 1;
    for (size_t i = 0; i < chosen + BLOCK_ROWS; i += BLOCK_ROWS) {
        for (size_t j = i; j < i + BLOCK_ROWS && j < chosen; j++) {
            prefetch_row(table->high, top_k_row(workspace[j]), d);
            prefetch_row(table->low, top_k_row(workspace[j]), d);
        }
        if (i == 0)
            continue;
        const size_t begin = i - BLOCK_ROWS, rest = chosen - begin;
        const size_t count = rest < BLOCK_ROWS ? rest : BLOCK_ROWS;
        uint32_t rows[BLOCK_ROWS];
        for (size_t lane = 0; lane < count; lane++)
            rows[lane] = top_k_row(workspace[begin + lane]);
        gathered g;
        const sixteen at = gather(table, rows, count, NULL, &g);
        const int_lanes high = half_sums_listed(table->high, rows, count, &s.query, d);
        const int_lanes low = half_sums_listed(table->low, rows, count, &s.query, d);
        offer_exact(&s, ints_add(ints_times_16(high), low), ints_load(rows), (1u << count) - 1, &at, NULL);
    }
    return top_k_finish(&s.best, rows_out, scores_out);
}

#endif
