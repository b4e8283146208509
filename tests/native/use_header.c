/* A program that knows Omega Edge by its public header alone, as a firmware's own code would.
 *
 * Prints one line for each claim of the header that does not hold, and returns 1 if there was one. Every expected result
 * is computed here, in double precision and without the library.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "omega_edge.h"

enum { ROWS = 700, DIMENSIONS = 384, K = 20 };

static float vectors[ROWS * DIMENSIONS], query[DIMENSIONS], scale[ROWS], query_scale;
static int8_t codes[ROWS * DIMENSIONS], query_code[DIMENSIONS];
static uint8_t high[ROWS * DIMENSIONS / 2], low[ROWS * DIMENSIONS / 2], spread[ROWS], filter[(ROWS + 7) / 8];
static float success[ROWS], trend[ROWS];
static uint32_t times[ROWS];
static uint64_t workspace[OMEGA_EDGE_WORKSPACE_BYTES(ROWS, K) / 8];
static int faults;

static void expect(int holds, const char *claim)
{
    if (!holds) {
        fprintf(stderr, "use_header: does not hold: %s\n", claim);
        faults++;
    }
}

static double uniform(void)
{
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (double)(state >> 11) / 9007199254740992.0;
}

static double cosine(const float *a, const float *b)
{
    double dot = 0, aa = 0, bb = 0;
    for (int i = 0; i < DIMENSIONS; i++) {
        dot += (double)a[i] * b[i];
        aa += (double)a[i] * a[i];
        bb += (double)b[i] * b[i];
    }
    return dot / sqrt(aa * bb);
}

static int allowed(const uint8_t *bits, int row)
{
    return !bits || (bits[row >> 3] >> (row & 7) & 1);
}

/* The scores in double precision decide what may be found: a row that is not returned may not be better than the last
 * one returned by more than the precision of 8-bit codes. */
static void check_result(const char *name, const double *truth, const uint8_t *bits, const uint32_t *rows,
                         const float *scores, size_t found, double precision)
{
    char returned[ROWS] = {0};
    int passing = 0;
    for (int row = 0; row < ROWS; row++)
        passing += allowed(bits, row);
    expect(found == (size_t)(passing < K ? passing : K), name);
    for (size_t i = 0; i < found; i++) {
        expect(rows[i] < ROWS && allowed(bits, (int)rows[i]) && !returned[rows[i]], name);
        expect(fabs(scores[i] - truth[rows[i]]) < precision, name);
        expect(i == 0 || scores[i - 1] > scores[i] || (scores[i - 1] == scores[i] && rows[i - 1] < rows[i]), name);
        returned[rows[i]] = 1;
    }
    for (int row = 0; row < ROWS; row++)
        expect(returned[row] || !allowed(bits, row) || truth[row] < scores[found - 1] + precision, name);
}

static void check_statuses(const omega_edge_table *table)
{
    uint32_t rows[K];
    float scores[K];
    size_t found, at = 99;
    omega_edge_table wrong = *table;
    float nothing[DIMENSIONS] = {0};
    expect(omega_edge_quantise(nothing, 1, DIMENSIONS, query_code, &query_scale, &at) == OMEGA_EDGE_NO_DIRECTION && at == 0,
           "a zero vector is refused and named");
    expect(omega_edge_quantise(query, 1, DIMENSIONS, query_code, &query_scale, NULL) == OMEGA_EDGE_OK, "a query has a code");
    wrong.dimensions = 100;
    expect(omega_edge_search(&wrong, query_code, query_scale, NULL, K, workspace, sizeof workspace, rows, scores, &found) ==
               OMEGA_EDGE_DIMENSIONS,
           "100 dimensions are refused");
    expect(omega_edge_search(table, query_code, query_scale, NULL, 0, workspace, sizeof workspace, rows, scores, &found) ==
               OMEGA_EDGE_K,
           "k of 0 is refused");
    expect(omega_edge_search(table, query_code, query_scale, NULL, K, workspace, sizeof workspace - 8, rows, scores,
                             &found) == OMEGA_EDGE_WORKSPACE,
           "a short workspace is refused");
    wrong = *table;
    wrong.rows = (size_t)1 << 27; /* whose workspace has 2^32 + 512 bytes: more than 32 bits can say */
    expect(omega_edge_search(&wrong, query_code, query_scale, NULL, wrong.rows, workspace, 512, rows, scores, &found) ==
               OMEGA_EDGE_WORKSPACE,
           "a workspace is not taken for one that is larger by 2^32 bytes");
    expect(omega_edge_search(table, query_code, NAN, NULL, K, workspace, sizeof workspace, rows, scores, &found) ==
               OMEGA_EDGE_NUMBER,
           "a scale that is no number is refused");
    expect(omega_edge_search(table, NULL, query_scale, NULL, K, workspace, sizeof workspace, rows, scores, &found) ==
               OMEGA_EDGE_NO_POINTER,
           "no query is refused");
    for (int status = OMEGA_EDGE_OK; status <= OMEGA_EDGE_NUMBER; status++)
        expect(strcmp(omega_edge_message((omega_edge_status)status), omega_edge_message((omega_edge_status)-1)) != 0,
               "each status has words of its own");
}

int main(void)
{
    static double truth[ROWS];
    uint32_t rows[K];
    float scores[K];
    size_t found;

    for (int i = 0; i < ROWS * DIMENSIONS; i++)
        vectors[i] = (float)(uniform() + uniform() + uniform() - 1.5);
    for (int row = 0; row < ROWS; row++) {
        success[row] = (float)uniform();
        trend[row] = (float)uniform();
        times[row] = (uint32_t)(1000 * uniform());
    }
    for (int i = 0; i < DIMENSIONS; i++)
        query[i] = vectors[3 * DIMENSIONS + i] + 0.5f * vectors[77 * DIMENSIONS + i];
    for (size_t i = 0; i < sizeof filter; i++)
        filter[i] = (uint8_t)(i * 37);

    expect(omega_edge_abi() == OMEGA_EDGE_ABI, "the library is of the header's version");
    expect(omega_edge_quantise(vectors, ROWS, DIMENSIONS, codes, scale, NULL) == OMEGA_EDGE_OK, "vectors are quantised");
    expect(omega_edge_pack(codes, ROWS, DIMENSIONS, high, low, spread) == OMEGA_EDGE_OK, "codes are packed");
    const omega_edge_table table = {high, low, scale, spread, ROWS, DIMENSIONS};
    check_statuses(&table);

    for (int filtered = 0; filtered < 2; filtered++) {
        const uint8_t *bits = filtered ? filter : NULL;
        for (int row = 0; row < ROWS; row++)
            truth[row] = cosine(vectors + row * DIMENSIONS, query);
        expect(omega_edge_search(&table, query_code, query_scale, bits, K, workspace, sizeof workspace, rows, scores,
                                 &found) == OMEGA_EDGE_OK,
               "a search succeeds");
        check_result("search returns the nearest rows", truth, bits, rows, scores, found, 0.005);

        const omega_edge_columns columns = {success, times, trend};
        const omega_edge_ranking ranking = {0.5f, 0.3f, 0.15f, 0.05f, 800, 120.0f, -2.0f};
        for (int row = 0; row < ROWS; row++) {
            const double age = times[row] < 800 ? 800.0 - times[row] : 0.0;
            truth[row] = 0.5 * truth[row] + 0.3 * success[row] + 0.15 * exp2(-age / 120.0) + 0.05 * trend[row];
        }
        expect(omega_edge_rank(&table, query_code, query_scale, &columns, &ranking, bits, K, workspace, sizeof workspace,
                               rows, scores, &found) == OMEGA_EDGE_OK,
               "a ranking succeeds");
        check_result("rank returns the best patterns", truth, bits, rows, scores, found, 0.003);
    }
    if (!faults)
        printf("use_header: every claim holds (%s)\n", omega_edge_instruction_set());
    return faults != 0;
}
