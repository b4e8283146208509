/* The contract of the C core: what every instruction set's file computes, bit for bit.
 *
 * Codes.    A vector is d signed 8-bit codes in [-127, 127] and a float scale = 1 / ||codes||_2, so that codes * scale
 *           has length 1. -128 is not a code: the AVX2 product negates codes, and -(-128) does not fit 8 bits. A table
 *           that holds it gives unspecified scores, never an access out of bounds.
 * Shape.    d is a multiple of 32 from 32 to OMEGA_MAX_DIMENSIONS; matrices are row-major and dense. n, m and f count
 *           rows, candidates and features; n < 2^32. k, and the candidates of a two-stage search, are at least 1.
 * Alignment. That of the element type. No kernel asks for more; rows that start on 64 bytes scan faster.
 * Overlap.  An output shares no memory with an input or another output.
 * Overflow. |product| <= 127 * 127 = 16129, so a dot product of 1024 terms is below 2^24: it fits an int32 with room to
 *           spare, and its conversion to float is exact. A pair of products (32258) fits an int16: AVX2 and NEON rely
 *           on it.
 * Rounding. IEEE 754 single precision, to nearest even, each operation rounded by itself in the order written here (no
 *           contraction, no reassociation). No libm but sqrt, which IEEE 754 rounds correctly. No kernel adds floats
 *           across lanes: lanes are rows, and within a row the order is stated.
 * Zeros.    No score is -0: equal scores are equal bits, which the tie rule needs.
 * Order.    Score descending, then row ascending. A row whose score is NaN or -infinity is never returned.
 * Filter.   Row r is allowed if bit r & 7 of byte r >> 3 is set; bits past the last row are ignored; NULL allows all.
 * State.    None: functions are re-entrant, allocate nothing and call nothing outside this directory but memcpy. Their
 *           stack is below 16 KiB on ARM and 64 KiB on x86-64, but for search_batch there: 128 KiB.
 */
#ifndef OMEGA_EDGE_KERNELS_H
#define OMEGA_EDGE_KERNELS_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>

#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0
#error "the kernels need float arithmetic that rounds to float (on 32-bit x86: -msse2 -mfpmath=sse)"
#endif

#define OMEGA_DIMENSION_STEP 32
#define OMEGA_MAX_DIMENSIONS 1024
#define OMEGA_MAX_GENRES 64
#define OMEGA_MAX_FEATURES 16 /* that the extension takes; the kernels have no limit */

/* Working memory, in 64-bit words, that a top-k of k rows needs; k here is already min(k, n). */
#define OMEGA_TOP_K_WORDS(k) (4 * (k) + 64)
/* The same for a two-stage search with c candidates, c already min(candidates, n), and for a batch of searches. */
#define OMEGA_TWO_STAGE_WORDS(c, k) (6 * (c) + 4 * (k) + 192)
#define OMEGA_BATCH_QUERIES 8
#define OMEGA_BATCH_WORDS(k) (OMEGA_BATCH_QUERIES * OMEGA_TOP_K_WORDS(k))

/* Rows of signs that lie interleaved, so that one table look-up serves 16 of them. */
#define OMEGA_SIGN_ROWS 32

/* A sparse matrix by rows: row r holds values[offsets[r] .. offsets[r + 1]) at columns[...], times scale[r]. */
typedef struct {
    const uint32_t *offsets; /* rows + 1 */
    const uint32_t *columns; /* entries; ascending inside a row where row_lookup is used */
    const int8_t *values;    /* entries */
    const float *scale;      /* rows */
    size_t rows;
    size_t entries;
} omega_rows;

/* Codes and their scales. */
typedef struct {
    const int8_t *codes; /* rows * dimensions */
    const float *scale;  /* rows */
    size_t rows;
    size_t dimensions;
} omega_codes;

/* The same codes as two planes of half bytes, for a scan that seldom needs the lower one: code = 16 * high + low - 128.
 * A row of a plane is d / 2 bytes; byte b of its 16 bytes j holds the half of code 32j + b below that of code
 * 32j + 16 + b. spread = ceil(||low - 7.5||_2), at most 7.5 * sqrt(1024) = 240. Scales are not negative (or NaN).
 *
 * With offset = sum of q, dot = 16 * sum(q * high) - 120.5 * offset + sum(q * (low - 7.5)), and by Cauchy and Schwarz
 * the last sum is at most ||q|| * spread. So
 *     bound = 16 * sum(q * high) + ceil(-120.5 * offset) + ceil(||q||_2) * spread
 * is an integer that no dot product of the row exceeds, below 2^24; and as rounding is monotone, the cosine computed of
 * the bound is never below the cosine computed of the dot product. A row is passed over only by that comparison. */
typedef struct {
    const uint8_t *high;   /* rows * dimensions / 2 */
    const uint8_t *low;    /* rows * dimensions / 2 */
    const float *scale;    /* rows */
    const uint8_t *spread; /* rows */
    size_t rows;
    size_t dimensions;
} omega_halves;

/* One bit a code, 1 where code >= 0. Blocks of 32 rows, ceil(rows / 32) of them, each d / 4 groups of 16 bytes: byte b
 * of group g holds the four bits of row 32 * block + b, codes 4g (lowest bit) to 4g + 3, below those of row
 * 32 * block + 16 + b. Bits of rows past the last are ignored. */
typedef struct {
    const uint8_t *blocks; /* ceil(rows / 32) * dimensions * 4 */
    size_t rows;
    size_t dimensions;
} omega_signs;

/* Regression trees over inputs. Node i asks whether input feature[i] is at most threshold[i]: if so it leads to
 * children[2i], else (also for NaN) to children[2i + 1]. A child of at least 0 is a node after i; one below 0 is leaf
 * ~child. A root is a node. */
typedef struct {
    const uint32_t *roots;   /* trees */
    const uint8_t *feature;  /* nodes, each below inputs */
    const float *threshold;  /* nodes */
    const int32_t *children; /* 2 * nodes */
    const float *leaves;     /* leaf_count */
    size_t trees;
    size_t nodes;
    size_t leaf_count;
    size_t inputs;
} omega_forest;

/* What a rank reads of each row beside its cosine. */
typedef struct {
    const float *success;
    const uint32_t *time; /* in any unit; per_half_life is in the same */
    const float *trend;
} omega_rank_columns;

typedef struct {
    float similarity; /* not negative */
    float success;
    float recency;
    float trend;
} omega_rank_weights;

typedef struct {
    uint32_t now;
    float per_half_life;    /* 1 / half-life, not negative */
    float least_similarity; /* a row whose cosine is below is not returned; -2 lets all pass */
} omega_rank_limits;

/* The sequence encoder: one self-attentive block over the newest events of a household, after SASRec (Kang and McAuley,
 * 2018), with a bias by distance for each head instead of positions, and root mean squares in its norms. */
#define OMEGA_SEQUENCE_DIMENSIONS 64
#define OMEGA_SEQUENCE_HEADS 8
#define OMEGA_SEQUENCE_WINDOW 64
#define OMEGA_SEQUENCE_FEED 128
#define OMEGA_SEQUENCE_EVENT 192 /* floats an event: its input x, its key, its value, 64 each */

/* Matrices have a row of codes for each input and a scale for each output. Output 8e + h of a query, key or value is
 * dimension e of head h. */
typedef struct {
    omega_codes titles;           /* embeddings, of OMEGA_SEQUENCE_DIMENSIONS */
    const float *success;         /* 2 * 64: added to a title's that failed, that succeeded */
    const float *distance;        /* 64 * 8: added to the logits, by distance from the newest event and head */
    const float *norms;           /* 3 * 64: gains before the attention, before the feed and at the end */
    const int8_t *attention;      /* 4 * 64 * 64: to queries, keys and values, and from mixed values */
    const float *attention_scale; /* 4 * 64 */
    const int8_t *feed_in;        /* 64 * 128 */
    const float *feed_in_scale;   /* 128 */
    const float *feed_in_bias;    /* 128 */
    const int8_t *feed_out;       /* 128 * 64 */
    const float *feed_out_scale;  /* 64 */
    const float *feed_out_bias;   /* 64 */
    float input_scale;
} omega_sequence;

/* A softmax that takes in one event after another: the greatest logit of each head so far, the sum of the powers under
 * it, and the values that they weight. */
typedef struct {
    float top[OMEGA_SEQUENCE_HEADS];
    float sum[OMEGA_SEQUENCE_HEADS];
    float mixed[OMEGA_SEQUENCE_DIMENSIONS];
} omega_sequence_running;

/* Working memory of sequence_states; what it holds before and after has no meaning. */
typedef struct {
    float mixed[OMEGA_SEQUENCE_WINDOW + 1][OMEGA_SEQUENCE_DIMENSIONS];
    float carried[OMEGA_SEQUENCE_WINDOW + 1][OMEGA_SEQUENCE_DIMENSIONS];
    union {
        struct {
            float products[2][(OMEGA_SEQUENCE_WINDOW + 1) * OMEGA_SEQUENCE_HEADS];
            omega_sequence_running newer[OMEGA_SEQUENCE_WINDOW];
        };
        float inner[OMEGA_SEQUENCE_WINDOW + 1][OMEGA_SEQUENCE_FEED];
    };
} omega_sequence_workspace;

typedef enum {
    OMEGA_FINE = 0,
    OMEGA_ROW_OUTSIDE,      /* rows[at] is not a row of the table */
    OMEGA_OFFSETS_DAMAGED,  /* the offsets of row rows[at] fall, or pass the last entry */
    OMEGA_COLUMN_OUTSIDE,   /* row rows[at] names a column past the output */
    OMEGA_GENRE_OUTSIDE,    /* masks[at] has a bit at or above the number of genres */
    OMEGA_ROOT_OUTSIDE,     /* roots[at] is not a node */
    OMEGA_NODE_DAMAGED,     /* node at names an input, a leaf or a node that is not there, or a node not after it */
} omega_fault_kind;

typedef struct {
    omega_fault_kind kind;
    size_t at;
} omega_fault;

typedef struct {
    const char *isa;

    /* codes[i] = nearest even integer to vector[i] * (127 / max|vector|), in double; scale = 1 / sqrt(sum codes^2), in
     * double, rounded once to float. Returns n, or the first row that is NaN, infinite or zero; rows before it are
     * written. Source of the scaling: symmetric per-vector absmax quantisation. */
    size_t (*quantise)(const float *vectors, size_t n, size_t d, int8_t *codes_out, float *scale_out);

    /* Best k rows of the table by cosine: ((float)dot * scale[row]) * query_scale + 0. Returns how many were found:
     * min(k, rows allowed). workspace: OMEGA_TOP_K_WORDS(min(k, n)). */
    size_t (*search)(const omega_codes *table, const int8_t *query, float query_scale, const uint8_t *filter, size_t k,
                     uint64_t *workspace, uint32_t *rows_out, float *scores_out);

    /* out[j * n + row] = the same cosine for query j. The table is read once for every eight queries. */
    void (*cosines)(const omega_codes *table, const int8_t *queries, const float *query_scale, size_t q, float *out);

    /* out[c] += (weights[e] * scale[row]) * value for each entry (c, value) of row rows[e], events in order, entries in
     * order. Stops at the first fault; what was added before it stays added. */
    omega_fault (*row_scatter_add)(const omega_rows *table, const uint32_t *rows, const float *weights, size_t events,
                                   float *out, size_t targets);

    /* out[e * k + j] = value * scale[row] of the entry at column targets[j] of row rows[e]; 0 where there is none. */
    omega_fault (*row_lookup)(const omega_rows *table, const uint32_t *rows, size_t events, const uint32_t *targets,
                              size_t k, float *out);

    /* out[r] = mean of per_genre over the set bits of masks[r], 0 where none is set. The sum adds, from 0, the sums of
     * the mask's bytes from the lowest; a byte's sum adds, from 0, its set bits from the lowest. */
    omega_fault (*genre_means)(const uint64_t *masks, size_t n, const float *per_genre, size_t genres, float *out);

    /* Weighted sums of unit vectors with each part left out. With v[i] = (weights[i] * scale[i]) * (float)codes[i], for
     * each i < left: out[i] = (v[0] + ... + v[i - 1]) + (v[rows - 1] + ... + v[i + 1]) * growth, both sums from 0 in the
     * order written; left <= rows. growth is what the weights of later parts gain when an earlier one is gone. */
    void (*left_out_sums)(const omega_codes *parts, const float *weights, float growth, size_t left, float *out);

    /* out[r] = ((0 + weights[0] * features[0][r]) + weights[1] * features[1][r]) + ...; features points at f rows of n,
     * wherever each lies. */
    void (*fuse)(const float *const *features, size_t f, size_t n, const float *weights, float *out);

    /* Best k rows by the same sum; returns how many were found. workspace as in search. */
    size_t (*fuse_top_k)(const float *const *features, size_t f, size_t n, const float *weights, const uint8_t *filter,
                         size_t k, uint64_t *workspace, uint32_t *rows_out, float *scores_out);

    /* Maximal marginal relevance (Carbonell and Goldstein, 1998) over m candidates: picks, k times, the candidate with
     * the highest trade_off * values[i] - (1 - trade_off) * nearest[i], ties to the lower i, where nearest[i] is the
     * greatest cosine of rows[i] to a picked row (as in search, the picked row being the query), 0 before the first
     * pick. Writes indices into rows, *found of them. workspace: m floats. */
    omega_fault (*diversify)(const omega_codes *table, const uint32_t *rows, const float *values, size_t m,
                             float trade_off, size_t k, float *workspace, uint32_t *order_out, size_t *found);

    /* out[l * m + i] = of_count[how many of the list's values are greater than values[l * m + i]], for each list of m
     * values; of_count has m numbers. NaN is greater than nothing, and nothing is greater than it. */
    void (*count_greater)(const float *values, size_t lists, size_t m, const float *of_count, float *out);

    /* out[i] = sum, from 0 and in the order of the trees, of the leaf that each tree leads candidate i to, whose inputs
     * are values[input * m + i]. A fault is found before anything is written. */
    omega_fault (*sum_trees)(const omega_forest *forest, const float *values, size_t m, float *out);

    /* The planes and the spread of n codes. */
    void (*halve)(const int8_t *codes, size_t n, size_t d, uint8_t *high_out, uint8_t *low_out, uint8_t *spread_out);

    /* The codes of m rows, one after another; rows[i] < table->rows. */
    void (*join)(const omega_halves *table, const uint32_t *rows, size_t m, int8_t *codes_out);

    /* Exactly what search returns for the joined codes. query_scale is not negative. */
    size_t (*search_halves)(const omega_halves *table, const int8_t *query, float query_scale, const uint8_t *filter,
                            size_t k, uint64_t *workspace, uint32_t *rows_out, float *scores_out);

    /* search_halves for q queries; the table is read once for every OMEGA_BATCH_QUERIES. Query j finds found_out[j] rows
     * and writes them at j * k. workspace: OMEGA_BATCH_WORDS(min(k, n)). */
    void (*search_batch)(const omega_halves *table, const int8_t *queries, const float *query_scale, size_t q,
                         const uint8_t *filter, size_t k, uint64_t *workspace, size_t *found_out, uint32_t *rows_out,
                         float *scores_out);

    /* Writes the bits of rows first .. first + n - 1; the bits of other rows stay. Only a byte's own half changes, by one
     * store: a reader of the other half is never disturbed. */
    void (*put_signs)(const int8_t *codes, size_t first, size_t n, size_t d, uint8_t *blocks);

    /* The best k by cosine among the best candidates by the signs, order as in search; returns how many were found.
     * First stage: with t(g, v) = sum over i < 4 of (bit i of v ? q : -q)[4g + i], m = max over g of
     * sum |q[4g + i]|, at least 1, and factor = floor(63 * 65536 / (2m)), a row's score is the sum over its groups of
     * ((t(g, v) + m) * factor) >> 16, each from 0 to 63, together below 2^14. Order: that score descending, then row
     * ascending; only allowed rows. workspace: OMEGA_TWO_STAGE_WORDS(min(candidates, n), min(k, n)). */
    size_t (*search_two_stage)(const omega_signs *signs, const omega_halves *table, const int8_t *query,
                               float query_scale, const uint8_t *filter, size_t candidates, size_t k,
                               uint64_t *workspace, uint32_t *rows_out, float *scores_out);

    /* The best k of m rows by the cosine to vectors kept as IEEE half floats, n * d of them, order as in search; returns
     * how many were found. Eight partial sums s[l] each of query[j] * x[j] and of x[j] * x[j], j = l, l + 8, ..., from
     * 0; total = ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7)); score = dot / sqrt(squares) * query_factor + 0,
     * query_factor = 1 / ||query||; a query whose squares sum up to no ordinary float is scaled by the caller. rows[i]
     * distinct and below the table's rows. workspace: m words. */
    size_t (*rescore)(const uint16_t *vectors, size_t d, const float *query, float query_factor, const uint32_t *rows,
                      size_t m, size_t k, uint64_t *workspace, uint32_t *rows_out, float *scores_out);

    /* Best k rows by ((similarity * cosine + success * success[r]) + recency * fresh(r)) + trend * trend[r] + 0, of
     * those that the filter allows and whose cosine is at least least_similarity; the cosine as in search_halves.
     * fresh(r) = 2^-age, age = (float)(now - time[r]) * per_half_life, 0 for a time after now; 0 for an age of 126 and
     * more. 2^-age = 2^-whole * p(age - whole), whole truncated, p by Horner's rule from the highest of the
     * OMEGA_EXP2 coefficients: within 4.3e-7. workspace as in search. */
    size_t (*rank)(const omega_halves *table, const int8_t *query, float query_scale, const omega_rank_columns *columns,
                   const omega_rank_weights *weights, const omega_rank_limits *limits, const uint8_t *filter, size_t k,
                   uint64_t *workspace, uint32_t *rows_out, float *scores_out);

    /* For each event of title rows[i]: x = input_scale * ((float)code * scale + success row), the key and the value of
     * rms(x, norm 0), OMEGA_SEQUENCE_EVENT floats. rms(x, g) = (x * (1 / sqrt(squares * (1 / 64) + 1e-6))) * g, squares
     * summed as in rescore. A product with a matrix is (sum of x[i] * (float)code[i][o], i ascending, from 0) * scale[o].
     * success[i]: 0, or anything else for success. Stops at the first fault. */
    omega_fault (*sequence_events)(const omega_sequence *model, const uint32_t *rows, const uint8_t *success,
                                   size_t count, float *out);

    /* What the encoder makes of `held` events, newest first, 1 to OMEGA_SEQUENCE_WINDOW + 1 of them as sequence_events
     * writes them: out[0 .. 64) of the first OMEGA_SEQUENCE_WINDOW, and out[64 (1 + i) ..] of those that are the first
     * without event i, for i < left <= min(held, OMEGA_SEQUENCE_WINDOW); zeros where no event is left.
     * The newest, event 0, asks: query of rms(x_0, norm 0); logit[p][h] = (sum over e, ascending, of
     * query[8e + h] * key_p[8e + h]) * (1 / sqrt(8)) + distance[p][h]. The softmax over p is taken event by event, from a
     * top of -FLT_MAX and sums of 0: top' = max(top, logit), keep = exp(top - top'), power = exp(logit - top'),
     * sum' = sum * keep + power, mixed' = mixed * keep + power * value; its mean is mixed * (1 / sum). Without event
     * i > 0 two of them are joined, one of the events before i, ascending, and one of those after it, descending, each
     * one place nearer: under the greater top, (mixed * keep + mixed * keep) * (1 / (sum * keep + sum * keep)), the
     * newer ones' first. Then z = mean product + x_0 and f = relu(product of rms(z, norm 1) + bias), and
     * rms(z + (product of f + bias), norm 2). exp(x) is 0 below OMEGA_EXP_LEAST; else 2^n * p(r), n = x * log2(e)
     * rounded to even, r = (x - n * 0x1.62e4p-1) - n * 0x1.7f7d1cp-20, p by Horner's rule from the highest of the
     * OMEGA_EXP coefficients: within 1.2e-7 of e^x, and 1 at 0. */
    void (*sequence_states)(const omega_sequence *model, const float *events, size_t held, size_t left,
                            omega_sequence_workspace *workspace, float *out);
} omega_kernels;

/* e^r for |r| <= ln(2) / 2, fitted to the least greatest relative error (1.8e-8 before rounding), the constant set to 1;
 * and the x below which e^x counts as 0, which is still an ordinary number. */
#define OMEGA_EXP \
    {1.0f, 1.0f, 0x1.fffffcp-2f, 0x1.55541ap-3f, 0x1.555822p-5f, 0x1.126782p-7f, 0x1.6ae73p-10f}
#define OMEGA_EXP_LEAST -87.0f

/* 2^-x on [0, 1), fitted to the least greatest relative error (7.5e-8 before rounding), the constant set to 1. */
#define OMEGA_EXP2 \
    {1.0f, -0x1.62e38ap-1f, 0x1.ebdf66p-3f, -0x1.c4d9fap-5f, 0x1.2d17a8p-7f, -0x1.ec32p-11f}

/* The tables of this build. A file of another architecture defines none. */
extern const omega_kernels omega_kernels_scalar;
#if defined(__x86_64__)
extern const omega_kernels omega_kernels_avx2;
extern const omega_kernels omega_kernels_avx512;
#elif defined(__aarch64__)
extern const omega_kernels omega_kernels_neon;    /* every processor */
extern const omega_kernels omega_kernels_neondot; /* those with the dot product */
#elif defined(__arm__) && defined(__ARM_FP) && __ARM_ARCH >= 7 && (defined(__ARM_NEON) || !defined(__clang__))
#define OMEGA_NEON32 1 /* clang needs -mfpu=neon for it; gcc takes it for one file */
extern const omega_kernels omega_kernels_neon32;
#endif

/* Instruction sets that this processor runs, best first; NULL past the last one. */
const omega_kernels *omega_kernels_at(size_t index);

#endif
