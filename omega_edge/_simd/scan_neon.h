/* The search in two stages for the NEON files of 64-bit ARM. Included after kernels_neon.h; the file that includes it
 * has defined
 *     joined_dots_four(high, low, form, d)     dot products of four rows, from both planes
 */
#ifndef OMEGA_EDGE_SCAN_NEON_H
#define OMEGA_EDGE_SCAN_NEON_H

static size_t search_two_stage(const omega_signs *signs, const omega_halves *table, const int8_t *query,
                               float query_scale, const uint8_t *filter, size_t candidates, size_t k,
                               uint64_t *workspace, uint32_t *rows_out, float *scores_out)
{
    const size_t wanted = candidates < table->rows ? candidates : table->rows;
    const size_t least = k < table->rows ? k : table->rows;
    const size_t count = omega_neon_sign_candidates(signs, query, filter, wanted, workspace, 6 * wanted + 128);
    const size_t half = table->dimensions / 2;
    query_form form;
    form_query(query, table->dimensions, &form);
    size_t kept = 0; /* a candidate's key makes room for the key of its cosine */
    for (size_t first = 0; first < count; first += 4) {
        const size_t lanes = count - first < 4 ? count - first : 4;
        const uint8_t *high[4], *low[4];
        uint32_t rows[4];
        float scores[4];
        for (size_t lane = 0; lane < 4; lane++) {
            rows[lane] = top_k_row(workspace[first + (lane < lanes ? lane : 0)]);
            high[lane] = table->high + rows[lane] * half;
            low[lane] = table->low + rows[lane] * half;
            scores[lane] = table->scale[rows[lane]];
        }
        const int32x4_t dots = joined_dots_four(high, low, &form, table->dimensions);
        vst1q_f32(scores, cosine_four(dots, vld1q_f32(scores), query_scale));
        for (size_t lane = 0; lane < lanes; lane++)
            if (scores[lane] > -INFINITY)
                workspace[kept++] = top_k_key(scores[lane], rows[lane]);
    }
    top_k best = {workspace, kept, kept + 1, least, -INFINITY};
    return top_k_finish(&best, rows_out, scores_out);
}

#endif
