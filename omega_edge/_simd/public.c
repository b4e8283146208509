/* include/omega_edge.h: checks what C callers give, then calls the best kernels. Not part of the Python extension. */
#include "../../include/omega_edge.h"

#include "kernels.h"

#if defined(__GNUC__)
#define EXPORTED __attribute__((visibility("default")))
#else
#define EXPORTED
#endif

_Static_assert(OMEGA_EDGE_DIMENSION_STEP == OMEGA_DIMENSION_STEP, "the public header states the kernels' limits");
_Static_assert(OMEGA_EDGE_MAX_DIMENSIONS == OMEGA_MAX_DIMENSIONS, "the public header states the kernels' limits");
_Static_assert(OMEGA_EDGE_WORKSPACE_BYTES(9, 7) == 8 * OMEGA_TOP_K_WORDS(7), "the public header states the workspace");

EXPORTED int omega_edge_abi(void)
{
    return OMEGA_EDGE_ABI;
}

EXPORTED const char *omega_edge_instruction_set(void)
{
    return omega_kernels_at(0)->isa;
}

EXPORTED const char *omega_edge_message(omega_edge_status status)
{
    switch (status) {
    case OMEGA_EDGE_OK:
        return "done";
    case OMEGA_EDGE_NO_POINTER:
        return "expected a pointer, got NULL";
    case OMEGA_EDGE_DIMENSIONS:
        return "expected a multiple of 32 dimensions, 32 to 1024";
    case OMEGA_EDGE_ROWS:
        return "expected fewer than 2^32 rows";
    case OMEGA_EDGE_K:
        return "expected k from 1 to 2^32 - 1";
    case OMEGA_EDGE_WORKSPACE:
        return "expected OMEGA_EDGE_WORKSPACE_BYTES(rows, k) bytes of working memory aligned to 8";
    case OMEGA_EDGE_NO_DIRECTION:
        return "expected vectors of finite numbers that are not all zero";
    case OMEGA_EDGE_NUMBER:
        return "expected finite numbers; scale and weight of similarity not negative, half-life above 0";
    }
    return "unknown status";
}

/* Whether a row's number would not fit in 32 bits; where size_t has 32 bits there is no such count. */
static int too_many(size_t count)
{
#if SIZE_MAX > UINT32_MAX
    return count > UINT32_MAX;
#else
    (void)count;
    return 0;
#endif
}

static omega_edge_status check_shape(size_t rows, size_t dimensions)
{
    if (dimensions < OMEGA_DIMENSION_STEP || dimensions > OMEGA_MAX_DIMENSIONS || dimensions % OMEGA_DIMENSION_STEP)
        return OMEGA_EDGE_DIMENSIONS;
    return too_many(rows) ? OMEGA_EDGE_ROWS : OMEGA_EDGE_OK;
}

/* As OMEGA_EDGE_WORKSPACE_BYTES, but computed in words of what is given: the macro's product of a count that nobody can
 * hold wraps where size_t has 32 bits, and would let a workspace of 512 bytes pass for 2^27 rows. */
static int workspace_suffices(size_t workspace_bytes, size_t rows, size_t k)
{
    const size_t words = workspace_bytes / sizeof(uint64_t), least = OMEGA_TOP_K_WORDS((size_t)0);
    const size_t per_row = OMEGA_TOP_K_WORDS((size_t)1) - least;
    return words >= least && (words - least) / per_row >= (k < rows ? k : rows);
}

static int finite_number(float x)
{
    return x >= -FLT_MAX && x <= FLT_MAX;
}

static omega_edge_status check_query(const omega_edge_table *table, const int8_t *query, float query_scale, size_t k,
                                     const void *workspace, size_t workspace_bytes, const uint32_t *rows_out,
                                     const float *scores_out, const size_t *found)
{
    if (!table || !query || !workspace || !rows_out || !scores_out || !found)
        return OMEGA_EDGE_NO_POINTER;
    const omega_edge_status shape = check_shape(table->rows, table->dimensions);
    if (shape != OMEGA_EDGE_OK)
        return shape;
    if (table->rows && (!table->high || !table->low || !table->scale || !table->spread))
        return OMEGA_EDGE_NO_POINTER;
    if (!k || too_many(k))
        return OMEGA_EDGE_K;
    if ((uintptr_t)workspace % sizeof(uint64_t) || !workspace_suffices(workspace_bytes, table->rows, k))
        return OMEGA_EDGE_WORKSPACE;
    return query_scale >= 0 && finite_number(query_scale) ? OMEGA_EDGE_OK : OMEGA_EDGE_NUMBER;
}

static omega_halves halves_of(const omega_edge_table *table)
{
    return (omega_halves){table->high, table->low, table->scale, table->spread, table->rows, table->dimensions};
}

EXPORTED omega_edge_status omega_edge_quantise(const float *vectors, size_t rows, size_t dimensions, int8_t *codes_out,
                                               float *scale_out, size_t *row_at_fault)
{
    const omega_edge_status shape = check_shape(rows, dimensions);
    if (shape != OMEGA_EDGE_OK)
        return shape;
    if (rows && (!vectors || !codes_out || !scale_out))
        return OMEGA_EDGE_NO_POINTER;
    const size_t done = omega_kernels_at(0)->quantise(vectors, rows, dimensions, codes_out, scale_out);
    if (done == rows)
        return OMEGA_EDGE_OK;
    if (row_at_fault)
        *row_at_fault = done;
    return OMEGA_EDGE_NO_DIRECTION;
}

EXPORTED omega_edge_status omega_edge_pack(const int8_t *codes, size_t rows, size_t dimensions, uint8_t *high_out,
                                           uint8_t *low_out, uint8_t *spread_out)
{
    const omega_edge_status shape = check_shape(rows, dimensions);
    if (shape != OMEGA_EDGE_OK)
        return shape;
    if (rows && (!codes || !high_out || !low_out || !spread_out))
        return OMEGA_EDGE_NO_POINTER;
    omega_kernels_at(0)->halve(codes, rows, dimensions, high_out, low_out, spread_out);
    return OMEGA_EDGE_OK;
}

EXPORTED omega_edge_status omega_edge_search(const omega_edge_table *table, const int8_t *query, float query_scale,
                                             const uint8_t *filter, size_t k, void *workspace, size_t workspace_bytes,
                                             uint32_t *rows_out, float *scores_out, size_t *found)
{
    const omega_edge_status status =
        check_query(table, query, query_scale, k, workspace, workspace_bytes, rows_out, scores_out, found);
    if (status != OMEGA_EDGE_OK)
        return status;
    const omega_halves halves = halves_of(table);
    *found = omega_kernels_at(0)->search_halves(&halves, query, query_scale, filter, k, workspace, rows_out, scores_out);
    return OMEGA_EDGE_OK;
}

EXPORTED omega_edge_status omega_edge_rank(const omega_edge_table *table, const int8_t *query, float query_scale,
                                           const omega_edge_columns *columns, const omega_edge_ranking *ranking,
                                           const uint8_t *filter, size_t k, void *workspace, size_t workspace_bytes,
                                           uint32_t *rows_out, float *scores_out, size_t *found)
{
    const omega_edge_status status =
        check_query(table, query, query_scale, k, workspace, workspace_bytes, rows_out, scores_out, found);
    if (status != OMEGA_EDGE_OK)
        return status;
    if (!columns || !ranking || (table->rows && (!columns->success || !columns->time || !columns->trend)))
        return OMEGA_EDGE_NO_POINTER;
    const float per_half_life = 1.0f / ranking->half_life;
    if (!finite_number(ranking->similarity) || ranking->similarity < 0 || !finite_number(ranking->success) ||
        !finite_number(ranking->recency) || !finite_number(ranking->trend) ||
        !finite_number(ranking->least_similarity) || !(per_half_life >= FLT_MIN && per_half_life <= FLT_MAX))
        return OMEGA_EDGE_NUMBER;
    const omega_halves halves = halves_of(table);
    const omega_rank_columns read = {columns->success, columns->time, columns->trend};
    const omega_rank_weights weights = {ranking->similarity, ranking->success, ranking->recency, ranking->trend};
    const omega_rank_limits limits = {ranking->now, per_half_life, ranking->least_similarity};
    *found = omega_kernels_at(0)->rank(&halves, query, query_scale, &read, &weights, &limits, filter, k, workspace,
                                       rows_out, scores_out);
    return OMEGA_EDGE_OK;
}
