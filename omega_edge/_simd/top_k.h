/* The k best of a stream of (score, row), shared by every instruction set's file.
 *
 * A candidate is one 64-bit key, score above row, such that the greater key is the better candidate under the tie rule
 * of kernels.h; keys are distinct because rows are. Candidates above the threshold are appended to a buffer of a little
 * over 4k keys; when it is full, a selection keeps the best k and raises the threshold to the k-th score. Rows come in
 * ascending order, so a later row with a score equal to the threshold always loses: the comparison is strict.
 * An append is one store; a heap of k would cost log k dependent, badly predicted steps.
 */
#ifndef OMEGA_EDGE_TOP_K_H
#define OMEGA_EDGE_TOP_K_H

#include <math.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "kernels.h"

#define TOP_K_COUNTED 96
#define TOP_K_ASIDE 1024

typedef struct {
    uint64_t *keys;
    size_t count;
    size_t capacity;
    size_t k;
    float threshold;
} top_k;

static inline uint64_t top_k_key(float score, uint32_t row)
{
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    /* Orders floats as unsigned integers: negative ones reversed, positive ones above them. */
    bits ^= (bits >> 31) ? UINT32_MAX : (uint32_t)1 << 31;
    return (uint64_t)bits << 32 | (UINT32_MAX - row);
}

static inline float top_k_score(uint64_t key)
{
    uint32_t bits = (uint32_t)(key >> 32);
    float score;
    bits ^= (bits >> 31) ? (uint32_t)1 << 31 : UINT32_MAX;
    memcpy(&score, &bits, sizeof score);
    return score;
}

static inline uint32_t top_k_row(uint64_t key)
{
    return UINT32_MAX - (uint32_t)key;
}

/* k is min(k, rows); workspace holds OMEGA_TOP_K_WORDS(k) keys. */
static inline top_k top_k_begin(size_t k, uint64_t *workspace)
{
    return (top_k){workspace, 0, OMEGA_TOP_K_WORDS(k), k, -INFINITY};
}

static inline void top_k_sift_down(uint64_t *keys, size_t root, size_t count)
{
    const uint64_t key = keys[root];
    for (size_t child = 2 * root + 1; child < count; child = 2 * root + 1) {
        child += child + 1 < count && keys[child + 1] < keys[child];
        if (keys[child] >= key)
            break;
        keys[root] = keys[child];
        root = child;
    }
    keys[root] = key;
}

/* Sorts descending: keys are distinct, so that a key's place is the number of greater ones, which wide registers count
 * fastest; an insertion where there are none; a heap above. No input makes it quadratic. */
static inline void top_k_sort(uint64_t *keys, size_t count)
{
#if defined(__AVX512F__)
    if (count <= TOP_K_COUNTED) {
        uint64_t unsorted[TOP_K_COUNTED];
        memcpy(unsorted, keys, count * sizeof keys[0]);
        for (size_t i = 0; i < count; i += 8) {
            const __mmask8 inside = (__mmask8)(count - i < 8 ? (1u << (count - i)) - 1 : 255);
            const __m512i eight = _mm512_maskz_loadu_epi64(inside, unsorted + i);
            __m512i place = _mm512_setzero_si512();
            for (size_t j = 0; j < count; j++) {
                const __m512i other = _mm512_set1_epi64((long long)unsorted[j]);
                place = _mm512_mask_add_epi64(place, _mm512_cmpgt_epu64_mask(other, eight), place,
                                              _mm512_set1_epi64(1));
            }
            _mm512_mask_i64scatter_epi64(keys, inside, place, eight, 8);
        }
        return;
    }
#elif defined(__AVX2__)
    if (count <= TOP_K_COUNTED) {
        uint64_t unsorted[TOP_K_COUNTED];
        memcpy(unsorted, keys, count * sizeof keys[0]);
        for (size_t i = 0; i < count; i++) {
            uint64_t place = 0;
            for (size_t j = 0; j < count; j++)
                place += unsorted[j] > unsorted[i];
            keys[place] = unsorted[i];
        }
        return;
    }
#endif
    if (count <= TOP_K_COUNTED) {
        for (size_t i = 1; i < count; i++) {
            const uint64_t key = keys[i];
            size_t j = i;
            for (; j > 0 && keys[j - 1] < key; j--)
                keys[j] = keys[j - 1];
            keys[j] = key;
        }
        return;
    }
    for (size_t root = count / 2; root-- > 0;)
        top_k_sift_down(keys, root, count);
    for (size_t last = count - 1; last > 0; last--) {
        const uint64_t least = keys[0];
        keys[0] = keys[last];
        keys[last] = least;
        top_k_sift_down(keys, 0, last);
    }
}

static inline uint64_t top_k_median(uint64_t a, uint64_t b, uint64_t c)
{
    const uint64_t low = a < b ? a : b, high = a < b ? b : a;
    return c < low ? low : c > high ? high : c;
}

/* Moves the keys above the pivot to the front and returns their number. */
static inline size_t top_k_partition(uint64_t *keys, size_t count, uint64_t pivot)
{
    size_t above = 0;
#if defined(__AVX512F__) && defined(__AVX512VL__)
    if (count <= TOP_K_ASIDE) {
        uint64_t aside[TOP_K_ASIDE + 8];
        size_t others = 0;
        for (size_t i = 0; i < count; i += 8) {
            const __mmask8 inside = (__mmask8)(count - i < 8 ? (1u << (count - i)) - 1 : 255);
            const __m512i eight = _mm512_maskz_loadu_epi64(inside, keys + i);
            const __mmask8 greater =
                _mm512_mask_cmpgt_epu64_mask(inside, eight, _mm512_set1_epi64((long long)pivot));
            const __mmask8 other = inside & (__mmask8)~greater;
            /* What is written past the keys kept has been read, and lies inside the array. */
            _mm512_mask_storeu_epi64(keys + above, inside, _mm512_maskz_compress_epi64(greater, eight));
            _mm512_storeu_si512(aside + others, _mm512_maskz_compress_epi64(other, eight));
            above += (size_t)__builtin_popcount(greater);
            others += (size_t)__builtin_popcount(other);
        }
        memcpy(keys + above, aside, others * sizeof keys[0]);
        return above;
    }
#endif
    for (size_t i = 0; i < count; i++) { /* no branch: scores are in no order that a predictor could learn */
        const uint64_t key = keys[i];
        keys[i] = keys[above];
        keys[above] = key;
        above += key > pivot;
    }
    return above;
}

/* Moves the largest k of count keys to the front; leaves the k-th largest at keys[k - 1]. 0 < k < count. */
static inline void top_k_select(uint64_t *keys, size_t count, size_t k)
{
    size_t first = 0, last = count; /* the k-th largest lies in [first, last) */
    for (int rounds = 0; last - first > 1; rounds++) {
        if (rounds == 64) { /* pivots kept failing: a bad order, not bad luck; bound the time */
            top_k_sort(keys + first, last - first);
            return;
        }
        const uint64_t pivot = top_k_median(keys[first], keys[first + (last - first) / 2], keys[last - 1]);
        const size_t above = first + top_k_partition(keys + first, last - first, pivot);
        if (k <= above) {
            last = above;
            continue;
        }
        /* The pivot itself comes next: it was met once, and everything before it is greater. */
        for (size_t i = above; i < last; i++) {
            if (keys[i] == pivot) {
                keys[i] = keys[above];
                keys[above] = pivot;
                break;
            }
        }
        if (k == above + 1)
            return;
        first = above + 1;
    }
}

/* The caller has compared score with list->threshold. */
static inline void top_k_append(top_k *list, float score, uint32_t row)
{
    list->keys[list->count++] = top_k_key(score, row);
    if (list->count == list->capacity) {
        top_k_select(list->keys, list->count, list->k);
        list->count = list->k;
        list->threshold = top_k_score(list->keys[list->k - 1]);
    }
}

static inline size_t top_k_finish(top_k *list, uint32_t *rows_out, float *scores_out)
{
    if (list->count > list->k) {
        top_k_select(list->keys, list->count, list->k);
        list->count = list->k;
    }
    top_k_sort(list->keys, list->count);
    for (size_t i = 0; i < list->count; i++) {
        rows_out[i] = top_k_row(list->keys[i]);
        scores_out[i] = top_k_score(list->keys[i]);
    }
    return list->count;
}

#endif
