/* Omega Edge's C core for programs without Python: 8-bit cosine search and ranking of patterns.
 *
 * Vectors are quantised to signed 8-bit codes with one scale each, then packed into a table that a search reads about
 * half of. All functions are re-entrant, allocate nothing, keep no state, and check what they are given; the caller owns
 * every array. Results are equal, bit for bit, on every processor. Order: score descending, then row ascending.
 *
 *     float vectors[ROWS * 384];  ...  query[384];
 *     omega_edge_quantise(vectors, ROWS, 384, codes, scale, NULL);
 *     omega_edge_pack(codes, ROWS, 384, high, low, spread);
 *     omega_edge_quantise(query, 1, 384, query_code, &query_scale, NULL);
 *     omega_edge_table table = {high, low, scale, spread, ROWS, 384};
 *     omega_edge_search(&table, query_code, query_scale, NULL, K, workspace, sizeof workspace, rows, scores, &found);
 */
#ifndef OMEGA_EDGE_H
#define OMEGA_EDGE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define OMEGA_EDGE_ABI 1

/* Dimensions are a multiple of 32 up to 1024; rows are fewer than 2^32. */
#define OMEGA_EDGE_DIMENSION_STEP 32
#define OMEGA_EDGE_MAX_DIMENSIONS 1024

/* Bytes of working memory, aligned to 8, for the k best of so many rows. */
#define OMEGA_EDGE_WORKSPACE_BYTES(rows, k) (8 * (4 * (size_t)((k) < (rows) ? (k) : (rows)) + 64))

typedef enum {
    OMEGA_EDGE_OK = 0,
    OMEGA_EDGE_NO_POINTER,       /* a pointer that is needed is NULL */
    OMEGA_EDGE_DIMENSIONS,       /* dimensions are no multiple of 32 from 32 to 1024 */
    OMEGA_EDGE_ROWS,             /* rows are 2^32 or more */
    OMEGA_EDGE_K,                /* k is 0 or 2^32 and more */
    OMEGA_EDGE_WORKSPACE,        /* the workspace is too small, or not aligned to 8 bytes */
    OMEGA_EDGE_NO_DIRECTION,     /* a vector is zero, or has an infinite or NaN element */
    OMEGA_EDGE_NUMBER,           /* a scale, weight or limit is not finite, or negative where it must not be */
} omega_edge_status;

/* Packed codes: arrays that omega_edge_pack and omega_edge_quantise wrote, borrowed for the call. */
typedef struct {
    const uint8_t *high;   /* rows * dimensions / 2 */
    const uint8_t *low;    /* rows * dimensions / 2 */
    const float *scale;    /* rows */
    const uint8_t *spread; /* rows */
    size_t rows;
    size_t dimensions;
} omega_edge_table;

/* What a pattern is ranked by beside its similarity: one of each for every row, finite. */
typedef struct {
    const float *success;
    const uint32_t *time; /* in any unit, that of now and half_life */
    const float *trend;
} omega_edge_columns;

typedef struct {
    float similarity; /* weights; similarity's is not negative */
    float success;
    float recency;
    float trend;
    uint32_t now;
    float half_life;        /* above 0: a pattern this old counts half as recent */
    float least_similarity; /* patterns less similar are left out; -2 leaves none out */
} omega_edge_ranking;

/* The version that the library was built as; compare with OMEGA_EDGE_ABI. */
int omega_edge_abi(void);

/* "neon", "neondot", "avx2", ...: what the kernels use on this processor. */
const char *omega_edge_instruction_set(void);

/* One English sentence without a full stop; for an unknown status too. Never NULL. */
const char *omega_edge_message(omega_edge_status status);

/* float[rows * dimensions] -> codes int8[rows * dimensions] and scale float[rows]. Where a vector has no direction,
 * *row_at_fault (may be NULL) is its row and the rows before it are written. */
omega_edge_status omega_edge_quantise(const float *vectors, size_t rows, size_t dimensions, int8_t *codes_out,
                                      float *scale_out, size_t *row_at_fault);

/* codes -> high and low uint8[rows * dimensions / 2], spread uint8[rows]. */
omega_edge_status omega_edge_pack(const int8_t *codes, size_t rows, size_t dimensions, uint8_t *high_out,
                                  uint8_t *low_out, uint8_t *spread_out);

/* The k rows nearest to the query by cosine. filter: NULL, or ceil(rows / 8) bytes in which bit r & 7 of byte r >> 3
 * allows row r. Writes *found rows and cosines: min(k, rows allowed). */
omega_edge_status omega_edge_search(const omega_edge_table *table, const int8_t *query, float query_scale,
                                    const uint8_t *filter, size_t k, void *workspace, size_t workspace_bytes,
                                    uint32_t *rows_out, float *scores_out, size_t *found);

/* The k rows with the highest similarity * cosine + success * success[r] + recency * 2^(-age / half_life) +
 * trend * trend[r], where age is now - time[r], 0 for a time to come. */
omega_edge_status omega_edge_rank(const omega_edge_table *table, const int8_t *query, float query_scale,
                                  const omega_edge_columns *columns, const omega_edge_ranking *ranking,
                                  const uint8_t *filter, size_t k, void *workspace, size_t workspace_bytes,
                                  uint32_t *rows_out, float *scores_out, size_t *found);

#ifdef __cplusplus
}
#endif

#endif
